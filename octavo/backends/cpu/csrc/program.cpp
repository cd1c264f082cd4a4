// In: a program's groups and instructions, and a step's batch. Out: its registers filled. The C ABI that native.py calls.
#include "program.h"

#include <algorithm>
#include <cstring>

#include "matmul.h"
#include "pool.h"

namespace {

using octa::AttentionTask;
using octa::kRows;
using octa::kSplit;
using octa::Ops;
using octa::Pool;

const Ops& current_ops() {
#if defined(__x86_64__)
    const char* variant = oct_variant();
    if (!std::strcmp(variant, octa::kOpsAvx512.name)) return octa::kOpsAvx512;
    if (!std::strcmp(variant, octa::kOpsAvx2.name)) return octa::kOpsAvx2;
#endif
    return octa::kOpsPortable;
}

// A step's tasks of the attention instructions that share a shape.
struct Tasks {
    bool made = false;
    std::vector<AttentionTask> tasks;    // each is run for every KV head
    std::vector<AttentionTask> unmerged;  // one for each query whose sums lie in parts
    int64_t parts = 0;
};

// Everything that outlives a step.
struct Machine {
    Machine(int threads, const std::vector<int>& cores) : pool(threads, cores) {}
    Pool pool;
    std::vector<std::vector<float>> scratch;
    std::vector<float> sums;
};

struct Step {
    Machine& machine;
    const Ops& ops;
    const OctGroup* groups;
    int64_t num_groups;
    const OctInstruction* instructions;
    const OctBatch& batch;
    std::vector<Tasks> shapes;
};

// The first split that a query at `position` sees keys of.
int64_t first_split(const OctInstruction& o, int64_t position) {
    return o.window ? std::max<int64_t>(0, position - o.window + 1) / kSplit : 0;
}

// Splits that a task of one query takes: few enough for every member to get several tasks, else as many as there are,
// as a walk that goes on knows where.
int64_t splits_together(const OctInstruction& o, const OctBatch& batch, int members) {
    int64_t splits = 0;
    for (int64_t s = 0; s < batch.num_spans; s++) {
        const int64_t position = batch.spans[s].start;
        splits += position / kSplit + 1 - first_split(o, position);
    }
    return std::max<int64_t>(1, splits * o.kv_heads / (members * 8));
}

void cut(const OctInstruction& o, const OctBatch& batch, int members, Tasks& made) {
    const int64_t group = o.heads / o.kv_heads, most = std::max<int64_t>(1, kRows / group);
    const int64_t together = splits_together(o, batch, members);
    for (int64_t s = 0; s < batch.num_spans; s++) {
        const OctSpan& span = batch.spans[s];
        for (int64_t done = 0; done < span.count; done += most) {
            const int64_t count = std::min(most, span.count - done), position = span.start + done;
            const int64_t split = first_split(o, position), end = (position + count - 1) / kSplit + 1;
            AttentionTask task{s, span.first + done, count, position, split, end, -1, end - split};
            if (span.count > 1 || end - split <= together) {
                made.tasks.push_back(task);
                continue;
            }
            task.partial = made.parts;
            made.unmerged.push_back(task);
            for (int64_t at = split; at < end; at += together) {
                task.split = at;
                task.split_end = std::min(at + together, end);
                task.partial = made.parts;
                made.parts += task.split_end - at;
                made.tasks.push_back(task);
            }
        }
    }
    // the longest first, so that no member ends long after the others
    std::stable_sort(made.tasks.begin(), made.tasks.end(), [](const AttentionTask& a, const AttentionTask& b) {
        return a.count * (a.split_end - a.split) > b.count * (b.split_end - b.split);
    });
    made.made = true;
}

// Cut the attention of every shape, and make room for its sums.
void prepare(Step& step) {
    Machine& machine = step.machine;
    int64_t sums = 0, scratch = 0;
    for (int64_t g = 0; g < step.num_groups; g++) {
        if (step.groups[g].kind != OCT_ATTEND) continue;
        const OctInstruction& o = step.instructions[step.groups[g].first];
        if (static_cast<size_t>(o.shape) >= step.shapes.size()) step.shapes.resize(o.shape + 1);
        Tasks& tasks = step.shapes[o.shape];
        if (!tasks.made) cut(o, step.batch, machine.pool.size(), tasks);
        const int64_t group = o.heads / o.kv_heads;
        sums = std::max(sums, tasks.parts * o.kv_heads * octa::partial_floats(group, o.dim));
        scratch = std::max(scratch, octa::attention_scratch(std::max(kRows, group), o.dim));
    }
    if (machine.sums.size() < static_cast<size_t>(sums)) machine.sums.resize(sums);
    machine.scratch.resize(machine.pool.size());
    for (auto& room : machine.scratch)
        if (room.size() < static_cast<size_t>(scratch)) room.resize(scratch);
}

void run_rows(Step& step, const OctGroup& group, Pool& pool) {
    const int64_t tokens = step.batch.tokens;
    // pieces of whole activation tiles where there are enough for all
    const int64_t piece = tokens >= pool.size() * OCT_TILE ? OCT_TILE : std::max<int64_t>(1, tokens / (pool.size() * 4));
    for (int64_t begin; (begin = pool.take() * piece) < tokens;)
        for (int32_t i = 0; i < group.count; i++)
            step.ops.rows(step.instructions[group.first + i], step.batch, begin, std::min(begin + piece, tokens));
}

void run_products(Step& step, const OctGroup& group, Pool& pool) {
    const OctInstruction* products = step.instructions + group.first;
    int64_t outputs = 0;
    for (int32_t i = 0; i < group.count; i++) outputs += products[i].n;
    int64_t piece = pool.size() == 1 ? outputs : std::max<int64_t>(4 * OCT_PANEL, outputs / (pool.size() * 4));
    piece = (piece + OCT_PANEL - 1) / OCT_PANEL * OCT_PANEL;
    int64_t taken = pool.take(), before = 0;
    for (int32_t i = 0; i < group.count; i++) {
        const OctInstruction& o = products[i];
        const int64_t pieces = (o.n + piece - 1) / piece;
        for (; taken < before + pieces; taken = pool.take()) {
            const int64_t begin = (taken - before) * piece;
            oct_matmul(o.scheme, o.weight, o.act, o.in, o.out, o.ld_out, step.batch.tokens, o.n, o.k, begin,
                       std::min(begin + piece, o.n), o.bias);
        }
        before += pieces;
    }
}

void run_attention(Step& step, const OctGroup& group, Pool& pool, int member) {
    const OctInstruction& o = step.instructions[group.first];
    const Tasks& tasks = step.shapes[o.shape];
    float* scratch = step.machine.scratch[member].data();
    float* sums = step.machine.sums.data();
    const int64_t room = octa::partial_floats(o.heads / o.kv_heads, o.dim);
    const int64_t count = static_cast<int64_t>(tasks.tasks.size()) * o.kv_heads;
    for (int64_t at; (at = pool.take()) < count;) {
        const AttentionTask& task = tasks.tasks[at / o.kv_heads];
        const int64_t head = at % o.kv_heads;
        float* place = task.partial < 0 ? nullptr : sums + (head * tasks.parts + task.partial) * room;
        step.ops.attend(o, step.batch, task, head, place, scratch);
    }
    if (tasks.unmerged.empty()) return;
    pool.barrier();
    const int64_t merges = static_cast<int64_t>(tasks.unmerged.size()) * o.kv_heads;
    for (int64_t at; (at = pool.take()) < merges;) {
        const AttentionTask& task = tasks.unmerged[at / o.kv_heads];
        const int64_t head = at % o.kv_heads;
        step.ops.merge(o, sums + (head * tasks.parts + task.partial) * room, room, task.parts, task.token, head, scratch);
    }
}

// Every member walks the whole program; what they share is who takes which piece.
void walk(void* argument, Pool& pool, int member) {
    Step& step = *static_cast<Step*>(argument);
    for (int64_t g = 0; g < step.num_groups; g++) {
        const OctGroup& group = step.groups[g];
        if (group.kind == OCT_ROWS)
            run_rows(step, group, pool);
        else if (group.kind == OCT_PRODUCTS)
            run_products(step, group, pool);
        else
            run_attention(step, group, pool, member);
        if (g + 1 < step.num_groups) pool.barrier();
    }
}

struct Packing {
    int scheme;
    const void* stored;
    void* packed;
    int64_t n, k;
};

void pack(void* argument, Pool& pool, int) {
    const Packing& p = *static_cast<Packing*>(argument);
    const int64_t piece = 8 * OCT_PANEL;
    for (int64_t begin; (begin = pool.take() * piece) < p.n;)
        oct_pack(p.scheme, p.stored, p.packed, p.n, p.k, begin, std::min(begin + piece, p.n));
}

constexpr int64_t kScanned = 1 << 14;

struct Scan {
    const Ops& ops;
    const float* x;
    int64_t rows, width, pieces;
    std::vector<int64_t> best;
    std::vector<uint8_t> finite;
};

void scan(void* argument, Pool& pool, int) {
    Scan& s = *static_cast<Scan*>(argument);
    for (int64_t at; (at = pool.take()) < s.rows * s.pieces;) {
        const int64_t begin = at % s.pieces * kScanned;
        s.finite[at] = s.ops.scan(s.x + at / s.pieces * s.width + begin, std::min(kScanned, s.width - begin), &s.best[at]);
        s.best[at] += begin;
    }
}

}  // namespace

