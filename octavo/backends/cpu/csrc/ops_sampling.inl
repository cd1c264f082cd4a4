// One row's logits and sampling parameters in, a token out: what sampler.py defines, without sorting the vocabulary.
//
// Scores are (logit - peak) / temperature, at most 0. Each filter only names the tokens that stay (Candidate), and
// only those race: the winner has the largest score - log(e), e from (key, token) as base/noise.py defines it. Tokens
// that cannot win are passed over by e >= u: one with u > exp(score) / exp(best so far) has lost already.

namespace {

using octa::Candidate;

typedef uint64_t vu __attribute__((vector_size(OCT_WIDTH * 8)));

// of base/noise.py, in place
template <class T>
inline void mix(T& x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    x ^= x >> 31;
}

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

inline bool any(vi mask) {
    const vi none{};
    return __builtin_memcmp(&mask, &none, sizeof none) != 0;
}

// The draw among the tokens that it is shown; the likeliest, whose score is 0, comes first.
struct Race {
    uint64_t key;
    int64_t token;
    double value;
    float within;  // a token of weight w can still win only where u <= w * within

    Race(uint64_t key, int64_t first) : key(key), token(first), value(noise(first)) { narrow(); }

    uint64_t bits(int64_t id) const {
        uint64_t x = key + static_cast<uint64_t>(id + 1) * kGolden;
        mix(x);
        return x;
    }
    double noise(int64_t id) const {
        const double u = (static_cast<double>(bits(id) >> 12) + 0.5) * 0x1p-52;
        return -__builtin_log(-__builtin_log1p(-u));
    }
    // a little more than exp(-value), as weights are off by some units in the last place
    void narrow() { within = static_cast<float>(__builtin_exp(-value) * 1.00001); }

    void show(float score, float weight, int64_t id) {
        const float u = static_cast<float>(bits(id) >> 40) * 0x1p-24f;
        if (u > weight * within || id == token) return;
        const double reached = static_cast<double>(score) + noise(id);
        if (reached < value || (reached == value && id > token)) return;
        value = reached;
        token = id;
        narrow();
    }
};

struct Scores {
    const float* logits;
    float peak, temperature;
    vf at(int64_t i, int64_t n) const { return (get(logits + i, n) - peak) / temperature; }
};

// Every token whose score is at least `least` races.
void race_all(const Scores& scores, int64_t vocab, float least, Race& race) {
    vu count;
    for (int i = 0; i < W; i++) count[i] = static_cast<uint64_t>(i + 1) * kGolden;
    over(vocab, [&](int64_t i, int64_t n) {
        const vf s = scores.at(i, n), weights = s >= all(least) ? vexp(s) : all(-1.0f);
        vu bits = count + (race.key + static_cast<uint64_t>(i) * kGolden);
        mix(bits);
        const vf u = __builtin_convertvector(__builtin_convertvector(bits >> 40, vi), vf) * 0x1p-24f;
        if (any(u <= all(race.within) * weights))
            for (int64_t j = 0; j < n; j++)
                if (weights[j] >= 0) race.show(s[j], weights[j], i + j);
    });
}

// a closure, not a function: what the library makes with it then stays this instruction set's own
const auto before = [](const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
};

// Drops what is below the k-th largest score; those equal to it stay. Returns how many are left.
int64_t cut_top_k(Candidate* room, int64_t count, int64_t k) {
    if (count <= k) return count;
    std::nth_element(room, room + k - 1, room + count, before);
    const float least = room[k - 1].score;
    return std::partition(room + k, room + count, [&](const Candidate& c) { return c.score == least; }) - room;
}

// Tokens whose score is at least `least`; with k > 0, at least the k likeliest of them, and not many more.
int64_t collect(const Scores& scores, int64_t vocab, float least, int64_t k, Candidate* room) {
    int64_t count = 0, limit = k > 0 ? 2 * k + 1024 : vocab + 1;
    over(vocab, [&](int64_t i, int64_t n) {
        const vf s = scores.at(i, n);
        if (!any(s >= all(least))) return;
        const vf weights = vexp(s);
        for (int64_t j = 0; j < n; j++)
            if (s[j] >= least) room[count++] = {s[j], weights[j], static_cast<int32_t>(i + j)};
        if (count < limit) return;
        count = cut_top_k(room, count, k);
        least = room[k - 1].score;
        limit = std::max(limit, 2 * count);  // many may be equal: they are looked through anew as rarely as they double
    });
    return k > 0 ? cut_top_k(room, count, k) : count;
}

// Keeps the likeliest tokens (equal ones by id) that together first reach `enough`. Returns how many.
int64_t cut_top_p(Candidate* room, int64_t count, double enough) {
    int64_t low = 0, high = count;  // those before `low` are kept and weigh less than is still missing
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        std::nth_element(room + low, room + middle, room + high, before);
        double sum = 0;
        for (int64_t i = low; i < middle; i++) sum += static_cast<double>(room[i].weight);
        if (sum >= enough) {
            high = middle;
        } else {
            low = middle;
            enough -= sum;
        }
    }
    return high;
}

constexpr int kLevels = 5;
inline float level(int l) { return -3.0f * static_cast<float>(l + 1); }

// The weights of the vocabulary; `least` rises to a level above which enough of them lies for top_p.
double weigh(const Scores& scores, int64_t vocab, double top_p, float& least) {
    double sums[kLevels + 1] = {};
    for (int64_t begin = 0; begin < vocab; begin += 64 * W) {
        vf part[kLevels + 1] = {};
        over(std::min<int64_t>(64 * W, vocab - begin), [&](int64_t i, int64_t n) {
            const vf s = scores.at(begin + i, n);
            vf weights = s >= all(least) ? vexp(s) : vf{};
            for (int64_t j = n; j < W; j++) weights[j] = 0.0f;
            part[kLevels] += weights;
            for (int l = 0; l < kLevels; l++) part[l] += s >= all(level(l)) ? weights : vf{};
        });
        for (int l = 0; l <= kLevels; l++) sums[l] += static_cast<double>(sum(part[l]));
    }
    const double total = sums[kLevels];
    for (int l = 0; l < kLevels; l++)
        if (sums[l] > total * top_p * 1.00001) {
            least = std::max(least, level(l));
            break;
        }
    return total;
}

void draw(OctDraw& row, int64_t vocab, Candidate* room) {
    int64_t best;
    scan(row.logits, vocab, &best);
    const float peak = row.logits[best];
    row.token = peak - peak == 0.0f ? best : -1;
    if (row.token < 0 || row.temperature == 0.0f) return;
    const Scores scores{row.logits, peak, row.temperature};
    Race race(row.key, best);
    float least = std::max(row.least, -__FLT_MAX__);  // what is masked cannot win, and may be most of the vocabulary
    if (row.top_k <= 0 && row.top_p >= 1.0) {
        race_all(scores, vocab, least, race);
    } else {
        double total = 0;
        if (row.top_k <= 0) total = weigh(scores, vocab, row.top_p, least);
        int64_t count = collect(scores, vocab, least, row.top_k, room);
        if (row.top_k > 0)
            for (int64_t i = 0; i < count; i++) total += static_cast<double>(room[i].weight);
        if (row.top_p < 1.0) count = cut_top_p(room, count, total * row.top_p);
        for (int64_t i = 0; i < count; i++) race.show(room[i].score, room[i].weight, room[i].id);
    }
    row.token = race.token;
}

}  // namespace
