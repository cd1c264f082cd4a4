// The products in plain C++ for any processor: 4 lanes a pass, by the compiler's own 16-byte vectors.

#include "matmul_tiles.h"

namespace {

struct Scalar {
    static constexpr int kLanes = 4, kRows = 4, kAhead = 1024, kUnpackTiles = 0;
    static constexpr bool kSignedWide = false, kPairs = false;
    typedef float F __attribute__((vector_size(16)));
    typedef int32_t I __attribute__((vector_size(16)));
    typedef uint32_t C __attribute__((vector_size(16)));
    typedef uint16_t Halves __attribute__((vector_size(8)));
    typedef int16_t Shorts __attribute__((vector_size(16)));
    typedef uint8_t Bytes __attribute__((vector_size(4)));

    template <class Vector> static OCT_INLINE inline Vector load(const uint8_t *p) {
        Vector value;
        memcpy(&value, p, sizeof value);
        return value;
    }
    static OCT_INLINE inline F bits(C a) { return (F)a; }

    static OCT_INLINE inline F zero() { return F{}; }
    static OCT_INLINE inline F splat(float x) { return F{x, x, x, x}; }
    static OCT_INLINE inline I splat(int32_t x) { return I{x, x, x, x}; }
    static OCT_INLINE inline F floats(const uint8_t *p) { return load<F>(p); }
    static OCT_INLINE inline F halves(const uint8_t *p) {
        const I half = __builtin_convertvector(load<Halves>(p), I), rest = half & 0x7fff;
        const I tiny = (I)(__builtin_convertvector(rest, F) * 0x1p-24f);
        const I normal = (rest << 13) + (112 << 23), special = (rest << 13) | 0x7f800000;
        const I wide = rest >= 0x7c00 ? special : rest >= 0x0400 ? normal : tiny;
        return (F)(wide | (half & 0x8000) << 16);
    }
    static OCT_INLINE inline I widened(const uint8_t *p) { return I{p[0], p[1], p[2], p[3]}; }
    static OCT_INLINE inline F uint8s(const uint8_t *p) { return to_float(widened(p)); }
    static OCT_INLINE inline F int8s(const uint8_t *p) { return to_float(widened(p) << 24 >> 24); }
    static OCT_INLINE inline F low_halves(const uint8_t *p) { return to_float(widened(p) & 15); }
    static OCT_INLINE inline F high_halves(const uint8_t *p) { return to_float(widened(p) >> 4); }
    static OCT_INLINE inline F mul(F a, F b) { return a * b; }
    // Two roundings: a fused one in software would be slow.
    static OCT_INLINE inline F fma(F a, F b, F c) { return a * b + c; }
    static OCT_INLINE inline F negate(F a) { return -a; }
    static OCT_INLINE inline F to_float(I a) { return __builtin_convertvector(a, F); }

    static OCT_INLINE inline C codes(const uint8_t *p) { return load<C>(p); }
    // Byte by byte: no sum passes 255.
    static OCT_INLINE inline C add(C a, C b) { return a + b; }
    static OCT_INLINE inline C mask(C a, uint32_t bits) { return a & bits * 0x01010101u; }
    static OCT_INLINE inline C merge(C base, C a, int bits) { return base | mask(a, (uint32_t)bits); }
    // To the right, or to the left if negative; bits that cross from the neighbouring byte are masked by the caller.
    template <int count> static OCT_INLINE inline C shift(C a) {
        if constexpr (count < 0)
            return a << -count;
        else
            return a >> count;
    }
    // Words to the right.
    static OCT_INLINE inline C shifted(C a, int count) { return a >> count; }
    static OCT_INLINE inline I byte(C a, int at) { return (I)(a >> 8 * at & 255u); }
    // 16 bytes at `from`, for bytes of a vector that are 0 .. 15.
    static OCT_INLINE inline C table(const uint8_t *from) { return load<C>(from); }
    static OCT_INLINE inline C lookup(C table, C a) {
        uint8_t entries[16], bytes[16];
        memcpy(entries, &table, 16);
        memcpy(bytes, &a, 16);
        for (uint8_t &byte : bytes) byte = entries[byte & 15];
        return load<C>(bytes);
    }
    static OCT_INLINE inline C levels(C a) { return lookup(table(kLevels128), a); }
    // The first 8, or the last, of the bytes of both in turns.
    static OCT_INLINE inline C zip(C a, C b, int first) {
        uint8_t even[16], odd[16], bytes[16];
        memcpy(even, &a, 16);
        memcpy(odd, &b, 16);
        for (int i = 0; i < 8; i++) bytes[2 * i] = even[first + i], bytes[2 * i + 1] = odd[first + i];
        return load<C>(bytes);
    }
    static OCT_INLINE inline C zip_low(C a, C b) { return zip(a, b, 0); }
    static OCT_INLINE inline C zip_high(C a, C b) { return zip(a, b, 8); }

    // Products of a code and an activation fit 16 bits; they are widened before they are added.
    template <bool> static OCT_INLINE inline I dot(I sum, C codes, const uint8_t *quad) {
        const int16_t a = (int8_t)quad[0], b = (int8_t)quad[1], c = (int8_t)quad[2], d = (int8_t)quad[3];
        const Shorts even = (Shorts)(codes & 0x00ff00ffu) * Shorts{a, c, a, c, a, c, a, c};
        const Shorts odd = (Shorts)(codes >> 8 & 0x00ff00ffu) * Shorts{b, d, b, d, b, d, b, d};
        return sum + ((I)even << 16 >> 16) + ((I)even >> 16) + ((I)odd << 16 >> 16) + ((I)odd >> 16);
    }
    static OCT_INLINE inline F dot_bf16(F sum, C pairs, const uint8_t *pair) {
        const C x = (C)splat(int_at(pair));
        const C odd = C{} + 0xffff0000u;
        return (sum + bits(pairs & odd) * bits(x & odd)) + bits(pairs << 16) * bits(x << 16);
    }

    static OCT_INLINE inline void store(float *y, F value, const float *bias, int lo, int hi) {
        for (int i = lo; i < hi; i++) y[i] = bias ? value[i] + bias[i] : value[i];
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

namespace oct {
extern constexpr Kernels kScalar = kernels<Scalar>("scalar");
}
