// What a variant offers: functions, most of them by scheme. One translation unit a variant, each with its own -m flags.
#pragma once

#include "matmul_formats.h"

namespace oct {

struct Activations {
    const float *x;
    int64_t ldx;
    uint8_t *act;
    int64_t m, k, m_begin, m_end;
};

struct Product {
    const uint8_t *packed;
    const uint8_t *act;
    int64_t act_id;
    float *y;
    int64_t ldy, m, k, n_begin, n_end;
    const float *bias;
    oct_ahead *ahead;
};

// y = act(sides[0]) * sides[1], as `combine` has it; sides of equal m, k and range, their y is not used. Equal schemes
// read the same activations. n_begin is a multiple of kPanel.
struct GatedProduct {
    Product sides[2];
    int schemes[2];
    oct_combine *combine;
    int32_t act;
    float *y;
    int64_t ldy;
};

struct Kernels {
    const char *name;
    void (*quantize[OCT_SCHEMES])(const Activations &);
    void (*matmul[OCT_SCHEMES])(const Product &);
    void (*matmul_gated)(const GatedProduct &);
};

extern const Kernels kScalar;
#if defined(__x86_64__)
extern const Kernels kAvx512, kAvx512Vnni, kAvxVnni, kAvx2;
#elif defined(__aarch64__)
extern const Kernels kI8mm, kNeon;
#endif

} // namespace oct
