// Vectors of OCT_WIDTH floats by the compiler's extensions, and the functions that NumPy would give: exp, tanh.
// Included once by each ops_*.cpp; everything is local to that file, so that no two instruction sets share code.
#pragma once

#include <cstdint>
#if OCT_WIDTH > 4
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

constexpr int64_t W = OCT_WIDTH;

typedef float vf __attribute__((vector_size(OCT_WIDTH * 4)));
typedef int32_t vi __attribute__((vector_size(OCT_WIDTH * 4)));

// less 0, which the compiler drops: plus 0 it would have to compute, for -0
inline vf all(float x) { return x - vf{}; }

inline vf load(const float* p) {
    vf v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }

inline vi bits_of(vf v) {
    vi bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    return bits;
}

inline vf from_bits(vi bits) {
    vf v;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
}

// bfloat16, the upper half of a float, and int8: as floats. Left to itself, GCC 12 takes these lane by lane.
#if OCT_WIDTH == 16
inline vf load(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return reinterpret_cast<vf>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline vf load(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
#elif OCT_WIDTH == 8
inline vf load(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<vf>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline vf load(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
#else
inline vf load(const uint16_t* p) {
    typedef uint16_t half __attribute__((vector_size(OCT_WIDTH * 2)));
    half h;
    __builtin_memcpy(&h, p, sizeof h);
    return from_bits(__builtin_convertvector(h, vi) << 16);
}
#if defined(__aarch64__) && !defined(__clang__)
inline vf load(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return reinterpret_cast<vf>(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))));
}
#else
inline vf load(const int8_t* p) {
    typedef int8_t bytes __attribute__((vector_size(OCT_WIDTH)));
    typedef int16_t half __attribute__((vector_size(OCT_WIDTH * 2)));
    bytes b;
    __builtin_memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(b, half), vi), vf);
}
#endif
#endif

