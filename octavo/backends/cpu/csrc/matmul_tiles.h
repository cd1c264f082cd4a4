// The products themselves, written once over a variant's vector type V and included by each variant's file.
// Everything has internal linkage: the same template compiled for two instruction sets must not be merged by the linker.
//
// V: kLanes output rows at once (a panel takes 16 / kLanes passes), kRows activation rows at once, kSignedWide where
// dot_wide takes codes - 128 instead of codes; float vector F, int32 vector I, code vector C (4 bytes a lane).
//
// The order of operations of an output, whatever the batch: groups in order; within a group the exact integer dot
// product, made float, times the weight's scale; fma with the activation's scale; then the minima. Dense: fma in order of k.
#pragma once

#include <string.h>

#include <type_traits>
#include <utility>

#include "matmul_kernels.h"

#define OCT_INLINE __attribute__((always_inline))

namespace {

using namespace oct;

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

// Where the lanes of one pass of one panel go. y and bias point at lane 0; lanes lo..hi are written.
struct Target {
    float *y;
    int64_t ldy;
    const float *bias;
    int lo, hi;
};

// Quads 0..7 of the group whose code planes lie at p.
template <class V, Codes kind> OCT_INLINE inline void unpack(const uint8_t *p, typename V::C (&quads)[8]) {
    constexpr bool nibbles = kind != Codes::kBytes && kind != Codes::kPairs && kind != Codes::kPairsSingle;
    if constexpr (kind == Codes::kBytes) each<8>([&](auto q) OCT_INLINE { quads[q] = V::codes(p + q * 64); });
    if constexpr (nibbles)
        each<4>([&](auto q) OCT_INLINE {
            const typename V::C both = V::codes(p + q * 64);
            quads[q] = V::mask(both, 15);
            quads[q + 4] = V::mask(V::template shift<4>(both), 15);
            if constexpr (kind == Codes::kLevels) {
                quads[q] = V::levels(quads[q]);
                quads[q + 4] = V::levels(quads[q + 4]);
            }
        });
    if constexpr (kind == Codes::kNibblesPairs)
        each<8>([&](auto q) OCT_INLINE {
            quads[q] = V::merge(quads[q], V::template shift<q / 2 * 2 - 4>(V::codes(p + 256 + q % 2 * 64)), 0x30);
        });
    if constexpr (kind == Codes::kPairs || kind == Codes::kPairsSingle)
        each<8>([&](auto q) OCT_INLINE {
            quads[q] = V::mask(V::template shift<q / 2 * 2>(V::codes(p + q % 2 * 64)), 3);
        });
    if constexpr (kind == Codes::kNibblesSingle || kind == Codes::kPairsSingle) {
        constexpr int place = kind == Codes::kNibblesSingle ? 4 : 2;
        const typename V::C bits = V::codes(p + (place == 4 ? 256 : 128));
        each<8>([&](auto q) OCT_INLINE { quads[q] = V::merge(quads[q], V::template shift<q - place>(bits), 1 << place); });
    }
}

// The float scale of sub-group s, and its minimum, from a block's d and dmin and the group's integers at p.
template <class V, int scheme>
OCT_INLINE inline void scales(const uint8_t *p, int s, typename V::F d, typename V::F dmin, typename V::F &scale,
                              typename V::F &minimum) {
    constexpr Format f = kFormats[scheme];
    if constexpr (f.span == 1) {
        scale = d;
        minimum = dmin;
    } else if constexpr (f.paired) {
        scale = V::mul(d, V::low_halves(p + s * kPanel));
        minimum = V::negate(V::mul(dmin, V::high_halves(p + s * kPanel)));
    } else {
        scale = V::mul(d, f.signed_scale ? V::int8s(p + s * kPanel) : V::uint8s(p + s * kPanel));
        if constexpr (f.minimum) minimum = V::negate(V::mul(dmin, V::uint8s(p + (f.subs + s) * kPanel)));
    }
}

// One pass of a panel times rows first..first + M of a tile of `rows` rows, whose first group is at act.
template <class V, int scheme, int M> struct QuantTile {
    using F = typename V::F;
    using C = typename V::C;
    static constexpr Format f = kFormats[scheme];
    static constexpr bool kWide = f.codes == Codes::kBytes || f.codes == Codes::kLevels;

    // acc[m] += this group's part; weights at p, activations of the group at act.
    static OCT_INLINE inline void group(const uint8_t *p, const uint8_t *pass, const uint8_t *act, int rows, int first,
                                        F d, F dmin, F (&acc)[M]) {
        C quads[8];
        unpack<V, f.codes>(pass + scale_bytes(f), quads);
        F scale[2], minimum[2];
        each<f.subs>([&](auto s) OCT_INLINE { scales<V, scheme>(p, s, d, dmin, scale[s], minimum[s]); });
        const uint8_t *codes = act + first * kGroup, *factor = act + rows * kGroup + first * 4;
        const uint8_t *aux = act + rows * (kGroup + 4) + first * 4 * f.subs;
        each<M>([&](auto m) OCT_INLINE {
            F sum = V::zero();
            each<f.subs>([&](auto s) OCT_INLINE {
                constexpr bool offset = f.offset != 0 && !(kWide && V::kSignedWide);
                typename V::I dot = offset ? V::splat(int_at(aux + (m * f.subs + s) * 4)) : V::splat(0);
                each<8 / f.subs>([&](auto i) OCT_INLINE {
                    constexpr int q = s * 8 / f.subs + i;
                    dot = V::template dot<kWide>(dot, quads[q], codes + m * kGroup + q * 4);
                });
                if constexpr (s == 0)
                    sum = V::mul(V::to_float(dot), scale[s]);
                else
                    sum = V::fma(V::to_float(dot), scale[s], sum);
            });
            acc[m] = V::fma(sum, V::splat(float_at(factor + m * 4)), acc[m]);
            if constexpr (f.minimum)
                each<f.subs>([&](auto s) OCT_INLINE {
                    acc[m] = V::fma(minimum[s], V::splat(float_at(aux + (m * f.subs + s) * 4)), acc[m]);
                });
        });
    }

    static void run(const uint8_t *panel, int lane, const uint8_t *act, int rows, int first, int64_t k, const Target &to) {
        F acc[M];
        each<M>([&](auto m) OCT_INLINE { acc[m] = V::zero(); });
        const int64_t step = (int64_t)rows * act_group_bytes(f);
        for (int64_t block = k / kGroup / f.span; block > 0; block--) {
            const F d = V::halves(panel + lane * 2);
            const F dmin = f.minimum ? V::halves(panel + kPanel * 2 + lane * 2) : V::zero();
            panel += head_bytes(f);
            for (int g = 0; g < f.span; g++, panel += group_bytes(f), act += step) {
                for (int line = 0; line < group_bytes(f); line += 64) __builtin_prefetch(panel + line + V::kAhead);
                group(panel + lane, panel + lane * 4, act, rows, first, d, dmin, acc);
            }
        }
        each<M>([&](auto m) OCT_INLINE { V::store(to.y + m * to.ldy, acc[m], to.bias, to.lo, to.hi); });
    }
};

// As QuantTile for unquantized weights, on P neighbouring panels: one row alone has too few sums to hide an fma's latency.
template <class V, int scheme, int M, int P> struct DenseTile {
    using F = typename V::F;

    static OCT_INLINE inline void step(const uint8_t *weights, int64_t panel, const uint8_t *act, F (&acc)[P][M]) {
        each<P>([&](auto p) OCT_INLINE {
            const uint8_t *at = weights + p * panel;
            __builtin_prefetch(at + V::kAhead);
            if constexpr (scheme == OCT_BF16) {
                const typename V::C pairs = V::codes(at);
                each<M>([&](auto m) OCT_INLINE { acc[p][m] = V::dot_bf16(acc[p][m], pairs, act + m * kUnits * 4); });
            } else {
                const F value = scheme == OCT_F16 ? V::halves(at) : V::floats(at);
                each<M>([&](auto m) OCT_INLINE {
                    acc[p][m] = V::fma(value, V::splat(float_at(act + m * kUnits * 4)), acc[p][m]);
                });
            }
        });
    }

    static void run(const uint8_t *panel, int lane, const uint8_t *act, int rows, int first, int64_t k, const Target &to) {
        constexpr int bytes = dense_step_bytes(scheme);
        const int64_t stride = panel_bytes(scheme, k);
        F acc[P][M];
        each<P * M>([&](auto i) OCT_INLINE { acc[i / M][i % M] = V::zero(); });
        const uint8_t *weights = panel + lane * (bytes / kPanel);
        act += first * kUnits * 4;
        int64_t left = dense_steps(scheme, k);
        for (; left >= kUnits; left -= kUnits, act += rows * kUnits * 4)
            for (int unit = 0; unit < kUnits; unit++, weights += bytes) step(weights, stride, act + unit * 4, acc);
        for (int unit = 0; unit < left; unit++, weights += bytes) step(weights, stride, act + unit * 4, acc);
        each<P>([&](auto p) OCT_INLINE {
            const float *bias = to.bias ? to.bias + p * kPanel : nullptr;
            each<M>([&](auto m) OCT_INLINE {
                V::store(to.y + m * to.ldy + p * kPanel, acc[p][m], bias, to.lo, to.hi);
            });
        });
    }
};

using TileFunction = void (*)(const uint8_t *, int, const uint8_t *, int, int, int64_t, const Target &);

// Panels that a tile of so many rows takes at once.
template <class V, int scheme> constexpr int panels_at_once(int rows) {
    return is_dense(kFormats[scheme]) && V::kLanes == kPanel && V::kRows >= 16 && rows <= 4 ? 4 : 1;
}

template <class V, int scheme, int M, int P> constexpr TileFunction tile_function() {
    if constexpr (is_dense(kFormats[scheme]))
        return DenseTile<V, scheme, M, P>::run;
    else
        return QuantTile<V, scheme, M>::run;
}

// Rows that one call takes of those that are left: 16, 12, 8 .. 1, up to the variant's most.
constexpr int kRowSteps[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16};

template <class V> constexpr int row_steps() {
    int count = 0;
    for (const int rows : kRowSteps) count += rows <= V::kRows;
    return count;
}

template <class V, int scheme> struct Tiles {
    TileFunction one[row_steps<V>()], many[row_steps<V>()];

    template <int... i> constexpr explicit Tiles(std::integer_sequence<int, i...>)
        : one{tile_function<V, scheme, kRowSteps[i], 1>()...},
          many{tile_function<V, scheme, kRowSteps[i], panels_at_once<V, scheme>(kRowSteps[i])>()...} {}
};

// Bytes of activations that stay in a core's second-level cache while the panels go by.
constexpr int64_t kActivationBytes = 384 * 1024;

// Rows row..row + M of a tile times one panel, or several whole ones.
template <class V, int scheme>
void panel_rows(const Product &p, TileFunction run, int64_t n, int count, const uint8_t *act, int rows, int first,
                int64_t row) {
    const uint8_t *panel = p.packed + n / kPanel * panel_bytes(scheme, p.k);
    for (int lane = 0; lane < kPanel; lane += V::kLanes) {
        const int64_t at = n + lane, lo = p.n_begin - at, hi = p.n_end - at;
        Target to = {p.y + row * p.ldy + at, p.ldy, p.bias ? p.bias + at : nullptr, lo > 0 ? (int)lo : 0, V::kLanes};
        if (count == 1 && hi < V::kLanes) to.hi = hi > 0 ? (int)hi : 0;
        if (to.lo < to.hi) run(panel, lane, act, rows, first, p.k, to);
    }
}

template <class V, int scheme> void matmul(const Product &p) {
    static constexpr Tiles<V, scheme> tiles{std::make_integer_sequence<int, row_steps<V>()>()};
    const int64_t row_bytes = act_row_bytes(scheme, p.k);
    int64_t chunk = row_bytes ? kActivationBytes / row_bytes / kTile * kTile : p.m;
    if (chunk < kTile) chunk = kTile;
    for (int64_t begin = 0; begin < p.m; begin += chunk) {
        const int64_t end = begin + chunk < p.m ? begin + chunk : p.m;
        const int most = panels_at_once<V, scheme>(end - begin < kTile ? (int)(end - begin) : kTile);
        for (int64_t n = p.n_begin / kPanel * kPanel; n < p.n_end;) {
            const int count = n >= p.n_begin && n + most * kPanel <= p.n_end ? most : 1;
            for (int64_t tile = begin; tile < end; tile += kTile) {
                const int rows = (int)(p.m - tile < kTile ? p.m - tile : kTile);
                for (int first = 0, step = row_steps<V>() - 1; first < rows; first += kRowSteps[step]) {
                    while (kRowSteps[step] > rows - first) step--;
                    const TileFunction run = count > 1 ? tiles.many[step] : tiles.one[step];
                    panel_rows<V, scheme>(p, run, n, count, p.act + tile * row_bytes, rows, first, tile + first);
                }
            }
            n += count * kPanel;
        }
    }
}

// Rounding to nearest even of |x| < 2^22, as an integer, on any processor: the low bits of x + 1.5 * 2^23.
OCT_INLINE inline int32_t nearest(float x) {
    const float shifted = x + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    return bits - 0x4b400000;
}

// The int8 factor of a group whose greatest absolute value has these bits: 127 / greatest, or 0 where the group is too
// small for it or not finite (its scale is then 0, or not finite either).
OCT_INLINE inline float inverse_scale(float greatest, float &scale) {
    const bool tiny = greatest < 0x1p-119f, finite = greatest <= 0x1.fffffep127f;
    scale = tiny ? 0.0f : greatest / 127.0f;
    return tiny || !finite ? 0.0f : 127.0f / greatest;
}

// 32 floats -> codes, scale and the sums of the codes of both halves. A NaN anywhere gives a NaN scale.
inline void quantize_group_portable(const float *x, int8_t *codes, float &scale, int32_t (&sums)[2]) {
    int32_t greatest = 0;
    for (int i = 0; i < kGroup; i++) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffff;
        greatest = bits > greatest ? bits : greatest;
    }
    float amax;
    memcpy(&amax, &greatest, 4);
    const float inverse = inverse_scale(amax, scale);
    for (int half = 0; half < 2; half++) {
        int32_t sum = 0;
        for (int i = half * 16; i < half * 16 + 16 && inverse != 0.0f; i++) {
            const int32_t code = nearest(x[i] * inverse);
            codes[i] = (int8_t)code;
            sum += code;
        }
        sums[half] = sum;
    }
    if (inverse == 0.0f) memset(codes, 0, kGroup);
}

