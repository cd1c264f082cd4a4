// The forward pass as the native walker sees it. native.py mirrors these structs field by field.
//
// T: tokens of the step. Registers are float [T, width], rows one after the other.
// Layer cache (block tables name blocks, a slot is block * block_size + offset):
//     keys   [kv_heads, blocks, D, block_size]     keys of a block lie side by side: scores need no sum across lanes
//     values [kv_heads, blocks, block_size, D]
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

enum OctOp : int32_t {
    // row by row: a token's result depends on that token alone
    OCT_ROPE_TABLE = 0,  // cos, sin [T, k] of positions * inv_freq [k], times a
    OCT_EMBED = 1,       // out = row of packed weight [n, k] * a
    OCT_ADD = 2,         // out += in [T, k]
    OCT_RMS_NORM = 3,    // in += delta where given; out = in / sqrt(mean(in^2) + a) * (b + bias) [T, k]
    OCT_QUANTIZE = 4,    // act = in [T, k], in the form that products with `scheme` read
    OCT_QK_NORM = 5,     // RMS norm over D of the first `heads` heads of out [T, ld_out]; bias [heads, D], a, b as above
    OCT_ROPE = 6,        // turn `k` pairs of the first `heads` heads of out; flag: interleaved
    OCT_WRITE_KV = 7,    // K and V of in [T, heads + 2 kv_heads, D] into the cache
    OCT_GATED = 8,       // out [T, k] = act(gate) * up, in = gate | up [T, 2 k]; flag: 0 silu, 1 gelu, 2 gelu_tanh
    OCT_SCALE = 9,       // out [T, k] *= a
    OCT_SOFTCAP = 10,    // out [T, k] = a * tanh(out / a)
    // cut otherwise
    OCT_MATMUL = 20,     // out [T, n] (rows ld_out apart) = in [T, k] @ weight [n, k].T + bias
    OCT_ATTENTION = 21,  // out [T, heads, D] of queries in [T, ld_in] over the cache; a scale, b softcap (0: none)
};

typedef struct {
    int32_t op, scheme, flag, shape;  // shape: attention instructions with equal kv_heads, heads, window share one
    int64_t n, k, heads, kv_heads, dim, window, ld_out, ld_in;
    float a, b;
    float* out;
    float* in;
    float* delta;
    const void* weight;
    const float* bias;
    void* act;
    float* keys;
    float* values;
    float* cos;
    float* sin;
    const double* inv_freq;
} OctInstruction;

// Instructions [first, first + count) that run without a barrier between them: all row by row, or all products, or
// one attention.
typedef struct {
    int32_t kind, first, count, unused;
} OctGroup;

enum OctKind : int32_t { OCT_ROWS = 0, OCT_PRODUCTS = 1, OCT_ATTEND = 2 };

// Tokens [first, first + count) of the batch are a row's positions from `start`; its block table is
// table[blocks ...], as far as position start + count needs it.
typedef struct {
    int64_t first, start, count, blocks;
} OctSpan;

typedef struct {
    int64_t tokens, num_spans, block_size, num_blocks;
    const int64_t* ids;
    const int64_t* positions;
    const int64_t* slots;
    const OctSpan* spans;
    const int64_t* table;
} OctBatch;

// What native.py calls, besides matmul.h; program.cpp tells what each does.
int32_t oct_abi();
int64_t oct_instruction_bytes();
void* oct_machine_new(int32_t threads, const int32_t* cores, int32_t num_cores);
void oct_machine_free(void* machine);
void oct_run(void* machine, const OctGroup* groups, int64_t num_groups, const OctInstruction* instructions,
             const OctBatch* batch);
void oct_pack_all(void* machine, int32_t scheme, const void* stored, void* packed, int64_t n, int64_t k);
void oct_scan(void* machine, const float* x, int64_t rows, int64_t width, uint8_t* finite, int64_t* best);

}  // extern "C"

namespace octa {

constexpr int64_t kTile = 64;    // keys whose scores are held at once; tiles start at multiples of it
constexpr int64_t kGroup = 16;   // keys that must lie in one block to be read in place
constexpr int64_t kSplit = 256;  // keys after which a sum is closed and merged: the same cuts whatever the batch
constexpr int64_t kRows = 64;    // query heads of one KV head that a task takes together

// One task of an attention, for each KV head: queries of tokens [token, token + count), at positions from `position`;
// only keys of splits [split, split_end). partial: index of its place for unmerged sums, -1 where it is alone.
struct AttentionTask {
    int64_t span, token, count, position, split, split_end, partial, parts;
};

// Unmerged sums of one query group of one KV head in one split: peak, sum, then acc [rows, padded D].
inline int64_t padded(int64_t dim) { return (dim + 15) / 16 * 16; }
inline int64_t partial_floats(int64_t rows, int64_t dim) { return rows * (2 + padded(dim)); }

// Floats that a member needs for attention with `rows` query rows at once.
inline int64_t attention_scratch(int64_t rows, int64_t dim) {
    return rows * (dim + 2 * padded(dim) + kTile + 8) + kTile * (dim + padded(dim)) + 64;
}

// Tokens [begin, end).
struct OctRange {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// The operations that are built once for each instruction set.
struct Ops {
    const char* name;
    // a row-by-row instruction for tokens [begin, end)
    void (*rows)(const OctInstruction& instruction, const OctBatch& batch, int64_t begin, int64_t end);
    // one task and KV head; `sums`: where it puts unmerged sums
    void (*attend)(const OctInstruction& instruction, const OctBatch& batch, const AttentionTask& task, int64_t head,
                   float* sums, float* scratch);
    // out of one query group from its `parts` unmerged sums, partial_floats apart
    void (*merge)(const OctInstruction& instruction, const float* sums, int64_t stride, int64_t parts, int64_t token,
                  int64_t head, float* scratch);
    // whether all of x [count] is finite; best: the place of the first of its largest values
    bool (*scan)(const float* x, int64_t count, int64_t* best);
};

extern const Ops kOpsPortable;
#if defined(__x86_64__)
extern const Ops kOpsAvx2;
extern const Ops kOpsAvx512;
#endif

}  // namespace octa
