// Stored GGUF blocks or plain rows to packed panels (matmul_formats.h), and single rows of packed weights to float32.

#include <string.h>

#include <vector>

#include "matmul_pack.h"

namespace {

using namespace oct;

// One stored block (or group, where span is 1), taken apart: codes are unsigned, see Format::offset. What the scheme
// does not have is left unset.
struct Block {
    uint16_t d, m;
    uint8_t scale[16], minimum[16];
    uint8_t codes[256];
};

void low_and_high(const uint8_t *q, int width, uint8_t *codes) {
    for (int i = 0; i < width; i++) {
        codes[i] = q[i] & 15;
        codes[i + width] = q[i] >> 4;
    }
}

// 32 bits, one for each code of a group, become bit `place` of the codes.
void fifth(const uint8_t *bits, uint8_t *codes) {
    for (int byte = 0; byte < 4; byte++)
        for (int bit = 0; bit < 8; bit++) codes[byte * 8 + bit] |= (uint8_t)((bits[byte] >> bit & 1) << 4);
}

void pairs(const uint8_t *q, int shift, uint8_t *codes) {
    for (int half = 0; half < 2; half++)
        for (int part = 0; part < 4; part++)
            for (int i = 0; i < 32; i++)
                codes[half * 128 + part * 32 + i] |= (uint8_t)((q[half * 32 + i] >> (2 * part) & 3) << shift);
}

void planes_of_bits(const uint8_t *bits, int shift, uint8_t *codes) {
    for (int part = 0; part < 8; part++)
        for (int i = 0; i < 32; i++) codes[part * 32 + i] |= (uint8_t)((bits[i] >> part & 1) << shift);
}

// The 12 bytes of Q4_K and Q5_K: 8 scales and 8 minima of six bits (ggml-common.h).
void six_bit_scales(const uint8_t *p, Block &b) {
    for (int i = 0; i < 4; i++) {
        b.scale[i] = p[i] & 63;
        b.minimum[i] = p[4 + i] & 63;
        b.scale[4 + i] = (uint8_t)((p[8 + i] & 15) | (p[i] >> 6 << 4));
        b.minimum[4 + i] = (uint8_t)((p[8 + i] >> 4) | (p[4 + i] >> 6 << 4));
    }
}

// The 12 bytes of Q3_K: 16 scales of six bits with an offset of 32.
void signed_six_bit_scales(const uint8_t *p, Block &b) {
    for (int i = 0; i < 16; i++) {
        const int low = i < 8 ? p[i] & 15 : p[i - 8] >> 4;
        const int high = p[8 + i % 4] >> (2 * (i / 4)) & 3;
        b.scale[i] = (uint8_t)((low | high << 4) - 32);
    }
}

void take_apart(int scheme, const uint8_t *p, Block &b) {
    const auto half = [](const uint8_t *at) {
        uint16_t value;
        memcpy(&value, at, 2);
        return value;
    };
    memset(b.codes, 0, (size_t)(kFormats[scheme].span * kGroup));
    switch (scheme) {
    case OCT_Q4_0:
    case OCT_IQ4_NL:
        b.d = half(p);
        low_and_high(p + 2, 16, b.codes);
        break;
    case OCT_Q4_1:
        b.d = half(p);
        b.m = half(p + 2);
        low_and_high(p + 4, 16, b.codes);
        break;
    case OCT_Q5_0:
        b.d = half(p);
        low_and_high(p + 6, 16, b.codes);
        fifth(p + 2, b.codes);
        break;
    case OCT_Q5_1:
        b.d = half(p);
        b.m = half(p + 2);
        low_and_high(p + 8, 16, b.codes);
        fifth(p + 4, b.codes);
        break;
    case OCT_Q8_0:
        b.d = half(p);
        for (int i = 0; i < 32; i++) b.codes[i] = p[2 + i] ^ 128;
        break;
    case OCT_Q2_K:
        memcpy(b.scale, p, 16);
        pairs(p + 16, 0, b.codes);
        b.d = half(p + 80);
        b.m = half(p + 82);
        break;
    case OCT_Q3_K:
        planes_of_bits(p, 2, b.codes);
        pairs(p + 32, 0, b.codes);
        signed_six_bit_scales(p + 96, b);
        b.d = half(p + 108);
        break;
    case OCT_Q4_K:
    case OCT_Q5_K: {
        b.d = half(p);
        b.m = half(p + 2);
        six_bit_scales(p + 4, b);
        const uint8_t *q = p + (scheme == OCT_Q4_K ? 16 : 48);
        for (int i = 0; i < 4; i++) low_and_high(q + 32 * i, 32, b.codes + 64 * i);
        if (scheme == OCT_Q5_K) planes_of_bits(p + 16, 4, b.codes);
        break;
    }
    case OCT_Q6_K:
        low_and_high(p, 64, b.codes);
        low_and_high(p + 64, 64, b.codes + 128);
        pairs(p + 128, 4, b.codes);
        memcpy(b.scale, p + 192, 16);
        b.d = half(p + 208);
        break;
    default: break;
    }
}

// `bytes` bytes of row r into a plane, a word a vector.
void put_words(const uint8_t *words, int bytes, uint8_t *plane, int r) {
    for (int v = 0; v < bytes / 4; v++) memcpy(plane + v * 64 + r * 4, words + v * 4, 4);
}

void put_nibbles(const uint8_t *codes, uint8_t *plane, int r) {
    uint8_t words[16];
    for (int i = 0; i < 16; i++) words[i] = (uint8_t)((codes[i] & 15) | codes[i + 16] << 4);
    put_words(words, 16, plane, r);
}

void put_pairs(const uint8_t *codes, int shift, uint8_t *plane, int r) {
    uint8_t words[8];
    for (int i = 0; i < 8; i++) {
        int word = 0;
        for (int part = 0; part < 4; part++) word |= (codes[i + 8 * part] >> shift & 3) << (2 * part);
        words[i] = (uint8_t)word;
    }
    put_words(words, 8, plane, r);
}

void put_single(const uint8_t *codes, int shift, uint8_t *plane, int r) {
    uint8_t word[4];
    for (int i = 0; i < 4; i++) {
        int bits = 0;
        for (int quad = 0; quad < 8; quad++) bits |= (codes[4 * quad + i] >> shift & 1) << quad;
        word[i] = (uint8_t)bits;
    }
    put_words(word, 4, plane, r);
}

void put_codes(Codes kind, const uint8_t *codes, uint8_t *plane, int r) {
    switch (kind) {
    case Codes::kBytes: put_words(codes, 32, plane, r); break;
    case Codes::kNibbles:
    case Codes::kLevels: put_nibbles(codes, plane, r); break;
    case Codes::kNibblesSingle:
        put_nibbles(codes, plane, r);
        put_single(codes, 4, plane + 256, r);
        break;
    case Codes::kNibblesPairs:
        put_nibbles(codes, plane, r);
        put_pairs(codes, 4, plane + 256, r);
        break;
    case Codes::kPairs: put_pairs(codes, 0, plane, r); break;
    case Codes::kPairsSingle:
        put_pairs(codes, 0, plane, r);
        put_single(codes, 2, plane + 128, r);
        break;
    default: break;
    }
}

uint8_t code_at(Codes kind, const uint8_t *plane, int r, int i) {
    const int quad = i / 4, byte = r * 4 + i % 4;
    const auto nibble = [&] { return plane[quad % 4 * 64 + byte] >> (quad / 4 * 4) & 15; };
    const auto pair = [&](int at) { return plane[at + quad % 2 * 64 + byte] >> (quad / 2 * 2) & 3; };
    const auto single = [&](int at) { return plane[at + byte] >> quad & 1; };
    switch (kind) {
    case Codes::kBytes: return plane[quad * 64 + byte];
    case Codes::kNibbles: return (uint8_t)nibble();
    case Codes::kLevels: return kLevels128[nibble()];
    case Codes::kNibblesSingle: return (uint8_t)(nibble() | single(256) << 4);
    case Codes::kNibblesPairs: return (uint8_t)(nibble() | pair(256) << 4);
    case Codes::kPairs: return (uint8_t)pair(0);
    case Codes::kPairsSingle: return (uint8_t)(pair(0) | single(128) << 2);
    default: return 0;
    }
}

void put_block(const Format &f, const Block &b, uint8_t *block, int r) {
    memcpy(block + r * 2, &b.d, 2);
    if (f.minimum) memcpy(block + kPanel * 2 + r * 2, &b.m, 2);
    uint8_t *group = block + head_bytes(f);
    for (int g = 0; g < f.span; g++, group += group_bytes(f)) {
        for (int s = 0; s < f.subs && f.span > 1; s++) {
            group[s * kPanel + r] = b.scale[g * f.subs + s];
            if (f.minimum && !f.paired) group[(f.subs + s) * kPanel + r] = b.minimum[g * f.subs + s];
        }
        put_codes(f.codes, b.codes + g * kGroup, group + scale_bytes(f), r);
    }
}

void pack_quantized(int scheme, const uint8_t *stored, uint8_t *packed, int64_t k, int64_t begin, int64_t end) {
    const Format &f = kFormats[scheme];
    const int64_t blocks = k / kGroup / f.span, panel = panel_bytes(scheme, k);
    Block b;
    for (int64_t first = begin; first < end; first += kPanel) {
        uint8_t *out = packed + first / kPanel * panel;
        const int rows = (int)(end - first < kPanel ? end - first : kPanel);
        if (rows < kPanel) memset(out, 0, (size_t)panel);
        for (int64_t i = 0; i < blocks; i++)
            for (int r = 0; r < rows; r++) {
                take_apart(scheme, stored + ((first + r) * blocks + i) * f.stored_bytes, b);
                put_block(f, b, out + i * block_bytes(f), r);
            }
    }
}

void pack_dense(int scheme, const uint8_t *stored, uint8_t *packed, int64_t k, int64_t begin, int64_t end) {
    const int64_t panel = panel_bytes(scheme, k), size = kFormats[scheme].stored_bytes;
    const int64_t per_step = scheme == OCT_BF16 ? 2 : 1, unit = size * per_step;
    for (int64_t first = begin; first < end; first += kPanel) {
        uint8_t *out = packed + first / kPanel * panel;
        const int rows = (int)(end - first < kPanel ? end - first : kPanel);
        if (rows < kPanel || k % per_step) memset(out, 0, (size_t)panel);
        for (int r = 0; r < rows; r++) {
            const uint8_t *row = stored + (first + r) * k * size;
            for (int64_t s = 0; s < k / per_step; s++) memcpy(out + (s * kPanel + r) * unit, row + s * unit, unit);
            if (k % per_step) memcpy(out + (k / per_step * kPanel + r) * unit, row + (k - 1) * size, size);
        }
    }
}

float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

float from_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | rest << 13);
    if (rest >= 0x0400) return from_bits(sign | ((rest << 13) + (112u << 23)));
    return from_bits(sign | 0x3f800000) * ((float)rest * 0x1p-24f);
}

