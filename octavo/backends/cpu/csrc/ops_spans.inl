// Attention of whole prompts of which every token sees every other, or those that are near; nothing is cached.
// ops.py's span_attention defines it.

namespace {

constexpr int64_t kQueries = 4;  // taken together

// scores [kQueries, places] of scaled queries [kQueries, dim] with keys [dim, places], of the places `of`; places and both ends
// of these: multiples of 2 W
inline void scores_of(const float* queries, const float* keys, int64_t dim, int64_t places, OctRange of, float* scores) {
    for (int64_t j = of.begin; j < of.end; j += 2 * W) {
        vf low[kQueries] = {}, high[kQueries] = {};
        for (int64_t d = 0; d < dim; d++) {
            const vf a = load(keys + d * places + j), b = load(keys + d * places + j + W);
            for (int64_t r = 0; r < kQueries; r++) {
                low[r] += a * queries[r * dim + d];
                high[r] += b * queries[r * dim + d];
            }
        }
        for (int64_t r = 0; r < kQueries; r++) {
            store(scores + r * places + j, low[r]);
            store(scores + r * places + j + W, high[r]);
        }
    }
}

// e^(score - largest) of the scores `seen` in place, 0 in the other places of `of`; their sum
inline float soften(float* scores, OctRange seen, OctRange of) {
    for (int64_t j = of.begin; j < seen.begin; j++) scores[j] = -__builtin_inff();
    for (int64_t j = seen.end; j < of.end; j++) scores[j] = -__builtin_inff();
    vf peak = all(-__builtin_inff()), total{};
    for (int64_t j = of.begin; j < of.end; j += W) peak = vmax(load(scores + j), peak);
    const float top = largest(peak);
    for (int64_t j = of.begin; j < of.end; j += W) {
        const vf share = vexp(load(scores + j) - top);
        store(scores + j, share);
        total += share;
    }
    return sum(total);
}

// sums [kQueries, width] of values [.., width] `of` these places by shares [kQueries, places]; width: a multiple of 2 W
inline void mix_values(const float* shares, int64_t places, const float* values, OctRange of, int64_t width, float* sums) {
    for (int64_t d = 0; d < width; d += 2 * W) {
        vf low[kQueries] = {}, high[kQueries] = {};
        for (int64_t j = of.begin; j < of.end; j++) {
            const vf a = load(values + j * width + d), b = load(values + j * width + d + W);
            for (int64_t r = 0; r < kQueries; r++) {
                low[r] += a * shares[r * places + j];
                high[r] += b * shares[r * places + j];
            }
        }
        for (int64_t r = 0; r < kQueries; r++) {
            store(sums + r * width + d, low[r]);
            store(sums + r * width + d + W, high[r]);
        }
    }
}

// Keys of one KV head turned to [dim, places], 0 after the last; values as [count, width], 0 after the last element
inline void gather_span(const float* k, const float* v, int64_t step, int64_t count, int64_t dim, float* keys, float* values) {
    const int64_t places = octa::span_padded(count), width = octa::span_padded(dim);
    for (int64_t d = 0; d < dim; d++) {
        for (int64_t j = 0; j < count; j++) keys[d * places + j] = k[j * step + d];
        for (int64_t j = count; j < places; j++) keys[d * places + j] = 0;
    }
    for (int64_t j = 0; j < count; j++) {
        __builtin_memcpy(values + j * width, v + j * step, static_cast<size_t>(dim) * 4);
        for (int64_t d = dim; d < width; d++) values[j * width + d] = 0;
    }
}

// The places of a span of `count` that a query at `at` sees
inline OctRange seen_from(int64_t at, int64_t count, int64_t window) {
    return window ? OctRange{std::max<int64_t>(0, at - window + 1), std::min(count, at + window)} : OctRange{0, count};
}

// All queries of the heads that share one KV head, of one span that runs whole.
void attend_span(const OctInstruction& o, const OctSpan& span, int64_t kv_head, float* scratch) {
    const int64_t count = span.count, dim = o.dim, group = o.heads / o.kv_heads;
    const int64_t places = octa::span_padded(count), width = octa::span_padded(dim);
    float *keys = scratch, *values = keys + dim * places, *scores = values + count * width;
    float *queries = scores + kQueries * places, *sums = queries + kQueries * dim;
    const float* in = o.in + span.first * o.ld_in;
    const float* k = in + (o.heads + kv_head) * dim;
    gather_span(k, k + o.kv_heads * dim, o.ld_in, count, dim, keys, values);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int64_t at = 0; at < count; at += kQueries) {
            const int64_t some = std::min(kQueries, count - at);
            for (int64_t r = 0; r < kQueries; r++)  // the last query stands for those that are not there
                for (int64_t d = 0; d < dim; d++)
                    queries[r * dim + d] = in[(at + std::min(r, some - 1)) * o.ld_in + head * dim + d] * o.a;
            const OctRange near{seen_from(at, count, o.window).begin, seen_from(at + some - 1, count, o.window).end};
            const OctRange whole{near.begin / (2 * W) * (2 * W), octa::span_padded(near.end)};
            scores_of(queries, keys, dim, places, whole, scores);
            float totals[kQueries];
            for (int64_t r = 0; r < kQueries; r++) {
                const OctRange seen = seen_from(at + std::min(r, some - 1), count, o.window);
                totals[r] = soften(scores + r * places, seen, whole);
            }
            mix_values(scores, places, values, near, width, sums);
            for (int64_t r = 0; r < some; r++) {
                float* out = o.out + ((span.first + at + r) * o.heads + head) * dim;
                over(dim, [&](int64_t d, int64_t n) { put(out + d, get(sums + r * width + d, n) / totals[r], n); });
            }
        }
}

}  // namespace
