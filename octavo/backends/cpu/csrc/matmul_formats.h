// What each scheme looks like once packed: a row of a table, and the byte layout that follows from it.
//
// A panel holds 16 output rows, all of k. Quantized: a panel is a run of blocks, a block is `span` groups of 32 elements:
//   span 1:  d[16] f16 | m[16] f16 if `minimum` | codes
//   span 8:  d[16] f16 | dmin[16] f16 if `minimum` | 8 x ( scales[subs][16] u8 | mins[subs][16] u8 if `minimum` | codes )
// Codes are bit planes; the 4-byte word of row r in vector v of a plane lies at v * 64 + r * 4. Quad q is elements
// 4q..4q+3 of a group, byte b of a word belongs to element 4q + b:
//   bytes    8 vectors: vector q holds quad q
//   nibbles  4 vectors: vector v holds quad v in the low halves, quad v + 4 in the high halves
//   pairs    2 vectors: vector v holds quads v, v + 2, v + 4, v + 6 from the lowest two bits up
//   single   1 vector:  bit q of each byte belongs to quad q
// Dense: F32 [k][16] f32, F16 [k][16] f16, BF16 [(k + 1) / 2][16][2] bf16 (an odd k is padded with zero).
//
// BF16_SHORT: BF16 in 12 bits a weight, none lost. A weight's upper byte (its sign and seven bits of its exponent) becomes a
// code of 4 bits, its place in a table of the panel's 16 most frequent ones; weights with another one are exceptions. A panel,
// of whole lines of 64 bytes:
//   upper bytes u8[16], ascending | count u32 | positions u32[most] | bf16[most] | 0 | blocks
// An exception's position is its place in BF16's panel, ascending; the code that lies there means nothing. A block is 4 steps
// of BF16's panel, codes u8[64] | lower bytes u8[2][64]:
//   lower[h][16 l + 8 i + w] is of weight 8 l + w of step 2 h + i, its code the low (h = 0) or high half of codes[16 l + 8 i + w]
// so that lower and upper bytes in turns, 16 of each at a time, are a step's weights in order. Padding is a finite number.
//
// Activations: tiles of 16 rows (the last one has the rows that are left, R):
//   quantized: for each group  codes int8 [R][32] | factors [R] of (scale f32, centre f32, aux [subs])
//              then            counts int32 [R] | outliers [R][k / 12] of (index int32, value f32), counts of them written
//              x = scale * code + centre, to half a step, + the value of its outlier, if it is one
//              aux is -offset * sum of codes (int32) or, for schemes with a minimum, the sum of scale * code + centre
//              (f32), of each sub-group
//   dense:     for each 16 units: [R][16] units of 4 bytes: one f32, or two bf16 of neighbouring k; zero-padded
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "matmul.h"

