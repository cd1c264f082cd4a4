// The products for ARM with the dot product instructions; included by matmul_neon.cpp and matmul_i8mm.cpp.
//
// A call takes whole panels: rows of activations four or two 4-lane passes at a time, so that few rows (where memory is
// the limit) read each weight once. With i8mm and bf16, two rows share an instruction; a last odd row is its own partner.
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
    using F = float32x4_t;
    using I = int32x4_t;
    using C = uint8x16_t;

    static OCT_INLINE inline F zero() { return vdupq_n_f32(0.0f); }
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

    static OCT_INLINE inline C codes(const uint8_t *p) { return vld1q_u8(p); }
    static OCT_INLINE inline C mask(C a, int bits) { return vandq_u8(a, vdupq_n_u8((uint8_t)bits)); }
    static OCT_INLINE inline C merge(C base, C a, int bits) { return vorrq_u8(base, mask(a, bits)); }
    template <int count> static OCT_INLINE inline C shift(C a) {
        if constexpr (count > 0) return vshrq_n_u8(a, count);
        if constexpr (count < 0) return vshlq_n_u8(a, -count);
        return a;
    }
    static OCT_INLINE inline C levels(C a) { return vqtbl1q_u8(vld1q_u8(kLevels128), a); }

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
    static constexpr int kLanes = kPanel, kRows = 8, kAhead = 1024;

    static OCT_INLINE inline void quantize_group(const float *x, int8_t *codes, float &scale, int32_t (&sums)[2]) {
        quantize_group_portable(x, codes, scale, sums);
    }
};

// Passes of four lanes that M rows take together: so many sums fit into the registers.
constexpr int passes_together(int rows) { return rows <= 4 ? 4 : 2; }

// Keeps the compiler from unpacking the next pass's weights before this one's are used: they do not fit in together.
OCT_INLINE inline void in_turn() { asm volatile("" ::: "memory"); }

// What two rows have at `a` and `b`, 16 bytes each, as two operands of a pair instruction: 8 bytes of each row.
OCT_INLINE inline void interleave(const uint8_t *a, const uint8_t *b, int8x16_t (&pair)[2]) {
    const int64x2_t x = vreinterpretq_s64_u8(vld1q_u8(a)), y = vreinterpretq_s64_u8(vld1q_u8(b));
    pair[0] = vreinterpretq_s8_s64(vzip1q_s64(x, y));
    pair[1] = vreinterpretq_s8_s64(vzip2q_s64(x, y));
}

// Two neighbouring code vectors, 4 bytes of 4 output rows each, as 8 bytes of output rows 0, 1 and of 2, 3.
OCT_INLINE inline void widen_words(uint8x16_t &a, uint8x16_t &b) {
    const uint32x4_t x = vreinterpretq_u32_u8(a), y = vreinterpretq_u32_u8(b);
    a = vreinterpretq_u8_u32(vzip1q_u32(x, y));
    b = vreinterpretq_u8_u32(vzip2q_u32(x, y));
}

