// The products with AVX2, FMA and F16C.
// Flags: -mavx2 -mfma -mf16c

#if defined(__x86_64__)

#include "matmul_avx2.h"

namespace oct {
extern constexpr Kernels kAvx2 = kernels<Avx2>("avx2");
}

#endif
