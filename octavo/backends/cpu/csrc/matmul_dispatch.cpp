// The C ABI of the products: sizes, and calls through the function table of the variant that the processor runs.

#include <string.h>

#include "matmul_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

using oct::Kernels;

struct Variant {
    const Kernels *kernels;
    bool runs;
};

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows it.
bool has_f16c() {
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx_vnni() {
#if defined(OCT_AVX512_AS_VNNI) // the tests' build of matmul_avxvnni.cpp
    return __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#endif
}
#elif defined(__aarch64__)
#if defined(__APPLE__)
bool apple_has(const char *feature) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value;
}

// Every Mac with an ARM processor; macOS 11 does not tell.
bool has_dotprod() { return true; }
bool has_i8mm_and_bf16() { return apple_has("hw.optional.arm.FEAT_I8MM") && apple_has("hw.optional.arm.FEAT_BF16"); }
#elif defined(__linux__)
// HWCAP_ASIMDDP, HWCAP2_I8MM and HWCAP2_BF16 of asm/hwcap.h, which older systems do not have.
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm_and_bf16() { return (getauxval(AT_HWCAP2) >> 13 & 3) == 3; }
#else
bool has_dotprod() { return false; }
bool has_i8mm_and_bf16() { return false; }
#endif
#endif

// Best first; the last one runs everywhere.
Variant variant([[maybe_unused]] int index) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vnni");
    if (index == 0) return {&oct::kAvx512, avx512 && __builtin_cpu_supports("avx512bf16")};
    if (index == 1) return {&oct::kAvx512Vnni, avx512};
    if (index == 2) return {&oct::kAvxVnni, avx2 && has_avx_vnni()};
    if (index == 3) return {&oct::kAvx2, avx2};
#elif defined(__aarch64__)
    if (index == 0) return {&oct::kI8mm, has_dotprod() && has_i8mm_and_bf16()};
    if (index == 1) return {&oct::kNeon, has_dotprod()};
#endif
    return {&oct::kScalar, true};
}

const Kernels *best() {
    int index = 0;
    while (!variant(index).runs) index++;
    return variant(index).kernels;
}

const Kernels *current = best();

bool known(int scheme) { return scheme >= 0 && scheme < OCT_SCHEMES; }

} // namespace

extern "C" {

size_t oct_packed_bytes(int scheme, int64_t n, int64_t k) {
    if (!known(scheme)) return 0;
    return (size_t)((n + oct::kPanel - 1) / oct::kPanel * oct::panel_bytes(scheme, k));
}

size_t oct_act_bytes(int scheme, int64_t m, int64_t k) {
    return known(scheme) ? (size_t)(m * oct::act_row_bytes(scheme, k)) : 0;
}

void oct_act_quantize(int scheme, const float *x, int64_t ldx, void *act, int64_t m, int64_t k, int64_t m_begin,
                      int64_t m_end) {
    current->quantize[scheme]({x, ldx, static_cast<uint8_t *>(act), m, k, m_begin, m_end});
}

void oct_matmul(int scheme, const void *packed, const void *act, int64_t act_id, float *y, int64_t ldy, int64_t m,
                int64_t k, int64_t n_begin, int64_t n_end, const float *bias_or_null, oct_ahead *ahead_or_null) {
    current->matmul[scheme]({static_cast<const uint8_t *>(packed), static_cast<const uint8_t *>(act), act_id, y, ldy, m,
                             k, n_begin, n_end, bias_or_null, ahead_or_null});
}

void oct_matmul_gated(const oct_side *gate, const oct_side *up, int64_t act_id, float *y, int64_t ldy, int64_t m,
                      int64_t k, int64_t n_begin, int64_t n_end, oct_combine *combine, int32_t act,
                      oct_ahead *ahead_or_null) {
    const auto side = [&](const oct_side *s) -> oct::Product {
        return {static_cast<const uint8_t *>(s->packed), static_cast<const uint8_t *>(s->act), act_id, nullptr, 0, m, k,
                n_begin, n_end, s->bias_or_null, ahead_or_null};
    };
    current->matmul_gated({{side(gate), side(up)}, {(int)gate->scheme, (int)up->scheme}, combine, act, y, ldy});
}

int oct_set_variant(const char *name) {
    if (strcmp(name, "auto") == 0) {
        current = best();
        return 0;
    }
    for (int index = 0;; index++) {
        const Variant v = variant(index);
        if (v.runs && strcmp(name, v.kernels->name) == 0) {
            current = v.kernels;
            return 0;
        }
        if (v.kernels == &oct::kScalar) return -1;
    }
}

const char *oct_variant(void) { return current->name; }
}