// Rounded to bfloat16, to nearest even, in the lower half of each lane; a NaN stays one.
inline vi bfloat16_of(vf v) {
    const vi bits = bits_of(v);
    return v == v ? (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 : vi{} + 0x7FC0;
}

// The same, W halves at p. Numbers too small for a normal float may become 0.
#if defined(__AVX512BF16__)
inline void store(uint16_t* p, vf v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
#else
inline void store(uint16_t* p, vf v) {
    typedef uint16_t halves __attribute__((vector_size(OCT_WIDTH * 2)));
    const halves made = __builtin_convertvector(bfloat16_of(v), halves);
    __builtin_memcpy(p, &made, sizeof made);
}
#endif

// Lanes of two bfloat16, the first in the lower half: sum + both products.
#if defined(__AVX512BF16__)
inline vf dot_pairs(vf sum, vi a, vi b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
#else
inline vf dot_pairs(vf sum, vi a, vi b) {
    const vi upper = vi{} + static_cast<int32_t>(0xFFFF0000);
    return sum + from_bits(a & upper) * from_bits(b & upper) + from_bits(a << 16) * from_bits(b << 16);
}
#endif

inline vi load_pairs(const uint16_t* p) {
    vi v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

// The pair at p in every lane.
inline vi all_pairs(const uint16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, 4);
    return vi{} + pair;
}

// the first n lanes, 0 in the others
inline vf load_part(const float* p, int64_t n) {
    vf v{};
    __builtin_memcpy(&v, p, static_cast<size_t>(n) * 4);
    return v;
}

inline void store_part(float* p, vf v, int64_t n) { __builtin_memcpy(p, &v, static_cast<size_t>(n) * 4); }

// Whether any lane is above `bound`; one that is not a number is not.
inline bool any_above(vf v, float bound) {
#if OCT_WIDTH == 16
    return _mm512_cmp_ps_mask(v, all(bound), _CMP_GT_OQ) != 0;
#elif OCT_WIDTH == 8
    return _mm256_movemask_ps(_mm256_cmp_ps(v, all(bound), _CMP_GT_OQ)) != 0;
#else
    const vi above = v > all(bound), none{};
    return __builtin_memcmp(&above, &none, sizeof none) != 0;
#endif
}

inline vf vmax(vf a, vf b) { return a > b ? a : b; }

inline vi lanes() {
    vi v;
    for (int i = 0; i < W; i++) v[i] = i;
    return v;
}

template <int N>
struct Halves {
    typedef float type __attribute__((vector_size(N * 4)));
    typedef float half __attribute__((vector_size(N * 2)));
    struct Two {
        half low, high;
    };
    static float sum(type v) {
        const Two two = __builtin_bit_cast(Two, v);
        return Halves<N / 2>::sum(two.low + two.high);
    }
    static float max(type v) {
        const Two two = __builtin_bit_cast(Two, v);
        return Halves<N / 2>::max(two.low > two.high ? two.low : two.high);
    }
};

template <>
struct Halves<2> {
    typedef float type __attribute__((vector_size(8)));
    static float sum(type v) { return v[0] + v[1]; }
    static float max(type v) { return v[0] > v[1] ? v[0] : v[1]; }
};

// the nearest whole numbers, halves to even ones, of |v| < 2^22: added to 1.5 * 2^23, they are the last bits
constexpr float kWhole = 12582912.0f;
inline vi nearest(vf v) { return bits_of(v + kWhole) - 0x4B400000; }

inline float sum(vf v) { return Halves<OCT_WIDTH>::sum(v); }
inline float largest(vf v) { return Halves<OCT_WIDTH>::max(v); }

// e^x, off by at most 2 units in the last place; below -87 it is 0, above 88.7 infinite, NaN stays.
// x = n ln 2 + r with |r| <= ln 2 / 2; the series of e^r ends after r^7 / 7!, the rest is below 6e-9.
inline vf vexp(vf x) {
    const vf low = all(-87.0f), high = all(88.7f);
    vf y = x > low ? x : low;
    y = y < high ? y : high;
    const vf shifted = y * 1.44269504088896341f + kWhole;
    const vf n = shifted - kWhole;
    vf r = y - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    vf e = from_bits(bits_of(p) + ((bits_of(shifted) - 0x4B400000) << 23));
    e = x < low ? vf{} : e;
    e = x > high ? all(__builtin_inff()) : e;
    return x == x ? e : x;
}

// 2^x for x < 127, off by at most 2 units in the last place; below -126 it is 0, NaN stays, infinite becomes NaN.
// x = n + f with |f| <= 1/2; the polynomial of 2^f is off by less than 2e-9 (minimax, fitted with its constant 1).
inline vf vexp2(vf x) {
    const vf shifted = x + kWhole;
    const vf f = x - (shifted - kWhole);
    vf p = all(1.53533591e-4f);
    p = p * f + 1.33988739e-3f;
    p = p * f + 9.61843692e-3f;
    p = p * f + 5.55033237e-2f;
    p = p * f + 0.240226477f;
    p = p * f + 0.693147182f;
    p = p * f + 1.0f;
    const vf power = from_bits((bits_of(shifted) << 23) + 0x3F800000);  // of kWhole, nothing is left after the shift
    return x < all(-126.0f) ? vf{} : p * power;
}

// The same, off by less than 4e-6 of it, for what is then rounded to bfloat16 (minimax, fitted with its constant 1).
inline vf vexp2_bfloat16(vf x) {
    const vf shifted = x + kWhole;
    const vf f = x - (shifted - kWhole);
    vf p = all(9.58285e-3f);
    p = p * f + 5.590643e-2f;
    p = p * f + 0.24024099f;
    p = p * f + 0.69312419f;
    p = p * f + 1.0f;
    return x < all(-126.0f) ? vf{} : from_bits(bits_of(p) + (bits_of(shifted) << 23));
}

// tanh x = 1 - 2 / (e^2x + 1); near 0, where that cancels, x (1 - x^2/3 + 2 x^4/15 - 17 x^6/315 + 62 x^8/2835)
inline vf vtanh(vf x) {
    const vf far = 1.0f - 2.0f / (vexp(x + x) + 1.0f);
    const vf s = x * x;
    vf p = s * (62.0f / 2835) - 17.0f / 315;
    p = p * s + 2.0f / 15;
    p = p * s - 1.0f / 3;
    const vf near = x + x * s * p;
    return s < all(0.0625f) ? near : far;
}

inline vf silu(vf x) { return x / (1.0f + vexp(-x)); }

// x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
inline vf gelu_tanh(vf x) {
    const vf u = x * (1.0f + 0.044715f * x * x) * 1.5957691216057308f;
    return x / (1.0f + vexp(-u));
}

// x (1 + erf(x / sqrt 2)) / 2. erfc(z) = t (a1 + t (a2 + ...)) e^-z^2, t = 1 / (1 + 0.3275911 z), for z >= 0
// (Abramowitz and Stegun 7.1.26, off by less than 1.5e-7)
inline vf gelu(vf x) {
    const vf z = (x < vf{} ? -x : x) * 0.70710678118654752f;
    const vf t = 1.0f / (1.0f + 0.3275911f * z);
    vf p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const vf tail = 0.5f * p * t * vexp(-z * z);
    return x * (x < vf{} ? tail : 1.0f - tail);
}

}  // namespace
