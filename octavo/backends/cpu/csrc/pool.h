// In: one job a step. Out: it run by a fixed team of threads, of which the caller is member 0.
//
// Members that wait spin for a short while and then sleep, so that the gaps between the parts of a step cost a
// fraction of a microsecond and an idle server costs nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace octa {

class Pool {
public:
    // threads: members, the caller included. cores: where they may run; with one for each, each stays on its own.
    // Throws std::system_error, and leaves no thread behind, where the system refuses one.
    Pool(int threads, const std::vector<int>& cores);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    using Job = void (*)(void* argument, Pool& pool, int member);

    // Run job(argument, pool, member) once for each member; returns when all have returned.
    void run(Job job, void* argument);

    // Inside a job: the next piece of the current phase, counted from 0. Who takes which piece is open, what a
    // piece computes is not.
    int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

    // Inside a job: wait until every member has come here; then a new phase begins and take() starts from 0.
    void barrier();

    int size() const { return size_; }

private:
    void end();
    void work(int member, int core);
    void wait_change(std::atomic<uint32_t>& word, uint32_t seen) const;

    int size_;
    int64_t spin_ns_;
    int home_ = -1;  // the caller's core during a job
    Job job_ = nullptr;
    void* argument_ = nullptr;
    bool ending_ = false;
    alignas(64) std::atomic<uint32_t> epoch_{0};       // a new value: a job has come
    alignas(64) std::atomic<uint32_t> generation_{0};  // a new value: a barrier has opened
    alignas(64) std::atomic<uint32_t> arrived_{0};
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::vector<std::thread> threads_;
};

}  // namespace octa
