// In: calls of the kernels' C ABI on standard input, with the memory that they reach. Out: their results and that memory.
//
// The tests' far side where kernels cannot run in Python's own process: under an emulator, or built with sanitizers.
// All numbers are uint64, in the processor's own order (both sides are little-endian):
//   call:  length of the name, name | regions | pointers | arguments
//          regions:   count, then each: address, size, bytes        memory that the call reaches, as the caller has it
//          pointers:  count, then each: region, offset              where a region holds an address in a region, or 0
//          arguments: count, then each: 1 if it is an address in a region, value
//   reply: result | 1 if bytes beside a region were written | every region's bytes
// A region is given memory at the same place in a cache line as the caller's, between bytes that must not change.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "matmul.h"
#include "program.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

constexpr uint8_t kPoison = 0xA5;
constexpr size_t kLine = 64;

template <class Value> Value cast(uint64_t word) {
    if constexpr (std::is_pointer_v<Value>)
        return reinterpret_cast<Value>(word);
    else
        return static_cast<Value>(word);
}

template <class Result, class... Values, size_t... i>
uint64_t invoke(Result (*function)(Values...), const uint64_t *words, std::index_sequence<i...>) {
    if constexpr (std::is_void_v<Result>) {
        function(cast<Values>(words[i])...);
        return 0;
    } else if constexpr (std::is_pointer_v<Result>) {
        return reinterpret_cast<uint64_t>(function(cast<Values>(words[i])...));
    } else {
        return static_cast<uint64_t>(static_cast<int64_t>(function(cast<Values>(words[i])...)));
    }
}

struct Function {
    size_t count;
    uint64_t (*call)(const uint64_t *words);
};

template <auto function> struct Called;

template <class Result, class... Values, Result (*function)(Values...)> struct Called<function> {
    static constexpr Function value = {sizeof...(Values), [](const uint64_t *words) {
                                           return invoke(function, words, std::index_sequence_for<Values...>());
                                       }};
};

// The name of the variant in use, as a result that means something to another process.
void name_variant(char *name) { strcpy(name, oct_variant()); }

const std::pair<const char *, Function> kFunctions[] = {
    {"oct_abi", Called<oct_abi>::value},
    {"oct_instruction_bytes", Called<oct_instruction_bytes>::value},
    {"oct_machine_new", Called<oct_machine_new>::value},
    {"oct_machine_free", Called<oct_machine_free>::value},
    {"oct_run", Called<oct_run>::value},
    {"oct_pack_all", Called<oct_pack_all>::value},
    {"oct_packed_bytes", Called<oct_packed_bytes>::value},
    {"oct_act_bytes", Called<oct_act_bytes>::value},
    {"oct_pack", Called<oct_pack>::value},
    {"oct_act_quantize", Called<oct_act_quantize>::value},
    {"oct_matmul", Called<oct_matmul>::value},
    {"oct_dequantize_row", Called<oct_dequantize_row>::value},
    {"oct_set_variant", Called<oct_set_variant>::value},
    {"name_variant", Called<name_variant>::value},
};

const Function &find(const std::string &name) {
    for (const auto &[known, function] : kFunctions)
        if (name == known) return function;
    fprintf(stderr, "the driver has no function %s\n", name.c_str());
    exit(2);
}

void read(void *to, size_t size) {
    if (size && fread(to, 1, size, stdin) != size) exit(2);
}

uint64_t number() {
    uint64_t value;
    read(&value, sizeof value);
    return value;
}

void answer(const void *from, size_t size) {
    if (size && fwrite(from, 1, size, stdout) != size) exit(2);
}

// A copy of the caller's memory [address, address + size).
class Region {
public:
    Region(uint64_t address, size_t size) : address_(address), size_(size), start_(kLine + address % kLine) {
        if (posix_memalign(&memory_, kLine, room())) exit(2);
        memset(memory_, kPoison, room());
        read(data(), size);
#if defined(__SANITIZE_ADDRESS__)
        __asan_poison_memory_region(memory_, start_);
#endif
    }
    Region(const Region &) = delete;
    ~Region() {
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(memory_, start_);
#endif
        free(memory_);
    }

    uint8_t *data() const { return static_cast<uint8_t *>(memory_) + start_; }
    size_t size() const { return size_; }
    bool holds(uint64_t address) const { return address >= address_ && address - address_ < (size_ ? size_ : 1); }
    uint64_t place(uint64_t address) const { return reinterpret_cast<uint64_t>(data()) + (address - address_); }
    bool damaged() const {
#if !defined(__SANITIZE_ADDRESS__)
        const uint8_t *bytes = static_cast<uint8_t *>(memory_);
        for (size_t i = 0; i < room(); i++)
            if ((i < start_ || i >= start_ + size_) && bytes[i] != kPoison) return true;
#endif
        return false;
    }

private:
    // the address sanitizer watches what lies behind
#if defined(__SANITIZE_ADDRESS__)
    size_t room() const { return start_ + size_; }
#else
    size_t room() const { return start_ + size_ + kLine; }
#endif

    uint64_t address_;
    size_t size_, start_;
    void *memory_ = nullptr;
};

using Regions = std::vector<std::unique_ptr<Region>>;

uint64_t translate(const Regions &regions, uint64_t address) {
    if (!address) return 0;
    for (const auto &region : regions)
        if (region->holds(address)) return region->place(address);
    fprintf(stderr, "no region holds an address of the call\n");
    exit(2);
}

void serve_call(size_t name_length) {
    std::string name(name_length, ' ');
    read(name.data(), name_length);
    const Function &function = find(name);
    Regions regions(number());
    for (auto &region : regions) {
        const uint64_t address = number(), size = number();
        region = std::make_unique<Region>(address, size);
    }
    for (uint64_t left = number(); left > 0; left--) {
        const uint64_t region = number();
        uint8_t *at = regions.at(region)->data() + number();
        uint64_t pointer;
        memcpy(&pointer, at, sizeof pointer);
        pointer = translate(regions, pointer);
        memcpy(at, &pointer, sizeof pointer);
    }
    std::vector<uint64_t> words(number());
    for (uint64_t &word : words) {
        const uint64_t address = number();
        word = number();
        if (address) word = translate(regions, word);
    }
    if (words.size() != function.count) exit(2);
    const uint64_t result = function.call(words.data());
    uint64_t damaged = 0;
    for (const auto &region : regions) damaged |= region->damaged();
    answer(&result, sizeof result);
    answer(&damaged, sizeof damaged);
    for (const auto &region : regions) answer(region->data(), region->size());
    fflush(stdout);
}

} // namespace

int main() {
    uint64_t length;
    while (fread(&length, sizeof length, 1, stdin) == 1) serve_call(length);
    return 0;
}