template <int scheme, int M> struct QuantTile<Arm, scheme, M> {
    using F = Quad::F;
    using I = Quad::I;
    static constexpr Format f = kFormats[scheme];
    // as code - 128 they are signed bytes, which all the others are without
    static constexpr bool kWide = f.codes == Codes::kBytes || f.codes == Codes::kLevels;
    static constexpr bool kOffset = f.offset != 0 && !kWide;
    static constexpr bool kTwo = kPairs && M > 1;
    static constexpr int P = passes_together(M);

    // A group of activations of rows first..first + M.
    struct Rows {
        const uint8_t *codes, *factor, *aux;

        Rows(const uint8_t *act, int rows, int first)
            : codes(act + first * kGroup), factor(act + rows * kGroup + first * 4),
              aux(act + rows * (kGroup + 4) + first * 4 * f.subs) {}
        OCT_INLINE const uint8_t *aux_at(int m, int s) const { return aux + (m * f.subs + s) * 4; }
        OCT_INLINE int32_t start(int m, int s) const { return kOffset ? int_at(aux_at(m, s)) : 0; }
    };

    static OCT_INLINE inline void dots(const uint8x16_t (&quads)[8], const Rows &x, int m, I (&dot)[f.subs]) {
        const int8x16_t codes[2] = {vreinterpretq_s8_u8(vld1q_u8(x.codes + m * kGroup)),
                                    vreinterpretq_s8_u8(vld1q_u8(x.codes + m * kGroup + 16))};
        each<f.subs>([&](auto s) OCT_INLINE { dot[s] = vdupq_n_s32(x.start(m, s)); });
        each<8>([&](auto q) OCT_INLINE {
            constexpr int quad = decltype(q)::value, s = quad * f.subs / 8;
            dot[s] = vdotq_laneq_s32(dot[s], vreinterpretq_s8_u8(quads[quad]), codes[quad / 4], quad % 4);
        });
    }

#if defined(__ARM_FEATURE_MATMUL_INT8)
    // quads: after widen_words.
    static OCT_INLINE inline void two_dots(const uint8x16_t (&quads)[8], const Rows &x, int a, int b, I (&dot_a)[f.subs],
                                           I (&dot_b)[f.subs]) {
        int8x16_t codes[2][2];
        each<2>([&](auto h) OCT_INLINE {
            interleave(x.codes + a * kGroup + h * 16, x.codes + b * kGroup + h * 16, codes[h]);
        });
        each<f.subs>([&](auto s) OCT_INLINE {
            I low = vcombine_s32(vdup_n_s32(x.start(a, s)), vdup_n_s32(x.start(b, s))), high = low;
            each<4 / f.subs>([&](auto i) OCT_INLINE {
                constexpr int eight = s * 4 / f.subs + i;
                low = vmmlaq_s32(low, codes[eight / 2][eight % 2], vreinterpretq_s8_u8(quads[2 * eight]));
                high = vmmlaq_s32(high, codes[eight / 2][eight % 2], vreinterpretq_s8_u8(quads[2 * eight + 1]));
            });
            const int64x2_t l = vreinterpretq_s64_s32(low), h = vreinterpretq_s64_s32(high);
            dot_a[s] = vreinterpretq_s32_s64(vzip1q_s64(l, h));
            dot_b[s] = vreinterpretq_s32_s64(vzip2q_s64(l, h));
        });
    }
#endif

    // The floats of matmul_tiles.h, in its order.
    static OCT_INLINE inline void add(const I (&dot)[f.subs], const F (&scale)[2], const F (&minimum)[2], const Rows &x,
                                      int m, F &acc) {
        F sum = Quad::mul(vcvtq_f32_s32(dot[0]), scale[0]);
        if constexpr (f.subs == 2) sum = Quad::fma(vcvtq_f32_s32(dot[1]), scale[1], sum);
        acc = Quad::fma(sum, float_at(x.factor + m * 4), acc);
        if constexpr (f.minimum)
            each<f.subs>([&](auto s) OCT_INLINE { acc = Quad::fma(minimum[s], float_at(x.aux_at(m, s)), acc); });
    }

    // acc[m] += this group's part, for lanes lane..lane + 4 of the panel.
    static OCT_INLINE inline void group(const uint8_t *head, const uint8_t *p, int lane, const Rows &x, F (&acc)[M]) {
        const F d = Quad::halves(head + lane * 2);
        const F dmin = f.minimum ? Quad::halves(head + kPanel * 2 + lane * 2) : Quad::zero();
        F scale[2], minimum[2];
        each<f.subs>([&](auto s) OCT_INLINE { scales<Quad, scheme>(p + lane, s, d, dmin, scale[s], minimum[s]); });
        uint8x16_t quads[8];
        unpack<Quad, f.codes>(p + scale_bytes(f) + lane * 4, quads);
        if constexpr (kWide) each<8>([&](auto q) OCT_INLINE { quads[q] = veorq_u8(quads[q], vdupq_n_u8(128)); });
        I dot[f.subs];
        if constexpr (kTwo) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
            each<4>([&](auto i) OCT_INLINE { widen_words(quads[2 * i], quads[2 * i + 1]); });
            I other[f.subs];
            each<(M + 1) / 2>([&](auto i) OCT_INLINE {
                constexpr int a = 2 * i, b = a + 1 < M ? a + 1 : a;
                two_dots(quads, x, a, b, dot, other);
                add(dot, scale, minimum, x, a, acc[a]);
                if constexpr (b != a) add(other, scale, minimum, x, b, acc[b]);
            });
#endif
        } else {
            each<M>([&](auto m) OCT_INLINE {
                dots(quads, x, m, dot);
                add(dot, scale, minimum, x, m, acc[m]);
            });
        }
    }

    static void run(const uint8_t *panel, int, const uint8_t *act, int rows, int first, int64_t k, const Target &to) {
        const int64_t step = (int64_t)rows * act_group_bytes(f);
        for (int lane = 0; lane < kPanel; lane += 4 * P) {
            if (to.hi <= lane || to.lo >= lane + 4 * P) continue;
            F acc[P][M];
            each<P * M>([&](auto i) OCT_INLINE { acc[i / M][i % M] = Quad::zero(); });
            const uint8_t *p = panel, *x = act;
            for (int64_t block = k / kGroup / f.span; block > 0; block--) {
                const uint8_t *head = p;
                p += head_bytes(f);
                for (int g = 0; g < f.span; g++, p += group_bytes(f), x += step) {
                    for (int line = 0; line < group_bytes(f); line += 64) __builtin_prefetch(p + line + Arm::kAhead);
                    each<P>([&](auto i) OCT_INLINE {
                        group(head, p, lane + 4 * i, Rows(x, rows, first), acc[i]);
                        in_turn();
                    });
                }
            }
            each<P * M>([&](auto i) OCT_INLINE {
                const int at = lane + i / M * 4;
                Quad::store(to.y + i % M * to.ldy + at, acc[i / M][i % M], to.bias ? to.bias + at : nullptr, to.lo - at,
                            to.hi - at);
            });
        }
    }
};

