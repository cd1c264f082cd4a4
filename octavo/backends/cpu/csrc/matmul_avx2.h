// What the products with AVX2, FMA and F16C do with vectors: two for a panel (16 rows), so that what is broadcast serves both.
#pragma once

#include "matmul_tiles.h"

#include <immintrin.h>

namespace {

struct Avx2Half {
    static constexpr int kLanes = 8;
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
    // The first 8, or the last, of each 16 bytes of both in turns.
    static OCT_INLINE inline C zip_low(C a, C b) { return _mm256_unpacklo_epi8(a, b); }
    static OCT_INLINE inline C zip_high(C a, C b) { return _mm256_unpackhi_epi8(a, b); }

    static OCT_INLINE inline I dot_pairs(C codes, const uint8_t *quad) {
        return _mm256_maddubs_epi16(codes, splat(int_at(quad)));
    }
    // Additions are written out because GCC 12 would balance them into trees, for which there are not registers enough.
    static OCT_INLINE inline I add_pairs(I a, I b) {
        asm("vpaddw %2, %1, %0" : "=x"(a) : "x"(a), "xm"(b));
        return a;
    }
    // sum + times * both of each pair
    template <int times> static OCT_INLINE inline I widen(I sum, I pairs) {
        pairs = _mm256_madd_epi16(pairs, _mm256_set1_epi16(times));
        asm("vpaddd %2, %1, %0" : "=x"(sum) : "x"(sum), "xm"(pairs));
        return sum;
    }
    static OCT_INLINE inline I dot(I sum, C codes, const uint8_t *ones) { return widen<1>(sum, dot_pairs(codes, ones)); }
    static OCT_INLINE inline F dot_bf16(F sum, C pairs, const uint8_t *pair) {
        const __m256i x = splat(int_at(pair)), odd = _mm256_set1_epi32((int)0xffff0000);
        const auto high = [&](__m256i v) { return _mm256_castsi256_ps(_mm256_and_si256(v, odd)); };
        const auto low = [&](__m256i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)); };
        return fma(low(pairs), low(x), fma(high(pairs), high(x), sum));
    }

    static OCT_INLINE inline void store(float *y, F value, const float *bias, int lo, int hi) {
        if (lo <= 0 && hi == kLanes) {  // a masked one takes as long as a dozen on some processors, and cannot be read at once
            if (bias) value = _mm256_add_ps(value, _mm256_loadu_ps(bias));
            return _mm256_storeu_ps(y, value);
        }
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i lanes = _mm256_and_si256(_mm256_cmpgt_epi32(lane, splat(lo - 1)), _mm256_cmpgt_epi32(splat(hi), lane));
        if (bias) value = _mm256_add_ps(value, _mm256_maskload_ps(bias, lanes));
        _mm256_maskstore_ps(y, lanes, value);
    }

    static void pairs(const float *x, uint32_t *out) { pairs_portable(x, kUnits, out); }
    static OCT_INLINE inline void range(const float *x, float &low, float &high) {
        const F a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8), c = _mm256_loadu_ps(x + 16), d = _mm256_loadu_ps(x + 24);
        // the least and, negated, the greatest, in four lanes each
        const F least = _mm256_min_ps(_mm256_min_ps(a, b), _mm256_min_ps(c, d));
        const F most = negate(_mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d)));
        F both = _mm256_min_ps(_mm256_permute2f128_ps(least, most, 0x20), _mm256_permute2f128_ps(least, most, 0x31));
        both = _mm256_min_ps(both, _mm256_permute_ps(both, 0x4e));
        both = _mm256_min_ps(both, _mm256_permute_ps(both, 0xb1));
        low = _mm256_cvtss_f32(both);
        high = -_mm_cvtss_f32(_mm256_extractf128_ps(both, 1));
    }
    static uint32_t beyond(const float *x, float bound) { return beyond_portable(x, bound); }
    static void range_without(const float *x, uint32_t out, float &low, float &high) {
        range_without_portable(x, out, low, high);
    }
    static OCT_INLINE inline void round(const float *x, float centre, float inverse, int8_t *codes, int32_t (&sums)[2]) {
        const auto eight = [&](const float *from) OCT_INLINE {
            return _mm256_cvtps_epi32(mul(_mm256_sub_ps(_mm256_loadu_ps(from), splat(centre)), splat(inverse)));
        };
        for (int half = 0; half < 2; half++) {
            const __m256i a = eight(x + half * 16), b = eight(x + half * 16 + 8);
            const __m256i shorts = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
            const __m128i bytes = _mm_max_epi8(
                _mm_packs_epi16(_mm256_castsi256_si128(shorts), _mm256_extracti128_si256(shorts, 1)), _mm_set1_epi8(-127));
            _mm_storeu_si128((__m128i *)(codes + half * 16), bytes);
            const __m128i sad = _mm_sad_epu8(_mm_xor_si128(bytes, _mm_set1_epi8((char)128)), _mm_setzero_si128());
            sums[half] = _mm_cvtsi128_si32(sad) + _mm_extract_epi32(sad, 2) - 16 * 128;
        }
    }
};