namespace oct {

constexpr int kPanel = OCT_PANEL;
constexpr int kTile = OCT_TILE;
constexpr int kGroup = 32;
constexpr int kUnits = 16;

enum class Codes : uint8_t { kDense, kBytes, kNibbles, kLevels, kNibblesSingle, kNibblesPairs, kPairs, kPairsSingle };

struct Format {
    Codes codes;
    int stored_bytes;   // of one element (dense) or of one stored group
    int span;           // groups of 32 that share a d
    int subs;           // sub-groups of a group, each with its own scale
    int offset;         // weight = scale * (code - offset) (+ minimum)
    bool minimum;       // has a minimum (k-quants subtract it, the others add it)
    bool signed_scale;  // the integer scales of a k-quant are int8 instead of uint8
    bool paired;        // the integer scale and minimum share a byte (low and high half)
};

constexpr Format kFormats[OCT_SCHEMES] = {
    {Codes::kDense, 4, 0, 0, 0, false, false, false},           // F32
    {Codes::kDense, 2, 0, 0, 0, false, false, false},           // F16
    {Codes::kDense, 2, 0, 0, 0, false, false, false},           // BF16
    {Codes::kNibbles, 18, 1, 1, 8, false, false, false},        // Q4_0
    {Codes::kNibbles, 20, 1, 1, 0, true, false, false},         // Q4_1
    {Codes::kNibblesSingle, 22, 1, 1, 16, false, false, false}, // Q5_0
    {Codes::kNibblesSingle, 24, 1, 1, 0, true, false, false},   // Q5_1
    {Codes::kBytes, 34, 1, 1, 128, false, false, false},        // Q8_0
    {Codes::kPairs, 84, 8, 2, 0, true, false, true},            // Q2_K
    {Codes::kPairsSingle, 110, 8, 2, 4, false, true, false},    // Q3_K
    {Codes::kNibbles, 144, 8, 1, 0, true, false, false},        // Q4_K
    {Codes::kNibblesSingle, 176, 8, 1, 0, true, false, false},  // Q5_K
    {Codes::kNibblesPairs, 210, 8, 2, 32, false, true, false},  // Q6_K
    {Codes::kLevels, 18, 1, 1, 128, false, false, false},       // IQ4_NL
    {Codes::kDense, 2, 0, 0, 0, false, false, false},           // BF16_SHORT
};

// The 16 levels of IQ4_NL (kvalues_iq4nl of ggml) plus 128.
constexpr uint8_t kLevels128[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

constexpr bool is_dense(const Format &f) { return f.codes == Codes::kDense; }

constexpr int code_bytes(Codes codes) {
    switch (codes) {
    case Codes::kBytes: return 512;
    case Codes::kNibbles: return 256;
    case Codes::kLevels: return 256;
    case Codes::kNibblesSingle: return 320;
    case Codes::kNibblesPairs: return 384;
    case Codes::kPairs: return 128;
    case Codes::kPairsSingle: return 192;
    default: return 0;
    }
}

// Bytes of the float16 factors at the head of a block.
constexpr int head_bytes(const Format &f) { return (f.minimum ? 2 : 1) * kPanel * 2; }

// Bytes of the integer scales (and minima) at the head of a group.
constexpr int scale_bytes(const Format &f) {
    return f.span == 1 ? 0 : (f.minimum && !f.paired ? 2 : 1) * f.subs * kPanel;
}

constexpr int group_bytes(const Format &f) { return scale_bytes(f) + code_bytes(f.codes); }

constexpr int block_bytes(const Format &f) { return head_bytes(f) + f.span * group_bytes(f); }

// The scheme whose activations it reads, and whose products it has.
constexpr int act_scheme(int scheme) { return scheme == OCT_BF16_SHORT ? OCT_BF16 : scheme; }

constexpr bool is_bf16(int scheme) { return act_scheme(scheme) == OCT_BF16; }

// Steps of a dense product: two elements each for BF16, otherwise one.
constexpr int64_t dense_steps(int scheme, int64_t k) { return is_bf16(scheme) ? (k + 1) / 2 : k; }

constexpr int dense_step_bytes(int scheme) { return scheme == OCT_F16 ? kPanel * 2 : kPanel * 4; }

// BF16_SHORT: steps and bytes of a block; exceptions that a panel has room for, a 256th of its weights or a few more, and
// bytes of what lies before its blocks.
constexpr int kShortSteps = 4, kShortBytes = 192, kShortTable = 20;
constexpr int64_t short_blocks(int64_t k) { return ((k + 1) / 2 + kShortSteps - 1) / kShortSteps; }
constexpr int64_t short_head(int64_t k) { return (kShortTable + short_blocks(k) / 2 * 6 + 63) / 64 * 64; }
constexpr int64_t short_exceptions(int64_t k) { return (short_head(k) - kShortTable) / 6; }

constexpr int64_t panel_bytes(int scheme, int64_t k) {
    const Format &f = kFormats[scheme];
    if (scheme == OCT_BF16_SHORT) return short_head(k) + short_blocks(k) * kShortBytes;
    return is_dense(f) ? dense_steps(scheme, k) * dense_step_bytes(scheme) : k / kGroup / f.span * block_bytes(f);
}

// Bytes of one row's factors of a group of activations, and of all of its share.
constexpr int factor_bytes(const Format &f) { return 8 + 4 * f.subs; }
constexpr int act_group_bytes(const Format &f) { return kGroup + factor_bytes(f); }

// An activation so many times its row's root mean square may be an outlier: there are not more than k / kOutlier^2.
// Chosen by benchmarks/quality_cpu.py; the fewer outliers, the faster.
constexpr float kOutlier = 3.5f;
constexpr int64_t most_outliers(int64_t k) { return k / 12; }

struct Outlier {
    int32_t index;
    float value;
};

constexpr int64_t act_row_bytes(int scheme, int64_t k) {
    const Format &f = kFormats[scheme];
    return is_dense(f) ? (dense_steps(scheme, k) + kUnits - 1) / kUnits * kUnits * 4
                       : k / kGroup * act_group_bytes(f) + 4 + most_outliers(k) * (int64_t)sizeof(Outlier);
}

} // namespace oct
