// Panels of BF16 to panels of BF16_SHORT (matmul_formats.h), and single rows of those to bfloat16.

#include <string.h>

#include <algorithm>
#include <vector>

#include "matmul_pack.h"

namespace oct {
namespace {

typedef uint16_t Words __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(8)));

constexpr int kWeights = kShortSteps * kPanel * 2;  // of a block
constexpr int kWidth = kShortSteps * 2;             // of a row's share of it
constexpr uint8_t kException = 0x80;                // in place of a code

// Where weight `at` of a block lies among its lower bytes; the second half's codes are in the high halves of the first's.
constexpr int place_of(int at) {
    const int step = at / 32, word = at % 32;
    return step / 2 * 64 + word / 8 * 16 + step % 2 * 8 + word % 8;
}

// A row's share of a block: its bytes, two of each step together, to their places.
void split(const uint8_t *weights, int r, uint8_t *lower, uint8_t *upper) {
    Words words;
    memcpy(&words, weights, 16);
    const Bytes low = __builtin_convertvector(words & 0xff, Bytes), high = __builtin_convertvector(words >> 8, Bytes);
    for (int step = 0; step < kShortSteps; step++) {
        const int place = place_of(step * 32 + r * 2);
        memcpy(lower + place, (const uint8_t *)&low + step * 2, 2);
        memcpy(upper + place, (const uint8_t *)&high + step * 2, 2);
    }
}

// How often each byte is there.
void count(const uint8_t *bytes, int64_t size, int64_t (&counts)[256]) {
    uint32_t found[4][256] = {};  // apart, so that none waits for its neighbour
    for (int64_t i = 0; i < size; i += 4)
        for (int part = 0; part < 4; part++) found[part][bytes[i + part]]++;
    for (int byte = 0; byte < 256; byte++) {
        counts[byte] = 0;
        for (const auto &part : found) counts[byte] += part[byte];
    }
}

// The 16 most frequent bytes, of equally frequent ones the least, ascending; zeros before them if there are fewer.
void choose(const int64_t (&counts)[256], uint8_t (&table)[16]) {
    int order[256];
    for (int byte = 0; byte < 256; byte++) order[byte] = byte;
    const auto before = [&](int a, int b) { return counts[a] != counts[b] ? counts[a] > counts[b] : a < b; };
    std::partial_sort(order, order + 16, order + 256, before);
    for (int i = 0; i < 16; i++) table[i] = counts[order[i]] ? (uint8_t)order[i] : 0;
    std::sort(table, table + 16);
}

// A panel's head: its table, and exceptions as they are found, in order.
struct Head {
    uint8_t *at;
    int64_t most;
    int32_t found = 0;

    void add(int64_t position, uint16_t weight) {
        if (found < most) {
            const int32_t place = (int32_t)position;
            memcpy(at + kShortTable + found * 4, &place, 4);
            memcpy(at + kShortTable + most * 4 + found * 2, &weight, 2);
        }
        found++;
    }
};

// A panel of `rows` rows of k. upper: room for its upper bytes, as lower ones lie. False where they are too varied.
bool pack_panel(const uint8_t *stored, int64_t rows, int64_t k, uint8_t *upper, uint8_t *out) {
    const int64_t blocks = short_blocks(k);
    uint8_t *block = out + short_head(k);
    for (int64_t b = 0; b < blocks; b++)
        for (int r = 0; r < kPanel; r++) {
            uint8_t part[kWidth * 2] = {};
            const uint8_t *from = stored + (r * k + b * kWidth) * 2;
            const int64_t width = r < rows ? std::min<int64_t>(k - b * kWidth, kWidth) : 0;
            if (width < kWidth) from = (const uint8_t *)memcpy(part, from, (size_t)width * 2);
            split(from, r, block + b * kShortBytes + 64, upper + b * kWeights);
        }
    int64_t counts[256];
    count(upper, blocks * kWeights, counts);
    counts[0] -= blocks * kWeights - rows * k;  // padding
    uint8_t table[16], codes[256];
    choose(counts, table);
    memset(codes, kException, sizeof codes);
    for (int i = 15; i >= 0; i--) codes[table[i]] = (uint8_t)i;
    memset(out, 0, (size_t)short_head(k));
    memcpy(out, table, 16);
    Head head{out, short_exceptions(k)};
    for (int64_t b = 0; b < blocks; b++, block += kShortBytes, upper += kWeights) {
        uint8_t others = 0;
        for (int i = 0; i < 64; i++) {
            const uint8_t low = codes[upper[i]], high = codes[upper[64 + i]];
            others |= low | high;
            block[i] = (uint8_t)((low & 15) | high << 4);
        }
        for (int at = 0; others & kException && at < kWeights; at++) {
            const int64_t row = at / 2 % kPanel, column = (b * kShortSteps + at / 32) * 2 + at % 2;
            const uint8_t byte = upper[place_of(at)];
            if (codes[byte] == kException && row < rows && column < k)
                head.add(b * kWeights + at, (uint16_t)(byte << 8 | block[64 + place_of(at)]));
        }
    }
    memcpy(out + 16, &head.found, 4);
    return head.found <= head.most;
}

} // namespace

bool pack_short(const uint8_t *stored, uint8_t *packed, int64_t k, int64_t begin, int64_t end) {
    std::vector<uint8_t> upper((size_t)(short_blocks(k) * kWeights));
    for (int64_t first = begin; first < end; first += kPanel) {
        uint8_t *panel = packed + first / kPanel * panel_bytes(OCT_BF16_SHORT, k);
        if (!pack_panel(stored + first * k * 2, std::min<int64_t>(end - first, kPanel), k, upper.data(), panel)) return false;
    }
    return true;
}

void unpack_short(const uint8_t *panel, int r, uint16_t *out, int64_t k) {
    const uint8_t *position = panel + kShortTable, *bits = position + short_exceptions(k) * 4;
    for (int64_t i = 0; i < k; i++) {
        const uint8_t *block = panel + short_head(k) + i / kWidth * kShortBytes;
        const int place = place_of((int)(i % kWidth / 2 * 32 + r * 2 + i % 2));
        const int code = block[place % 64] >> (place / 64 * 4) & 15;
        out[i] = (uint16_t)(panel[code] << 8 | block[64 + place]);
    }
    int32_t exceptions, at;
    memcpy(&exceptions, panel + 16, 4);
    for (int32_t i = 0; i < exceptions; i++) {
        memcpy(&at, position + i * 4, 4);
        if (at / 2 % kPanel == r) memcpy(out + at / 32 * 2 + at % 2, bits + i * 2, 2);
    }
}

} // namespace oct