extern "C" {

// Raised with every change of a struct or a function here; native.py asks for its own.
int32_t oct_abi() { return 2; }

int64_t oct_instruction_bytes() { return sizeof(OctInstruction); }

void* oct_machine_new(int32_t threads, const int32_t* cores, int32_t num_cores) {
    return new Machine(threads, std::vector<int>(cores, cores + num_cores));
}

void oct_machine_free(void* machine) { delete static_cast<Machine*>(machine); }

void oct_run(void* machine, const OctGroup* groups, int64_t num_groups, const OctInstruction* instructions,
                    const OctBatch* batch) {
    Machine& m = *static_cast<Machine*>(machine);
    Step step{m, current_ops(), groups, num_groups, instructions, *batch, {}};
    prepare(step);
    m.pool.run(walk, &step);
}

void oct_pack_all(void* machine, int32_t scheme, const void* stored, void* packed, int64_t n, int64_t k) {
    Packing packing{scheme, stored, packed, n, k};
    static_cast<Machine*>(machine)->pool.run(pack, &packing);
}

// finite [rows]: whether a row of x [rows, width] holds finite numbers only; best [rows]: where its largest is first.
void oct_scan(void* machine, const float* x, int64_t rows, int64_t width, uint8_t* finite, int64_t* best) {
    const int64_t pieces = (width + kScanned - 1) / kScanned;
    Scan s{current_ops(), x, rows, width, pieces, std::vector<int64_t>(rows * pieces), std::vector<uint8_t>(rows * pieces)};
    static_cast<Machine*>(machine)->pool.run(scan, &s);
    for (int64_t r = 0; r < rows; r++) {
        finite[r] = 1;
        best[r] = s.best[r * pieces];
        for (int64_t p = 0; p < pieces; p++) {
            const int64_t at = s.best[r * pieces + p];
            finite[r] &= s.finite[r * pieces + p];
            if (x[r * width + at] > x[r * width + best[r]]) best[r] = at;
        }
    }
}

}  // extern "C"