// Two of Half's vectors as one; activations are rounded by Half.
template <class Half> struct Twice : Half {
    static constexpr int kLanes = 2 * Half::kLanes, kRows = 4, kAhead = 1024, kUnpackTiles = 1;
    static constexpr bool kSignedWide = false, kPairs = true;
    struct F {
        typename Half::F low, high;
    };
    struct I {
        typename Half::I low, high;
    };
    struct C {
        typename Half::C low, high;
    };

    static OCT_INLINE inline F zero() { return {Half::zero(), Half::zero()}; }
    static OCT_INLINE inline F splat(float x) { return {Half::splat(x), Half::splat(x)}; }
    static OCT_INLINE inline I splat(int32_t x) { return {Half::splat(x), Half::splat(x)}; }
    static OCT_INLINE inline F floats(const uint8_t *p) { return {Half::floats(p), Half::floats(p + 4 * Half::kLanes)}; }
    static OCT_INLINE inline F halves(const uint8_t *p) { return {Half::halves(p), Half::halves(p + 2 * Half::kLanes)}; }
    static OCT_INLINE inline F uint8s(const uint8_t *p) { return {Half::uint8s(p), Half::uint8s(p + Half::kLanes)}; }
    static OCT_INLINE inline F int8s(const uint8_t *p) { return {Half::int8s(p), Half::int8s(p + Half::kLanes)}; }
    static OCT_INLINE inline F low_halves(const uint8_t *p) {
        return {Half::low_halves(p), Half::low_halves(p + Half::kLanes)};
    }
    static OCT_INLINE inline F high_halves(const uint8_t *p) {
        return {Half::high_halves(p), Half::high_halves(p + Half::kLanes)};
    }
    static OCT_INLINE inline F mul(F a, F b) { return {Half::mul(a.low, b.low), Half::mul(a.high, b.high)}; }
    static OCT_INLINE inline F fma(F a, F b, F c) {
        return {Half::fma(a.low, b.low, c.low), Half::fma(a.high, b.high, c.high)};
    }
    static OCT_INLINE inline F negate(F a) { return {Half::negate(a.low), Half::negate(a.high)}; }
    static OCT_INLINE inline F to_float(I a) { return {Half::to_float(a.low), Half::to_float(a.high)}; }

    static OCT_INLINE inline C codes(const uint8_t *p) { return {Half::codes(p), Half::codes(p + 4 * Half::kLanes)}; }
    static OCT_INLINE inline C add(C a, C b) { return {Half::add(a.low, b.low), Half::add(a.high, b.high)}; }
    static OCT_INLINE inline C mask(C a, int bits) { return {Half::mask(a.low, bits), Half::mask(a.high, bits)}; }
    static OCT_INLINE inline C merge(C base, C a, int bits) {
        return {Half::merge(base.low, a.low, bits), Half::merge(base.high, a.high, bits)};
    }
    template <int count> static OCT_INLINE inline C shift(C a) {
        return {Half::template shift<count>(a.low), Half::template shift<count>(a.high)};
    }
    static OCT_INLINE inline C shifted(C a, int count) { return {Half::shifted(a.low, count), Half::shifted(a.high, count)}; }
    static OCT_INLINE inline I byte(C a, int at) { return {Half::byte(a.low, at), Half::byte(a.high, at)}; }
    static OCT_INLINE inline C table(const uint8_t *from) { return {Half::table(from), Half::table(from)}; }
    static OCT_INLINE inline C lookup(C table, C a) {
        return {Half::lookup(table.low, a.low), Half::lookup(table.high, a.high)};
    }
    static OCT_INLINE inline C levels(C a) { return lookup(table(kLevels128), a); }
    static OCT_INLINE inline C zip_low(C a, C b) { return {Half::zip_low(a.low, b.low), Half::zip_low(a.high, b.high)}; }
    static OCT_INLINE inline C zip_high(C a, C b) { return {Half::zip_high(a.low, b.low), Half::zip_high(a.high, b.high)}; }

    static OCT_INLINE inline I dot_pairs(C codes, const uint8_t *quad) {
        return {Half::dot_pairs(codes.low, quad), Half::dot_pairs(codes.high, quad)};
    }
    static OCT_INLINE inline I add_pairs(I a, I b) {
        return {Half::add_pairs(a.low, b.low), Half::add_pairs(a.high, b.high)};
    }
    template <int times> static OCT_INLINE inline I widen(I sum, I pairs) {
        return {Half::template widen<times>(sum.low, pairs.low), Half::template widen<times>(sum.high, pairs.high)};
    }
    template <bool> static OCT_INLINE inline I dot(I sum, C codes, const uint8_t *quad) {
        return {Half::dot(sum.low, codes.low, quad), Half::dot(sum.high, codes.high, quad)};
    }
    static OCT_INLINE inline F dot_bf16(F sum, C pairs, const uint8_t *pair) {
        return {Half::dot_bf16(sum.low, pairs.low, pair), Half::dot_bf16(sum.high, pairs.high, pair)};
    }
    static OCT_INLINE inline void store(float *y, F value, const float *bias, int lo, int hi) {
        Half::store(y, value.low, bias, lo, hi < Half::kLanes ? hi : Half::kLanes);
        Half::store(y + Half::kLanes, value.high, bias ? bias + Half::kLanes : bias, lo - Half::kLanes, hi - Half::kLanes);
    }
};

using Avx2 = Twice<Avx2Half>;

} // namespace