float half_at(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return from_half(half);
}

void dequantize_block(const Format &f, const uint8_t *block, int r, float *out) {
    const float d = half_at(block + r * 2), m = f.minimum ? half_at(block + kPanel * 2 + r * 2) : 0.0f;
    const uint8_t *group = block + head_bytes(f);
    const int width = kGroup / f.subs;
    for (int g = 0; g < f.span; g++, group += group_bytes(f))
        for (int s = 0; s < f.subs; s++) {
            float scale = d, minimum = m;
            if (f.span > 1) {
                const uint8_t sc = group[s * kPanel + r];
                scale = d * (float)(f.signed_scale ? (int8_t)sc : f.paired ? sc & 15 : sc);
                if (f.minimum) minimum = -(m * (float)(f.paired ? sc >> 4 : group[(f.subs + s) * kPanel + r]));
            }
            for (int i = s * width; i < (s + 1) * width; i++) {
                const float value = scale * (float)(code_at(f.codes, group + scale_bytes(f), r, i) - f.offset);
                out[g * kGroup + i] = f.minimum ? value + minimum : value;
            }
        }
}

void dequantize_short(const uint8_t *panel, int r, float *out, int64_t k) {
    std::vector<uint16_t> row((size_t)k);
    unpack_short(panel, r, row.data(), k);
    for (int64_t i = 0; i < k; i++) out[i] = from_bits((uint32_t)row[(size_t)i] << 16);
}

