// The row-by-row instructions of program.h for tokens [begin, end); ops.py defines each. A row's sums run in one fixed
// order: they do not depend on which rows run together.

namespace {

using octa::OctRange;
using octa::paired_keys;
using octa::paired_values;

void rope_table(const OctInstruction& o, const OctBatch& batch, OctRange range) {
    for (int64_t t = range.begin; t < range.end; t++)
        for (int64_t j = 0; j < o.k; j++) {
            const double angle = static_cast<double>(batch.positions[t]) * o.inv_freq[j];
            o.cos[t * o.k + j] = static_cast<float>(__builtin_cos(angle) * static_cast<double>(o.a));
            o.sin[t * o.k + j] = static_cast<float>(__builtin_sin(angle) * static_cast<double>(o.a));
        }
}

// function(vector, place, lanes) for all of a row: whole vectors, then what is left
template <class F>
inline void over(int64_t count, F&& function) {
    int64_t i = 0;
    for (; i + W <= count; i += W) function(i, W);
    if (i < count) function(i, count - i);
}

inline vf get(const float* p, int64_t lanes) { return lanes == W ? load(p) : load_part(p, lanes); }

inline void put(float* p, vf v, int64_t lanes) {
    if (lanes == W)
        store(p, v);
    else
        store_part(p, v, lanes);
}

void embed(const OctInstruction& o, const OctBatch& batch, OctRange range) {
    const int64_t* which = o.flag == 0 ? batch.ids : o.flag == 1 ? batch.positions : batch.types;
    for (int64_t t = range.begin; t < range.end; t++) {
        float* out = o.out + t * o.k;
        oct_dequantize_row(o.scheme, o.weight, out, o.k, which[t] + o.window);
        if (o.a != 1.0f) over(o.k, [&](int64_t i, int64_t n) { put(out + i, get(out + i, n) * o.a, n); });
    }
}

void add(const OctInstruction& o, OctRange range) {
    float* out = o.out + range.begin * o.k;
    const float* in = o.in + range.begin * o.k;
    over(range.size() * o.k, [&](int64_t i, int64_t n) { put(out + i, get(out + i, n) + get(in + i, n), n); });
}

void add_gated(const OctInstruction& o, OctRange range) {
    for (int64_t t = range.begin; t < range.end; t++) {
        float* out = o.out + t * o.k;
        const float *in = o.in + t * o.k, share = 1.0f / (1.0f + __builtin_expf(-o.delta[t]));
        over(o.k, [&](int64_t i, int64_t n) { put(out + i, get(out + i, n) + get(in + i, n) * share, n); });
    }
}

// 1 / sqrt(mean of squares + eps)
inline float norm_scale(const float* x, int64_t count, float eps) {
    vf total{};
    over(count, [&](int64_t i, int64_t n) {
        const vf v = get(x + i, n);
        total += v * v;
    });
    return 1.0f / __builtin_sqrtf(sum(total) / static_cast<float>(count) + eps);
}

void rms_norm(const OctInstruction& o, OctRange range) {
    for (int64_t t = range.begin; t < range.end; t++) {
        float *in = o.in + t * o.k, *out = o.out + t * o.k;
        if (o.delta) {
            const float* delta = o.delta + t * o.k;
            over(o.k, [&](int64_t i, int64_t n) { put(in + i, get(in + i, n) + get(delta + i, n), n); });
        }
        const float scale = norm_scale(in, o.k, o.a);
        over(o.k, [&](int64_t i, int64_t n) {
            put(out + i, get(in + i, n) * scale * (get(o.bias + i, n) + o.b), n);
        });
    }
}

void layer_norm(const OctInstruction& o, OctRange range) {
    const float* weight = static_cast<const float*>(o.weight);
    for (int64_t t = range.begin; t < range.end; t++) {
        float *in = o.in + t * o.k, *out = o.out + t * o.k;
        const float* delta = o.delta + t * o.k;
        vf total{}, squares{};
        over(o.k, [&](int64_t i, int64_t n) {
            const vf v = get(in + i, n) + get(delta + i, n);
            put(in + i, v, n);
            total += v;
        });
        const float mean = sum(total) / static_cast<float>(o.k);
        over(o.k, [&](int64_t i, int64_t n) {
            vf v = get(in + i, n) - mean;
            for (int64_t lane = n; lane < W; lane++) v[lane] = 0;
            squares += v * v;
        });
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(o.k) + o.a);
        over(o.k, [&](int64_t i, int64_t n) {
            put(out + i, (get(in + i, n) - mean) * scale * get(weight + i, n) + get(o.bias + i, n), n);
        });
    }
}

