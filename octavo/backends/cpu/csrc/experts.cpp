// In: tokens and what the router says of each. Out: the weighted sum of their experts' results: see experts.h.
//
// A row is a token at one of its experts. Rows are sorted by expert; an expert's rows are cut into chunks, whose
// activations are converted together; a product runs over the rows of one expert and some of its outputs:
//     route  sort  convert x  gate, up -> act(gate) * up  convert that  down -> added to the tokens
// A piece of the last part owns some columns of `out` and takes all experts in order, so that nobody else adds there.
#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "matmul.h"

namespace octa {
namespace {

constexpr int64_t kChunk = 64;    // rows: their products with kColumns outputs stay in a core's first-level cache
constexpr int64_t kColumns = 64;  // outputs that a piece computes at once
static_assert(kChunk % OCT_TILE == 0 && kColumns % OCT_PANEL == 0);

// Rows [first, first + count) of one expert, in sorted order.
struct Chunk {
    int32_t expert, first, count;
};

// How OctExperts::room is used by a step of `tokens` tokens.
struct Room {
    int32_t* chosen;    // [T, top_k] experts of a token
    float* shares;      // [T, top_k] their p
    int32_t* token;     // [rows] of a sorted row
    float* share;       // [rows]
    int32_t* first;     // [experts + 1] chunks of an expert: first[e] .. first[e + 1]
    int32_t* hit;       // [experts] those with rows, in order
    int64_t* num_hit;
    Chunk* chunks;
    uint8_t *gate, *up, *wide_act;  // activations of chunks
    float* wide;                    // [rows, width]
    float* scratch;                 // [members, kChunk, 2 * kColumns]
    size_t bytes;
};

int64_t most_chunks(const OctExperts& o, int64_t rows) { return rows / kChunk + std::min<int64_t>(rows, o.experts); }

Room lay_out(const OctExperts& o, int64_t tokens, int64_t members) {
    const int64_t rows = tokens * o.top_k, chunks = most_chunks(o, rows);
    Room room{};
    const uintptr_t begin = reinterpret_cast<uintptr_t>(o.room);  // null where only the size is asked for
    const auto take = [&](auto*& field, int64_t count) {
        field = reinterpret_cast<std::remove_reference_t<decltype(field)>>(begin + room.bytes);
        room.bytes += (count * sizeof *field + 63) / 64 * 64;
    };
    take(room.num_hit, 1);
    take(room.chosen, rows);
    take(room.shares, rows);
    take(room.token, rows);
    take(room.share, rows);
    take(room.first, o.experts + 1);
    take(room.hit, o.experts);
    take(room.chunks, chunks);
    take(room.gate, chunks * o.gate_slot);
    take(room.up, chunks * o.up_slot);
    take(room.wide_act, chunks * o.wide_slot);
    take(room.wide, rows * o.width);
    take(room.scratch, members * kChunk * 2 * kColumns);
    return room;
}

// One token's experts and their p.
void route(const OctExperts& o, const float* logits, int32_t* chosen, float* shares) {
    // the largest so far, largest first; of equal ones the one that came first stays before
    int count = 0;
    for (int32_t e = 0; e < o.experts; e++) {
        if (count == o.top_k && !(logits[e] > logits[chosen[count - 1]])) continue;
        int at = count < o.top_k ? count++ : count - 1;
        for (; at > 0 && logits[e] > logits[chosen[at - 1]]; at--) chosen[at] = chosen[at - 1];
        chosen[at] = e;
    }
    const float peak = logits[chosen[0]];
    float total = 0.0f, kept = 0.0f;
    for (int32_t e = 0; e < o.experts; e++) total += std::exp(logits[e] - peak);
    for (int i = 0; i < count; i++) kept += shares[i] = std::exp(logits[chosen[i]] - peak) / total;
    for (int i = 0; o.renormalize && i < count; i++) shares[i] /= kept;
}

// Sorts the rows by expert, a token before the next one, and cuts them into chunks.
void sort(const OctExperts& o, int64_t tokens, Room& room) {
    int32_t* next = room.first;  // the next sorted row of an expert, until it becomes the expert's first chunk
    std::fill(next, next + o.experts + 1, 0);
    for (int64_t i = 0; i < tokens * o.top_k; i++) next[room.chosen[i] + 1]++;
    for (int32_t e = 0; e < o.experts; e++) next[e + 1] += next[e];
    int32_t hits = 0, chunks = 0, begin = 0;
    for (int64_t i = 0; i < tokens * o.top_k; i++) {
        const int32_t row = next[room.chosen[i]]++;
        room.token[row] = static_cast<int32_t>(i / o.top_k);
        room.share[row] = room.shares[i];
    }
    for (int32_t e = 0; e < o.experts; e++) {
        const int32_t end = next[e];
        room.first[e] = chunks;
        if (end > begin) room.hit[hits++] = e;
        for (; begin < end; begin += kChunk)
            room.chunks[chunks++] = {e, begin, static_cast<int32_t>(std::min<int64_t>(kChunk, end - begin))};
        begin = end;
    }
    room.first[o.experts] = chunks;
    *room.num_hit = hits;
}

// function(chunk, row_begin, row_end) for every tile of every chunk.
template <class F>
void each_tile(const OctExperts& o, const Room& room, Pool& pool, F&& function) {
    constexpr int64_t tiles = kChunk / OCT_TILE;
    for (int64_t at; (at = pool.take()) < room.first[o.experts] * tiles;) {
        const int64_t begin = at % tiles * OCT_TILE;
        const int32_t c = static_cast<int32_t>(at / tiles), count = room.chunks[c].count;
        if (begin < count) function(c, begin, std::min<int64_t>(begin + OCT_TILE, count));
    }
}

void convert_x(const OctExperts& o, const Room& room, Pool& pool) {
    each_tile(o, room, pool, [&](int64_t c, int64_t begin, int64_t end) {
        const Chunk& chunk = room.chunks[c];
        const OctMatrix* matrices = o.matrices + chunk.expert * 3;
        for (int which = 0; which < (o.up_slot ? 2 : 1); which++) {
            uint8_t* act = which ? room.up + c * o.up_slot : room.gate + c * o.gate_slot;
            for (int64_t r = begin; r < end; r++)  // a row at a time: they do not lie together, hence no stride
                oct_act_quantize(static_cast<int>(matrices[which].scheme),
                                 o.x + room.token[chunk.first + r] * o.hidden, 0, act, chunk.count, o.hidden, r, r + 1);
        }
    });
}

void convert_wide(const OctExperts& o, const Room& room, Pool& pool) {
    each_tile(o, room, pool, [&](int64_t c, int64_t begin, int64_t end) {
        const Chunk& chunk = room.chunks[c];
        oct_act_quantize(static_cast<int>(o.matrices[chunk.expert * 3 + 2].scheme), room.wide + chunk.first * o.width,
                         o.width, room.wide_act + c * o.wide_slot, chunk.count, o.width, begin, end);
    });
}

// out [count, columns begin .. end] of one matrix, rows `stride` apart
void multiply(const OctMatrix& m, const uint8_t* act, float* out, int64_t stride, int64_t count, int64_t k, int64_t begin,
              int64_t end) {
    oct_matmul(static_cast<int>(m.scheme), m.weight, act, 0, out - begin, stride, count, k, begin, end, nullptr, nullptr);
}

void run_gate_up(const OctExperts& o, const Ops& ops, const OctBatch& batch, const Room& room, Pool& pool,
                 float* scratch) {
    const int64_t blocks = (o.width + kColumns - 1) / kColumns;
    OctInstruction gated{};
    gated.op = OCT_GATED;
    gated.flag = o.act;
    for (int64_t at; (at = pool.take()) < *room.num_hit * blocks;) {
        const int32_t e = room.hit[at / blocks];
        const OctMatrix* matrices = o.matrices + e * 3;
        const int64_t begin = at % blocks * kColumns, end = std::min(begin + kColumns, o.width), columns = end - begin;
        gated.k = columns;
        for (int32_t c = room.first[e]; c < room.first[e + 1]; c++) {
            const Chunk& chunk = room.chunks[c];
            const int64_t stride = 2 * columns;
            const uint8_t* gate = room.gate + c * o.gate_slot;
            const uint8_t* up = o.up_slot ? room.up + c * o.up_slot : gate;
            multiply(matrices[0], gate, scratch, stride, chunk.count, o.hidden, begin, end);
            multiply(matrices[1], up, scratch + columns, stride, chunk.count, o.hidden, begin, end);
            for (int64_t r = 0; r < chunk.count; r++) {
                gated.in = scratch + r * stride;
                gated.out = room.wide + (chunk.first + r) * o.width + begin;
                ops.rows(gated, batch, 0, 1);
            }
        }
    }
}

void run_down(const OctExperts& o, int64_t tokens, const Room& room, Pool& pool, float* scratch) {
    // enough pieces for all members to end at about the same time
    int64_t piece = o.hidden / (pool.size() * 8) / OCT_PANEL * OCT_PANEL;
    piece = std::clamp<int64_t>(piece, OCT_PANEL, kColumns);
    for (int64_t begin; (begin = pool.take() * piece) < o.hidden;) {
        const int64_t end = std::min(begin + piece, o.hidden), columns = end - begin;
        for (int64_t t = 0; t < tokens; t++) std::memset(o.out + t * o.hidden + begin, 0, columns * sizeof(float));
        for (int32_t c = 0; c < room.first[o.experts]; c++) {
            const Chunk& chunk = room.chunks[c];
            multiply(o.matrices[chunk.expert * 3 + 2], room.wide_act + c * o.wide_slot, scratch, columns, chunk.count,
                     o.width, begin, end);
            for (int64_t r = 0; r < chunk.count; r++) {
                float* out = o.out + room.token[chunk.first + r] * o.hidden + begin;
                const float share = room.share[chunk.first + r];
                for (int64_t i = 0; i < columns; i++) out[i] += share * scratch[r * columns + i];
            }
        }
    }
}

}  // namespace

void run_experts(const OctExperts& o, const Ops& ops, const OctBatch& batch, Pool& pool, int member) {
    const int64_t tokens = batch.tokens;
    Room room = lay_out(o, tokens, pool.size());
    float* scratch = room.scratch + member * kChunk * 2 * kColumns;
    constexpr int64_t piece = 16;  // tokens, so that members stay off each other's cache lines
    for (int64_t begin; (begin = pool.take() * piece) < tokens;)
        for (int64_t t = begin; t < std::min(begin + piece, tokens); t++)
            route(o, o.router + t * o.experts, room.chosen + t * o.top_k, room.shares + t * o.top_k);
    pool.barrier();
    if (member == 0) sort(o, tokens, room);
    pool.barrier();
    convert_x(o, room, pool);
    pool.barrier();
    run_gate_up(o, ops, batch, room, pool, scratch);
    pool.barrier();
    convert_wide(o, room, pool);
    pool.barrier();
    run_down(o, tokens, room, pool, scratch);
}

}  // namespace octa

extern "C" size_t oct_experts_room(OctExperts* experts, int64_t tokens, int32_t threads) {
    OctExperts& o = *experts;
    o.gate_slot = o.up_slot = o.wide_slot = 0;
    const auto widen = [](int64_t& slot, const OctMatrix& m, int64_t k) {
        const int64_t bytes = static_cast<int64_t>(oct_act_bytes(static_cast<int>(m.scheme), octa::kChunk, k));
        slot = std::max(slot, (bytes + 63) / 64 * 64);
    };
    bool apart = false;
    for (int32_t e = 0; e < o.experts; e++) {
        const OctMatrix *gate = o.matrices + e * 3, *up = gate + 1, *down = gate + 2;
        apart = apart || gate->scheme != up->scheme;
        widen(o.gate_slot, *gate, o.hidden);
        widen(o.up_slot, *up, o.hidden);
        widen(o.wide_slot, *down, o.width);
    }
    if (!apart) o.up_slot = 0;
    return octa::lay_out(o, tokens, threads).bytes;
}
