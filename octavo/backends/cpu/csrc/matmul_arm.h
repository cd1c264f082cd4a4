// The products for ARM with the dot product instructions; included by matmul_neon.cpp and matmul_i8mm.cpp.
//
// A call takes whole panels: rows of activations four or two 4-lane passes at a time, so that few rows (where memory is
// the limit) read each weight once; whole tiles read a panel that is unpacked once. With i8mm and bf16, two rows share an
// instruction: of bfloat16 always, a last odd row being its own partner; of codes from an unpacked panel alone, as making
// operands of two rows takes longer than it saves where each call unpacks.
// Integer sums are exact and bfmmla adds each output's pairs in order of k, so a row's result is the same either way.
#pragma once

#include "matmul_tiles.h"

#include <arm_neon.h>

namespace {

#if defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

// Four output rows: the vector operations of matmul_tiles.h.
struct Quad {
    static constexpr bool kSignedWide = true;
    using F = float32x4_t;
    using I = int32x4_t;
    using C = uint8x16_t;

    static OCT_INLINE inline F zero() { return vdupq_n_f32(0.0f); }
    static OCT_INLINE inline F splat(float x) { return vdupq_n_f32(x); }
    static OCT_INLINE inline I splat(int32_t x) { return vdupq_n_s32(x); }
    static OCT_INLINE inline F floats(const uint8_t *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
    static OCT_INLINE inline F halves(const uint8_t *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
    static OCT_INLINE inline uint8x8_t word(const uint8_t *p) { return vreinterpret_u8_s32(vdup_n_s32(int_at(p))); }
    static OCT_INLINE inline F uint8s(const uint8_t *p) {
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(word(p)))));
    }
    static OCT_INLINE inline F int8s(const uint8_t *p) {
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(word(p))))));
    }
    static OCT_INLINE inline F low_halves(const uint8_t *p) {
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vand_u8(word(p), vdup_n_u8(15))))));
    }
    static OCT_INLINE inline F high_halves(const uint8_t *p) {
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vshr_n_u8(word(p), 4)))));
    }
    static OCT_INLINE inline F mul(F a, F b) { return vmulq_f32(a, b); }
    static OCT_INLINE inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static OCT_INLINE inline F fma(F a, float b, F c) { return vfmaq_n_f32(c, a, b); }
    static OCT_INLINE inline F negate(F a) { return vnegq_f32(a); }
    static OCT_INLINE inline F to_float(I a) { return vcvtq_f32_s32(a); }

    static OCT_INLINE inline C codes(const uint8_t *p) { return vld1q_u8(p); }
    static OCT_INLINE inline C add(C a, C b) { return vaddq_u8(a, b); }
    static OCT_INLINE inline C mask(C a, int bits) { return vandq_u8(a, vdupq_n_u8((uint8_t)bits)); }
    // Of a base without these bits: one instruction.
    static OCT_INLINE inline C merge(C base, C a, int bits) { return vbslq_u8(vdupq_n_u8((uint8_t)bits), a, base); }
    static OCT_INLINE inline C upper_halves(C a) { return vshrq_n_u8(a, 4); }
    template <int count> static OCT_INLINE inline C shift(C a) {
        if constexpr (count > 0) return vshrq_n_u8(a, count);
        if constexpr (count < 0) return vshlq_n_u8(a, -count);
        return a;
    }
    // Words to the right.
    static OCT_INLINE inline C shifted(C a, int count) {
        return vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(a), vdupq_n_s32(-count)));
    }
    static OCT_INLINE inline I byte(C a, int at) {
        return vandq_s32(vreinterpretq_s32_u8(shifted(a, 8 * at)), splat(255));
    }
    // 16 bytes at `from`, for bytes of a vector that are 0 .. 15.
    static OCT_INLINE inline C table(const uint8_t *from) { return vld1q_u8(from); }
    static OCT_INLINE inline C lookup(C table, C a) { return vqtbl1q_u8(table, a); }
    static OCT_INLINE inline C levels(C a) { return lookup(table(kLevels128), a); }
    // The first 8, or the last, of the bytes of both in turns.
    static OCT_INLINE inline C zip_low(C a, C b) { return vzip1q_u8(a, b); }
    static OCT_INLINE inline C zip_high(C a, C b) { return vzip2q_u8(a, b); }

    // Wide codes are signed bytes as code - 128, all the others as they are.
    template <bool wide> static OCT_INLINE inline int8x16_t as_signed(C codes) {
        return vreinterpretq_s8_u8(wide ? veorq_u8(codes, vdupq_n_u8(128)) : codes);
    }
    template <bool wide> static OCT_INLINE inline I dot(I sum, C codes, const uint8_t *quad) {
        return vdotq_s32(sum, as_signed<wide>(codes), vreinterpretq_s8_s32(vdupq_n_s32(int_at(quad))));
    }

    // Lanes lo..hi of four, none where the range is empty.
    static OCT_INLINE inline void store(float *y, F value, const float *bias, int lo, int hi) {
        if (lo > 0 || hi < 4) return store_some(y, value, bias, lo > 0 ? lo : 0, hi < 4 ? hi : 4);
        vst1q_f32(y, bias ? vaddq_f32(value, vld1q_f32(bias)) : value);
    }
    // Apart, as it is rare and large.
    __attribute__((noinline)) static void store_some(float *y, F value, const float *bias, int lo, int hi) {
        float lanes[4];
        vst1q_f32(lanes, value);
        for (int i = lo; i < hi; i++) y[i] = bias ? lanes[i] + bias[i] : lanes[i];
    }
};