template <int scheme, int M> struct DenseTile<Arm, scheme, M, 1> {
    using F = Quad::F;
    static constexpr int P = passes_together(M), kStep = dense_step_bytes(scheme), kLaneBytes = kStep / kPanel;
    static constexpr bool kTwo = kPairs && scheme == OCT_BF16;
    static constexpr int kSums = kTwo ? (M + 1) / 2 * 2 : M;  // with pairs: outputs 0, 1 of both rows, then 2, 3

    // One unit of all rows at x, weights of this pass at w.
    static OCT_INLINE inline void step(const uint8_t *w, const uint8_t *x, F (&acc)[kSums]) {
        if constexpr (scheme == OCT_BF16) {
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
        uint8x16_t low = vld1q_u8(w), high = second ? vld1q_u8(w + kStep) : vdupq_n_u8(0);
        widen_words(low, high);
        each<(M + 1) / 2>([&](auto i) OCT_INLINE {
            constexpr int a = 2 * i, b = a + 1 < M ? a + 1 : a;
            const uint8x16_t rows = vcombine_u8(vld1_u8(x + a * kUnits * 4), vld1_u8(x + b * kUnits * 4));
            const bfloat16x8_t pairs = vreinterpretq_bf16_u8(rows);
            acc[a] = vbfmmlaq_f32(acc[a], pairs, vreinterpretq_bf16_u8(low));
            acc[a + 1] = vbfmmlaq_f32(acc[a + 1], pairs, vreinterpretq_bf16_u8(high));
        });
    }
#endif

    // `count` units of all rows.
    static OCT_INLINE inline void units(const uint8_t *w, int64_t count, const uint8_t *x, F (&acc)[P][kSums]) {
        constexpr int ahead = kTwo ? 2 : 1;
        for (int u = 0; u < count; u += ahead) {
            __builtin_prefetch(w + u * kStep + Arm::kAhead);
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

    static void run(const uint8_t *panel, int, const uint8_t *act, int rows, int first, int64_t k, const Target &to) {
        for (int lane = 0; lane < kPanel; lane += 4 * P) {
            if (to.hi <= lane || to.lo >= lane + 4 * P) continue;
            F acc[P][kSums];
            each<P * kSums>([&](auto i) OCT_INLINE { acc[i / kSums][i % kSums] = Quad::zero(); });
            const uint8_t *w = panel + lane * kLaneBytes, *x = act + first * kUnits * 4;
            int64_t left = dense_steps(scheme, k);
            for (; left >= kUnits; left -= kUnits, w += kUnits * kStep, x += rows * kUnits * 4) units(w, kUnits, x, acc);
            units(w, left, x, acc);
            each<P * M>([&](auto i) OCT_INLINE {
                const int at = lane + i / M * 4;
                Quad::store(to.y + i % M * to.ldy + at, row(acc[i / M], i % M), to.bias ? to.bias + at : nullptr, to.lo - at,
                            to.hi - at);
            });
        }
    }
};

} // namespace
