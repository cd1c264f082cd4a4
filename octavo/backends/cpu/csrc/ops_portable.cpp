// The operations with vectors of 4 floats: any processor, and all of ARM, whose vectors these are.
#define OCT_WIDTH 4
#include <algorithm>

#include "matmul.h"
#include "program.h"
#include "vec.h"
// in this order: the others use the first
#include "ops_rows.inl"
#include "ops_attention.inl"
#include "ops_spans.inl"
#include "ops_sampling.inl"

namespace octa {

const Ops kOpsPortable = {"portable", rows, attend, attend_span, merge, scan, combine, finish, draw};

}  // namespace octa
