// The products with AVX-VNNI beside AVX2, FMA and F16C (Alder Lake and later without AVX-512, Sierra Forest).
// Flags: -mavx2 -mfma -mf16c -mavxvnni

#if defined(__x86_64__)

#include "matmul_avx2.h"

namespace {

struct AvxVnni : Avx2 {
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
    static constexpr bool kSignedWide = false;

    template <bool> static OCT_INLINE inline I dot(I sum, C unsigned_codes, const uint8_t *quad) {
#if defined(__AVXVNNI__)
        return _mm256_dpbusd_avx_epi32(sum, unsigned_codes, splat(int_at(quad)));
#else // the tests', for processors that have the instruction as AVX-512 alone
        return _mm256_dpbusd_epi32(sum, unsigned_codes, splat(int_at(quad)));
#endif
    }
#endif // else: compilers before GCC 11 and Clang 12, which do not know it
};

} // namespace

namespace oct {
extern constexpr Kernels kAvxVnni = kernels<AvxVnni>("avxvnni");
}

#endif
