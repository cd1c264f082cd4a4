// The products with ARM's 8-bit dot products (most cores since 2018: Cortex-A76, Neoverse N1, Apple M1).
// Flags: -march=armv8.2-a+dotprod

#if defined(__aarch64__)

#include "matmul_arm.h"

namespace oct {
extern constexpr Kernels kNeon = kernels<Arm>("neon");
}

#endif
