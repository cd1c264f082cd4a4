// What files of packing share.
#pragma once

#include "matmul_formats.h"

namespace oct {

// oct_pack of OCT_BF16_SHORT. False where a panel has more exceptions than it has room for.
bool pack_short(const uint8_t *stored, uint8_t *packed, int64_t k, int64_t begin, int64_t end);

// out [k]: row r of a panel of OCT_BF16_SHORT, as bfloat16.
void unpack_short(const uint8_t *panel, int r, uint16_t *out, int64_t k);

} // namespace oct
