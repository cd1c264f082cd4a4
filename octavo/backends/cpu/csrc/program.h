// The forward pass as the native walker sees it. native.py mirrors these structs field by field.
//
// T: tokens of the step; N: those of them whose logits are wanted, the tails. Registers are float [T, width] (in groups
// of tails [N, width]), rows one after the other.
// Layer cache (block tables name blocks, a slot is block * block_size + offset), of cells as OctCells tells:
//     keys   [kv_heads, blocks, D, block_size]     keys of a block lie side by side: scores need no sum across lanes
//     values [kv_heads, blocks, block_size, D]
// and of bfloat16 in pairs: of neighbouring d, and of neighbouring keys, of which one not yet written has zeros where
// the other is the last:
//     keys   [kv_heads, blocks, (D + 1) / 2, block_size, 2]
//     values [kv_heads, blocks, (block_size + 1) / 2, D, 2]
//     key_scales, value_scales: float [kv_heads, blocks, block_size], with OCT_INT8 only
#pragma once

#include <cstddef>
#include <cstdint>

#include "matmul.h"

extern "C" {

enum OctOp : int32_t {
    // row by row: a token's result depends on that token alone
    OCT_ROPE_TABLE = 0,  // cos, sin [T, k] of positions * inv_freq [k], times a
    OCT_EMBED = 1,       // out = row of packed weight [n, k] * a; flag: 0 a token's id tells which, 1 its position, 2 its type; + window
    OCT_ADD = 2,         // out += in [T, k]
    OCT_RMS_NORM = 3,    // in += delta where given; out = in / sqrt(mean(in^2) + a) * (b + bias) [T, k]
    OCT_QUANTIZE = 4,    // act = in [T, k], in the form that products with `scheme` read
    OCT_QK_NORM = 5,     // RMS norm over D of the first `heads` heads of out [T, ld_out]; bias [heads, D], a, b as above
    OCT_ROPE = 6,        // turn `k` pairs of the first `heads` heads of out; flag: interleaved
    OCT_WRITE_KV = 7,    // K and V of in [T, heads + 2 kv_heads, D] into the cache; flag: OctCells
    OCT_GATED = 8,       // out [T, k] = act(gate) * up, in = gate | up [T, 2 k]; flag: 0 silu, 1 gelu, 2 gelu_tanh; nothing for window > 0 tokens or more
    OCT_CHECK = 9,       // batch.finite [T]: whether a row of in [T, k] holds finite numbers only
    OCT_GATHER = 10,     // out [N, k] = the tails' rows of in [T, k]
    OCT_ADD_GATED = 11,  // out [T, k] += sigmoid(delta [T]) * in [T, k]
    OCT_LAYER_NORM = 12,  // in += delta; out = (in - mean) / sqrt(variance + a) * weight + bias [T, k]; weight: floats [k]
    OCT_ACTIVATE = 13,   // out [T, k] = act(in); flag: as OCT_GATED
    // cut otherwise
    OCT_MATMUL = 20,     // out [T, n] (rows ld_out apart) = in [T, k] @ weight [n, k].T + bias
    OCT_ATTENTION = 21,  // out [T, heads, D] of queries in [T, ld_in] over the cache; a scale, b softcap (0: none), flag: OctCells
    OCT_HEAD = 22,       // as OCT_MATMUL, then out * a, then b * tanh(out / b) where b is not 0; and what is best in it; best_only: out is not written
    // out [T, n] = act(in @ weight.T + bias) * (in @ second.weight.T + its bias); flag: as OCT_GATED. Fewer tokens than window
    // have both sides go to delta [T, 2 n] instead, for an OCT_GATED that follows
    OCT_GATE_UP = 24,
    OCT_EXPERTS = 23,    // a mixture of experts; weight: its OctExperts (experts.h)
    OCT_SPAN_ATTENTION = 25,  // out [T, heads, D] of in [T, heads + 2 kv_heads, D], each span's tokens over all of the span, or what is less than window > 0 away; a scale
};

// What a cache keeps of a float. bfloat16: its upper half, rounded to nearest even. int8: x / scale, so rounded, with
// scale = (largest of a token's head) / 127 beside it.
enum OctCells : int32_t { OCT_FLOAT32 = 0, OCT_BFLOAT16 = 1, OCT_INT8 = 2 };

typedef struct {
    // shape: attention instructions with equal kv_heads, heads, window and tails share one
    int32_t op, scheme, flag, shape;
    int64_t n, k, heads, kv_heads, dim, window, ld_out, ld_in;
    float a, b;
    float* out;
    float* in;
    float* delta;
    const void* weight;
    const float* bias;
    void* act;
    void* keys;
    void* values;
    float* key_scales;
    float* value_scales;
    float* cos;
    float* sin;
    const double* inv_freq;
    struct {
        int64_t scheme;
        const void* weight;
        void* act;
        const float* bias;
    } second;
} OctInstruction;

// Instructions [first, first + count) that run without a barrier between them: all row by row, or all products, or
// one attention of either kind, or one mixture of experts. tails: whether their rows are the batch's tails.
typedef struct {
    int32_t kind, first, count, tails;
} OctGroup;

enum OctKind : int32_t { OCT_ROWS = 0, OCT_PRODUCTS = 1, OCT_ATTEND = 2, OCT_MIX = 3, OCT_SPANS = 4 };

// Tokens [first, first + count) of the batch are a row's positions from `start`; its block table is
// table[blocks ...], as far as position start + count needs it, and known[tokens ...] are its token ids.
typedef struct {
    int64_t first, start, count, blocks, tokens;
} OctSpan;

// ids, positions, slots: [T], made from the spans where null.  types: [T], for what looks them up.
// What the step leaves beside its registers: finite [T], and how many are not; and for each tail, whether its logits are finite and where the
// first of the largest stands. best_only: the logits themselves are not wanted.
typedef struct {
    int64_t tokens, num_spans, num_tails, block_size, num_blocks, not_finite, best_only;
    const int64_t* ids;
    const int64_t* positions;
    const int64_t* slots;
    const OctSpan* spans;
    const int64_t* table;
    const int64_t* known;
    const int64_t* tails;  // [N], tokens of the batch, ascending
    uint8_t* finite;
    uint8_t* tails_finite;
    int64_t* best;
    const int64_t* types;
} OctBatch;

// A draw from logits [vocab], by the order and meaning of sampler.py. temperature 0: the best token, whatever the rest.
// least: log min_p, or -infinity. key: of base/noise.py. token: the answer, -1 where no logit is a finite number.
typedef struct {
    const float* logits;
    uint64_t key;
    double top_p;
    int64_t top_k, token;
    float temperature, least;
} OctDraw;

// What native.py calls, besides matmul.h; program.cpp tells what each does.
int32_t oct_abi();
int64_t oct_instruction_bytes();
void* oct_machine_new(int32_t threads, const int32_t* cores, int32_t num_cores);
void oct_machine_free(void* machine);
void oct_run(void* machine, const OctGroup* groups, int64_t num_groups, const OctInstruction* instructions,
             OctBatch* batch);
int32_t oct_pack_all(void* machine, int32_t scheme, int32_t to_float, const void* stored, void* packed, int64_t n, int64_t k);

}  // extern "C"