template <vf (*act)(vf)>
void activate(const OctInstruction& o, OctRange range) {
    float* out = o.out + range.begin * o.k;
    const float* in = o.in + range.begin * o.k;
    over(range.size() * o.k, [&](int64_t i, int64_t n) { put(out + i, act(get(in + i, n)), n); });
}

void qk_norm(const OctInstruction& o, OctRange range) {
    for (int64_t t = range.begin; t < range.end; t++)
        for (int64_t h = 0; h < o.heads; h++) {
            float* x = o.out + t * o.ld_out + h * o.dim;
            const float* weight = o.bias + h * o.dim;
            const float scale = norm_scale(x, o.dim, o.a);
            over(o.dim, [&](int64_t i, int64_t n) {
                put(x + i, get(x + i, n) * scale * (get(weight + i, n) + o.b), n);
            });
        }
}

void rope(const OctInstruction& o, OctRange range) {
    const int64_t pairs = o.k;
    for (int64_t t = range.begin; t < range.end; t++) {
        const float *cos = o.cos + t * pairs, *sin = o.sin + t * pairs;
        for (int64_t h = 0; h < o.heads; h++) {
            float* x = o.out + t * o.ld_out + h * o.dim;
            if (o.flag) {
                for (int64_t j = 0; j < pairs; j++) {
                    const float a = x[2 * j], b = x[2 * j + 1];
                    x[2 * j] = a * cos[j] - b * sin[j];
                    x[2 * j + 1] = b * cos[j] + a * sin[j];
                }
                continue;
            }
            over(pairs, [&](int64_t j, int64_t n) {
                const vf a = get(x + j, n), b = get(x + pairs + j, n), c = get(cos + j, n), s = get(sin + j, n);
                put(x + j, a * c - b * s, n);
                put(x + pairs + j, b * c + a * s, n);
            });
        }
    }
}

// A token's head x [dim] into cells `step` apart; scale: its place beside them, with int8
inline void write_cells(const float* x, int64_t dim, float* cells, int64_t step, float*) {
    for (int64_t d = 0; d < dim; d++) cells[d * step] = x[d];
}

inline void write_cells(const float* x, int64_t dim, int8_t* cells, int64_t step, float* scale) {
    vf peak{}, zero{};
    over(dim, [&](int64_t d, int64_t n) {
        const vf v = get(x + d, n);
        peak = vmax(v < vf{} ? -v : v, peak);
        zero += v * 0.0f;
    });
    // what is not finite makes the scale NaN, so that the row shows it; below the normal numbers all is 0
    const float step_size = largest(peak) / 127.0f;
    const bool fine = sum(zero) == 0.0f && step_size >= 1.17549435e-38f;
    *scale = fine ? step_size : sum(zero);
    over(dim, [&](int64_t d, int64_t n) {
        const vi made = fine ? nearest(get(x + d, n) / step_size) : vi{};
        for (int64_t i = 0; i < n; i++) cells[(d + i) * step] = static_cast<int8_t>(made[i]);
    });
}

template <class Cell>
void write_kv(const OctInstruction& o, const OctBatch& batch, OctRange range) {
    const int64_t size = batch.block_size, dim = o.dim;
    const auto beside = [](float* scales, int64_t slot) { return scales ? scales + slot : nullptr; };
    for (int64_t t = range.begin; t < range.end; t++) {
        const int64_t block = batch.slots[t] / size, offset = batch.slots[t] % size;
        const float* k = o.in + t * o.ld_in + o.heads * dim;
        const float* v = k + o.kv_heads * dim;
        for (int64_t h = 0; h < o.kv_heads; h++, k += dim, v += dim) {
            const int64_t first = (h * batch.num_blocks + block) * size, slot = first + offset;
            write_cells(k, dim, static_cast<Cell*>(o.keys) + first * dim + offset, size, beside(o.key_scales, slot));
            write_cells(v, dim, static_cast<Cell*>(o.values) + slot * dim, 1, beside(o.value_scales, slot));
        }
    }
}

