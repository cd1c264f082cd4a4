// Number of threads in; the machine's peaks out as one JSON line: bytes read and operations done a second, all threads
// together, the best of several passes. Products: the widest dot product that this build's target has, from registers.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#define KEEP(x) asm volatile("" : "+v"(x))
#elif defined(__aarch64__)
#include <arm_neon.h>
#define KEEP(x) asm volatile("" : "+w"(x))
#endif

namespace {

constexpr int passes = 25;
constexpr long rounds = 12'000'000;
constexpr std::size_t words = std::size_t{32} << 20;  // of 8 bytes, a thread: far beyond any cache
volatile long sink;

// `rounds` times twelve independent products (enough to hide the latency of one); returns operations done. Each sum is
// a variable, not an element, and passes through an empty asm: so it lives in a register and no product is dropped.
#define OCTA_EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define OCTA_SUM(I) auto sum##I = zero; KEEP(sum##I);
#define OCTA_STEP(I) sum##I = product(sum##I); KEEP(sum##I);
template <class Sum, class Product>
long chains(Sum zero, long operations, Product product) {
    OCTA_EACH(OCTA_SUM)
    for (long i = 0; i < rounds; ++i) {
        OCTA_EACH(OCTA_STEP)
    }
    return rounds * 12 * operations;
}

#if defined(__AVX512VNNI__)
const char *int8_name = "AVX512-VNNI vpdpbusd";
long int8_peak() {
    const __m512i bytes = _mm512_set1_epi8(3);
    return chains(_mm512_setzero_si512(), 128, [=](__m512i sum) { return _mm512_dpbusd_epi32(sum, bytes, bytes); });
}
#elif defined(__AVX2__)
const char *int8_name = "AVX2 vpmaddubsw, vpmaddwd, vpaddd";
long int8_peak() {
    const __m256i bytes = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    return chains(_mm256_setzero_si256(), 64, [=](__m256i sum) {
        __m256i pairs = _mm256_maddubs_epi16(bytes, bytes);
        KEEP(pairs);
        return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    });
}
#elif defined(__ARM_FEATURE_MATMUL_INT8)
const char *int8_name = "NEON smmla";
long int8_peak() {
    const int8x16_t bytes = vdupq_n_s8(3);
    return chains(vdupq_n_s32(0), 64, [=](int32x4_t sum) { return vmmlaq_s32(sum, bytes, bytes); });
}
#elif defined(__ARM_FEATURE_DOTPROD)
const char *int8_name = "NEON sdot";
long int8_peak() {
    const int8x16_t bytes = vdupq_n_s8(3);
    return chains(vdupq_n_s32(0), 32, [=](int32x4_t sum) { return vdotq_s32(sum, bytes, bytes); });
}
#else
#error "no int8 dot product is known for this processor"
#endif

#if defined(__AVX512BF16__)
const char *bf16_name = "AVX512-BF16 vdpbf16ps";
long bf16_peak() {
    const __m512bh halves = (__m512bh)_mm512_set1_epi16(0x3f80);
    return chains(_mm512_setzero_ps(), 64, [=](__m512 sum) { return _mm512_dpbf16_ps(sum, halves, halves); });
}
#elif defined(__AVX512F__)
const char *bf16_name = "AVX512 vfmadd (float32)";
long bf16_peak() {
    const __m512 halves = _mm512_set1_ps(0.5F);
    return chains(_mm512_setzero_ps(), 32, [=](__m512 sum) { return _mm512_fmadd_ps(halves, halves, sum); });
}
#elif defined(__AVX2__)
const char *bf16_name = "AVX2 vfmadd (float32)";
long bf16_peak() {
    const __m256 halves = _mm256_set1_ps(0.5F);
    return chains(_mm256_setzero_ps(), 16, [=](__m256 sum) { return _mm256_fmadd_ps(halves, halves, sum); });
}
#else
const char *bf16_name = "NEON fmla (float32)";
long bf16_peak() {
    const float32x4_t halves = vdupq_n_f32(0.5F);
    return chains(vdupq_n_f32(0), 8, [=](float32x4_t sum) { return vfmaq_f32(sum, halves, halves); });
}
#endif

void pin(unsigned thread) {
#if defined(__linux__)
    cpu_set_t allowed, one;
    sched_getaffinity(0, sizeof allowed, &allowed);
    CPU_ZERO(&one);
    for (int core = 0, seen = 0; core < CPU_SETSIZE; ++core) {
        if (CPU_ISSET(core, &allowed) && seen++ == static_cast<int>(thread)) CPU_SET(core, &one);
    }
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
#else
    (void)thread;
#endif
}

// The most that `work` does a second on all threads at once; it returns how much it did.
double best(unsigned threads, const std::function<long(unsigned)> &work) {
    double most = 0;
    for (int pass = 0; pass < passes; ++pass) {
        std::vector<long> done(threads);
        std::vector<std::thread> team;
        const auto start = std::chrono::steady_clock::now();
        for (unsigned t = 0; t < threads; ++t) {
            team.emplace_back([&, t] { pin(t), done[t] = work(t); });
        }
        double total = 0;
        for (unsigned t = 0; t < threads; ++t) {
            team[t].join();
            total += static_cast<double>(done[t]);
        }
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        most = total / seconds.count() > most ? total / seconds.count() : most;
    }
    return most;
}

}  // namespace

int main(int count, char **values) {
    const unsigned threads = count > 1 ? static_cast<unsigned>(std::atoi(values[1])) : 1;
    std::vector<std::vector<std::uint64_t>> memory(threads, std::vector<std::uint64_t>(words, 1));
    const double read = best(threads, [&](unsigned thread) {
        std::uint64_t sum = 0;
        for (const std::uint64_t word : memory[thread]) sum += word;
        sink = static_cast<long>(sum);
        return static_cast<long>(words * sizeof(std::uint64_t));
    });
    const double int8 = best(threads, [](unsigned) { return int8_peak(); });
    const double bf16 = best(threads, [](unsigned) { return bf16_peak(); });
    std::printf("{\"threads\": %u, \"read_bytes_s\": %.4g, \"int8_ops_s\": %.4g, \"bf16_ops_s\": %.4g, ", threads, read,
                int8, bf16);
    std::printf("\"int8\": \"%s\", \"bf16\": \"%s\"}\n", int8_name, bf16_name);
}
