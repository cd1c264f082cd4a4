// The thread pool: see pool.h.
#include "pool.h"

#include <chrono>
#include <cstdio>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace octa {

namespace {

constexpr int64_t kSpinNs = 300'000;

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int64_t now_ns() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// Holds the calling thread on one core (-1: anywhere) until it is destroyed. A refusal only costs locality.
class Stay {
public:
#if defined(__linux__)
    explicit Stay(int core) {
        if (core < 0 || core >= CPU_SETSIZE) return;
        held_ = pthread_getaffinity_np(pthread_self(), sizeof before_, &before_) == 0;
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(core, &set);
        if (held_) pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    }
    ~Stay() {
        if (held_) pthread_setaffinity_np(pthread_self(), sizeof before_, &before_);
    }

private:
    cpu_set_t before_;
    bool held_ = false;
#else
    explicit Stay(int) {}
#endif
};

// As `top -H` shows it.
void name_thread([[maybe_unused]] int member) {
#if defined(__linux__)
    char name[16];
    std::snprintf(name, sizeof name, "octavo-cpu-%d", member);
    pthread_setname_np(pthread_self(), name);
#endif
}

}  // namespace

Pool::Pool(int threads, const std::vector<int>& cores) : size_(threads < 1 ? 1 : threads) {
    // members that share a core must not keep each other from it
    spin_ns_ = cores.size() >= static_cast<size_t>(size_) ? kSpinNs : 0;
    // a core each, if they may have all of them: where some are left over, the system knows better which are busy
    if (size_ > 1 && cores.size() == static_cast<size_t>(size_)) home_ = cores[0];
    try {
        for (int member = 1; member < size_; member++) {
            const int core = home_ < 0 ? -1 : cores[member];
            threads_.emplace_back([this, member, core] { work(member, core); });
        }
    } catch (...) {
        end();  // no destructor runs for what was never made
        throw;
    }
}

Pool::~Pool() { end(); }

void Pool::end() {
    ending_ = true;
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    for (auto& thread : threads_) thread.join();
}

void Pool::run(Job job, void* argument) {
    // else the caller may spin on the core of a member that it waits for; afterwards it may roam again
    const Stay stay(home_);
    job_ = job;
    argument_ = argument;
    next_.store(0, std::memory_order_relaxed);
    if (size_ > 1) {
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
    }
    job(argument, *this, 0);
    barrier();
}

void Pool::work(int member, int core) {
    const Stay stay(core);
    name_thread(member);
    uint32_t seen = 0;
    for (;;) {
        wait_change(epoch_, seen);
        seen++;  // a job ends only when every member has done it: none is missed
        if (ending_) return;
        job_(argument_, *this, member);
        barrier();
    }
}

void Pool::barrier() {
    if (size_ == 1) {
        next_.store(0, std::memory_order_relaxed);
        return;
    }
    const uint32_t seen = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size_)) {
        arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        generation_.fetch_add(1, std::memory_order_release);
        generation_.notify_all();
    } else {
        wait_change(generation_, seen);
    }
}

void Pool::wait_change(std::atomic<uint32_t>& word, uint32_t seen) const {
    if (spin_ns_) {
        int64_t until = 0;
        for (int turn = 1;; turn++) {
            if (word.load(std::memory_order_acquire) != seen) return;
            relax();
            if (turn % 64 == 0) {
                const int64_t now = now_ns();
                if (!until) until = now + spin_ns_;
                if (now >= until) break;
            }
        }
    }
    while (word.load(std::memory_order_acquire) == seen) word.wait(seen, std::memory_order_acquire);
}

}  // namespace octa
