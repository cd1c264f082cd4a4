// The products with ARM's matrix instructions for int8 and bfloat16 (Neoverse V1 and N2, Cortex-A510 and X2, Apple M2).
// Flags: -march=armv8.2-a+dotprod+i8mm+bf16

#if defined(__aarch64__)

#include "matmul_arm.h"

namespace oct {
extern constexpr Kernels kI8mm = kernels<Arm>("i8mm");
}

#endif