struct Arm {
    static constexpr int kLanes = kPanel, kRows = 8, kAhead = 1024, kUnpackTiles = 1;

    static void pairs(const float *x, uint32_t *out) { pairs_portable(x, kUnits, out); }
    static OCT_INLINE inline void range(const float *x, float &low, float &high) {
        float32x4_t least = vld1q_f32(x), greatest = least;
        for (int i = 4; i < kGroup; i += 4) {
            least = vminq_f32(least, vld1q_f32(x + i));
            greatest = vmaxq_f32(greatest, vld1q_f32(x + i));
        }
        low = vminvq_f32(least);
        high = vmaxvq_f32(greatest);
    }
    static uint32_t beyond(const float *x, float bound) { return beyond_portable(x, bound); }
    static void range_without(const float *x, uint32_t out, float &low, float &high) {
        range_without_portable(x, out, low, high);
    }
    static OCT_INLINE inline void round(const float *x, float centre, float inverse, int8_t *codes, int32_t (&sums)[2]) {
        const float32x4_t from = vdupq_n_f32(centre);
        for (int half = 0; half < 2; half++) {
            int32x4_t code[4];
            for (int i = 0; i < 4; i++)
                code[i] = vcvtnq_s32_f32(vmulq_n_f32(vsubq_f32(vld1q_f32(x + half * 16 + i * 4), from), inverse));
            const int16x8_t low = vcombine_s16(vqmovn_s32(code[0]), vqmovn_s32(code[1]));
            const int16x8_t high = vcombine_s16(vqmovn_s32(code[2]), vqmovn_s32(code[3]));
            const int8x16_t bytes = vmaxq_s8(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)), vdupq_n_s8(-127));
            vst1q_s8(codes + half * 16, bytes);
            sums[half] = vaddlvq_s8(bytes);
        }
    }
};

// Passes of four lanes that M rows take together: so many sums fit into the registers.
constexpr int passes_together(int rows) { return rows <= 4 ? 4 : 2; }

// Keeps the compiler from unpacking the next pass's weights before this one's are used: they do not fit in together.
OCT_INLINE inline void in_turn() { asm volatile("" ::: "memory"); }

// Keeps Clang from putting off what is added to a sum until all of a call's dot products are made: they do not fit in.
OCT_INLINE inline void settle(float32x4_t &sum) { asm volatile("" : "+w"(sum)); }

// What two rows have at `a` and `b`, 16 bytes each, as two operands of a pair instruction: 8 bytes of each row.
OCT_INLINE inline void interleave(const uint8_t *a, const uint8_t *b, int8x16_t (&pair)[2]) {
    const int64x2_t x = vreinterpretq_s64_u8(vld1q_u8(a)), y = vreinterpretq_s64_u8(vld1q_u8(b));
    pair[0] = vreinterpretq_s8_s64(vzip1q_s64(x, y));
    pair[1] = vreinterpretq_s8_s64(vzip2q_s64(x, y));
}

