// What the products with AVX-512 do with vectors: F, BW, VL, DQ and VNNI, a panel (16 rows) in each pass.
#pragma once

#include "matmul_tiles.h"

#include <immintrin.h>

namespace {

struct Avx512Vnni {
    static constexpr int kLanes = 16, kRows = 16, kAhead = 2048, kUnpackTiles = 5;
    static constexpr bool kSignedWide = false, kPairs = false;
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
    static OCT_INLINE inline C add(C a, C b) { return _mm512_add_epi8(a, b); }
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
    // Words to the right.
    static OCT_INLINE inline C shifted(C a, int count) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(count)); }
    static OCT_INLINE inline I byte(C a, int at) { return _mm512_and_si512(shifted(a, 8 * at), splat(255)); }
    // 16 bytes at `from`, for bytes of a vector that are 0 .. 15.
    static OCT_INLINE inline C table(const uint8_t *from) {
        return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)from));
    }
    static OCT_INLINE inline C lookup(C table, C a) { return _mm512_shuffle_epi8(table, a); }
    static OCT_INLINE inline C levels(C a) { return lookup(table(kLevels128), a); }
    // The first 8, or the last, of each 16 bytes of both in turns.
    static OCT_INLINE inline C zip_low(C a, C b) { return _mm512_unpacklo_epi8(a, b); }
    static OCT_INLINE inline C zip_high(C a, C b) { return _mm512_unpackhi_epi8(a, b); }

    template <bool> static OCT_INLINE inline I dot(I sum, C unsigned_codes, const uint8_t *quad) {
        // Written out because GCC 12 does not fold the broadcast into the instruction.
        struct Quad {
            int8_t code[4];
        };
        asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(unsigned_codes), "m"(*(const Quad *)quad));
        return sum;
    }
    static OCT_INLINE inline F dot_bf16(F sum, C pairs, const uint8_t *pair) {
        const __m512i x = splat(int_at(pair)), odd = _mm512_set1_epi32((int)0xffff0000);
        const auto high = [&](__m512i v) OCT_INLINE { return _mm512_castsi512_ps(_mm512_and_si512(v, odd)); };
        const auto low = [](__m512i v) OCT_INLINE { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); };
        return fma(low(pairs), low(x), fma(high(pairs), high(x), sum));
    }

    static OCT_INLINE inline void store(float *y, F value, const float *bias, int lo, int hi) {
        const __mmask16 lanes = (__mmask16)((0xffffu >> (16 - hi)) & (0xffffu << lo));
        if (bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, bias));
        if (lanes == 0xffff)
            _mm512_storeu_ps(y, value);  // can be read at once, which one with a mask cannot
        else
            _mm512_mask_storeu_ps(y, lanes, value);
    }

    static void pairs(const float *x, uint32_t *out) { pairs_portable(x, kUnits, out); }
    static OCT_INLINE inline void range(const float *x, float &low, float &high) {
        const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
        low = _mm512_reduce_min_ps(_mm512_min_ps(a, b));
        high = _mm512_reduce_max_ps(_mm512_max_ps(a, b));
    }
    // The ranges of 8 groups: least (negated) and greatest elements are made fewer side by side, until one vector has them all.
    static OCT_INLINE inline void range8(const float *x, float *low, float *high) {
        const auto group = [&](int i) OCT_INLINE {  // 8 lanes of the least, 8 of the greatest
            const __m512 a = _mm512_loadu_ps(x + i * 32), b = _mm512_loadu_ps(x + i * 32 + 16);
            const __m512 least = negate(_mm512_min_ps(a, b)), most = _mm512_max_ps(a, b);
            return _mm512_max_ps(_mm512_shuffle_f32x4(least, most, 0x44), _mm512_shuffle_f32x4(least, most, 0xee));
        };
        // lanes of 4 pair up: a's and b's
        const auto fours = [&](int i) OCT_INLINE {
            const __m512 a = group(i), b = group(i + 1);
            return _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
        };
        const auto twos = [&](int i) OCT_INLINE {
            const __m512 a = fours(i), b = fours(i + 2);
            return _mm512_max_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
        };
        const __m512 a = twos(0), b = twos(4);
        const __m512 both = _mm512_max_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
        // four lanes each: least of the even groups, greatest of them, then those of the odd groups
        const auto store = [](float *to, __m128 even, __m128 odd) OCT_INLINE {
            _mm_storeu_ps(to, _mm_unpacklo_ps(even, odd));
            _mm_storeu_ps(to + 4, _mm_unpackhi_ps(even, odd));
        };
        const __m512 least = negate(both);
        store(low, _mm512_castps512_ps128(least), _mm512_extractf32x4_ps(least, 2));
        store(high, _mm512_extractf32x4_ps(both, 1), _mm512_extractf32x4_ps(both, 3));
    }
    static OCT_INLINE inline uint32_t beyond(const float *x, float bound) {
        const auto half = [&](int i) OCT_INLINE {
            return _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_loadu_ps(x + i)), _mm512_set1_ps(bound), _CMP_GT_OQ);
        };
        return half(0) | (uint32_t)half(16) << 16;
    }
    static OCT_INLINE inline void range_without(const float *x, uint32_t out, float &low, float &high) {
        const __m512 most = _mm512_set1_ps(__builtin_inff()), least = _mm512_set1_ps(-__builtin_inff());
        const __mmask16 a = (__mmask16)~out, b = (__mmask16)(~out >> 16);
        low = _mm512_reduce_min_ps(_mm512_min_ps(_mm512_mask_loadu_ps(most, a, x), _mm512_mask_loadu_ps(most, b, x + 16)));
        high = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_mask_loadu_ps(least, a, x), _mm512_mask_loadu_ps(least, b, x + 16)));
    }
    static OCT_INLINE inline void round(const float *x, float centre, float inverse, int8_t *codes, int32_t (&sums)[2]) {
        for (int half = 0; half < 2; half++) {
            const __m512 shifted = _mm512_sub_ps(_mm512_loadu_ps(x + half * 16), _mm512_set1_ps(centre));
            const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(shifted, _mm512_set1_ps(inverse)));
            const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_max_epi32(code, _mm512_set1_epi32(-127)));
            _mm_storeu_si128((__m128i *)(codes + half * 16), bytes);
            const __m128i sad = _mm_sad_epu8(_mm_xor_si128(bytes, _mm_set1_epi8((char)128)), _mm_setzero_si128());
            sums[half] = _mm_cvtsi128_si32(sad) + _mm_extract_epi32(sad, 2) - 16 * 128;
        }
    }
};

} // namespace
