// Matrix products over quantized weights: stored rows in, packed panels and float32 products out. The kernels' C ABI.
//
// y[m, n] = x[m, k] * weights[n, k]^T (+ bias[n]). Weights are packed once; activations are converted once a product
// (for quantized weights int8 with a float32 scale and centre for every 32 elements, and outliers in float32 beside them,
// see matmul_activations.h; bfloat16 for BF16, float32 for F32 and F16).
// The result of a row depends on nothing but that row: not on m, its neighbours or the split into n ranges.
//
// Compile every file with -ffp-contract=off: the order and rounding of operations are part of the result.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// In the order of octavo/base/types/tensor.py SCHEMES, then what no file has, only packed weights.
enum oct_scheme {
    OCT_F32 = 0,
    OCT_F16,
    OCT_BF16,
    OCT_Q4_0,
    OCT_Q4_1,
    OCT_Q5_0,
    OCT_Q5_1,
    OCT_Q8_0,
    OCT_Q2_K,
    OCT_Q3_K,
    OCT_Q4_K,
    OCT_Q5_K,
    OCT_Q6_K,
    OCT_IQ4_NL,
    OCT_BF16_SHORT,  // of stored BF16: the same numbers in 12 bits, where their exponents allow it
    OCT_SCHEMES
};

// Output rows of a weight panel: oct_pack's n_begin is a multiple of it, n_end too or equal to n.
#define OCT_PANEL 16
// Rows of an activation tile: splitting oct_act_quantize at multiples of it keeps threads off each other's cache lines.
#define OCT_TILE 16

// Raised with every change of the packed form of any scheme: files of packed weights outlive a version of this library.
#define OCT_LAYOUT 2

// Bytes of the packed form of weights [n, k]; k is a multiple of the scheme's group. 0 for an unknown scheme.
size_t oct_packed_bytes(int scheme, int64_t n, int64_t k);

// Packs rows n_begin..n_end of `stored` (all rows, row-major, as in the file; BF16 for OCT_BF16_SHORT). No byte pointer
// needs any alignment, here and below; float pointers are aligned to 4 bytes.
// Returns 0; 1 where OCT_BF16_SHORT cannot hold them, and the matrix is to be packed as OCT_BF16.
int oct_pack(int scheme, const void *stored, void *packed, int64_t k, int64_t n_begin, int64_t n_end);

// As oct_pack, of the weights in float32 as oct_dequantize_row gives them: the packed form is that of OCT_F32.
// Not of OCT_BF16_SHORT. Returns 0.
int oct_pack_float(int scheme, const void *stored, void *packed, int64_t k, int64_t n_begin, int64_t n_end);

// Bytes of the converted activations [m, k] for weights of this scheme.
size_t oct_act_bytes(int scheme, int64_t m, int64_t k);

// Converts rows m_begin..m_end of x (row stride ldx, in floats) into `act`, which holds all m rows. A row with NaN or
// infinity gives NaN (or infinity) in its own products only.
void oct_act_quantize(int scheme, const float *x, int64_t ldx, void *act, int64_t m, int64_t k, int64_t m_begin,
                      int64_t m_end);

// Memory that is brought near while a product of many rows computes: the lines of [at, end), then what `more` puts there;
// nothing is left once it leaves them equal. For what comes after the product and would wait for memory.
typedef struct oct_ahead {
    const char *at, *end;
    void (*more)(struct oct_ahead *);
} oct_ahead;

// Writes y[:, n_begin:n_end] (row stride ldy, in floats; y points at column 0). Any n range is allowed; multiples of
// OCT_PANEL waste nothing. act_id: 0, or a number that no other content of `act` ever had in this process: what the
// pieces of products need to know of their activations is then found once a thread.
void oct_matmul(int scheme, const void *packed, const void *act, int64_t act_id, float *y, int64_t ldy, int64_t m,
                int64_t k, int64_t n_begin, int64_t n_end, const float *bias_or_null, oct_ahead *ahead_or_null);

// out[rows][columns] (rows ldo apart) = act(gate) * up, both [rows][OCT_PANEL].
typedef void oct_combine(int32_t act, const float *gate, const float *up, float *out, int64_t ldo, int64_t rows,
                         int64_t columns);

// One side of a gated product: as oct_matmul's arguments of these names.
typedef struct {
    int64_t scheme;
    const void *packed, *act;
    const float *bias_or_null;
} oct_side;

// y = act(x * gate^T) * (x * up^T) in place of writing both; otherwise as oct_matmul. n_begin is a multiple of OCT_PANEL;
// sides of one scheme have the same `act`.
void oct_matmul_gated(const oct_side *gate, const oct_side *up, int64_t act_id, float *y, int64_t ldy, int64_t m,
                      int64_t k, int64_t n_begin, int64_t n_end, oct_combine *combine, int32_t act,
                      oct_ahead *ahead_or_null);

// out[k] = weights[row], exactly as octavo.quant dequantizes them.
void oct_dequantize_row(int scheme, const void *packed, float *out, int64_t k, int64_t row);

// Chooses the kernels: "auto" (the best that this processor runs), "avx512", "avx512vnni", "avxvnni", "avx2", "i8mm",
// "neon" or "scalar".
// Returns 0, or -1 and changes nothing where the name is unknown or the processor lacks it. Not to be called during a
// product. Packed weights and activations are the same for all variants.
int oct_set_variant(const char *name);
const char *oct_variant(void);

#ifdef __cplusplus
}
#endif
