// The operations with vectors of 4 floats: any processor, and all of ARM, whose vectors these are.
#define OCT_WIDTH 4
#include "matmul.h"
#include "program.h"
#include "vec.h"
// in this order: the second uses the first
#include "ops_rows.inl"
#include "ops_attention.inl"

namespace octa {

const Ops kOpsPortable = {"portable", rows, attend, merge, scan};

}  // namespace octa