// Asks for the lines that write_pairs writes a token's keys and values to: a key has one for every pair of d.
void ask_for_pairs(const OctInstruction& o, const OctBatch& batch, int64_t slot) {
    const int64_t size = batch.block_size, dim = o.dim, offset = slot % size;
    for (int64_t h = 0; h < o.kv_heads; h++) {
        const int64_t at = h * batch.num_blocks + slot / size;
        const uint16_t* key = static_cast<const uint16_t*>(o.keys) + at * paired_keys(dim, size) + offset * 2;
        const uint16_t* value = static_cast<const uint16_t*>(o.values) + at * paired_values(dim, size) + offset / 2 * 2 * dim;
        for (int64_t d = 0; d < dim; d += 2) __builtin_prefetch(key + d * size, 1);
        for (int64_t d = 0; d < 2 * dim; d += 32) __builtin_prefetch(value + d, 1);
    }
}

// As write_kv, of bfloat16. Where no token of this step has the slot that makes a pair with a token's, that slot's value
// is made zero: it is multiplied, if only by zero.
void write_pairs(const OctInstruction& o, const OctBatch& batch, OctRange range) {
    const int64_t size = batch.block_size, dim = o.dim;
    for (int64_t t = range.begin; t < range.end; t++) {
        const int64_t block = batch.slots[t] / size, offset = batch.slots[t] % size;
        if (t + 1 < range.end && batch.slots[t + 1] / size != block) ask_for_pairs(o, batch, batch.slots[t + 1]);
        const bool alone = offset % 2 == 0 && (t + 1 == batch.tokens || batch.slots[t + 1] != batch.slots[t] + 1);
        const float* k = o.in + t * o.ld_in + o.heads * dim;
        const float* v = k + o.kv_heads * dim;
        for (int64_t h = 0; h < o.kv_heads; h++, k += dim, v += dim) {
            const int64_t at = h * batch.num_blocks + block;
            uint16_t* key = static_cast<uint16_t*>(o.keys) + at * paired_keys(dim, size) + offset * 2;
            uint16_t* value = static_cast<uint16_t*>(o.values) + at * paired_values(dim, size) + offset / 2 * 2 * dim + offset % 2;
            over(dim, [&](int64_t d, int64_t n) {
                const vi keys = bfloat16_of(get(k + d, n)), values = bfloat16_of(get(v + d, n));
                for (int64_t i = 0; i < n; i++) {
                    key[(d + i) / 2 * size * 2 + (d + i) % 2] = static_cast<uint16_t>(keys[i]);
                    value[(d + i) * 2] = static_cast<uint16_t>(values[i]);
                }
            });
            if (dim % 2) key[dim / 2 * size * 2 + 1] = 0;
            for (int64_t d = 0; alone && d < dim; d++) value[d * 2 + 1] = 0;
        }
    }
}

template <vf (*act)(vf)>
void gated(const OctInstruction& o, OctRange range) {
    for (int64_t t = range.begin; t < range.end; t++) {
        const float *gate = o.in + t * 2 * o.k, *up = gate + o.k;
        float* out = o.out + t * o.k;
        over(o.k, [&](int64_t i, int64_t n) { put(out + i, act(get(gate + i, n)) * get(up + i, n), n); });
    }
}

template <vf (*act)(vf)>
void combine_rows(const float* gate, const float* up, float* out, int64_t ldo, int64_t rows, int64_t columns) {
    constexpr int64_t ahead = 16;  // rows whose lines are asked for before they are written
    for (int64_t r = 0; r < rows; r++, gate += OCT_PANEL, up += OCT_PANEL, out += ldo) {
        if (r + ahead < rows) __builtin_prefetch(out + ahead * ldo, 1);
        over(columns, [&](int64_t i, int64_t n) { put(out + i, act(get(gate + i, n)) * get(up + i, n), n); });
    }
}

