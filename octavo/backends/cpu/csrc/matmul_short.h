// In: a panel's weights as they are packed. Out: the next steps of a dense product, as kStep bytes a step; BF16_SHORT is
// made BF16 on the way. Included by matmul_tiles.h.
#pragma once

#include <string.h>

#include "matmul_activations.h"

namespace {

using namespace oct;

// The steps of a panel in order, for the lanes from `lane` on; V's vectors have sizeof(V::C) / 4 lanes each.
// room: where the weights become BF16, those of all steps if `kept`, else of kUnits and the next.
template <class V, int scheme, int lanes, int ahead> struct Steps {
    const uint8_t *at;

    OCT_INLINE Steps(const uint8_t *panel, int64_t, int lane, uint8_t *, bool)
        : at(panel + lane * (dense_step_bytes(scheme) / kPanel)) {}

    // Of up to kUnits of them: where the first one's weights of `lane` lie.
    OCT_INLINE inline const uint8_t *next(int64_t count) {
        const uint8_t *here = at;
        at += count * dense_step_bytes(scheme);
        return here;
    }
};

template <class V, int lanes, int ahead> struct Steps<V, OCT_BF16_SHORT, lanes, ahead> {
    using C = typename V::C;
    static constexpr int kStep = dense_step_bytes(OCT_BF16), kPrefetch = ahead * 3 / 4 / 64 * 64;

    C upper;  // bytes by their codes
    const uint8_t *block, *position, *bits, *end;
    uint8_t *room;
    int64_t steps, taken = 0, made = 0;
    int lane;
    bool kept;

    OCT_INLINE Steps(const uint8_t *panel, int64_t k, int lane, uint8_t *room, bool kept)
        : upper(V::table(panel)), block(panel + short_head(k)), position(panel + kShortTable), room(room),
          steps(dense_steps(OCT_BF16, k)), lane(lane), kept(kept) {
        bits = position + short_exceptions(k) * 4;
        end = position + int_at(panel + 16) * 4;
        for (int64_t line = 0; line < short_head(k); line += 64) __builtin_prefetch(panel + line + kPrefetch, 0, 2);
        make();
    }

    OCT_INLINE inline uint8_t *place(int64_t step) const { return room + (kept ? step : step % (2 * kUnits)) * kStep; }

    OCT_INLINE inline void decode(int64_t count, uint8_t *out) {
        for (int64_t step = 0; step < count; step += kShortSteps, block += kShortBytes, out += kShortSteps * kStep) {
            for (int line = 0; line < kShortBytes; line += 64) __builtin_prefetch(block + line + kPrefetch, 0, 2);
            for (int at = lane * 4; at < (lane + lanes) * 4; at += (int)sizeof(C)) {
                const C codes = V::codes(block + at);
                each<2>([&](auto half) OCT_INLINE {
                    const C lower = V::codes(block + 64 + half * 64 + at);
                    const C above = V::lookup(upper, V::mask(V::template shift<half * 4>(codes), 15));
                    const C steps[2] = {V::zip_low(lower, above), V::zip_high(lower, above)};
                    memcpy(out + half * 2 * kStep + at, &steps[0], sizeof(C));
                    memcpy(out + (half * 2 + 1) * kStep + at, &steps[1], sizeof(C));
                });
            }
        }
    }

    OCT_INLINE inline void make() {
        const int64_t after = steps - made < kUnits ? steps : made + kUnits;
        uint8_t *out = place(made);
        decode(after - made, out);
        for (; position < end && int_at(position) < after * kPanel * 2; position += 4, bits += 2)
            memcpy(out + (int_at(position) - made * kPanel * 2) * 2, bits, 2);
        made = after;
    }

    // Those after them are made first: what waits for memory then has the products of these beside it.
    OCT_INLINE inline const uint8_t *next(int64_t count) {
        make();
        const uint8_t *here = place(taken);
        taken += count;
        return here + lane * 4;
    }
};

} // namespace
