// The products with AVX-VNNI beside AVX2, FMA and F16C (Alder Lake and later without AVX-512, Sierra Forest).
// Flags: -mavx2 -mfma -mf16c -mavxvnni

#if defined(__x86_64__)

#include "matmul_avx2.h"

namespace {

struct AvxVnniHalf : Avx2Half {
#if defined(__AVXVNNI__)
    static OCT_INLINE inline I dot(I sum, C codes, const uint8_t *quad) {
        return _mm256_dpbusd_avx_epi32(sum, codes, splat(int_at(quad)));
    }
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__) // the tests', for processors that have it as AVX-512 alone
    static OCT_INLINE inline I dot(I sum, C codes, const uint8_t *quad) {
        return _mm256_dpbusd_epi32(sum, codes, splat(int_at(quad)));
    }
#endif
};

struct AvxVnni : Twice<AvxVnniHalf> {
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
    static constexpr bool kPairs = false;
#endif // else: compilers before GCC 11 and Clang 12, which do not know it
};

} // namespace

namespace oct {
extern constexpr Kernels kAvxVnni = kernels<AvxVnni>("avxvnni");
}

#endif