void combine(int32_t act, const float* gate, const float* up, float* out, int64_t ldo, int64_t rows, int64_t columns) {
    return act == 0   ? combine_rows<silu>(gate, up, out, ldo, rows, columns)
           : act == 1 ? combine_rows<gelu>(gate, up, out, ldo, rows, columns)
                      : combine_rows<gelu_tanh>(gate, up, out, ldo, rows, columns);
}

void check(const OctInstruction& o, const OctBatch& batch, OctRange range) {
    for (int64_t t = range.begin; t < range.end; t++) {
        vf zero{};
        over(o.k, [&](int64_t i, int64_t n) { zero += get(o.in + t * o.k + i, n) * 0.0f; });
        batch.finite[t] = sum(zero) == 0.0f;  // NaN if one was not finite
    }
}

void gather(const OctInstruction& o, const OctBatch& batch, OctRange range) {
    for (int64_t t = range.begin; t < range.end; t++)
        __builtin_memcpy(o.out + t * o.k, o.in + batch.tails[t] * o.k, static_cast<size_t>(o.k) * 4);
}

void finish(float* x, int64_t count, float scale, float cap) {
    if (scale != 1.0f) over(count, [&](int64_t i, int64_t n) { put(x + i, get(x + i, n) * scale, n); });
    if (cap != 0.0f) over(count, [&](int64_t i, int64_t n) { put(x + i, vtanh(get(x + i, n) / cap) * cap, n); });
}

void rows(const OctInstruction& o, const OctBatch& batch, int64_t begin, int64_t end) {
    const OctRange range{begin, end};
    switch (o.op) {
        case OCT_ROPE_TABLE: return rope_table(o, batch, range);
        case OCT_EMBED: return embed(o, batch, range);
        case OCT_ADD: return add(o, range);
        case OCT_ADD_GATED: return add_gated(o, range);
        case OCT_RMS_NORM: return rms_norm(o, range);
        case OCT_QUANTIZE: return oct_act_quantize(o.scheme, o.in, o.k, o.act, batch.tokens, o.k, begin, end);
        case OCT_QK_NORM: return qk_norm(o, range);
        case OCT_ROPE: return rope(o, range);
        case OCT_WRITE_KV:
            return o.flag == OCT_FLOAT32    ? write_kv<float>(o, batch, range)
                   : o.flag == OCT_BFLOAT16 ? write_pairs(o, batch, range)
                                            : write_kv<int8_t>(o, batch, range);
        case OCT_GATED:
            if (o.window && batch.tokens >= o.window) return;
            return o.flag == 0 ? gated<silu>(o, range) : o.flag == 1 ? gated<gelu>(o, range) : gated<gelu_tanh>(o, range);
        case OCT_LAYER_NORM: return layer_norm(o, range);
        case OCT_ACTIVATE:
            return o.flag == 0   ? activate<silu>(o, range)
                   : o.flag == 1 ? activate<gelu>(o, range)
                                 : activate<gelu_tanh>(o, range);
        case OCT_CHECK: return check(o, batch, range);
        case OCT_GATHER: return gather(o, batch, range);
        default: return;
    }
}

bool scan(const float* x, int64_t count, int64_t* best) {
    vf peak = all(-__builtin_inff()), zero{};
    over(count, [&](int64_t i, int64_t n) {
        vf v = get(x + i, n);
        zero += v * 0.0f;  // NaN from then on if v is not finite
        if (n == W) peak = vmax(v, peak);
    });
    float top = largest(peak);
    for (int64_t i = count / W * W; i < count; i++) top = x[i] > top ? x[i] : top;
    int64_t at = 0;
    for (; at + W <= count; at += W) {
        const vi equal = load(x + at) == all(top);
        vi none{};
        if (__builtin_memcmp(&equal, &none, sizeof none)) break;
    }
    while (at < count && !(x[at] == top)) at++;
    *best = at < count ? at : 0;
    return sum(zero) == 0.0f;
}

}  // namespace
