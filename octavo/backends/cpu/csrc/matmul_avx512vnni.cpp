// The products with AVX-512: F, BW, VL, DQ and VNNI, without BF16 (Cascade Lake, Ice Lake, Tiger Lake, Rocket Lake).
// Flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c

#if defined(__x86_64__)

#include "matmul_avx512.h"

namespace oct {
extern constexpr Kernels kAvx512Vnni = kernels<Avx512Vnni>("avx512vnni");
}

#endif