// Two neighbouring code vectors, 4 bytes of 4 output rows each, as 8 bytes of output rows 0, 1 and of 2, 3.
OCT_INLINE inline void widen_words(int8x16_t &a, int8x16_t &b) {
    const int32x4_t x = vreinterpretq_s32_s8(a), y = vreinterpretq_s32_s8(b);
    a = vreinterpretq_s8_s32(vzip1q_s32(x, y));
    b = vreinterpretq_s8_s32(vzip2q_s32(x, y));
}

template <int scheme, int M> struct QuantTile<Arm, scheme, M> {
    using F = Quad::F;
    using I = Quad::I;
    using Weights = Group<Quad, scheme>;
    static constexpr Format f = kFormats[scheme];
    static constexpr int P = passes_together(M), kUnpacked = kPanel / 4 * Weights::kUnpacked;

    // A group's activations of the rows of a call.
    struct Part {
        const uint8_t *codes, *factors;

        OCT_INLINE Part(const uint8_t *act, const Rows &r)
            : codes(act + r.first * kGroup), factors(act + r.rows * kGroup + r.first * factor_bytes(f)) {}
        OCT_INLINE const uint8_t *factor(int m) const { return factors + m * factor_bytes(f); }
        OCT_INLINE const uint8_t *aux_at(int m, int s) const { return factor(m) + 8 + s * 4; }
    };

    // offset: whether the codes still have theirs.
    template <bool offset>
    static OCT_INLINE inline void dots(const int8x16_t (&quads)[8], const Part &x, int m, I (&dot)[f.subs]) {
        const int8x16_t codes[2] = {vreinterpretq_s8_u8(vld1q_u8(x.codes + m * kGroup)),
                                    vreinterpretq_s8_u8(vld1q_u8(x.codes + m * kGroup + 16))};
        each<f.subs>([&](auto s) OCT_INLINE { dot[s] = Quad::splat(offset ? int_at(x.aux_at(m, s)) : 0); });
        each<8>([&](auto q) OCT_INLINE {
            constexpr int quad = decltype(q)::value, s = quad * f.subs / 8;
            dot[s] = vdotq_laneq_s32(dot[s], quads[quad], codes[quad / 4], quad % 4);
        });
    }

#if defined(__ARM_FEATURE_MATMUL_INT8)
    // The codes of rows a and b, 8 of each in turns.
    static OCT_INLINE inline void two_rows(const Part &x, int a, int b, int8x16_t (&codes)[4]) {
        each<2>([&](auto h) OCT_INLINE {
            int8x16_t pair[2];
            interleave(x.codes + a * kGroup + h * 16, x.codes + b * kGroup + h * 16, pair);
            codes[2 * h] = pair[0], codes[2 * h + 1] = pair[1];
        });
    }

    // quads: as unpack_panel keeps them. codes: of two_rows.
    static OCT_INLINE inline void two_dots(const uint8_t *quads, const int8x16_t (&codes)[4], I (&dot_a)[f.subs],
                                           I (&dot_b)[f.subs]) {
        const auto quad = [&](int q) OCT_INLINE { return vreinterpretq_s8_u8(vld1q_u8(quads + q * 16)); };
        each<f.subs>([&](auto s) OCT_INLINE {
            I low = Quad::splat(0), high = low;
            each<4 / f.subs>([&](auto i) OCT_INLINE {
                constexpr int eight = s * 4 / f.subs + i;
                low = vmmlaq_s32(low, codes[eight], quad(2 * eight));
                high = vmmlaq_s32(high, codes[eight], quad(2 * eight + 1));
                in_turn();
            });
            const int64x2_t l = vreinterpretq_s64_s32(low), h = vreinterpretq_s64_s32(high);
            dot_a[s] = vreinterpretq_s32_s64(vzip1q_s64(l, h));
            dot_b[s] = vreinterpretq_s32_s64(vzip2q_s64(l, h));
        });
    }
#endif

    // The floats of matmul_tiles.h, in its order.
    static OCT_INLINE inline void add(const I (&dot)[f.subs], const Weights &w, const Part &x, int m, F &acc) {
        F sum = Quad::mul(Quad::to_float(dot[0]), w.scale[0]);
        if constexpr (f.subs == 2) sum = Quad::fma(Quad::to_float(dot[1]), w.scale[1], sum);
        acc = Quad::fma(sum, float_at(x.factor(m)), acc);
        if constexpr (f.minimum)
            each<f.subs>([&](auto s) OCT_INLINE { acc = Quad::fma(w.minimum[s], float_at(x.aux_at(m, s)), acc); });
        acc = Quad::fma(w.total, float_at(x.factor(m) + 4), acc);
        settle(acc);
    }

    // A group's four lanes from `lane` of the panel on; its block at `block`, itself at p. quads: its signed codes.
    static OCT_INLINE inline void unpack_lanes(const uint8_t *block, const uint8_t *p, int lane, Weights &w,
                                               int8x16_t (&quads)[8]) {
        w.unpack_from(p + lane, p + lane * 4, Quad::halves(block + lane * 2), Weights::minima(block, lane));
        each<8>([&](auto q) OCT_INLINE { quads[q] = Quad::as_signed<Weights::kWide>(w.quads[q]); });
    }

    // acc[m] += the group's part, for these lanes.
    static OCT_INLINE inline void group(const uint8_t *block, const uint8_t *p, int lane, const Part &x, F (&acc)[M]) {
        Weights w;
        int8x16_t quads[8];
        unpack_lanes(block, p, lane, w, quads);
        each<M>([&](auto m) OCT_INLINE {
            I dot[f.subs];
            dots<Weights::kOffset>(quads, x, m, dot);
            add(dot, w, x, m, acc[m]);
        });
    }

    // P passes from `lane` on.
    static OCT_INLINE inline void passes(const uint8_t *block, const uint8_t *p, int lane, const Part &x, F (&acc)[P][M]) {
        each<P>([&](auto i) OCT_INLINE {
            group(block, p, lane + 4 * i, x, acc[i]);
            in_turn();
        });
    }

    // As passes, from a group that unpack_panel made, of which the first pass's lanes lie at p.
    static OCT_INLINE inline void passes_unpacked(const uint8_t *p, const Part &x, F (&acc)[P][M]) {
        Weights w;
        I dot[f.subs];
        if constexpr (kPairs) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
            I other[f.subs];
            int8x16_t codes[4];
            each<M / 2>([&](auto i) OCT_INLINE {
                two_rows(x, 2 * i, 2 * i + 1, codes);
                each<P>([&](auto pass) OCT_INLINE {
                    const uint8_t *at = p + pass * Weights::kUnpacked;
                    two_dots(at, codes, dot, other);
                    w.take(at);
                    add(dot, w, x, 2 * i, acc[pass][2 * i]);
                    add(other, w, x, 2 * i + 1, acc[pass][2 * i + 1]);
                    in_turn();
                });
            });
#endif
        } else {
            int8x16_t quads[8];
            each<P>([&](auto pass) OCT_INLINE {
                w.take(p + pass * Weights::kUnpacked);
                each<8>([&](auto q) OCT_INLINE { quads[q] = vreinterpretq_s8_u8(w.quads[q]); });
                each<M>([&](auto m) OCT_INLINE {
                    dots<false>(quads, x, m, dot);
                    add(dot, w, x, m, acc[pass][m]);
                });
                in_turn();
            });
        }
    }

    // Adds the outliers times their columns, row by row in turn, and writes acc.
    static OCT_INLINE inline void finish(F (&acc)[P][M], int lane, const Rows &r, const Target &to) {
        const Turn *turns = r.turns + r.first;
        for (int turn = 0; turn < r.most; turn++, turns += kTile)
            each<M>([&](auto m) OCT_INLINE {
                const float *column = r.columns.weights + turns[m].column / 4 + lane;
                each<P>([&](auto i) OCT_INLINE {
                    acc[i][m] = Quad::fma(vld1q_f32(column + 4 * i), turns[m].value, acc[i][m]);
                });
            });
        each<P * M>([&](auto i) OCT_INLINE {
            const int at = lane + i / M * 4;
            const float *bias = to.bias ? to.bias + at : nullptr;
            Quad::store(to.y + i % M * to.ldy + at, acc[i / M][i % M], bias, to.lo - at, to.hi - at);
        });
    }

    static void run(const uint8_t *panel, int, const Rows &r, int64_t k, const Target &to) {
        const int64_t step = (int64_t)r.rows * act_group_bytes(f);
        for (int lane = 0; lane < kPanel; lane += 4 * P) {
            if (to.hi <= lane || to.lo >= lane + 4 * P) continue;
            F acc[P][M];
            each<P * M>([&](auto i) OCT_INLINE { acc[i / M][i % M] = Quad::zero(); });
            const uint8_t *p = panel, *x = r.act;
            for (int64_t left = k / kGroup / f.span; left > 0; left--) {
                const uint8_t *block = p;
                p += head_bytes(f);
                for (int g = 0; g < f.span; g++, p += group_bytes(f), x += step) {
                    for (int line = 0; line < group_bytes(f); line += 64) __builtin_prefetch(p + line + Arm::kAhead);
                    passes(block, p, lane, Part(x, r), acc);
                }
            }
            if (r.unread) each<P>([&](auto i) OCT_INLINE { Weights::read_columns(panel, lane + 4 * i, r.columns); });
            finish(acc, lane, r, to);
        }
    }

    // As run, on a panel that unpack_panel made ready.
    static void run_unpacked(const uint8_t *panel, const Rows &r, int64_t k, const Target &to) {
        const int64_t step = (int64_t)r.rows * act_group_bytes(f);
        for (int lane = 0; lane < kPanel; lane += 4 * P) {
            if (to.hi <= lane || to.lo >= lane + 4 * P) continue;
            F acc[P][M];
            each<P * M>([&](auto i) OCT_INLINE { acc[i / M][i % M] = Quad::zero(); });
            const uint8_t *p = panel + lane / 4 * Weights::kUnpacked, *x = r.act;
            for (int64_t left = k / kGroup; left > 0; left--, p += kUnpacked, x += step) passes_unpacked(p, Part(x, r), acc);
            finish(acc, lane, r, to);
        }
    }

    static OCT_INLINE inline void read_columns(const uint8_t *panel, const Columns &columns) {
        for (int lane = 0; lane < kPanel; lane += 4) Weights::read_columns(panel, lane, columns);
    }

    // A panel's groups as run_unpacked reads them: codes less their offset, with i8mm after widen_words.
    static void unpack_panel(const uint8_t *panel, int64_t k, uint8_t *out) {
        for (int64_t block = k / kGroup / f.span; block > 0; block--) {
            const uint8_t *head = panel;
            panel += head_bytes(f);
            for (int g = 0; g < f.span; g++, panel += group_bytes(f))
                for (int lane = 0; lane < kPanel; lane += 4, out += Weights::kUnpacked) {
                    Weights w;
                    int8x16_t quads[8];
                    for (int line = lane * 16; line < group_bytes(f); line += 256)
                        __builtin_prefetch(panel + line + Arm::kAhead);
                    unpack_lanes(head, panel, lane, w, quads);
                    const int8x16_t offset = vdupq_n_s8(Weights::kOffset ? (int8_t)f.offset : 0);
                    each<8>([&](auto q) OCT_INLINE { quads[q] = vsubq_s8(quads[q], offset); });
                    if constexpr (kPairs) each<4>([&](auto i) OCT_INLINE { widen_words(quads[2 * i], quads[2 * i + 1]); });
                    each<8>([&](auto q) OCT_INLINE { w.quads[q] = vreinterpretq_u8_s8(quads[q]); });
                    w.keep(out);
                }
        }
    }
};

