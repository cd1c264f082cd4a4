// In: float32 rows. Out: tiles of activations in the forms of matmul_formats.h. Included by each variant's file.
//
// A group of 32 is rounded to 255 steps between its least and its greatest element. Where that would be a wide span beside
// the row, its outliers are left out of it, and their distance from its centre is kept apart, in float32. Every variant
// gives the same bytes.
#pragma once

#include <string.h>

#include <type_traits>
#include <utility>

#include "matmul_kernels.h"

#define OCT_INLINE __attribute__((always_inline))

namespace {

using namespace oct;

// Steps below this are lost: their inverse would overflow.
constexpr float kLeastStep = 0x1p-118f;

template <int... i, class Function>
OCT_INLINE inline void each(std::integer_sequence<int, i...>, Function &&function) {
    (function(std::integral_constant<int, i>()), ...);
}

// function(0), function(1), ... function(count - 1), with constants.
template <int count, class Function> OCT_INLINE inline void each(Function &&function) {
    each(std::make_integer_sequence<int, count>(), static_cast<Function &&>(function));
}

OCT_INLINE inline int32_t int_at(const uint8_t *at) {
    int32_t value;
    memcpy(&value, at, 4);
    return value;
}

OCT_INLINE inline float float_at(const uint8_t *at) {
    float value;
    memcpy(&value, at, 4);
    return value;
}

// Rounding to nearest even of |x| < 2^22, as an integer, on any processor: the low bits of x + 1.5 * 2^23.
OCT_INLINE inline int32_t nearest(float x) {
    const float shifted = x + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return bits - 0x4b400000;
}

inline bool is_finite(const float *x, int64_t k) {
    uint32_t greatest = 0;
    for (int64_t i = 0; i < k; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        greatest = bits > greatest ? bits : greatest;
    }
    return greatest < 0x7f800000;
}

// The sum of squares of x [k], k a multiple of 32, in one order on every processor.
inline float square_sum(const float *x, int64_t k) {
    float lanes[32] = {};
    for (int64_t i = 0; i < k; i += 32)
        for (int lane = 0; lane < 32; lane++) lanes[lane] += x[i + lane] * x[i + lane];
    for (int width = 16; width > 0; width /= 2)
        for (int lane = 0; lane < width; lane++) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

inline void range_portable(const float *x, float &low, float &high) {
    low = high = x[0];
    for (int i = 1; i < kGroup; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
}

// Which of x [32] are farther from zero than `bound`.
inline uint32_t beyond_portable(const float *x, float bound) {
    uint32_t found = 0;
    for (int i = 0; i < kGroup; i++) found |= (uint32_t)(__builtin_fabsf(x[i]) > bound) << i;
    return found;
}

// The range of x [32] but for those that `out` names; low above high where it names all.
inline void range_without_portable(const float *x, uint32_t out, float &low, float &high) {
    low = __builtin_inff(), high = -low;
    for (int i = 0; i < kGroup; i++) {
        if (out >> i & 1) continue;
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
}

// codes = (x - centre) * inverse, rounded to -127..127; their sums in both halves.
inline void round_portable(const float *x, float centre, float inverse, int8_t *codes, int32_t (&sums)[2]) {
    for (int half = 0; half < 2; half++) {
        sums[half] = 0;
        for (int i = half * 16; i < half * 16 + 16; i++) {
            const int32_t code = nearest((x[i] - centre) * inverse);
            codes[i] = (int8_t)(code > 127 ? 127 : code < -127 ? -127 : code);
            sums[half] += codes[i];
        }
    }
}

// The bytes of a row's share of a group, in a tile of `rows`.
template <int scheme>
OCT_INLINE inline void put_factors(uint8_t *group, int64_t rows, int64_t r, float scale, float centre, int32_t (&sums)[2]) {
    constexpr Format f = kFormats[scheme];
    uint8_t *at = group + rows * kGroup + r * factor_bytes(f);
    memcpy(at, &scale, 4);
    memcpy(at + 4, &centre, 4);
    at += 8;
    if (f.subs == 1) sums[0] += sums[1];
    for (int s = 0; s < f.subs; s++) {
        const float total = scale * (float)sums[s] + centre * (float)(kGroup / f.subs);
        const int32_t shifted = -f.offset * sums[s];
        memcpy(at + s * 4, f.minimum ? (const void *)&total : &shifted, 4);
    }
}

// A row's outliers, as they are found: the elements beyond `bound` of groups with a wide span.
struct Outliers {
    uint8_t *at;
    int64_t most;
    float bound;
    int32_t count = 0;

    // Takes those of x [32], which begins with the row's element `first`: inside [32] gets the others, and their centre
    // in the outliers' places; low and high their range.
    template <class V> OCT_INLINE inline void take(const float *x, int32_t first, float *inside, float &low, float &high) {
        uint32_t taken = V::beyond(x, bound);
        while (count + __builtin_popcount(taken) > most) taken &= ~(0x80000000u >> __builtin_clz(taken));
        V::range_without(x, taken, low, high);
        if (low > high) low = high = 0.0f;
        const float centre = high * 0.5f + low * 0.5f;
        memcpy(inside, x, kGroup * sizeof *x);
        for (; taken; taken &= taken - 1) {
            const int i = __builtin_ctz(taken);
            const Outlier outlier = {first + i, x[i] - centre};
            memcpy(at + count++ * sizeof outlier, &outlier, sizeof outlier);
            inside[i] = centre;
        }
    }
};

// Groups that quantize_row takes at once: what is computed for each of them alone fills vectors.
constexpr int kAtOnce = 16;

// low, high [count]: the ranges of groups of 32 that lie one after the other.
template <class V> OCT_INLINE inline void ranges(const float *x, int count, float *low, float *high) {
    int i = 0;
    if constexpr (requires { V::range8(x, low, high); })
        for (; i + 8 <= count; i += 8) V::range8(x + i * kGroup, low + i, high + i);
    for (; i < count; i++) V::range(x + i * kGroup, low[i], high[i]);
}

template <class V, int scheme>
void quantize_row(const float *x, int64_t k, uint8_t *tile, int64_t rows, int64_t r) {
    constexpr Format f = kFormats[scheme];
    const int64_t groups = k / kGroup, most = most_outliers(k);
    const float squares = square_sum(x, k);
    const float poison = squares <= 0x1.fffffep127f || is_finite(x, k) ? 0.0f : __builtin_nanf("");
    uint8_t *group = tile, *rest = tile + groups * rows * act_group_bytes(f);
    Outliers outliers = {rest + rows * 4 + r * most * (int64_t)sizeof(Outlier), most,
                         kOutlier * __builtin_sqrtf(squares / (float)k)};
    for (int64_t first = 0; first < groups; first += kAtOnce) {
        const int count = groups - first < kAtOnce ? (int)(groups - first) : kAtOnce;
        const float *from[kAtOnce];
        float low[kAtOnce] = {}, high[kAtOnce] = {}, inside[kAtOnce][kGroup], centre[kAtOnce], scale[kAtOnce], inverse[kAtOnce];
        ranges<V>(x + first * kGroup, count, low, high);
        for (int i = 0; i < count; i++) {
            from[i] = x + (first + i) * kGroup;
            if (high[i] * 0.5f - low[i] * 0.5f > outliers.bound) {
                outliers.take<V>(from[i], (int32_t)(first + i) * kGroup, inside[i], low[i], high[i]);
                from[i] = inside[i];
            }
        }
        for (int i = 0; i < kAtOnce; i++) {
            const float step = (high[i] * 0.5f - low[i] * 0.5f) * (2.0f / 254.0f);
            centre[i] = high[i] * 0.5f + low[i] * 0.5f + poison;
            scale[i] = (step >= kLeastStep ? step : 0.0f) + poison;
            inverse[i] = 1.0f / scale[i];
        }
        for (int i = 0; i < count; i++, group += rows * act_group_bytes(f)) {
            int8_t *codes = (int8_t *)(group + r * kGroup);
            int32_t sums[2] = {};
            if (scale[i] > 0.0f)
                V::round(from[i], centre[i], inverse[i], codes, sums);
            else
                memset(codes, 0, kGroup);
            put_factors<scheme>(group, rows, r, scale[i], centre[i], sums);
        }
    }
    memcpy(rest + r * 4, &outliers.count, 4);
}

// The upper half of a float32, rounded to nearest even; a NaN stays one.
OCT_INLINE inline uint32_t to_bf16(const float *x) {
    uint32_t bits;
    memcpy(&bits, x, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded;
}

// Pairs of bfloat16 of x [2 count].
inline void pairs_portable(const float *x, int count, uint32_t *out) {
    for (int i = 0; i < count; i++) out[i] = to_bf16(x + 2 * i) | to_bf16(x + 2 * i + 1) << 16;
}

template <class V, int scheme> void convert_row(const float *x, int64_t k, uint8_t *tile, int64_t rows, int64_t r) {
    const int64_t steps = dense_steps(scheme, k);
    uint8_t *units = tile + r * kUnits * 4;
    for (int64_t step = 0; step < steps; step += kUnits, units += rows * kUnits * 4) {
        uint32_t out[kUnits] = {};
        const int count = (int)(steps - step < kUnits ? steps - step : kUnits);
        if constexpr (scheme != OCT_BF16) {
            memcpy(out, x + step, count * 4);
        } else {
            const int whole = (int)((k - 2 * step) / 2 < count ? (k - 2 * step) / 2 : count);
            whole == kUnits ? V::pairs(x + 2 * step, out) : pairs_portable(x + 2 * step, whole, out);
            if (whole < count) out[whole] = to_bf16(x + 2 * (step + whole));
        }
        memcpy(units, out, sizeof out);
    }
}

template <class V, int scheme> void quantize(const Activations &a) {
    const int64_t row_bytes = act_row_bytes(scheme, a.k);
    for (int64_t row = a.m_begin; row < a.m_end; row++) {
        const int64_t first = row / kTile * kTile, rows = a.m - first < kTile ? a.m - first : kTile;
        uint8_t *tile = a.act + first * row_bytes;
        const float *x = a.x + row * a.ldx;
        if constexpr (is_dense(kFormats[scheme]))
            convert_row<V, scheme>(x, a.k, tile, rows, row - first);
        else
            quantize_row<V, scheme>(x, a.k, tile, rows, row - first);
    }
}

} // namespace