void dequantize_dense(int scheme, const uint8_t *panel, int r, float *out, int64_t k) {
    for (int64_t i = 0; i < k; i++) {
        uint16_t half;
        switch (scheme) {
        case OCT_F32: memcpy(out + i, panel + (i * kPanel + r) * 4, 4); break;
        case OCT_F16: out[i] = half_at(panel + (i * kPanel + r) * 2); break;
        default:
            memcpy(&half, panel + ((i / 2 * kPanel + r) * 2 + i % 2) * 2, 2);
            out[i] = from_bits((uint32_t)half << 16);
        }
    }
}

} // namespace

extern "C" {

int oct_pack(int scheme, const void *stored, void *packed, int64_t k, int64_t n_begin, int64_t n_end) {
    const uint8_t *from = static_cast<const uint8_t *>(stored);
    uint8_t *to = static_cast<uint8_t *>(packed);
    if (scheme == OCT_BF16_SHORT) return !pack_short(from, to, k, n_begin, n_end);
    const auto pack = is_dense(kFormats[scheme]) ? pack_dense : pack_quantized;
    pack(scheme, from, to, k, n_begin, n_end);
    return 0;
}

int oct_pack_float(int scheme, const void *stored, void *packed, int64_t k, int64_t n_begin, int64_t n_end) {
    const Format &f = kFormats[scheme];
    const int64_t row_bytes = is_dense(f) ? k * f.stored_bytes : k / kGroup / f.span * f.stored_bytes;
    std::vector<uint8_t> panel((size_t)panel_bytes(scheme, k));
    std::vector<float> rows((size_t)(kPanel * k));
    for (int64_t first = n_begin; first < n_end; first += kPanel) {
        const int64_t count = n_end - first < kPanel ? n_end - first : kPanel;
        oct_pack(scheme, static_cast<const uint8_t *>(stored) + first * row_bytes, panel.data(), k, 0, count);
        for (int64_t r = 0; r < count; r++)
            oct_dequantize_row(scheme, panel.data(), rows.data() + r * k, k, r);
        oct_pack(OCT_F32, rows.data(), static_cast<uint8_t *>(packed) + first / kPanel * panel_bytes(OCT_F32, k), k, 0,
                 count);
    }
    return 0;
}

void oct_dequantize_row(int scheme, const void *packed, float *out, int64_t k, int64_t row) {
    const Format &f = kFormats[scheme];
    const uint8_t *panel = static_cast<const uint8_t *>(packed) + row / kPanel * panel_bytes(scheme, k);
    const int r = (int)(row % kPanel);
    if (scheme == OCT_BF16_SHORT) return dequantize_short(panel, r, out, k);
    if (is_dense(f)) return dequantize_dense(scheme, panel, r, out, k);
    for (int64_t i = 0; i < k / kGroup / f.span; i++)
        dequantize_block(f, panel + i * block_bytes(f), r, out + i * f.span * kGroup);
}
}
