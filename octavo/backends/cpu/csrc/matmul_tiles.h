// The products themselves, written once over a variant's vector type V and included by each variant's file.
// Everything has internal linkage: the same template compiled for two instruction sets must not be merged by the linker.
//
// V: kLanes output rows at once (a panel takes 16 / kLanes passes), kRows activation rows at once, kSignedWide where
// dot_wide takes codes - 128 instead of codes; float vector F, int32 vector I, code vector C (4 bytes a lane). kPairs: dot
// takes ones alone, and products are sums of two in int16 (dot_pairs), added (add_pairs), then made int32 (widen).
// kUnpackTiles: tiles of all 16 rows from which on it pays to unpack a panel once for them all; 0: never.
//
// The order of operations of an output, whatever the batch: groups in order; within a group the exact integer dot
// product, made float, times the weight's scale; fma with the activation's scale; then the minima; then the centre times
// the group's sum of weights. The row's outliers times their weights after all groups, in order of k.
// Dense: fma in order of k.
#pragma once

#include <string.h>

#include "matmul_chunks.h"

namespace {

using namespace oct;

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
            if constexpr (requires { V::upper_halves(both); })
                quads[q + 4] = V::upper_halves(both);
            else
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

// Asks for `lines` more lines of what comes after the product.
template <int lines> OCT_INLINE inline void ask(oct_ahead *ahead) {
    if (!lines || !ahead) return;
    const char *at = ahead->at;
    if (at >= ahead->end) {
        ahead->more(ahead);
        if (ahead->at >= ahead->end) return;
        at = ahead->at;
    }
    each<lines>([&](auto line) OCT_INLINE { __builtin_prefetch(at + line * 64, 0, 2); });
    ahead->at = at + lines * 64;
}

// Lines asked for while M rows are multiplied by a group of a panel: fewer rows wait for memory themselves.
constexpr int lines_ahead(int rows) { return rows < 8 ? 0 : rows / 4; }

// Quad q of the group whose code planes lie at p, alone.
template <class V, Codes kind> OCT_INLINE inline typename V::C unpack_quad(const uint8_t *p, int q) {
    using C = typename V::C;
    if constexpr (kind == Codes::kBytes) return V::codes(p + q * 64);
    const auto pairs = [&](int at) OCT_INLINE -> C { return V::mask(V::shifted(V::codes(p + at + q % 2 * 64), q / 2 * 2), 3); };
    const auto single = [&](int at) OCT_INLINE -> C { return V::mask(V::shifted(V::codes(p + at), q), 1); };
    if constexpr (kind == Codes::kPairs) return pairs(0);
    if constexpr (kind == Codes::kPairsSingle) return V::merge(pairs(0), V::template shift<-2>(single(128)), 4);
    const C nibbles = V::mask(V::shifted(V::codes(p + q % 4 * 64), q / 4 * 4), 15);
    if constexpr (kind == Codes::kLevels) return V::levels(nibbles);
    if constexpr (kind == Codes::kNibblesPairs) return V::merge(nibbles, V::template shift<-4>(pairs(256)), 0x30);
    if constexpr (kind == Codes::kNibblesSingle) return V::merge(nibbles, V::template shift<-4>(single(256)), 0x10);
    return nibbles;
}

constexpr uint8_t kOnes[4] = {1, 1, 1, 1};

// The greatest code there can be.
constexpr int greatest(Codes codes) {
    return codes == Codes::kNibbles        ? 15
           : codes == Codes::kNibblesSingle ? 31
           : codes == Codes::kNibblesPairs  ? 63
           : codes == Codes::kPairs         ? 3
           : codes == Codes::kPairsSingle   ? 7
                                            : 255;
}

// Of `count` quads, how many can be added byte by byte, every sum below 128.
constexpr int quads_added(Codes codes, int count) {
    while (count > 1 && count * greatest(codes) > 127) count /= 2;
    return count;
}

// Of `count` quads, how many can be added as sums of two products with an int8 not below -127, in int16.
constexpr int quads_paired(Codes codes, int count) {
    while (count > 1 && count * 2 * 127 * greatest(codes) > 32767) count /= 2;
    return count;
}

// A group of 32 of a pass of a panel, ready to be multiplied. total: the sums of its weights, minima left out.
template <class V, int scheme> struct Group {
    using F = typename V::F;
    using I = typename V::I;
    using C = typename V::C;
    static constexpr Format f = kFormats[scheme];
    static constexpr bool kWide = f.codes == Codes::kBytes || f.codes == Codes::kLevels;
    static constexpr bool kOffset = f.offset != 0 && !(kWide && V::kSignedWide);
    static constexpr int kVector = sizeof(C), kUnpacked = (8 + 1 + f.subs * (f.minimum ? 2 : 1)) * kVector;

    static constexpr int kAdded = quads_added(f.codes, 8 / f.subs);

    C quads[8];
    F scale[2], minimum[2], total;

    static OCT_INLINE inline F minima(const uint8_t *block, int lane) {
        return f.minimum ? V::halves(block + kPanel * 2 + lane * 2) : V::zero();
    }

    // From a packed group at p, whose pass of codes lies at `pass`.
    OCT_INLINE inline void unpack_from(const uint8_t *p, const uint8_t *pass, F d, F dmin) {
        unpack<V, f.codes>(pass + scale_bytes(f), quads);
        total = V::zero();
        each<f.subs>([&](auto s) OCT_INLINE {
            scales<V, scheme>(p, s, d, dmin, scale[s], minimum[s]);
            I sum = V::splat(kOffset ? -f.offset * kGroup / f.subs : 0);
            each<8 / f.subs / kAdded>([&](auto i) OCT_INLINE {
                constexpr int first = s * 8 / f.subs + i * kAdded;
                C added = quads[first];
                each<kAdded - 1>([&](auto j) OCT_INLINE { added = V::add(added, quads[first + 1 + j]); });
                sum = V::template dot<kWide>(sum, added, kOnes);
            });
            total = V::fma(V::to_float(sum), scale[s], total);
        });
    }

    // The weight of a code, which is byte `byte` of the words of a quad.
    static OCT_INLINE inline F weight(C quad, int byte, F scale, F minimum) {
        const F code = V::to_float(V::byte(quad, byte));
        if constexpr (f.minimum) return V::fma(code, scale, minimum);
        return V::mul(V::fma(code, V::splat(1.0f), V::splat((float)-f.offset)), scale);
    }
    // The weights of element `index` of k, from a packed panel's pass at `lane`.
    static OCT_INLINE inline F weight_packed(const uint8_t *panel, int lane, uint32_t index) {
        const uint32_t g = index / kGroup, e = index % kGroup;
        const uint8_t *block = panel + g / f.span * block_bytes(f), *p = block + head_bytes(f) + g % f.span * group_bytes(f);
        F scale, minimum;
        scales<V, scheme>(p + lane, (int)e * f.subs / kGroup, V::halves(block + lane * 2), minima(block, lane), scale, minimum);
        return weight(unpack_quad<V, f.codes>(p + scale_bytes(f) + lane * 4, (int)e / 4), (int)e % 4, scale, minimum);
    }
    // Those of all columns, into `columns`.
    static __attribute__((noinline)) void read_columns(const uint8_t *panel, int lane, const Columns &columns) {
        for (int32_t i = 0; i < columns.count; i++) {
            const F weights = weight_packed(panel, lane, (uint32_t)columns.list[i]);
            memcpy(columns.weights + columns.list[i] * kPanel + lane, &weights, sizeof weights);
        }
    }

    // To and from kUnpacked bytes.
    OCT_INLINE inline void keep(uint8_t *at) const {
        memcpy(at, quads, 8 * kVector);
        memcpy(at + 8 * kVector, &total, kVector);
        memcpy(at + 9 * kVector, scale, kVector * f.subs);
        if constexpr (f.minimum) memcpy(at + (9 + f.subs) * kVector, minimum, kVector * f.subs);
    }
    OCT_INLINE inline void take(const uint8_t *at) {
        each<8>([&](auto q) OCT_INLINE { quads[q] = V::codes(at + q * kVector); });
        total = V::floats(at + 8 * kVector);
        each<f.subs>([&](auto s) OCT_INLINE {
            scale[s] = V::floats(at + (9 + s) * kVector);
            if constexpr (f.minimum) minimum[s] = V::floats(at + (9 + f.subs + s) * kVector);
        });
    }
};

// Asks for the lines that M rows will be written to: one written to before it is near keeps those after it waiting.
template <class V, int M> OCT_INLINE inline void ask_to_write(const Target &to) {
    if constexpr (M == V::kRows) each<M>([&](auto m) OCT_INLINE { __builtin_prefetch(to.y + m * to.ldy, 1); });
}

// One pass of a panel times M rows.
template <class V, int scheme, int M> struct QuantTile {
    using F = typename V::F;
    using I = typename V::I;
    using Weights = Group<V, scheme>;
    static constexpr Format f = kFormats[scheme];

    static constexpr bool kHalved = V::kPairs && Weights::kWide;  // wide codes as 16 * high + low, which fit into pairs

    static constexpr int kUnpacked = Weights::kUnpacked;  // bytes of a group of a panel

    // Rows whose integer sums grow side by side, so that none waits for its own.
    static constexpr int kAbreast = M % 4 == 0 && !kHalved ? 4 : M % 3 == 0 ? 3 : M % 2 == 0 ? 2 : 1;

    // Quads whose pairs are added before they are widened.
    static constexpr int kPaired = !V::kPairs ? 1 : quads_paired(kHalved ? Codes::kNibbles : f.codes, 8 / f.subs);

    // part[j] += kPaired quads, from q on, times row j's, which lie at act.
    template <int q> static OCT_INLINE inline void add_dots(const Weights &w, const uint8_t *act, I (&part)[kAbreast]) {
        if constexpr (!V::kPairs) {
            each<kAbreast>([&](auto j) OCT_INLINE {
                part[j] = V::template dot<Weights::kWide>(part[j], w.quads[q], act + j * kGroup);
            });
        } else {
            I low[kAbreast], high[kAbreast];
            each<kPaired>([&](auto i) OCT_INLINE {
                const auto add = [&](typename V::C codes, I (&sum)[kAbreast]) OCT_INLINE {
                    each<kAbreast>([&](auto j) OCT_INLINE {
                        const I pairs = V::dot_pairs(codes, act + j * kGroup + i * 4);
                        sum[j] = i == 0 ? pairs : V::add_pairs(sum[j], pairs);
                    });
                };
                add(kHalved ? V::mask(w.quads[q + i], 15) : w.quads[q + i], low);
                if constexpr (kHalved) add(V::mask(V::template shift<4>(w.quads[q + i]), 15), high);
            });
            each<kAbreast>([&](auto j) OCT_INLINE {
                part[j] = V::template widen<1>(part[j], low[j]);
                if constexpr (kHalved) part[j] = V::template widen<16>(part[j], high[j]);
            });
        }
    }

    // acc[m] += a group's part; the group's activations at act.
    static OCT_INLINE inline void multiply(const Weights &w, const uint8_t *act, const Rows &r, F (&acc)[M]) {
        const uint8_t *codes = act + r.first * kGroup, *factors = act + r.rows * kGroup + r.first * factor_bytes(f);
        const auto factor = [&](int m) OCT_INLINE { return factors + m * factor_bytes(f); };
        each<M / kAbreast>([&](auto block) OCT_INLINE {
            constexpr int first = decltype(block)::value * kAbreast;
            F sum[kAbreast];
            each<f.subs>([&](auto s) OCT_INLINE {
                I part[kAbreast];
                each<kAbreast>([&](auto i) OCT_INLINE {
                    part[i] = V::splat(Weights::kOffset ? int_at(factor(first + i) + 8 + s * 4) : 0);
                });
                each<8 / f.subs / kPaired>([&](auto i) OCT_INLINE {
                    constexpr int q = s * 8 / f.subs + i * kPaired;
                    add_dots<q>(w, codes + first * kGroup + q * 4, part);
                });
                each<kAbreast>([&](auto i) OCT_INLINE {
                    const F value = V::to_float(part[i]);
                    if constexpr (s == 0)
                        sum[i] = V::mul(value, w.scale[s]);
                    else
                        sum[i] = V::fma(value, w.scale[s], sum[i]);
                });
            });
            each<kAbreast>([&](auto i) OCT_INLINE {
                constexpr int m = first + i;
                acc[m] = V::fma(sum[i], V::splat(float_at(factor(m))), acc[m]);
                if constexpr (f.minimum)
                    each<f.subs>([&](auto s) OCT_INLINE {
                        acc[m] = V::fma(w.minimum[s], V::splat(float_at(factor(m) + 8 + s * 4)), acc[m]);
                    });
                acc[m] = V::fma(w.total, V::splat(float_at(factor(m) + 4)), acc[m]);
            });
        });
    }

    // Adds the outliers times their columns, row by row in turn, and writes acc.
    static OCT_INLINE inline void finish(F (&acc)[M], int lane, const Rows &r, const Target &to) {
        const uint8_t *weights = (const uint8_t *)(r.columns.weights + lane);
        const Turn *turns = r.turns + r.first;
        for (int turn = 0; turn < r.most; turn++, turns += kTile)
            each<M>([&](auto m) OCT_INLINE {
                acc[m] = V::fma(V::floats(weights + turns[m].column), V::splat(turns[m].value), acc[m]);
            });
        each<M>([&](auto m) OCT_INLINE { V::store(to.y + m * to.ldy, acc[m], to.bias, to.lo, to.hi); });
    }

    static void run(const uint8_t *panel, int lane, const Rows &r, int64_t k, const Target &to) {
        F acc[M];
        Weights w;
        each<M>([&](auto m) OCT_INLINE { acc[m] = V::zero(); });
        ask_to_write<V, M>(to);
        const uint8_t *at = panel, *act = r.act;
        const int64_t step = (int64_t)r.rows * act_group_bytes(f);
        for (int64_t block = k / kGroup / f.span; block > 0; block--) {
            const F d = V::halves(at + lane * 2), dmin = Weights::minima(at, lane);
            at += head_bytes(f);
            for (int g = 0; g < f.span; g++, at += group_bytes(f), act += step) {
                for (int line = 0; line < group_bytes(f); line += 64) __builtin_prefetch(at + line + V::kAhead);
                w.unpack_from(at + lane, at + lane * 4, d, dmin);
                multiply(w, act, r, acc);
                ask<lines_ahead(M)>(r.ahead);
            }
        }
        if (r.unread) Weights::read_columns(panel, lane, r.columns);
        finish(acc, lane, r, to);
    }

    // As run, on a panel that unpack_panel made ready.
    static void run_unpacked(const uint8_t *panel, const Rows &r, int64_t k, const Target &to) {
        F acc[M];
        Weights w;
        each<M>([&](auto m) OCT_INLINE { acc[m] = V::zero(); });
        ask_to_write<V, M>(to);
        const uint8_t *act = r.act;
        for (int64_t g = 0; g < k / kGroup; g++, act += r.rows * act_group_bytes(f)) {
            w.take(panel + g * Weights::kUnpacked);
            multiply(w, act, r, acc);
        }
        finish(acc, 0, r, to);
    }

    static OCT_INLINE inline void read_columns(const uint8_t *panel, const Columns &columns) {
        Weights::read_columns(panel, 0, columns);
    }

    static void unpack_panel(const uint8_t *panel, int64_t k, uint8_t *out) {
        Weights w;
        for (int64_t block = k / kGroup / f.span; block > 0; block--) {
            const F d = V::halves(panel), dmin = Weights::minima(panel, 0);
            panel += head_bytes(f);
            for (int g = 0; g < f.span; g++, panel += group_bytes(f), out += Weights::kUnpacked) {
                for (int line = 0; line < group_bytes(f); line += 64) __builtin_prefetch(panel + line + V::kAhead);
                w.unpack_from(panel, panel, d, dmin);
                w.keep(out);
            }
        }
    }
};

// As QuantTile, for unquantized weights.
template <class V, int scheme, int M> struct DenseTile {
    using F = typename V::F;

    static OCT_INLINE inline void step(const uint8_t *weights, uintptr_t far, const uint8_t *act, F (&acc)[M]) {
        if constexpr (scheme != OCT_BF16_SHORT) __builtin_prefetch((const void *)((uintptr_t)weights + far), 0, 2);
        if constexpr (is_bf16(scheme)) {
            const typename V::C pairs = V::codes(weights);
            each<M>([&](auto m) OCT_INLINE { acc[m] = V::dot_bf16(acc[m], pairs, act + m * kUnits * 4); });
        } else {
            const F value = scheme == OCT_F16 ? V::halves(weights) : V::floats(weights);
            each<M>([&](auto m) OCT_INLINE { acc[m] = V::fma(value, V::splat(float_at(act + m * kUnits * 4)), acc[m]); });
        }
    }

    static void run(const uint8_t *panel, int lane, const Rows &r, int64_t k, const Target &to) {
        constexpr int bytes = dense_step_bytes(scheme);
        F acc[M];
        each<M>([&](auto m) OCT_INLINE { acc[m] = V::zero(); });
        ask_to_write<V, M>(to);
        alignas(64) uint8_t near[scheme == OCT_BF16_SHORT ? 2 * kUnits * bytes : 1];
        Steps<V, scheme, V::kLanes, 4 * V::kAhead> steps(panel, k, lane, r.room ? r.room : near, r.room);
        const uintptr_t far = scheme == OCT_BF16 && r.room ? (uintptr_t)r.after - (uintptr_t)r.room : 4 * V::kAhead;
        const uint8_t *act = r.act + r.first * kUnits * 4;
        int64_t left = dense_steps(scheme, k);
        for (; left >= kUnits; left -= kUnits, act += r.rows * kUnits * 4) {
            const uint8_t *weights = steps.next(kUnits);
            for (int unit = 0; unit < kUnits; unit++, weights += bytes) step(weights, far, act + unit * 4, acc);
            ask<lines_ahead(M)>(r.ahead);
        }
        if (left == 0) return finish(acc, to);
        const uint8_t *weights = steps.next(left);
        for (int unit = 0; unit < left; unit++, weights += bytes) step(weights, far, act + unit * 4, acc);
        finish(acc, to);
    }

    static OCT_INLINE inline void finish(const F (&acc)[M], const Target &to) {
        each<M>([&](auto m) OCT_INLINE { V::store(to.y + m * to.ldy, acc[m], to.bias, to.lo, to.hi); });
    }
};

using TileFunction = void (*)(const uint8_t *, int, const Rows &, int64_t, const Target &);

template <class V, int scheme, int M> constexpr TileFunction tile_function() {
    if constexpr (is_dense(kFormats[scheme]))
        return DenseTile<V, scheme, M>::run;
    else
        return QuantTile<V, scheme, M>::run;
}

// Rows that one call takes of those that are left: 16, 12, 8 .. 1, up to the variant's most. Sanitizers, with which each
// takes long to compile, get fewer.
#ifndef OCT_ROW_STEPS
#define OCT_ROW_STEPS 1, 2, 3, 4, 5, 6, 7, 8, 12, 16
#endif
constexpr int kRowSteps[] = {OCT_ROW_STEPS};

template <class V> constexpr int row_steps() {
    int count = 0;
    for (const int rows : kRowSteps) count += rows <= V::kRows;
    return count;
}

template <class V, int scheme> struct Tiles {
    TileFunction run[row_steps<V>()];

    template <int... i> constexpr explicit Tiles(std::integer_sequence<int, i...>)
        : run{tile_function<V, scheme, kRowSteps[i]>()...} {}
};

// M rows of a tile, from `row` of the batch on, times one panel.
template <class V>
void panel_rows(const Product &p, TileFunction run, const uint8_t *panel, int64_t n, const Rows &rows, int64_t row) {
    for (int lane = 0; lane < kPanel; lane += V::kLanes) {
        const int64_t at = n + lane, lo = p.n_begin - at, hi = p.n_end - at;
        const Target to = {p.y + row * p.ldy + at, p.ldy, p.bias ? p.bias + at : nullptr, lo > 0 ? (int)lo : 0,
                           hi >= V::kLanes ? V::kLanes : hi > 0 ? (int)hi : 0};
        if (to.lo < to.hi) run(panel, lane, rows, p.k, to);
    }
}

// All rows of a tile times one panel.
template <class V, int scheme> void panel_tile(const Product &p, int64_t n, Rows rows, int64_t row) {
    static constexpr Tiles<V, scheme> tiles{std::make_integer_sequence<int, row_steps<V>()>()};
    static constexpr Tiles<V, act_scheme(scheme)> decoded{std::make_integer_sequence<int, row_steps<V>()>()};
    const uint8_t *panel = p.packed + n / kPanel * panel_bytes(scheme, p.k);
    const TileFunction *run = tiles.run;
    if (scheme == OCT_BF16_SHORT && !rows.unread) run = decoded.run, panel = rows.room;
    for (int step = row_steps<V>() - 1; rows.first < rows.rows; rows.first += kRowSteps[step]) {
        while (kRowSteps[step] > rows.rows - rows.first) step--;
        panel_rows<V>(p, run[step], panel, n, rows, row + rows.first);
        rows.unread = false;
        if (scheme == OCT_BF16_SHORT) run = decoded.run, panel = rows.room;
    }
}

// One panel times `count` whole tiles.
template <class V, int scheme>
void panel_unpacked(const Product &p, int64_t n, const Rows *tiles, int64_t count, int64_t row, uint8_t *room) {
    using Tile = QuantTile<V, scheme, V::kRows>;
    const uint8_t *panel = p.packed + n / kPanel * panel_bytes(scheme, p.k);
    Tile::unpack_panel(panel, p.k, room);
    Tile::read_columns(panel, tiles->columns);
    const int lo = (int)(p.n_begin > n ? p.n_begin - n : 0), hi = (int)(p.n_end - n < kPanel ? p.n_end - n : kPanel);
    for (int64_t i = 0; i < count; i++, row += kTile)
        for (Rows rows = tiles[i]; rows.first < kTile; rows.first += V::kRows) {
            const Target to = {p.y + (row + rows.first) * p.ldy + n, p.ldy, p.bias ? p.bias + n : nullptr, lo, hi};
            Tile::run_unpacked(room, rows, p.k, to);
        }
}

// Room for a panel of BF16 in lines of its own; null where one call takes all rows.
template <class V> uint8_t *room_of(int64_t k, int64_t tiles, int rows, Vector<uint8_t> &room) {
    for (int step = 0; step < row_steps<V>() && tiles == 1; step++)
        if (kRowSteps[step] == rows) return nullptr;
    const size_t bytes = (size_t)(short_blocks(k) * kShortSteps * dense_step_bytes(OCT_BF16)) + 63;
    if (room.size() < bytes) room.resize(bytes);
    return room.data() + (-(uintptr_t)room.data() & 63);
}

// The panel that begins with output n times the tiles of chunk `at`.
template <class V, int scheme> void panel_of_chunk(const Product &p, Found &found, int64_t at, int64_t n) {
    const Chunk &chunk = found.chunks[(size_t)at];
    const int64_t row = at * found.most * kTile;
    const Rows *tiles = chunk.tiles.data();
    const int64_t count = (int64_t)chunk.tiles.size();
    int64_t whole = 0;
    if constexpr (!is_dense(kFormats[scheme]) && V::kUnpackTiles > 0) {
        whole = count - (tiles[count - 1].rows < kTile);
        whole = whole < V::kUnpackTiles ? 0 : whole;
        if (whole) {
            const size_t bytes = (size_t)(p.k / kGroup * QuantTile<V, scheme, V::kRows>::kUnpacked);
            if (found.room.size() < bytes) found.room.resize(bytes);
            panel_unpacked<V, scheme>(p, n, tiles, whole, row, found.room.data());
        }
    }
    for (int64_t i = whole; i < count; i++) {
        Rows rows = tiles[i];
        rows.unread = i == 0;
        if constexpr (scheme == OCT_BF16_SHORT) {
            rows.room = room_of<V>(p.k, count, rows.rows, found.room);
            rows.after = i < 2 ? p.packed + (n / kPanel + 1) * panel_bytes(scheme, p.k) : rows.room;
        }
        panel_tile<V, scheme>(p, n, rows, row + i * kTile);
    }
}

template <class V, int scheme> void matmul(const Product &p) {
    static thread_local Found found;  // kept: products of one row would feel its making
    const int64_t most = tiles_near(p.m, act_row_bytes(scheme, p.k));
    find_chunks<scheme>(p, most, found);
    for (int64_t i = 0; i * most * kTile < p.m; i++)
        for (int64_t n = p.n_begin / kPanel * kPanel; n < p.n_end; n += kPanel) panel_of_chunk<V, scheme>(p, found, i, n);
}

// What the two sides of a gated product do, by scheme.
template <class V> struct Sides {
    void (*find[OCT_SCHEMES])(const Product &, int64_t, Found &);
    void (*panel[OCT_SCHEMES])(const Product &, Found &, int64_t, int64_t);

    template <int... scheme> constexpr explicit Sides(std::integer_sequence<int, scheme...>)
        : find{find_chunks<scheme>...}, panel{panel_of_chunk<V, scheme>...} {}
};

// A panel of each side at a time, into room that stays near until both are combined.
template <class V> void matmul_gated(const GatedProduct &p) {
    static constexpr Sides<V> sides{std::make_integer_sequence<int, OCT_SCHEMES>()};
    static thread_local Found found[2];
    static thread_local Vector<float> room;
    const int64_t m = p.sides[0].m, k = p.sides[0].k, n_end = p.sides[0].n_end;
    const bool alike = p.schemes[0] == p.schemes[1];  // then of one form
    const int64_t bytes[2] = {act_row_bytes(p.schemes[0], k), act_row_bytes(p.schemes[1], k)};
    const int64_t most = tiles_near(m, bytes[0] > bytes[1] ? bytes[0] : bytes[1]);
    if (room.size() < (size_t)(2 * most * kTile * kPanel)) room.resize((size_t)(2 * most * kTile * kPanel));
    for (int s = 0; s < 2 - alike; s++) sides.find[p.schemes[s]](p.sides[s], most, found[s]);
    for (int64_t row = 0, i = 0; row < m; row += most * kTile, i++) {
        const int64_t rows = m - row < most * kTile ? m - row : most * kTile;
        for (int64_t n = p.sides[0].n_begin; n < n_end; n += kPanel) {
            float *const made[2] = {room.data(), room.data() + most * kTile * kPanel};
            for (int s = 0; s < 2; s++) {
                Product side = p.sides[s];
                side.y = made[s] - row * kPanel - n;
                side.ldy = kPanel;
                sides.panel[p.schemes[s]](side, found[alike ? 0 : s], i, n);
            }
            p.combine(p.act, made[0], made[1], p.y + row * p.ldy + n, p.ldy, rows, n_end - n < kPanel ? n_end - n : kPanel);
        }
    }
}

template <class V, int... scheme> constexpr Kernels kernels(const char *name, std::integer_sequence<int, scheme...>) {
    return {name, {quantize<V, act_scheme(scheme)>...}, {matmul<V, scheme>...}, matmul_gated<V>};
}

template <class V> constexpr Kernels kernels(const char *name) {
    return kernels<V>(name, std::make_integer_sequence<int, OCT_SCHEMES>());
}

} // namespace
