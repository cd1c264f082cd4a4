// Attention over the paged cache. What a query gets depends on its own keys alone: they are walked in tiles of kTile
// and sums closed after kSplit, both counted from the row's first position, whatever else runs in the step; a key that
// a query may not see adds exactly nothing.
//
// A bfloat16 cache is multiplied as bfloat16, queries and shares rounded likewise, by an instruction that multiplies and
// adds pairs: the cache keeps them side by side (of neighbouring d, and of neighbouring keys).

namespace {

using octa::AttentionTask;
using octa::HeadTask;
using octa::kGroup;
using octa::kSplit;
using octa::kTile;
using octa::kTogether;
using octa::padded;
using octa::partial_floats;

const float kNone = -__builtin_inff();

template <class Cell>
constexpr bool kPaired = sizeof(Cell) == 2;

// Where a tile's keys and values lie.
template <class Cell>
struct Place {
    const Cell* keys[kTile / kGroup];  // 16 keys side by side, for d = 0; the next d lies `stride` further
    int64_t stride;
    const Cell* values[kTile];
    float key_scales[kTile], value_scales[kTile];  // with int8 only
    Cell *key_room, *value_room;                   // [D, kTile], [kTile, Dp]: for what cannot be read where it lies
};

// Where a tile's pairs lie: keys as above, pairs of d in place of d; values [D, 2] of two neighbouring keys. Null: no row
// sees any.
template <>
struct Place<uint16_t> {
    const uint16_t* keys[kTile / kGroup];
    int64_t stride;
    const uint16_t* values[kTile / 2];
    uint16_t *key_room, *value_room;  // [(D + 1) / 2, kTile, 2], [kTile / 2, Dp, 2]
};

// One query group's walk: `rows` queries x heads of one KV head.
struct Walk {
    const OctInstruction& o;
    const OctBatch& batch;
    const OctSpan& span;
    int64_t head, rows, group, position;
    float *q, *acc, *total;         // [rows, D] (paired: bfloat16 in place of them), [rows, Dp] twice
    float *peak, *sum;              // [rows], sum once a split is done
    float *lane_sums;               // [rows, W]: what adds up to it
    float *total_peak, *total_sum;  // [rows]
    float *scores;                  // [kTogether, kTile]
    float *shares;                  // the same, of bfloat16
    float *rooms;                   // two Places'
};

// Queries as bfloat16, an odd D filled up with zero
inline void put_pairs(const float* q, float scale, int64_t dim, uint16_t* out) {
    over(dim, [&](int64_t d, int64_t n) {
        uint16_t made[W];
        store(made, get(q + d, n) * scale);
        __builtin_memcpy(out + d, made, static_cast<size_t>(n) * 2);
    });
    if (dim % 2) out[dim] = 0;
}

Walk begin_walk(const OctInstruction& o, const OctBatch& batch, HeadTask now, float* at) {
    const AttentionTask& task = *now.task;
    const int64_t head = now.head, group = o.heads / o.kv_heads, rows = task.count * group, wide = padded(o.dim);
    auto take = [&](int64_t count) {
        float* p = at;
        at += count;
        return p;
    };
    // in the order of the fields
    Walk w{o, batch, batch.spans[task.span], head, rows, group, task.position,
           take(rows * o.dim), take(rows * wide), take(rows * wide),
           take(rows), take(rows), take(rows * W), take(rows), take(rows), take(kTogether * kTile), take(kTogether * kTile), at};
    for (int64_t i = 0; i < rows; i++) {
        const float* q = o.in + (task.token + i / group) * o.ld_in + (head * group + i % group) * o.dim;
        if (o.flag == OCT_BFLOAT16)
            put_pairs(q, o.a, o.dim, reinterpret_cast<uint16_t*>(w.q + i * o.dim));
        else
            for (int64_t d = 0; d < o.dim; d++) w.q[i * o.dim + d] = q[d] * o.a;
    }
    return w;
}

// function(i, count, slot) for the keys [low, high) of the tile that starts at position `tile`, run by run: keys
// [i, i + count) lie in slots from `slot` on
template <class F>
inline void over_slots(const Walk& w, int64_t tile, int64_t low, int64_t high, F&& function) {
    const int64_t size = w.batch.block_size;
    const int64_t* table = w.batch.table + w.span.blocks;
    for (int64_t i = low, count; i < high; i += count) {
        const int64_t offset = (tile + i) % size, left = high - i;
        count = size - offset < left ? size - offset : left;
        function(i, count, (w.head * w.batch.num_blocks + table[(tile + i) / size]) * size + offset);
    }
}

struct Keys {
    int64_t low, high;
};

// The keys of the tile that starts at position `tile` that any row sees
inline Keys seen(const Walk& w, int64_t tile) {
    const int64_t last = w.position + (w.rows - 1) / w.group + 1 - tile;  // of the last query
    const int64_t first = w.o.window ? w.position - w.o.window + 1 - tile : 0;
    return {first > 0 ? first : 0, last < kTile ? last : kTile};
}

// Those of them that row `row` sees
inline Keys seen(const Walk& w, int64_t row, int64_t tile, Keys from) {
    const int64_t own = w.position + row / w.group - tile;
    const int64_t low = w.o.window ? own - w.o.window + 1 : 0;
    return {low > from.low ? low : from.low, own + 1 < from.high ? own + 1 : from.high};
}

template <class Cell>
void find(const Walk& w, int64_t tile, Place<Cell>& place) {
    const auto [low, high] = seen(w, tile);
    const int64_t size = w.batch.block_size, dim = w.o.dim, wide = padded(dim);
    const Cell* values = static_cast<const Cell*>(w.o.values);
    const Cell* keys = static_cast<const Cell*>(w.o.keys);
    const bool in_place = size % kGroup == 0;
    place.stride = in_place ? size : kTile;
    for (int64_t g = 0; g < kTile / kGroup; g++) place.keys[g] = place.key_room + g * kGroup;
    for (int64_t i = 0; i < kTile; i++) place.values[i] = place.value_room + i * wide;
    over_slots(w, tile, low, high, [&](int64_t i, int64_t count, int64_t slot) {
        if constexpr (sizeof(Cell) == 1) {
            __builtin_memcpy(place.key_scales + i, w.o.key_scales + slot, static_cast<size_t>(count) * 4);
            __builtin_memcpy(place.value_scales + i, w.o.value_scales + slot, static_cast<size_t>(count) * 4);
        }
        const Cell* value = values + slot * dim;
        if (dim == wide) {
            for (int64_t j = 0; j < count; j++) place.values[i + j] = value + j * dim;
        } else {
            for (int64_t j = 0; j < count; j++)
                for (int64_t d = 0; d < wide; d++) place.value_room[(i + j) * wide + d] = d < dim ? value[j * dim + d] : 0;
        }
        const int64_t offset = slot % size;
        const Cell* key = keys + (slot - offset) * dim + offset;
        if (in_place) {
            for (int64_t g = i / kGroup; g * kGroup < i + count; g++) place.keys[g] = key + (g * kGroup - i);
        } else {
            for (int64_t d = 0; d < dim; d++)
                for (int64_t j = 0; j < count; j++) place.key_room[d * kTile + i + j] = key[d * size + j];
        }
    });
}

void forget(Place<uint16_t>& place) {
    for (auto& value : place.values) value = nullptr;
    for (auto& keys : place.keys) keys = nullptr;
}

// Whether pairs can be read where they lie.
inline bool keys_in_place(const Walk& w) { return w.batch.block_size % kGroup == 0; }
inline bool values_in_place(const Walk& w) { return w.batch.block_size % 2 == 0 && w.o.dim == padded(w.o.dim); }

void find(const Walk& w, int64_t tile, Place<uint16_t>& place) {
    const auto [low, high] = seen(w, tile);
    const int64_t size = w.batch.block_size, dim = w.o.dim;
    forget(place);
    place.stride = 2 * (keys_in_place(w) ? size : kTile);
    over_slots(w, tile, low, high, [&](int64_t i, int64_t count, int64_t slot) {
        const int64_t block = slot / size, offset = slot % size;
        const uint16_t* key = static_cast<const uint16_t*>(w.o.keys) + block * paired_keys(dim, size) + 2 * offset;
        const uint16_t* value = static_cast<const uint16_t*>(w.o.values) + block * paired_values(dim, size) + offset / 2 * 2 * dim;
        for (int64_t g = i / kGroup; keys_in_place(w) && g * kGroup < i + count; g++)
            place.keys[g] = key + 2 * (g * kGroup - i);
        for (int64_t p = i / 2; values_in_place(w) && 2 * p < i + count; p++) place.values[p] = value + (p - i / 2) * 2 * dim;
    });
}

// Gathers the pairs that cannot be read where they lie; zero where no row sees a key.
void lay_out(const Walk& w, int64_t tile, Place<uint16_t>& place) {
    const auto [low, high] = seen(w, tile);
    const int64_t size = w.batch.block_size, dim = w.o.dim, wide = padded(dim), pairs = (dim + 1) / 2;
    const bool keys = !keys_in_place(w), values = !values_in_place(w);
    if (!keys && !values) return;
    for (int64_t g = 0; keys && g < kTile / kGroup; g++) place.keys[g] = place.key_room + g * 2 * kGroup;
    for (int64_t p = 0; values && p < kTile / 2; p++) place.values[p] = place.value_room + p * 2 * wide;
    for (int64_t i = 0; values && i < kTile * wide; i++) place.value_room[i] = 0;
    over_slots(w, tile, low, high, [&](int64_t i, int64_t count, int64_t slot) {
        const int64_t block = slot / size;
        const uint16_t* key = static_cast<const uint16_t*>(w.o.keys) + block * paired_keys(dim, size) + slot % size * 2;
        const uint16_t* from = static_cast<const uint16_t*>(w.o.values) + block * paired_values(dim, size);
        for (int64_t d = 0; keys && d < pairs; d++)
            __builtin_memcpy(place.key_room + (d * kTile + i) * 2, key + d * size * 2, static_cast<size_t>(count) * 4);
        for (int64_t j = i, at = slot % size; values && j < i + count; j++, at++)
            for (int64_t d = 0; d < dim; d++)
                place.value_room[(j / 2 * wide + d) * 2 + j % 2] = from[(at / 2 * dim + d) * 2 + at % 2];
    });
}

constexpr int64_t kVectors = kGroup / W;            // of 16 keys
constexpr int64_t kGroups = W == 16 ? 4 : 1;        // groups of 16 keys that fit into registers
constexpr int64_t kColumns = W == 16 ? 4 : 16 / W;  // vectors of D that do

// Have `bytes` from p on brought near. Where Ask, a tile is asked for while the one before is computed: a block is too
// short for the processor to find out by itself where it goes on.
template <bool Ask>
inline void ask_for(const void* p, int64_t bytes) {
    for (int64_t at = 0; Ask && at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(p) + at, 0, 2);
}

// scores [R, kTile] = q [R, D] . keys of G groups, summed in order of d
template <int R, int G, bool Ask, class Cell>
inline void score_groups(const float* q, const Cell* const* keys, int64_t stride, int64_t dim, float* scores,
                         const Cell* const* next) {
    vf s[R][G * kVectors] = {};
    for (int64_t d = 0; d < dim; d++) {
        vf k[G * kVectors];
        for (int64_t c = 0; c < G * kVectors; c++) k[c] = load(keys[c / kVectors] + d * stride + c % kVectors * W);
        for (int64_t g = 0; g < G; g++) ask_for<Ask>(next[g] + d * stride, 1);
        for (int r = 0; r < R; r++)
            for (int64_t c = 0; c < G * kVectors; c++) s[r][c] += all(q[r * dim + d]) * k[c];
    }
    for (int r = 0; r < R; r++)
        for (int64_t c = 0; c < G * kVectors; c++) store(scores + r * kTile + c * W, s[r][c]);
}

// The groups that hold keys `from`
template <int R, bool Ask, class Cell>
inline void score(const float* q, const Place<Cell>& place, const Place<Cell>& next, int64_t dim, float* scores,
                  Keys from) {
    int64_t g = from.low / kGroup;
    const int64_t end = (from.high + kGroup - 1) / kGroup;
    for (; g + kGroups <= end; g += kGroups)
        score_groups<R, kGroups, Ask>(q, place.keys + g, place.stride, dim, scores + g * kGroup, next.keys + g);
    for (; g < end; g++)
        score_groups<R, 1, Ask>(q, place.keys + g, place.stride, dim, scores + g * kGroup, next.keys + g);
}

// C vectors of acc [R, wide] from `column` on: acc = acc * factor + shares [R, kTile] . values of keys `from`, in order
template <int R, int C, bool Ask, class Cell>
inline void blend_columns(const float* shares, const Cell* const* values, const Cell* const* next, const float* factor,
                          float* acc, int64_t wide, int64_t column, Keys from) {
    vf a[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) a[r][c] = load(acc + r * wide + column + c * W) * factor[r];
    for (int64_t i = from.low; i < from.high; i++) {
        vf v[C];
        for (int c = 0; c < C; c++) v[c] = load(values[i] + column + c * W);
        ask_for<Ask>(next[i] + column, C * W * static_cast<int64_t>(sizeof(Cell)));
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) a[r][c] += all(shares[r * kTile + i]) * v[c];
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(acc + r * wide + column + c * W, a[r][c]);
}

template <int R, bool Ask, class Cell>
inline void blend(const float* shares, const Place<Cell>& place, const Place<Cell>& next, const float* factor, float* acc,
                  int64_t wide, Keys from) {
    int64_t column = 0;
    for (; column + kColumns * W <= wide; column += kColumns * W)
        blend_columns<R, kColumns, Ask>(shares, place.values, next.values, factor, acc, wide, column, from);
    for (; column < wide; column += W)
        blend_columns<R, 1, Ask>(shares, place.values, next.values, factor, acc, wide, column, from);
}

// As score_groups: q bfloat16, its rows 2 D apart, times G groups of paired keys
template <int R, int G, bool Ask>
inline void score_pairs(const uint16_t* q, const uint16_t* const* keys, int64_t stride, int64_t dim, float* scores,
                        const uint16_t* const* next) {
    vf s[R][G * kVectors] = {};
    for (int64_t d = 0, at = 0; d < dim; d += 2, at += stride) {
        vi k[G * kVectors];
        for (int64_t c = 0; c < G * kVectors; c++) k[c] = load_pairs(keys[c / kVectors] + at + c % kVectors * 2 * W);
        for (int64_t g = 0; Ask && g < G; g++)
            if (next[g]) ask_for<Ask>(next[g] + at, 1);
        for (int r = 0; r < R; r++) {
            const vi pair = all_pairs(q + r * 2 * dim + d);
            for (int64_t c = 0; c < G * kVectors; c++) s[r][c] = dot_pairs(s[r][c], k[c], pair);
        }
    }
    for (int r = 0; r < R; r++)
        for (int64_t c = 0; c < G * kVectors; c++) store(scores + r * kTile + c * W, s[r][c]);
}

template <int R, bool Ask>
inline void score(const float* q, const Place<uint16_t>& place, const Place<uint16_t>& next, int64_t dim, float* scores,
                  Keys from) {
    const uint16_t* pairs = reinterpret_cast<const uint16_t*>(q);
    int64_t g = from.low / kGroup;
    const int64_t end = (from.high + kGroup - 1) / kGroup;
    for (; g + kGroups <= end; g += kGroups)
        score_pairs<R, kGroups, Ask>(pairs, place.keys + g, place.stride, dim, scores + g * kGroup, next.keys + g);
    for (; g < end; g++)
        score_pairs<R, 1, Ask>(pairs, place.keys + g, place.stride, dim, scores + g * kGroup, next.keys + g);
}

// As blend_columns, of shares that are bfloat16 and paired values
template <int R, int C, bool Ask>
inline void blend_pairs(const uint16_t* shares, const uint16_t* const* values, const uint16_t* const* next,
                        const float* factor, float* acc, int64_t wide, int64_t column, Keys from) {
    vf a[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) a[r][c] = load(acc + r * wide + column + c * W) * factor[r];
    for (int64_t i = from.low / 2; 2 * i < from.high; i++) {
        vi v[C];
        for (int c = 0; c < C; c++) v[c] = load_pairs(values[i] + 2 * (column + c * W));
        if (Ask && next[i]) ask_for<Ask>(next[i] + 2 * column, C * W * 4);
        for (int r = 0; r < R; r++) {
            const vi pair = all_pairs(shares + r * kTile + 2 * i);
            for (int c = 0; c < C; c++) a[r][c] = dot_pairs(a[r][c], v[c], pair);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(acc + r * wide + column + c * W, a[r][c]);
}

template <int R, bool Ask>
inline void blend(const float* shares, const Place<uint16_t>& place, const Place<uint16_t>& next, const float* factor,
                  float* acc, int64_t wide, Keys from) {
    const uint16_t* pairs = reinterpret_cast<const uint16_t*>(shares);
    int64_t column = 0;
    for (; column + kColumns * W <= wide; column += kColumns * W)
        blend_pairs<R, kColumns, Ask>(pairs, place.values, next.values, factor, acc, wide, column, from);
    for (; column < wide; column += W)
        blend_pairs<R, 1, Ask>(pairs, place.values, next.values, factor, acc, wide, column, from);
}

constexpr float kLog2e = 1.44269504088896341f;

// 2^x, as exactly as what reads it
template <class Cell>
inline vf share_of(vf x) {
    if constexpr (kPaired<Cell>)
        return vexp2_bfloat16(x);
    else
        return vexp2(x);
}

// A row's peak is raised only where a score is so much above it, in powers of 2: shares may then pass 1, but what is
// summed up so far need not be made smaller with nearly every tile.
constexpr float kSlack = 6.0f;

// The scores [R, kTile] of rows [row, row + R) for keys `from` are made shares: powers of 2, of which each row's peak
// is subtracted. factor [R]: what the rows' sums so far are to be multiplied by. Rows take turns: each has few numbers
// and waits long for them.
template <int R, class Cell>
inline void shares(Walk& w, int64_t row, int64_t tile, const Place<Cell>& place, Keys from, float* factor) {
    constexpr bool Scaled = sizeof(Cell) == 1;
    const float cap = w.o.b;
    const int64_t first = from.low / W, end = (from.high + W - 1) / W;
    const bool edge = seen(w, row + R - 1, tile, from).low > first * W || seen(w, row, tile, from).high < end * W;
    float base[R];
    for (int r = 0; r < R; r++) {
        float* s = w.scores + r * kTile;
        const Keys own = seen(w, row + r, tile, from);
        vf peak = all(kNone);
        for (int64_t c = first; c < end; c++) {
            vf v = load(s + c * W);
            if constexpr (Scaled) v *= load(place.key_scales + c * W);
            if (cap != 0.0f) v = vtanh(v / cap) * cap;
            if (edge) {
                const vi at = lanes() + static_cast<int32_t>(c * W);
                const vi seen = (at >= static_cast<int32_t>(own.low)) & (at < static_cast<int32_t>(own.high));
                v = seen ? v : all(kNone);
            }
            if (Scaled || cap != 0.0f || edge) store(s + c * W, v);
            peak = v < peak ? peak : v;
        }
        const float before = w.peak[row + r];
        factor[r] = 1.0f;
        if (any_above(peak * kLog2e, before + kSlack)) {
            w.peak[row + r] = largest(peak) * kLog2e;
            factor[r] = before == kNone ? 0.0f : vexp2(all(before - w.peak[row + r]))[0];
        }
        base[r] = w.peak[row + r] == kNone ? 0.0f : w.peak[row + r];
    }
    vf total[R];
    for (int r = 0; r < R; r++) total[r] = load(w.lane_sums + (row + r) * W) * factor[r];
    for (int64_t c = first; c < end; c++)
        for (int r = 0; r < R; r++) {
            float* s = w.scores + r * kTile + c * W;
            const vf e = share_of<Cell>(load(s) * kLog2e - base[r]);
            total[r] += e;
            if constexpr (kPaired<Cell>)
                store(reinterpret_cast<uint16_t*>(w.shares) + r * kTile + c * W, e);
            else if constexpr (Scaled)
                store(s, e * load(place.value_scales + c * W));
            else
                store(s, e);
        }
    for (int r = 0; r < R; r++) store(w.lane_sums + (row + r) * W, total[r]);
}

// Rows [row, row + R) take in a tile and, where Ask, ask for the next one.
template <int R, bool Ask, class Cell>
void take_in(Walk& w, int64_t row, int64_t tile, const Place<Cell>& place, const Place<Cell>& next) {
    const int64_t wide = padded(w.o.dim), dim = w.o.dim;
    const Keys all = seen(w, tile), from{seen(w, row, tile, all).low, seen(w, row + R - 1, tile, all).high};
    if (from.low >= from.high) return;
    float factor[kGroup];
    score<R, Ask>(w.q + row * dim, place, next, dim, w.scores, from);
    shares<R>(w, row, tile, place, from, factor);
    blend<R, Ask>(kPaired<Cell> ? w.shares : w.scores, place, next, factor, w.acc + row * wide, wide, from);
}

struct Sums {
    float *peak, *sum, *acc;
};

// Add one split's sums of `rows` rows to the total. One copy of the code: it rounds in one way
__attribute__((noinline)) void merge_split(Sums total, Sums part, int64_t rows, int64_t wide) {
    for (int64_t r = 0; r < rows; r++) {
        const float a = total.peak[r], b = part.peak[r];
        const float top = a < b || b != b ? b : a;
        const float base = top == kNone ? 0.0f : top;
        const float fa = vexp2(all(a - base))[0], fb = vexp2(all(b - base))[0];
        total.peak[r] = top;
        total.sum[r] = total.sum[r] * fa + part.sum[r] * fb;
        for (int64_t i = r * wide; i < (r + 1) * wide; i += W)
            store(total.acc + i, load(total.acc + i) * fa + load(part.acc + i) * fb);
    }
}

void clear(Sums total, int64_t rows, int64_t wide) {
    for (int64_t r = 0; r < rows; r++) total.peak[r] = kNone, total.sum[r] = 0.0f;
    for (int64_t i = 0; i < rows * wide; i++) total.acc[i] = 0.0f;
}

void write_out(const OctInstruction& o, Sums total, int64_t token, int64_t head, int64_t rows) {
    const int64_t group = o.heads / o.kv_heads, wide = padded(o.dim);
    for (int64_t r = 0; r < rows; r++) {
        float* out = o.out + ((token + r / group) * o.heads + head * group + r % group) * o.dim;
        const float scale = 1.0f / total.sum[r];
        over(o.dim, [&](int64_t i, int64_t n) { put(out + i, get(total.acc + r * wide + i, n) * scale, n); });
    }
}

template <class Cell>
void take_in_rows(Walk& w, int64_t tile, const Place<Cell>& place, const Place<Cell>& next) {
    for (int64_t r = 0; r < w.rows; r += kTogether) {
        if (r > 0 && w.rows - r >= kTogether) {
            take_in<kTogether, false>(w, r, tile, place, next);
            continue;
        }
        switch (w.rows - r) {
            case 1: take_in<1, true>(w, r, tile, place, next); break;
            case 2: take_in<2, true>(w, r, tile, place, next); break;
            case 3: take_in<3, true>(w, r, tile, place, next); break;
            case 4: take_in<4, true>(w, r, tile, place, next); break;
            case 5: take_in<5, true>(w, r, tile, place, next); break;
            default: take_in<kTogether, true>(w, r, tile, place, next);
        }
    }
}

// Where the tiles of a task begin
inline int64_t first_tile(const Walk& w, const AttentionTask& task) {
    const int64_t first = w.o.window ? w.position - w.o.window + 1 : 0;
    return (first > task.split * kSplit ? first : task.split * kSplit) / kTile * kTile;
}

// Where its keys end
inline int64_t end_of(const Walk& w, const AttentionTask& task) {
    const int64_t last = w.position + (w.rows - 1) / w.group + 1;
    return task.split_end * kSplit < last ? task.split_end * kSplit : last;
}

// The tile `index` of what comes after this walk, if there is one.
inline void find_after(const Walk& w, HeadTask after, int64_t index, Place<uint16_t>& place) {
    forget(place);
    if (!after.task) return;
    const AttentionTask& task = *after.task;
    const Walk then{w.o, w.batch, w.batch.spans[task.span], after.head, task.count * w.group, w.group, task.position,
                    {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
    const int64_t tile = first_tile(then, task) + index * kTile;
    if (tile < end_of(then, task)) find(then, tile, place);
}

// All tiles of the task; done(split) after each split, for which peak, sum and acc of each row began anew. So many tiles
// ahead are asked for: a tile of pairs is soon done with.
template <class Cell, class F>
void walk(Walk& w, const AttentionTask& task, HeadTask after, F&& done) {
    constexpr int64_t ahead = kPaired<Cell> ? 2 : 1;
    const int64_t wide = padded(w.o.dim), room = kTile * (w.o.dim + wide);
    Place<Cell> places[ahead + 1] = {};
    for (int64_t i = 0; i <= ahead; i++) {
        float* const own = w.rooms + (kPaired<Cell> ? 0 : i * room);  // only a tile in work needs its room for pairs
        places[i].key_room = reinterpret_cast<Cell*>(own);
        places[i].value_room = reinterpret_cast<Cell*>(own + kTile * w.o.dim);
    }
    const int64_t first = first_tile(w, task), end = end_of(w, task);
    int64_t tile = first;
    for (int64_t i = 0; i < ahead && tile + i * kTile < end; i++) find(w, tile + i * kTile, places[i]);
    for (int64_t split = task.split; split < task.split_end; split++) {
        for (int64_t r = 0; r < w.rows; r++) w.peak[r] = kNone, store(w.lane_sums + r * W, vf{});
        for (int64_t i = 0; i < w.rows * wide; i++) w.acc[i] = 0.0f;
        for (; tile < (split + 1) * kSplit && tile < end; tile += kTile) {
            const int64_t at = (tile - first) / kTile, left = (end - tile - 1) / kTile;
            Place<Cell>&place = places[at % (ahead + 1)], &next = places[(at + ahead) % (ahead + 1)];
            const bool more = left >= ahead;
            if (more) find(w, tile + ahead * kTile, next);
            if constexpr (kPaired<Cell>) {
                if (!more) find_after(w, after, at + left ? ahead - 1 - left : 0, next);
                lay_out(w, tile, place);
            }
            take_in_rows(w, tile, place, kPaired<Cell> || more ? next : place);
        }
        for (int64_t r = 0; r < w.rows; r++) w.sum[r] = sum(load(w.lane_sums + r * W));
        done(split);
    }
}

void attend(const OctInstruction& o, const OctBatch& batch, HeadTask now, HeadTask next, float* sums, float* scratch) {
    const AttentionTask& task = *now.task;
    Walk w = begin_walk(o, batch, now, scratch);
    const int64_t wide = padded(o.dim);
    const Sums part{w.peak, w.sum, w.acc}, total{w.total_peak, w.total_sum, w.total};
    clear(total, w.rows, wide);
    const auto done = [&](int64_t split) {
        if (task.partial < 0) return merge_split(total, part, w.rows, wide);
        float* at = sums + (split - task.split) * partial_floats(w.rows, o.dim);
        __builtin_memcpy(at, w.peak, static_cast<size_t>(w.rows) * 4);
        __builtin_memcpy(at + w.rows, w.sum, static_cast<size_t>(w.rows) * 4);
        __builtin_memcpy(at + 2 * w.rows, w.acc, static_cast<size_t>(w.rows * wide) * 4);
    };
    o.flag == OCT_FLOAT32    ? walk<float>(w, task, next, done)
    : o.flag == OCT_BFLOAT16 ? walk<uint16_t>(w, task, next, done)
                             : walk<int8_t>(w, task, next, done);
    if (task.partial < 0) write_out(o, total, task.token, now.head, w.rows);
}

void merge(const OctInstruction& o, const float* sums, int64_t stride, int64_t parts, int64_t token, int64_t head,
           float* scratch) {
    const int64_t rows = o.heads / o.kv_heads, wide = padded(o.dim);
    const Sums total{scratch, scratch + rows, scratch + 2 * rows};
    clear(total, rows, wide);
    for (int64_t p = 0; p < parts; p++) {
        float* at = const_cast<float*>(sums) + p * stride;
        merge_split(total, {at, at + rows, at + 2 * rows}, rows, wide);
    }
    write_out(o, total, token, head, rows);
}

}  // namespace