namespace octa {

constexpr int64_t kTile = 64;    // keys whose scores are held at once; tiles start at multiples of it
constexpr int64_t kGroup = 16;   // keys that must lie in one block to be read in place
constexpr int64_t kSplit = 256;  // keys after which a sum is closed and merged: the same cuts whatever the batch
constexpr int64_t kRows = 128;    // query heads of one KV head that a task takes together
constexpr int64_t kTogether = 6;  // of them, those whose sums stand in registers at once

// One task of an attention, for each KV head: queries of tokens [token, token + count), at positions from `position`;
// only keys of splits [split, split_end). partial: index of the places for their unmerged sums, -1 where it is alone.
struct AttentionTask {
    int64_t span, token, count, position, split, split_end, partial, parts;
};

// A task of one KV head; task null: there is none.
struct HeadTask {
    const AttentionTask* task;
    int64_t head;
};

// Unmerged sums of one query group of one KV head in one split: peak, sum, then acc [rows, padded D].
inline int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; }
inline int64_t partial_floats(int64_t rows, int64_t dim) { return rows * (2 + padded(dim)); }

// Floats that a member needs for attention with `rows` query rows at once.
inline int64_t attention_scratch(int64_t rows, int64_t dim) {
    return rows * (dim + 2 * padded(dim) + 4 + 16) + kTile * (2 * kTogether + 2 * (dim + padded(dim)));
}

// Places that a span's keys, and elements that a value, are padded to.
inline int64_t span_padded(int64_t count) { return (count + 31) / 32 * 32; }

// Floats that a member needs for attention over a span of `count` tokens: ops_spans.inl lays them out.
inline int64_t span_scratch(int64_t count, int64_t dim) {
    return (dim + 4) * span_padded(count) + count * span_padded(dim) + 4 * (dim + span_padded(dim));
}

// Cells of one block of a KV head in pairs.
inline int64_t paired_keys(int64_t dim, int64_t size) { return (dim + 1) / 2 * size * 2; }
inline int64_t paired_values(int64_t dim, int64_t size) { return (size + 1) / 2 * dim * 2; }

// Tokens [begin, end).
struct OctRange {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// A token that may be drawn.
struct Candidate {
    float score, weight;
    int32_t id;
};

// The operations that are built once for each instruction set.
struct Ops {
    const char* name;
    // a row-by-row instruction for tokens [begin, end)
    void (*rows)(const OctInstruction& instruction, const OctBatch& batch, int64_t begin, int64_t end);
    // one task and KV head, and what the member will take next; `sums`: where it puts unmerged sums
    void (*attend)(const OctInstruction& instruction, const OctBatch& batch, HeadTask now, HeadTask next, float* sums,
                   float* scratch);
    // an attention over one span, which runs whole, of the heads that share a KV head
    void (*attend_span)(const OctInstruction& instruction, const OctSpan& span, int64_t kv_head, float* scratch);
    // out of one query group from its `parts` unmerged sums, partial_floats apart
    void (*merge)(const OctInstruction& instruction, const float* sums, int64_t stride, int64_t parts, int64_t token,
                  int64_t head, float* scratch);
    // whether all of x [count] is finite; best: the place of the first of its largest values
    bool (*scan)(const float* x, int64_t count, int64_t* best);
    // act(gate) * up of a panel
    oct_combine* combine;
    // x [count] *= scale, then cap * tanh(x / cap) unless cap is 0
    void (*finish)(float* x, int64_t count, float scale, float cap);
    // room: for as many candidates as the vocabulary has tokens
    void (*draw)(OctDraw& row, int64_t vocab, Candidate* room);
};

extern const Ops kOpsPortable;
#if defined(__x86_64__)
extern const Ops kOpsAvx2;
extern const Ops kOpsAvx512;
extern const Ops kOpsAvx512Vnni;
#endif

}  // namespace octa
