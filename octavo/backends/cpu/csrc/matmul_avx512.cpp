// The products with AVX-512: F, BW, VL, DQ, VNNI and BF16 (Zen 4, Sapphire Rapids and later).
// Flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mfma -mf16c

#if defined(__x86_64__)

#include "matmul_avx512.h"

namespace {

struct Avx512 : Avx512Vnni {
    static OCT_INLINE inline F dot_bf16(F sum, C pairs, const uint8_t *pair) {
        return _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)splat(int_at(pair)));
    }

    static OCT_INLINE inline void pairs(const float *x, uint32_t *out) {
        _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x)));
    }
};

} // namespace

namespace oct {
extern constexpr Kernels kAvx512 = kernels<Avx512>("avx512");
}

#endif
