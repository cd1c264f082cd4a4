// Activations of a product in tiles and chunks of them, with their outliers: found once for all pieces of a product that a
// thread computes. Everything has internal linkage, as in matmul_tiles.h.
#pragma once

#include <string.h>

#include <memory>
#include <vector>

#include "matmul_short.h"

namespace {

using namespace oct;

// Keeps what std::vector becomes local to the file as well.
template <class T> struct Local : std::allocator<T> {
    template <class U> struct rebind {
        using other = Local<U>;
    };
};

template <class T> using Vector = std::vector<T, Local<T>>;

// The weights of a panel for the elements of k that are outliers in any row of a chunk: `list` names `count` of them;
// weights [k + 1][16], those of k are zero, others not written.
struct Columns {
    const int32_t *list;
    int32_t count;
    float *weights;
};

// An outlier of a row and where its column's weights lie: bytes from Columns::weights on.
struct Turn {
    int32_t column;
    float value;
};

// Rows first..first + M of a tile of `rows` rows. turns [most][kTile]: the tile's outliers, the first of each row, then
// the second ...; zero times the column of zeros where a row has no more.
// unread: whether this panel's weights are still to be written into columns, or into room, by who reads the panel first.
// room: where a panel of BF16_SHORT becomes one of BF16; null if one call reads it. after: the next panel, which the first
// calls that read the room ask for; room itself for others.
struct Rows {
    const uint8_t *act;
    const Turn *turns;
    int rows, first, most;
    bool unread;
    oct_ahead *ahead;
    Columns columns;
    uint8_t *room;
    const uint8_t *after;
};

// The tiles of a chunk of rows, their outliers, and the elements of k that are outliers in them (once each).
struct Chunk {
    Vector<Rows> tiles;
    Vector<Turn> turns;
    Vector<int32_t> columns;
};

// The chunks of the activations that a thread read last, for as long as products of the same `act_id` read them, and what
// all of them use in turns: the weights of a panel's Columns, and room for it unpacked.
// seen [k]: all false, but while a chunk's `columns` is made.
struct Found {
    int64_t act_id = 0, most = 0;  // most: tiles of a chunk, the last may have fewer
    const uint8_t *act = nullptr;
    Vector<Chunk> chunks;
    Vector<uint8_t> seen, room;
    Vector<float> weights;
};

// Notes the turns and columns of a tile's outliers, which lie behind its counts at `at`. Returns the number of turns.
inline int add_turns(const uint8_t *at, int rows, int64_t k, Vector<uint8_t> &seen, Chunk &chunk) {
    int most = 0;
    for (int r = 0; r < rows; r++) most = int_at(at + r * 4) > most ? int_at(at + r * 4) : most;
    const size_t first = chunk.turns.size();
    chunk.turns.resize(first + (size_t)most * kTile, Turn{(int32_t)k * kPanel * 4, 0.0f});
    const uint8_t *list = at + rows * 4;
    for (int r = 0; r < rows; r++, list += most_outliers(k) * (int64_t)sizeof(Outlier))
        for (int i = 0; i < int_at(at + r * 4); i++) {
            const int32_t index = int_at(list + i * sizeof(Outlier));
            chunk.turns[first + (size_t)(i * kTile + r)] = {index * kPanel * 4, float_at(list + i * sizeof(Outlier) + 4)};
            if (!seen[(size_t)index]) chunk.columns.push_back(index);
            seen[(size_t)index] = 1;
        }
    return most;
}

// The `count` tiles that begin with `row`, or those that are left.
template <int scheme> void find_tiles(const Product &p, int64_t row, int64_t count, Found &found, Chunk &chunk) {
    constexpr Format f = kFormats[scheme];
    chunk.tiles.clear(), chunk.columns.clear(), chunk.turns.clear();
    for (; row < p.m && count > 0; row += kTile, count--) {
        const int rows = (int)(p.m - row < kTile ? p.m - row : kTile);
        Rows tile = {p.act + row * act_row_bytes(scheme, p.k), nullptr, rows, 0, 0, false, p.ahead, {}, nullptr, nullptr};
        if constexpr (!is_dense(f)) {
            const uint8_t *outliers = tile.act + p.k / kGroup * rows * act_group_bytes(f);
            tile.most = add_turns(outliers, rows, p.k, found.seen, chunk);
        }
        chunk.tiles.push_back(tile);
    }
    if constexpr (is_dense(f)) return;
    for (const int32_t index : chunk.columns) found.seen[(size_t)index] = 0;
    const Turn *turns = chunk.turns.data();
    for (Rows &tile : chunk.tiles) {
        tile.columns = {chunk.columns.data(), (int32_t)chunk.columns.size(), found.weights.data()};
        tile.turns = turns;
        turns += tile.most * kTile;
    }
}

// Bytes of activations that stay in a core's second-level cache while the panels go by.
constexpr int64_t kActivationBytes = 640 * 1024;

// Tiles whose activations, row_bytes each row, stay near; all chunks but the last have as many.
inline int64_t tiles_near(int64_t m, int64_t row_bytes) {
    const int64_t chunks = m * row_bytes / kActivationBytes + 1;
    return ((m + kTile - 1) / kTile + chunks - 1) / chunks;
}

// The chunks of `most` tiles that p's activations have; of one form of activations, whatever the scheme.
template <int scheme> void find_chunks(const Product &p, int64_t most, Found &found) {
    if (p.act_id && p.act_id == found.act_id && p.act == found.act && most == found.most) return;
    found.act_id = p.act_id, found.act = p.act, found.most = most;
    const int64_t rows = most * kTile, count = (p.m + rows - 1) / rows;
    if (found.chunks.size() < (size_t)count) found.chunks.resize((size_t)count);
    if constexpr (!is_dense(kFormats[scheme])) {
        if (found.seen.size() < (size_t)p.k) found.seen.resize((size_t)p.k);
        if (found.weights.size() < (size_t)(p.k + 1) * kPanel) found.weights.resize((size_t)(p.k + 1) * kPanel);
        memset(found.weights.data() + p.k * kPanel, 0, kPanel * 4);
    }
    for (int64_t i = 0; i < count; i++) find_tiles<scheme>(p, i * rows, most, found, found.chunks[(size_t)i]);
}

} // namespace
