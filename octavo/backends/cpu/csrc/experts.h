// A mixture of experts as the native walker sees it. native.py mirrors these structs field by field.
#pragma once

#include "pool.h"
#include "program.h"

extern "C" {

typedef struct {
    const void* weight;  // packed
    int64_t scheme;
} OctMatrix;

// out [T, hidden] = the sum, over the top_k experts e that p = softmax(router [T, experts]) makes largest, of
// p_e * down_e(act(gate_e(x)) * up_e(x)); renormalize: p of the chosen are divided by their sum first. ops.py defines
// it (experts).
typedef struct {
    int32_t experts, top_k, act, renormalize;
    int64_t hidden, width;
    // filled in by oct_experts_room: bytes between the activations of chunks; up_slot 0: up reads those of gate
    int64_t gate_slot, up_slot, wide_slot;
    const float* x;  // [T, hidden]
    const float* router;
    float* out;
    const OctMatrix* matrices;  // [experts, 3]: gate [width, hidden], up [width, hidden], down [hidden, width]
    void* room;                 // oct_experts_room bytes, from a multiple of 64 on
} OctExperts;

// Bytes of room for up to `tokens` tokens and a pool of `threads`; fills in the slots.
size_t oct_experts_room(OctExperts* experts, int64_t tokens, int32_t threads);

}  // extern "C"

namespace octa {

// Run by every member of the pool. A token's result depends on that token alone: its rows of the products do, and they
// are added in the order of the experts.
void run_experts(const OctExperts& experts, const Ops& ops, const OctBatch& batch, Pool& pool, int member);

}  // namespace octa
