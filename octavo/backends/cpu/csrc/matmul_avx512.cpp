// The products with AVX-512: F, BW, VL, DQ, VNNI and BF16 (Zen 4, Sapphire Rapids and later).
// Flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mfma -mf16c

#if defined(__x86_64__)

#include "matmul_tiles.h"

#include <immintrin.h>

namespace {

struct Avx512 {
    static constexpr int kLanes = 16, kRows = 16, kAhead = 2048;
    static constexpr bool kSignedWide = false;
    using F = __m512;
    using I = __m512i;
    using C = __m512i;

    static OCT_INLINE inline F zero() { return _mm512_setzero_ps(); }
    static OCT_INLINE inline F splat(float x) { return _mm512_set1_ps(x); }
    static OCT_INLINE inline I splat(int32_t x) { return _mm512_set1_epi32(x); }
    static OCT_INLINE inline F floats(const uint8_t *p) { return _mm512_loadu_ps(p); }
    static OCT_INLINE inline F halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
    static OCT_INLINE inline I widened(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
    static OCT_INLINE inline F uint8s(const uint8_t *p) { return _mm512_cvtepi32_ps(widened(p)); }
    static OCT_INLINE inline F int8s(const uint8_t *p) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
    }
    static OCT_INLINE inline F low_halves(const uint8_t *p) {
        return _mm512_cvtepi32_ps(_mm512_and_si512(widened(p), _mm512_set1_epi32(15)));
    }
    static OCT_INLINE inline F high_halves(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_srli_epi32(widened(p), 4)); }
    static OCT_INLINE inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static OCT_INLINE inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static OCT_INLINE inline F negate(F a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
    static OCT_INLINE inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }

    static OCT_INLINE inline C codes(const uint8_t *p) { return _mm512_loadu_si512(p); }
    static OCT_INLINE inline C mask(C a, int bits) { return _mm512_and_si512(a, _mm512_set1_epi8((char)bits)); }
    // base | (a & bits)
    static OCT_INLINE inline C merge(C base, C a, int bits) {
        return _mm512_ternarylogic_epi32(base, a, _mm512_set1_epi8((char)bits), 0xf8);
    }
    // To the right, or to the left if negative; bits that cross from the neighbouring byte are masked by the caller.
    template <int count> static OCT_INLINE inline C shift(C a) {
        if constexpr (count > 0) return _mm512_srli_epi16(a, count);
        if constexpr (count < 0) return _mm512_slli_epi16(a, -count);
        return a;
    }
    static OCT_INLINE inline C levels(C a) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)kLevels128)), a);
    }

    template <bool> static OCT_INLINE inline I dot(I sum, C unsigned_codes, const uint8_t *quad) {
        // Written out because GCC 12 does not fold the broadcast into the instruction.
        struct Quad {
            int8_t code[4];
        };
        asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(unsigned_codes), "m"(*(const Quad *)quad));
        return sum;
    }
    static OCT_INLINE inline F dot_bf16(F sum, C pairs, const uint8_t *pair) {
        return _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)splat(int_at(pair)));
    }

    static OCT_INLINE inline void store(float *y, F value, const float *bias, int lo, int hi) {
        const __mmask16 lanes = (__mmask16)((0xffffu >> (16 - hi)) & (0xffffu << lo));
        if (bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, bias));
        _mm512_mask_storeu_ps(y, lanes, value);
    }

    static OCT_INLINE inline void quantize_group(const float *x, int8_t *codes, float &scale, int32_t (&sums)[2]) {
        const __m512i positive = _mm512_set1_epi32(0x7fffffff);
        const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
        const __m512i a = _mm512_and_si512(_mm512_castps_si512(low), positive);
        const __m512i b = _mm512_and_si512(_mm512_castps_si512(high), positive);
        const int32_t greatest = _mm512_reduce_max_epi32(_mm512_max_epi32(a, b));
        float amax;
        memcpy(&amax, &greatest, 4);
        const float inverse = inverse_scale(amax, scale);
        const __mmask16 any = inverse != 0.0f ? 0xffff : 0;
        const __m512 factor = _mm512_set1_ps(inverse);
        const __m512i first = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(low, factor));
        const __m512i second = _mm512_maskz_cvtps_epi32(any, _mm512_mul_ps(high, factor));
        _mm_storeu_si128((__m128i *)codes, _mm512_cvtepi32_epi8(first));
        _mm_storeu_si128((__m128i *)(codes + 16), _mm512_cvtepi32_epi8(second));
        sums[0] = _mm512_reduce_add_epi32(first);
        sums[1] = _mm512_reduce_add_epi32(second);
    }
};

} // namespace

namespace oct {
extern constexpr Kernels kAvx512 = kernels<Avx512>("avx512");
}

#endif
