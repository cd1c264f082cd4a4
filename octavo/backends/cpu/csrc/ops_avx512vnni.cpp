// The operations with vectors of 16 floats, for avx512vnni, which has no instruction for bfloat16; build.py gives this file its flags.
#if defined(__x86_64__)
#define OCT_WIDTH 16
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

const Ops kOpsAvx512Vnni = {"avx512vnni", rows, attend, attend_span, merge, scan, combine, finish, draw};

}  // namespace octa
#endif