template <class V, int scheme> void quantize_codes(const Activations &a) {
    constexpr Format f = kFormats[scheme];
    const int64_t groups = a.k / kGroup, row_bytes = act_row_bytes(scheme, a.k);
    for (int64_t row = a.m_begin; row < a.m_end; row++) {
        const int64_t tile = row / kTile * kTile, r = row - tile, rows = a.m - tile < kTile ? a.m - tile : kTile;
        uint8_t *group = a.act + tile * row_bytes;
        for (int64_t g = 0; g < groups; g++, group += rows * act_group_bytes(f)) {
            float scale;
            int32_t sums[2];
            V::quantize_group(a.x + row * a.ldx + g * kGroup, (int8_t *)(group + r * kGroup), scale, sums);
            memcpy(group + rows * kGroup + r * 4, &scale, 4);
            if (f.subs == 1) sums[0] += sums[1];
            for (int s = 0; s < f.subs; s++) {
                const float scaled = scale * (float)sums[s];
                const int32_t shifted = -f.offset * sums[s];
                memcpy(group + rows * (kGroup + 4) + (r * f.subs + s) * 4, f.minimum ? (const void *)&scaled : &shifted, 4);
            }
        }
    }
}

// The upper half of a float32, rounded to nearest even; a NaN stays one.
OCT_INLINE inline uint32_t to_bf16(const float *x) {
    uint32_t bits;
    memcpy(&bits, x, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded;
}

template <class V, int scheme> void convert_units(const Activations &a) {
    const int64_t steps = dense_steps(scheme, a.k), row_bytes = act_row_bytes(scheme, a.k);
    for (int64_t row = a.m_begin; row < a.m_end; row++) {
        const int64_t tile = row / kTile * kTile, r = row - tile, rows = a.m - tile < kTile ? a.m - tile : kTile;
        uint8_t *units = a.act + tile * row_bytes + r * kUnits * 4;
        const float *x = a.x + row * a.ldx;
        for (int64_t step = 0; step < steps; step += kUnits, units += rows * kUnits * 4) {
            uint32_t out[kUnits] = {};
            const int count = (int)(steps - step < kUnits ? steps - step : kUnits);
            if constexpr (scheme != OCT_BF16) {
                memcpy(out, x + step, count * 4);
            } else {
                const int whole = (int)((a.k - 2 * step) / 2 < count ? (a.k - 2 * step) / 2 : count);
                for (int i = 0; i < whole; i++)
                    out[i] = to_bf16(x + 2 * (step + i)) | to_bf16(x + 2 * (step + i) + 1) << 16;
                if (whole < count) out[whole] = to_bf16(x + 2 * (step + whole));
            }
            memcpy(units, out, sizeof out);
        }
    }
}

template <class V, int scheme> void quantize(const Activations &a) {
    if constexpr (is_dense(kFormats[scheme]))
        convert_units<V, scheme>(a);
    else
        quantize_codes<V, scheme>(a);
}

template <class V, int... scheme> constexpr Kernels kernels(const char *name, std::integer_sequence<int, scheme...>) {
    return {name, {quantize<V, scheme>...}, {matmul<V, scheme>...}};
}

template <class V> constexpr Kernels kernels(const char *name) {
    return kernels<V>(name, std::make_integer_sequence<int, OCT_SCHEMES>());
}

} // namespace
