// Attention over the paged cache. What a query gets depends on its own keys alone: they are walked in tiles of kTile
// and sums closed after kSplit, both counted from the row's first position, whatever else runs in the step; a key that
// a query may not see adds exactly nothing.

namespace {

using octa::AttentionTask;
using octa::kGroup;
using octa::kSplit;
using octa::kTile;
using octa::padded;

const float kNone = -__builtin_inff();

// Where a tile's keys and values lie.
struct Place {
    const float* keys[kTile / kGroup];  // 16 keys side by side, for d = 0; the next d lies `stride` further
    int64_t stride;
    const float* values[kTile];
    int64_t low, high;  // keys of the tile that may be read
};

// One query group's walk: `rows` queries x heads of one KV head.
struct Walk {
    const OctInstruction& o;
    const OctBatch& batch;
    const OctSpan& span;
    int64_t head, rows, group, position;
    float *q, *scores, *acc, *total;        // [rows, D], [rows, kTile], [rows, Dp] twice
    float *peak, *sum, *factor;             // [rows]
    float *total_peak, *total_sum;          // [rows]
    float *key_room, *value_room;           // [D, kTile], [kTile, Dp]
};

Walk begin_walk(const OctInstruction& o, const OctBatch& batch, const AttentionTask& task, int64_t head, float* at) {
    const int64_t group = o.heads / o.kv_heads, rows = task.count * group, wide = padded(o.dim);
    Walk w{o, batch, batch.spans[task.span], head, rows, group, task.position,
           nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    auto take = [&](int64_t count) {
        float* p = at;
        at += count;
        return p;
    };
    w.key_room = take(kTile * o.dim);
    w.value_room = take(kTile * wide);
    w.q = take(rows * o.dim);
    w.acc = take(rows * wide);
    w.total = take(rows * wide);
    w.scores = take(rows * kTile);
    w.peak = take(rows);
    w.sum = take(rows);
    w.factor = take(rows);
    w.total_peak = take(rows);
    w.total_sum = take(rows);
    for (int64_t i = 0; i < rows; i++) {
        const float* q = o.in + (task.token + i / group) * o.ld_in + (head * group + i % group) * o.dim;
        for (int64_t d = 0; d < o.dim; d++) w.q[i * o.dim + d] = q[d] * o.a;
    }
    return w;
}

// Keys [low, high) of the tile that starts at position `tile`.
void find(Walk& w, int64_t tile, int64_t low, int64_t high, Place& place) {
    const int64_t size = w.batch.block_size, dim = w.o.dim, wide = padded(dim);
    const int64_t* table = w.batch.table + w.span.blocks;
    const float* keys = w.o.keys + w.head * w.batch.num_blocks * size * dim;
    const float* values = w.o.values + w.head * w.batch.num_blocks * size * dim;
    place.low = low;
    place.high = high;
    for (int64_t i = low; i < high; i++) {
        const int64_t at = tile + i;
        place.values[i] = values + (table[at / size] * size + at % size) * dim;
    }
    if (dim % kGroup) {
        for (int64_t i = low; i < high; i++) {
            __builtin_memcpy(w.value_room + i * wide, place.values[i], static_cast<size_t>(dim) * 4);
            for (int64_t d = dim; d < wide; d++) w.value_room[i * wide + d] = 0.0f;
            place.values[i] = w.value_room + i * wide;
        }
    }
    if (size % kGroup == 0) {
        place.stride = size;
        const int64_t first = low / kGroup, last = (high - 1) / kGroup;
        for (int64_t g = 0; g < kTile / kGroup; g++) {
            // a group without a key is computed too, from any memory, and masked
            const int64_t at = tile + (g < first || g > last ? first : g) * kGroup;
            place.keys[g] = keys + table[at / size] * size * dim + at % size;
        }
        return;
    }
    place.stride = kTile;
    for (int64_t g = 0; g < kTile / kGroup; g++) place.keys[g] = w.key_room + g * kGroup;
    for (int64_t i = low; i < high; i++) {
        const int64_t at = tile + i;
        const float* key = keys + table[at / size] * size * dim + at % size;
        for (int64_t d = 0; d < dim; d++) w.key_room[d * kTile + i] = key[d * size];
    }
}

constexpr int64_t kVectors = kGroup / W;            // of 16 keys
constexpr int64_t kTogether = W == 16 ? 4 : 1;      // groups of 16 keys that fit into registers
constexpr int64_t kColumns = W == 16 ? 4 : 16 / W;  // vectors of D that do

// scores [R, kTile] = q [R, D] . keys, summed in order of d
template <int R>
void score(const float* q, const Place& place, int64_t dim, float* scores) {
    for (int64_t g = 0; g < kTile / kGroup; g += kTogether) {
        vf s[R][kTogether * kVectors] = {};
        for (int64_t d = 0; d < dim; d++) {
            vf k[kTogether * kVectors];
            for (int64_t c = 0; c < kTogether * kVectors; c++)
                k[c] = load(place.keys[g + c / kVectors] + d * place.stride + c % kVectors * W);
            for (int r = 0; r < R; r++)
                for (int64_t c = 0; c < kTogether * kVectors; c++) s[r][c] += all(q[r * dim + d]) * k[c];
        }
        for (int r = 0; r < R; r++)
            for (int64_t c = 0; c < kTogether * kVectors; c++) store(scores + r * kTile + g * kGroup + c * W, s[r][c]);
    }
}

// C vectors of acc [R, wide] from `column` on: acc = acc * factor + shares [R, kTile] . values, in order of keys
template <int R, int C>
inline void blend_columns(const float* shares, const Place& place, const float* factor, float* acc, int64_t wide,
                          int64_t column) {
    vf a[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) a[r][c] = load(acc + r * wide + column + c * W) * factor[r];
    for (int64_t i = place.low; i < place.high; i++) {
        vf v[C];
        for (int c = 0; c < C; c++) v[c] = load(place.values[i] + column + c * W);
        for (int r = 0; r < R; r++)
            for (int c = 0; c < C; c++) a[r][c] += all(shares[r * kTile + i]) * v[c];
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) store(acc + r * wide + column + c * W, a[r][c]);
}

template <int R>
void blend(const float* shares, const Place& place, const float* factor, float* acc, int64_t wide) {
    int64_t column = 0;
    for (; column + kColumns * W <= wide; column += kColumns * W)
        blend_columns<R, kColumns>(shares, place, factor, acc, wide, column);
    for (; column < wide; column += W) blend_columns<R, 1>(shares, place, factor, acc, wide, column);
}

// function<R>(first row) for all rows, four at a time
#define FOUR_BY_FOUR(rows, call)              \
    for (int64_t r = 0; r < (rows); r += 4)   \
        switch ((rows) - r) {                 \
            case 1: call(1); break;           \
            case 2: call(2); break;           \
            case 3: call(3); break;           \
            default: call(4);                 \
        }

// One row's scores of a tile, of which it sees [low, high): made shares of the running sum
void shares(Walk& w, int64_t row, int64_t low, int64_t high) {
    float* s = w.scores + row * kTile;
    const bool edge = low > 0 || high < kTile;
    const float cap = w.o.b;
    vf v[kTile / W];
    vf peak = all(kNone);
    for (int64_t c = 0; c < kTile / W; c++) {
        v[c] = load(s + c * W);
        if (cap != 0.0f) v[c] = vtanh(v[c] / cap) * cap;
        if (edge) {
            const vi at = lanes() + static_cast<int32_t>(c * W);
            const vi seen = (at >= static_cast<int32_t>(low)) & (at < static_cast<int32_t>(high));
            v[c] = seen ? v[c] : all(kNone);
        }
        peak = v[c] < peak ? peak : v[c];  // a NaN wins: the row must show it
    }
    const float before = w.peak[row];
    float top = largest(peak);
    top = top < before ? before : top;
    const float base = top == kNone ? 0.0f : top;
    vf total{};
    for (int64_t c = 0; c < kTile / W; c++) {
        const vf e = vexp(v[c] - base);
        total += e;
        store(s + c * W, e);
    }
    const float factor = before == kNone ? 0.0f : vexp(all(before - base))[0];
    w.factor[row] = factor;
    w.sum[row] = w.sum[row] * factor + sum(total);
    w.peak[row] = top;
}

// All tiles of one split: peak, sum and acc of each row begin anew
void walk_split(Walk& w, int64_t split) {
    const int64_t wide = padded(w.o.dim), dim = w.o.dim;
    const int64_t last = w.position + (w.rows - 1) / w.group;  // the last query's position
    const int64_t first = w.o.window ? (w.position - w.o.window + 1 > 0 ? w.position - w.o.window + 1 : 0) : 0;
    for (int64_t r = 0; r < w.rows; r++) w.peak[r] = kNone, w.sum[r] = 0.0f;
    for (int64_t i = 0; i < w.rows * wide; i++) w.acc[i] = 0.0f;
    for (int64_t tile = split * kSplit; tile < (split + 1) * kSplit && tile <= last; tile += kTile) {
        if (tile + kTile <= first) continue;
        Place place;
        const int64_t low = first > tile ? first - tile : 0;
        const int64_t high = last + 1 - tile < kTile ? last + 1 - tile : kTile;
        find(w, tile, low, high, place);
#define SCORE(R) score<R>(w.q + r * dim, place, dim, w.scores + r * kTile)
        FOUR_BY_FOUR(w.rows, SCORE)
#undef SCORE
        for (int64_t r = 0; r < w.rows; r++) {
            const int64_t own = w.position + r / w.group - tile;  // the query's own place in the tile
            const int64_t from = w.o.window && own - w.o.window + 1 > low ? own - w.o.window + 1 : low;
            shares(w, r, from, own + 1 < high ? own + 1 : high);
        }
#define BLEND(R) blend<R>(w.scores + r * kTile, place, w.factor + r, w.acc + r * wide, wide)
        FOUR_BY_FOUR(w.rows, BLEND)
#undef BLEND
    }
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
        const float fa = a == kNone ? 0.0f : vexp(all(a - base))[0], fb = b == kNone ? 0.0f : vexp(all(b - base))[0];
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

void attend(const OctInstruction& o, const OctBatch& batch, const AttentionTask& task, int64_t head, float* sums,
            float* scratch) {
    Walk w = begin_walk(o, batch, task, head, scratch);
    const int64_t wide = padded(o.dim);
    const Sums part{w.peak, w.sum, w.acc};
    if (task.partial >= 0) {
        walk_split(w, task.split);
        __builtin_memcpy(sums, w.peak, static_cast<size_t>(w.rows) * 4);
        __builtin_memcpy(sums + w.rows, w.sum, static_cast<size_t>(w.rows) * 4);
        __builtin_memcpy(sums + 2 * w.rows, w.acc, static_cast<size_t>(w.rows * wide) * 4);
        return;
    }
    const Sums total{w.total_peak, w.total_sum, w.total};
    clear(total, w.rows, wide);
    for (int64_t split = task.split; split < task.split_end; split++) {
        walk_split(w, split);
        merge_split(total, part, w.rows, wide);
    }
    write_out(o, total, task.token, head, w.rows);
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
