// What the products with AVX2, FMA and F16C do with vectors: half a panel (8 rows) in each pass.
#pragma once

#include "matmul_tiles.h"

#include <immintrin.h>

namespace {

struct Avx2 {
    static constexpr int kLanes = 8, kRows = 4, kAhead = 1024;
    static constexpr bool kSignedWide = true;
    using F = __m256;
    using I = __m256i;
    using C = __m256i;

    static OCT_INLINE inline F zero() { return _mm256_setzero_ps(); }
    static OCT_INLINE inline F splat(float x) { return _mm256_set1_ps(x); }
    static OCT_INLINE inline I splat(int32_t x) { return _mm256_set1_epi32(x); }
    static OCT_INLINE inline F floats(const uint8_t *p) { return _mm256_loadu_ps((const float *)p); }
    static OCT_INLINE inline F halves(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
    static OCT_INLINE inline I widened(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
    static OCT_INLINE inline F uint8s(const uint8_t *p) { return _mm256_cvtepi32_ps(widened(p)); }
    static OCT_INLINE inline F int8s(const uint8_t *p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
    }
    static OCT_INLINE inline F low_halves(const uint8_t *p) {
        return _mm256_cvtepi32_ps(_mm256_and_si256(widened(p), _mm256_set1_epi32(15)));
    }
    static OCT_INLINE inline F high_halves(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_srli_epi32(widened(p), 4)); }
    static OCT_INLINE inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
    static OCT_INLINE inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static OCT_INLINE inline F negate(F a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
    static OCT_INLINE inline F to_float(I a) { return _mm256_cvtepi32_ps(a); }

    static OCT_INLINE inline C codes(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
    static OCT_INLINE inline C add(C a, C b) { return _mm256_add_epi8(a, b); }
    static OCT_INLINE inline C mask(C a, int bits) { return _mm256_and_si256(a, _mm256_set1_epi8((char)bits)); }
    static OCT_INLINE inline C merge(C base, C a, int bits) { return _mm256_or_si256(base, mask(a, bits)); }
    // To the right, or to the left if negative; bits that cross from the neighbouring byte are masked by the caller.
    template <int count> static OCT_INLINE inline C shift(C a) {
        if constexpr (count > 0) return _mm256_srli_epi16(a, count);
        if constexpr (count < 0) return _mm256_slli_epi16(a, -count);
        return a;
    }
    // Words to the right.
    static OCT_INLINE inline C shifted(C a, int count) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(count)); }
    static OCT_INLINE inline I byte(C a, int at) { return _mm256_and_si256(shifted(a, 8 * at), splat(255)); }
    // 16 bytes at `from`, for bytes of a vector that are 0 .. 15.
    static OCT_INLINE inline C table(const uint8_t *from) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)from));
    }
    static OCT_INLINE inline C lookup(C table, C a) { return _mm256_shuffle_epi8(table, a); }
    static OCT_INLINE inline C levels(C a) { return lookup(table(kLevels128), a); }
    // The first 8, or the last, of each 16 bytes of both in turns.
    static OCT_INLINE inline C zip_low(C a, C b) { return _mm256_unpacklo_epi8(a, b); }
    static OCT_INLINE inline C zip_high(C a, C b) { return _mm256_unpackhi_epi8(a, b); }

    // Pairs are summed in 16 bits: codes below 64 leave room, wide ones (as code - 128) lend their sign to the activations.
    template <bool wide> static OCT_INLINE inline I dot(I sum, C codes, const uint8_t *quad) {
        __m256i a = splat(int_at(quad));
        if constexpr (wide) {
            codes = _mm256_xor_si256(codes, _mm256_set1_epi8((char)128));
            a = _mm256_sign_epi8(a, codes);
            codes = _mm256_abs_epi8(codes);
        }
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, a), _mm256_set1_epi16(1)));
    }
    static OCT_INLINE inline F dot_bf16(F sum, C pairs, const uint8_t *pair) {
        const __m256i x = splat(int_at(pair)), odd = _mm256_set1_epi32((int)0xffff0000);
        const auto high = [&](__m256i v) { return _mm256_castsi256_ps(_mm256_and_si256(v, odd)); };
        const auto low = [&](__m256i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); };
        return fma(low(pairs), low(x), fma(high(pairs), high(x), sum));
    }

    static OCT_INLINE inline void store(float *y, F value, const float *bias, int lo, int hi) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i lanes = _mm256_and_si256(_mm256_cmpgt_epi32(lane, splat(lo - 1)), _mm256_cmpgt_epi32(splat(hi), lane));
        if (bias) value = _mm256_add_ps(value, _mm256_maskload_ps(bias, lanes));
        _mm256_maskstore_ps(y, lanes, value);
    }

    static void pairs(const float *x, uint32_t *out) { pairs_portable(x, kUnits, out); }
    static void range(const float *x, float &low, float &high) { range_portable(x, low, high); }
    static uint32_t beyond(const float *x, float bound) { return beyond_portable(x, bound); }
    static void range_without(const float *x, uint32_t out, float &low, float &high) {
        range_without_portable(x, out, low, high);
    }
    static void round(const float *x, float centre, float inverse, int8_t *codes, int32_t (&sums)[2]) {
        round_portable(x, centre, inverse, codes, sums);
    }
};

} // namespace
