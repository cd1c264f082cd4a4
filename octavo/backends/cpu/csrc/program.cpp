// In: a program's groups and instructions, and a step's batch. Out: its registers filled. The C ABI that native.py calls.
#include "program.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <system_error>

#include "experts.h"
#include "matmul.h"
#include "pool.h"

namespace {

using octa::AttentionTask;
using octa::HeadTask;
using octa::OctRange;
using octa::kRows;
using octa::kSplit;
using octa::Ops;
using octa::Pool;

const Ops& current_ops() {
#if defined(__x86_64__)
    const char* variant = oct_variant();
    for (const Ops* ops : {&octa::kOpsAvx512, &octa::kOpsAvx512Vnni})
        if (!std::strcmp(variant, ops->name)) return *ops;
    if (std::strcmp(variant, "scalar")) return octa::kOpsAvx2;
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

// Of one tail's logits in one piece of the head's product. value: of the best.
struct Found {
    int64_t best;
    float value;
    bool finite;
};

// Everything that outlives a step.
struct Machine {
    Machine(int threads, const std::vector<int>& cores)
        : pool(threads, cores), candidates(static_cast<size_t>(pool.size())) {}
    Pool pool;
    std::vector<int64_t> ids, positions, slots;
    std::vector<OctSpan> tail_spans;
    std::vector<Found> found;
    std::vector<std::vector<octa::Candidate>> candidates;
    std::vector<std::vector<float>> scratch;
    std::vector<float> sums;
};

// The batch token by token, as far as it was not given.
OctBatch filled(Machine& machine, OctBatch batch) {
    if (batch.ids || !batch.known) return batch;
    for (auto* made : {&machine.ids, &machine.positions, &machine.slots})
        if (made->size() < static_cast<size_t>(batch.tokens)) made->resize(static_cast<size_t>(batch.tokens));
    for (int64_t s = 0; s < batch.num_spans; s++) {
        const OctSpan& span = batch.spans[s];
        for (int64_t i = 0; i < span.count; i++) {
            const size_t at = static_cast<size_t>(span.first + i);
            const int64_t position = span.start + i;
            machine.ids[at] = batch.known[span.tokens + position];
            machine.positions[at] = position;
            machine.slots[at] =
                batch.table[span.blocks + position / batch.block_size] * batch.block_size + position % batch.block_size;
        }
    }
    batch.ids = machine.ids.data();
    batch.positions = machine.positions.data();
    batch.slots = machine.slots.data();
    return batch;
}

// The batch's tails as a batch of their own.
OctBatch tails_of(Machine& machine, OctBatch batch) {
    std::vector<OctSpan>& made = machine.tail_spans;
    made.clear();
    const OctSpan* whole = batch.spans;
    for (int64_t i = 0; batch.num_spans && i < batch.num_tails; i++) {
        const int64_t tail = batch.tails[i];
        while (tail >= whole->first + whole->count) whole++;
        if (i && tail == batch.tails[i - 1] + 1 && tail > whole->first)
            made.back().count++;
        else
            made.push_back({i, whole->start + tail - whole->first, 1, whole->blocks, whole->tokens});
    }
    batch.tokens = batch.num_tails;
    batch.spans = made.data();
    batch.num_spans = static_cast<int64_t>(made.size());
    return batch;
}

struct Step {
    Machine& machine;
    const Ops& ops;
    const OctGroup* groups;
    int64_t num_groups;
    const OctInstruction* instructions;
    OctBatch batch;
    OctBatch tails;
    int64_t act_ids;  // of the activations that group 0 reads; one more for each group
    std::vector<Tasks> shapes;

    const OctBatch& of(const OctGroup& group) const { return group.tails ? tails : batch; }
};

// What the next attention will read of the cache, for products to bring near, as they leave the memory idle. A member
// asks for every so many-th task, in the order in which they are taken.
struct Coming : oct_ahead {
    Coming(const Step& step, int member, int members)
        : oct_ahead{nullptr, nullptr, next}, step(step), member(member), members(members) {
        look(0);
    }

    // The first attention from group g on, if there is one.
    void look(int64_t g);
    oct_ahead* ahead() { return o ? this : nullptr; }

private:
    static void next(oct_ahead* self);
    void take_task();

    const Step& step;
    const int member, members;
    const OctInstruction* o = nullptr;
    const OctBatch* batch = nullptr;
    int64_t left = 0;               // bytes that may still be asked for
    int64_t item = 0;               // of the attention's tasks, for each KV head
    int64_t block = 0, blocks = 0;  // of the task in work
    const char* values = nullptr;   // those of the block whose keys came last
};

constexpr int64_t kComing = int64_t{8} << 20;  // bytes of all members that stay near until they are read

void Coming::look(int64_t g) {
    while (g < step.num_groups && step.groups[g].kind != OCT_ATTEND) g++;
    o = g < step.num_groups ? step.instructions + step.groups[g].first : nullptr;
    batch = o ? &step.of(step.groups[g]) : nullptr;
    left = kComing / members;
    item = member - members;
    block = blocks = 0;
    values = at = end = nullptr;
}

void Coming::take_task() {
    const auto& tasks = step.shapes[o->shape].tasks;
    item += members;
    if (item >= static_cast<int64_t>(tasks.size()) * o->kv_heads) {
        left = 0;
        return;
    }
    const AttentionTask& task = tasks[item / o->kv_heads];
    const int64_t first = o->window ? std::max<int64_t>(0, task.position - o->window + 1) : 0;
    block = std::max(first, task.split * kSplit) / batch->block_size;
    const int64_t keys = std::min(task.position + task.count, task.split_end * kSplit);
    blocks = (keys + batch->block_size - 1) / batch->block_size;
}

void Coming::next(oct_ahead* self) {
    Coming& c = *static_cast<Coming*>(self);
    while (c.left > 0 && !c.values && c.block >= c.blocks) c.take_task();
    if (c.left <= 0) return;
    const OctBatch& batch = *c.batch;
    const int64_t dim = c.o->dim, size = batch.block_size;
    const int64_t cell = c.o->flag == OCT_FLOAT32 ? 4 : c.o->flag == OCT_BFLOAT16 ? 2 : 1;
    const int64_t keys = cell * (c.o->flag == OCT_BFLOAT16 ? octa::paired_keys(dim, size) : dim * size);
    const int64_t values = cell * (c.o->flag == OCT_BFLOAT16 ? octa::paired_values(dim, size) : dim * size);
    const bool first = !c.values;
    if (first) {
        const AttentionTask& task = c.step.shapes[c.o->shape].tasks[c.item / c.o->kv_heads];
        const int64_t id = batch.table[batch.spans[task.span].blocks + c.block++];
        const int64_t block = c.item % c.o->kv_heads * batch.num_blocks + id;
        c.at = static_cast<const char*>(c.o->keys) + block * keys;
        c.values = static_cast<const char*>(c.o->values) + block * values;
    } else {
        c.at = c.values;
        c.values = nullptr;
    }
    c.end = c.at + (first ? keys : values);
    c.left -= c.end - c.at;
}

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

int64_t panels_of(const OctInstruction& o) { return (o.n + OCT_PANEL - 1) / OCT_PANEL; }

// The panels of a group's products in pieces: a large one for each member, which memory likes, then small ones, with
// which all end at the same time. Of few rows, which memory alone holds up, more lies in large ones.
struct Cut {
    Cut(int64_t all, int64_t members, int64_t tokens)
        : panels(all), large(members == 1 ? all : (tokens < kFew ? all * 7 / 8 : all * 3 / 4) / members),
          small(std::max<int64_t>(1, all / (members * (tokens < kFew ? 8 : 16)))), larges(large ? members : 0) {}
    int64_t pieces() const { return larges + (panels - larges * large + small - 1) / small; }
    OctRange piece(int64_t i) const {
        if (i < larges) return {i * large, (i + 1) * large};
        const int64_t begin = larges * large + (i - larges) * small;
        return {begin, std::min(begin + small, panels)};
    }
    static constexpr int64_t kFew = 8;
    int64_t panels, large, small, larges;
};

constexpr int64_t kNear = int64_t{128} << 10;  // bytes of logits that stay in a core's second-level cache

// Panels of the head whose logits stay near.
int64_t panels_near(const OctBatch& tails) { return std::max<int64_t>(1, kNear / (tails.tokens * OCT_PANEL * 4)); }

// Floats between rows of logits that are not kept. Not a multiple of 4 KiB, at which lines would push each other out.
int64_t row_near(const OctBatch& tails) { return (panels_near(tails) + 1) * OCT_PANEL; }

// Cut the attention of every shape, and make room for its sums, for the findings of the head, and for logits that are
// not kept.
void prepare(Step& step) {
    Machine& machine = step.machine;
    int64_t sums = 0, scratch = 0;
    for (int64_t g = 0; g < step.num_groups; g++) {
        const OctInstruction& o = step.instructions[step.groups[g].first];
        if (o.op == OCT_HEAD) {
            const Cut cut(panels_of(o), machine.pool.size(), step.tails.tokens);
            machine.found.resize(static_cast<size_t>(cut.pieces() * step.tails.tokens));
            if (step.tails.best_only) scratch = std::max(scratch, step.tails.tokens * row_near(step.tails));
        }
        if (step.groups[g].kind == OCT_SPANS)
            for (int64_t s = 0; s < step.batch.num_spans; s++)
                scratch = std::max(scratch, octa::span_scratch(step.batch.spans[s].count, o.dim));
        if (step.groups[g].kind != OCT_ATTEND) continue;
        if (static_cast<size_t>(o.shape) >= step.shapes.size()) step.shapes.resize(o.shape + 1);
        Tasks& tasks = step.shapes[o.shape];
        if (!tasks.made) cut(o, step.of(step.groups[g]), machine.pool.size(), tasks);
        const int64_t group = o.heads / o.kv_heads;
        sums = std::max(sums, tasks.parts * o.kv_heads * octa::partial_floats(group, o.dim));
        scratch = std::max(scratch, octa::attention_scratch(std::max(kRows, group), o.dim));
    }
    if (machine.sums.size() < static_cast<size_t>(sums)) machine.sums.resize(sums);
    machine.scratch.resize(machine.pool.size());
    for (auto& room : machine.scratch)
        if (room.size() < static_cast<size_t>(scratch)) room.resize(scratch);
}

// Panels `piece` of the head, some at a time, which are scaled, capped and searched while they are near.
void run_head(Step& step, const OctInstruction& o, int64_t act_id, OctRange piece, int64_t taken, int member) {
    const OctBatch& tails = step.tails;
    Found* found = step.machine.found.data() + taken * tails.tokens;
    float* room = step.machine.scratch[static_cast<size_t>(member)].data();
    for (int64_t t = 0; t < tails.tokens; t++) found[t] = {0, -__builtin_inff(), true};
    for (int64_t panel = piece.begin, many = panels_near(tails); panel < piece.end; panel += many) {
        const int64_t begin = panel * OCT_PANEL, end = std::min(std::min(panel + many, piece.end) * OCT_PANEL, o.n);
        float* out = tails.best_only ? room - begin : o.out;
        const int64_t ld_out = tails.best_only ? row_near(tails) : o.ld_out;
        oct_matmul(o.scheme, o.weight, o.act, act_id, out, ld_out, tails.tokens, o.k, begin, end, o.bias, nullptr);
        for (int64_t t = 0; t < tails.tokens; t++) {
            float* logits = out + t * ld_out + begin;
            int64_t best;
            step.ops.finish(logits, end - begin, o.a, o.b);
            found[t].finite &= step.ops.scan(logits, end - begin, &best);
            if (logits[best] > found[t].value || panel == piece.begin)
                found[t] = {begin + best, logits[best], found[t].finite};
        }
    }
}

// The findings of all pieces into the batch's.
void sum_up(const Step& step, const OctInstruction& o) {
    const OctBatch& batch = step.batch;
    const int64_t pieces = Cut(panels_of(o), step.machine.pool.size(), batch.num_tails).pieces();
    for (int64_t t = 0; t < batch.num_tails; t++) {
        const Found* found = step.machine.found.data() + t;
        Found all = *found;
        for (int64_t p = 1; p < pieces; p++) {
            found += batch.num_tails;
            const bool finite = all.finite && found->finite;
            if (found->value > all.value) all = *found;
            all.finite = finite;
        }
        batch.best[t] = all.best;
        batch.tails_finite[t] = all.finite;
    }
}

void run_rows(Step& step, const OctGroup& group, const OctBatch& batch, Pool& pool) {
    const int64_t tokens = batch.tokens;
    // pieces of whole activation tiles where there are enough for all
    const int64_t piece = tokens >= pool.size() * OCT_TILE ? OCT_TILE : std::max<int64_t>(1, tokens / (pool.size() * 4));
    for (int64_t begin; (begin = pool.take() * piece) < tokens;)
        for (int32_t i = 0; i < group.count; i++)
            step.ops.rows(step.instructions[group.first + i], batch, begin, std::min(begin + piece, tokens));
}

// Whether it is two products, side by side in delta.
bool apart(const OctInstruction& o, int64_t tokens) { return o.op == OCT_GATE_UP && tokens < o.window; }

// Panels `piece` of one product, or of gate and up one after the other.
void run_product(Step& step, const OctInstruction& o, const OctBatch& batch, int64_t act_id, OctRange piece,
                 oct_ahead* ahead) {
    const int64_t tokens = batch.tokens;
    if (apart(o, tokens)) {
        const auto side = [&](int64_t first, int64_t scheme, const void* weight, const void* act, const float* bias, float* out) {
            const int64_t begin = std::max(piece.begin - first, int64_t{0}) * OCT_PANEL;
            const int64_t end = std::min((piece.end - first) * OCT_PANEL, o.n);
            if (begin >= end) return;
            oct_matmul(static_cast<int>(scheme), weight, act, act_id, out, 2 * o.n, tokens, o.k, begin, end, bias, ahead);
        };
        side(0, o.scheme, o.weight, o.act, o.bias, o.delta);
        return side(panels_of(o), o.second.scheme, o.second.weight, o.second.act, o.second.bias, o.delta + o.n);
    }
    const int64_t begin = piece.begin * OCT_PANEL, end = std::min(piece.end * OCT_PANEL, o.n);
    if (o.op == OCT_GATE_UP) {
        const oct_side gate{o.scheme, o.weight, o.act, o.bias};
        const oct_side up{o.second.scheme, o.second.weight, o.second.act, o.second.bias};
        return oct_matmul_gated(&gate, &up, act_id, o.out, o.ld_out, tokens, o.k, begin, end, step.ops.combine, o.flag,
                                ahead);
    }
    oct_matmul(o.scheme, o.weight, o.act, act_id, o.out, o.ld_out, tokens, o.k, begin, end, o.bias, ahead);
}

void run_products(Step& step, int64_t g, Pool& pool, int member, oct_ahead* ahead) {
    const OctGroup& group = step.groups[g];
    const OctBatch& batch = step.of(group);
    const OctInstruction* products = step.instructions + group.first;
    const auto panels_in = [&](const OctInstruction& o) { return panels_of(o) * (apart(o, batch.tokens) ? 2 : 1); };
    int64_t panels = 0;
    for (int32_t i = 0; i < group.count; i++) panels += panels_in(products[i]);
    const Cut cut(panels, pool.size(), batch.tokens);
    for (int64_t taken; (taken = pool.take()) < cut.pieces();) {
        const OctRange piece = cut.piece(taken);
        for (int64_t i = 0, before = 0; i < group.count && before < piece.end; before += panels_in(products[i++])) {
            const int64_t begin = std::max(piece.begin - before, int64_t{0});
            const int64_t end = std::min(piece.end - before, panels_in(products[i]));
            if (begin >= end) continue;
            if (products[i].op == OCT_HEAD)
                run_head(step, products[i], step.act_ids + g, {begin, end}, taken, member);
            else
                run_product(step, products[i], batch, step.act_ids + g, {begin, end}, ahead);
        }
    }
}

void run_attention(Step& step, const OctGroup& group, Pool& pool, int member) {
    const OctInstruction& o = step.instructions[group.first];
    const Tasks& tasks = step.shapes[o.shape];
    float* scratch = step.machine.scratch[member].data();
    float* sums = step.machine.sums.data();
    const int64_t room = octa::partial_floats(o.heads / o.kv_heads, o.dim);
    const int64_t count = static_cast<int64_t>(tasks.tasks.size()) * o.kv_heads;
    const auto take = [&] {
        const int64_t at = pool.take();
        return at < count ? HeadTask{&tasks.tasks[at / o.kv_heads], at % o.kv_heads} : HeadTask{nullptr, 0};
    };
    for (HeadTask now = take(), next; now.task; now = next) {
        next = take();
        float* place = now.task->partial < 0 ? nullptr : sums + (now.head * tasks.parts + now.task->partial) * room;
        step.ops.attend(o, step.of(group), now, next, place, scratch);
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

void run_spans(Step& step, const OctGroup& group, Pool& pool, int member) {
    const OctInstruction& o = step.instructions[group.first];
    float* scratch = step.machine.scratch[member].data();
    for (int64_t at; (at = pool.take()) < step.batch.num_spans * o.kv_heads;)
        step.ops.attend_span(o, step.batch.spans[at / o.kv_heads], at % o.kv_heads, scratch);
}

// Every member walks the whole program; what they share is who takes which piece.
void walk(void* argument, Pool& pool, int member) {
    Step& step = *static_cast<Step*>(argument);
    Coming coming(step, member, pool.size());
    for (int64_t g = 0; g < step.num_groups; g++) {
        const OctGroup& group = step.groups[g];
        const OctBatch& batch = step.of(group);
        if (group.kind == OCT_ROWS)
            run_rows(step, group, batch, pool);
        else if (group.kind == OCT_PRODUCTS)
            run_products(step, g, pool, member, coming.ahead());
        else if (group.kind == OCT_MIX)
            octa::run_experts(*static_cast<const OctExperts*>(step.instructions[group.first].weight), step.ops, batch,
                              pool, member);
        else if (group.kind == OCT_SPANS)
            run_spans(step, group, pool, member);
        else
            run_attention(step, group, pool, member);
        if (group.kind == OCT_ATTEND) coming.look(g + 1);
        if (g + 1 < step.num_groups) pool.barrier();
    }
}

struct Packing {
    decltype(&oct_pack) kernel;
    int scheme;
    const void* stored;
    void* packed;
    int64_t n, k;
    std::atomic<bool> failed = false;
};

void pack(void* argument, Pool& pool, int) {
    Packing& p = *static_cast<Packing*>(argument);
    const int64_t piece = 8 * OCT_PANEL;
    for (int64_t begin; (begin = pool.take() * piece) < p.n && !p.failed;)
        if (p.kernel(p.scheme, p.stored, p.packed, p.k, begin, std::min(begin + piece, p.n))) p.failed = true;
}

struct Draws {
    Machine& machine;
    const Ops& ops;
    OctDraw* rows;
    int64_t count, vocab;
};

void draw(void* argument, Pool& pool, int member) {
    Draws& d = *static_cast<Draws*>(argument);
    auto& room = d.machine.candidates[static_cast<size_t>(member)];
    for (int64_t at; (at = pool.take()) < d.count;) {
        if (room.size() < static_cast<size_t>(d.vocab)) room.resize(static_cast<size_t>(d.vocab));
        d.ops.draw(d.rows[at], d.vocab, room.data());
    }
}

}  // namespace

extern "C" {

// Raised with every change of a struct or a function here; native.py asks for its own.
int32_t oct_abi() { return 11; }

int64_t oct_instruction_bytes() { return sizeof(OctInstruction); }

// nullptr where the system refuses a thread, or memory for so many.
void* oct_machine_new(int32_t threads, const int32_t* cores, int32_t num_cores) {
    try {
        return new Machine(threads, std::vector<int>(cores, cores + num_cores));
    } catch (const std::system_error&) {
        return nullptr;
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void oct_machine_free(void* machine) { delete static_cast<Machine*>(machine); }

// Walks the groups; those of tails last. Fills what the batch points at.
void oct_run(void* machine, const OctGroup* groups, int64_t num_groups, const OctInstruction* instructions,
             OctBatch* batch) {
    Machine& m = *static_cast<Machine*>(machine);
    const OctBatch full = filled(m, *batch);
    static std::atomic<int64_t> act_ids{1};
    Step step{m, current_ops(), groups, num_groups, instructions, full, tails_of(m, full), act_ids.fetch_add(num_groups), {}};
    prepare(step);
    m.pool.run(walk, &step);
    batch->not_finite = 0;
    for (int64_t t = 0; batch->finite && t < batch->tokens; t++) batch->not_finite += !batch->finite[t];
    for (int64_t g = 0; g < num_groups; g++)
        if (instructions[groups[g].first].op == OCT_HEAD) sum_up(step, instructions[groups[g].first]);
}

// Fills `token` of every row.
void oct_draw(void* machine, OctDraw* rows, int64_t count, int64_t vocab) {
    Machine& m = *static_cast<Machine*>(machine);
    Draws draws{m, current_ops(), rows, count, vocab};
    m.pool.run(draw, &draws);
}

int32_t oct_layout() { return OCT_LAYOUT; }

// to_float: by oct_pack_float. Returns 0; 1 where the scheme cannot hold them.
int32_t oct_pack_all(void* machine, int32_t scheme, int32_t to_float, const void* stored, void* packed, int64_t n,
                     int64_t k) {
    Packing packing{to_float ? oct_pack_float : oct_pack, scheme, stored, packed, n, k};
    static_cast<Machine*>(machine)->pool.run(pack, &packing);
    return packing.failed;
}

}  // extern "C"