template <int scheme, int M> struct DenseTile<Arm, scheme, M> {
    using F = Quad::F;
    static constexpr int P = passes_together(M), kStep = dense_step_bytes(scheme), kLaneBytes = kStep / kPanel;
    static constexpr bool kTwo = kPairs && is_bf16(scheme);
    static constexpr int kSums = kTwo ? (M + 1) / 2 * 2 : M;  // with pairs: outputs 0, 1 of both rows, then 2, 3

    // One unit of all rows at x, weights of this pass at w.
    static OCT_INLINE inline void step(const uint8_t *w, const uint8_t *x, F (&acc)[kSums]) {
        if constexpr (is_bf16(scheme)) {
            const uint32x4_t both = vreinterpretq_u32_u8(vld1q_u8(w)), odd = vdupq_n_u32(0xffff0000);
            const F low = vreinterpretq_f32_u32(vshlq_n_u32(both, 16)), high = vreinterpretq_f32_u32(vandq_u32(both, odd));
            each<M>([&](auto m) OCT_INLINE {
                const int32_t pair = int_at(x + m * kUnits * 4), upper = pair & (int32_t)0xffff0000;
                const int32_t lower = (int32_t)((uint32_t)pair << 16);
                float a, b;
                memcpy(&a, &lower, 4);
                memcpy(&b, &upper, 4);
                acc[m] = Quad::fma(low, a, Quad::fma(high, b, acc[m]));
            });
        } else {
            const F value = scheme == OCT_F16 ? Quad::halves(w) : Quad::floats(w);
            each<M>([&](auto m) OCT_INLINE { acc[m] = Quad::fma(value, float_at(x + m * kUnits * 4), acc[m]); });
        }
    }

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    // Two units; the second's weights are zero where k ends between them.
    static OCT_INLINE inline void two_steps(const uint8_t *w, bool second, const uint8_t *x, F (&acc)[kSums]) {
        int8x16_t low = vreinterpretq_s8_u8(vld1q_u8(w));
        int8x16_t high = vreinterpretq_s8_u8(second ? vld1q_u8(w + kStep) : vdupq_n_u8(0));
        widen_words(low, high);
        each<(M + 1) / 2>([&](auto i) OCT_INLINE {
            constexpr int a = 2 * i, b = a + 1 < M ? a + 1 : a;
            const uint8x16_t rows = vcombine_u8(vld1_u8(x + a * kUnits * 4), vld1_u8(x + b * kUnits * 4));
            const bfloat16x8_t pairs = vreinterpretq_bf16_u8(rows);
            acc[a] = vbfmmlaq_f32(acc[a], pairs, vreinterpretq_bf16_s8(low));
            acc[a + 1] = vbfmmlaq_f32(acc[a + 1], pairs, vreinterpretq_bf16_s8(high));
        });
    }
#endif

    // `count` units of all rows.
    static OCT_INLINE inline void units(const uint8_t *w, int64_t count, const uint8_t *x, F (&acc)[P][kSums]) {
        constexpr int ahead = kTwo ? 2 : 1;
        for (int u = 0; u < count; u += ahead) {
            if constexpr (scheme != OCT_BF16_SHORT) __builtin_prefetch(w + u * kStep + Arm::kAhead);
            each<P>([&](auto i) OCT_INLINE {
                const uint8_t *at = w + u * kStep + 4 * i * kLaneBytes;
                if constexpr (kTwo) {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
                    two_steps(at, u + 1 < count, x + u * 4, acc[i]);
#endif
                } else {
                    step(at, x + u * 4, acc[i]);
                }
            });
        }
    }

    static OCT_INLINE inline F row(const F (&acc)[kSums], int m) {
        if constexpr (!kTwo) return acc[m];
        const float64x2_t low = vreinterpretq_f64_f32(acc[m / 2 * 2]), high = vreinterpretq_f64_f32(acc[m / 2 * 2 + 1]);
        return vreinterpretq_f32_f64(m % 2 ? vzip2q_f64(low, high) : vzip1q_f64(low, high));
    }

    static void run(const uint8_t *panel, int, const Rows &r, int64_t k, const Target &to) {
        alignas(64) uint8_t near[scheme == OCT_BF16_SHORT ? 2 * kUnits * kStep : 1];
        for (int lane = 0; lane < kPanel; lane += 4 * P) {
            if (to.hi <= lane || to.lo >= lane + 4 * P) continue;
            F acc[P][kSums];
            each<P * kSums>([&](auto i) OCT_INLINE { acc[i / kSums][i % kSums] = Quad::zero(); });
            Steps<Quad, scheme, 4 * P, Arm::kAhead> steps(panel, k, lane, r.room ? r.room : near, r.room);
            const uint8_t *x = r.act + r.first * kUnits * 4;
            int64_t left = dense_steps(scheme, k);
            for (; left >= kUnits; left -= kUnits, x += r.rows * kUnits * 4) units(steps.next(kUnits), kUnits, x, acc);
            if (left) units(steps.next(left), left, x, acc);
            each<P * M>([&](auto i) OCT_INLINE {
                const int at = lane + i / M * 4;
                Quad::store(to.y + i % M * to.ldy + at, row(acc[i / M], i % M), to.bias ? to.bias + at : nullptr, to.lo - at,
                            to.hi - at);
            });
        }
    }
};

} // namespace
