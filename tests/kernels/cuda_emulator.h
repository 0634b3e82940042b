// What the .cu sources need to run as C++ on one core: every CUDA thread is a coroutine, and a block's threads take turns
// at barriers, at warp operations and now and then at atomic ones, in an order that changes from turn to turn. Blocks run
// one after the other. Shared memory is static and keeps what the last block left in it, as on a device.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __noinline__
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};

namespace emulator {
enum State { READY, AT_BARRIER, AT_WARP, DONE };
enum Operation { BALLOT, SHUFFLE_UP, SHUFFLE_DOWN, MATCH, SYNC };
struct Thread {
    ucontext_t context;  // to begin with; later turns jump, which takes no system call
    jmp_buf place;
    bool started;
    State state;
    dim3 index;
    Operation operation;
    unsigned mask;
    uint64_t value, result;
    int step;
};
constexpr size_t STACK = 64 << 10;
constexpr int MOST_THREADS = 1024;
inline std::vector<Thread> threads(MOST_THREADS);
inline char* const stacks = (char*)std::malloc(STACK * MOST_THREADS);
inline std::vector<char> dynamic;
inline jmp_buf scheduler;
inline int current;
inline dim3 block_index, block_size, grid_size;
inline bool failed;
inline void (*entry)();
inline unsigned chance = 1;

inline unsigned draw() { return (chance = chance * 1664525u + 1013904223u) >> 16; }

inline void fail(const char* what) {
    std::fprintf(stderr, "emulator: %s\n", what);
    failed = true;
}
// Neither is inlined: their callers' variables must not live in the frame that a jump leaves.
__attribute__((noinline)) inline void wait(State state) {
    Thread& thread = threads[current];
    thread.state = state;
    if (!_setjmp(thread.place)) _longjmp(scheduler, 1);
}
__attribute__((noinline)) inline void resume(int i) {
    current = i;
    if (_setjmp(scheduler)) return;
    if (threads[i].started) _longjmp(threads[i].place, 1);
    threads[i].started = true;
    setcontext(&threads[i].context);
}
// Lets others go first before an atomic operation, one time in four.
inline void pause() {
    if (draw() % 4 == 0) wait(READY);
}
inline uint64_t warp_operation(Operation operation, unsigned mask, uint64_t value, int step) {
    Thread& thread = threads[current];
    thread.operation = operation;
    thread.mask = mask;
    thread.value = value;
    thread.step = step;
    wait(AT_WARP);
    return threads[current].result;
}
// A coroutine is a thread of one block after the other.
inline void start() {
    for (;;) {
        entry();
        wait(DONE);
    }
}
// Ends the operation at which all lanes of a warp wait.
inline void finish(int first, int last) {
    for (int i = first; i < last; i++) {
        Thread& thread = threads[i];
        if (thread.state == DONE) continue;
        if (thread.operation != threads[first].operation) fail("lanes of a warp wait at different operations");
        if (thread.mask != 0xffffffffu) fail("a warp operation names some lanes only");
        thread.result = thread.value;
        if (thread.operation == BALLOT || thread.operation == MATCH) thread.result = 0;
        for (int j = first; j < last; j++) {
            const bool holds = thread.operation == BALLOT ? threads[j].value != 0 : threads[j].value == thread.value;
            const bool asks = thread.operation == BALLOT || thread.operation == MATCH;
            if (asks && holds) thread.result |= 1ull << (j - first);
        }
        const int other = thread.operation == SHUFFLE_UP ? i - thread.step : i + thread.step;
        if (thread.operation == SHUFFLE_UP && other >= first) thread.result = threads[other].value;
        if (thread.operation == SHUFFLE_DOWN && other < last) thread.result = threads[other].value;
    }
    for (int i = first; i < last; i++) {
        if (threads[i].state == AT_WARP) threads[i].state = READY;
    }
}
inline bool all(int first, int last, State state) {
    for (int i = first; i < last; i++) {
        if (threads[i].state != state) return false;
    }
    return true;
}
inline void run_block() {
    const int n = (int)(block_size.x * block_size.y * block_size.z);
    for (int i = 0; i < n; i++) {
        Thread& thread = threads[i];
        thread.state = READY;
        thread.index = {(unsigned)i, 0, 0};
        if (thread.started) continue;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = stacks + i * STACK;
        thread.context.uc_stack.ss_size = STACK;
        makecontext(&thread.context, start, 0);
    }
    for (int done = 0; done < n && !failed;) {
        bool moved = false;
        const int start = (int)(draw() % (unsigned)n), step = draw() % 2 ? 1 : n - 1;
        for (int turn = 0; turn < n; turn++) {
            const int i = (start + turn * step) % n;
            if (threads[i].state != READY) continue;
            moved = true;
            resume(i);
            done += threads[i].state == DONE;
        }
        for (int first = 0; first < n; first += 32) {
            const int last = first + 32 < n ? first + 32 : n;
            if (all(first, last, AT_WARP)) {
                finish(first, last);
                moved = true;
            }
        }
        // As on a device, a barrier that some threads have left the kernel without is a defect.
        if (all(0, n, AT_BARRIER)) {
            for (int i = 0; i < n; i++) threads[i].state = READY;
            moved = true;
        }
        if (!moved && done < n && !failed) fail("threads wait for each other for ever");
    }
}
template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}
inline void** arguments;
template <auto kernel>
struct Entry;
template <class... A, void (*kernel)(A...)>
struct Entry<kernel> {
    static constexpr int N = sizeof...(A);
    static void run() { call(kernel, arguments, std::index_sequence_for<A...>()); }
};
// 0, or 1 after a failure.
template <auto kernel>
int launch(const unsigned* grid, unsigned n_threads, size_t shared_bytes, void** given, int n_given) {
    if (n_given != Entry<kernel>::N) {
        fail("wrong number of arguments");
        return 1;
    }
    failed = false;
    arguments = given;
    entry = Entry<kernel>::run;
    block_size = {n_threads, 1, 1};
    grid_size = {grid[0], grid[1], grid[2]};
    dynamic.resize(shared_bytes + 16);
    std::memset(dynamic.data(), 0xff, dynamic.size());
    const uint64_t n_blocks = (uint64_t)grid[0] * grid[1] * grid[2];
    const bool backwards = draw() % 2;
    for (uint64_t block = 0; block < n_blocks && !failed; block++) {
        const uint64_t i = backwards ? n_blocks - 1 - block : block;
        block_index = {(unsigned)(i % grid[0]), (unsigned)(i / grid[0] % grid[1]), (unsigned)(i / grid[0] / grid[1])};
        run_block();
    }
    if (failed) {
        for (Thread& thread : threads) thread.started = false;
    }
    return failed;
}
}  // namespace emulator

#define threadIdx (emulator::threads[emulator::current].index)
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

inline void __syncthreads() { emulator::wait(emulator::AT_BARRIER); }
inline void __syncwarp() { emulator::warp_operation(emulator::SYNC, 0xffffffffu, 0, 0); }
inline unsigned __ballot_sync(unsigned mask, bool set) {
    return (unsigned)emulator::warp_operation(emulator::BALLOT, mask, set, 0);
}
inline bool __any_sync(unsigned mask, bool set) { return __ballot_sync(mask, set) != 0; }
inline unsigned __match_any_sync(unsigned mask, int value) {
    return (unsigned)emulator::warp_operation(emulator::MATCH, mask, (unsigned)value, 0);
}
template <class T>
T shuffle(emulator::Operation operation, unsigned mask, T value, int step) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = emulator::warp_operation(operation, mask, bits, step);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int step) { return shuffle(emulator::SHUFFLE_UP, mask, value, step); }
template <class T>
T __shfl_down_sync(unsigned mask, T value, int step) { return shuffle(emulator::SHUFFLE_DOWN, mask, value, step); }

template <class T, class U>
T atomicAdd(T* at, U value) { emulator::pause(); T old = *at; *at += (T)value; return old; }
template <class T>
T atomicOr(T* at, T value) { emulator::pause(); T old = *at; *at |= value; return old; }
template <class T>
T atomicMin(T* at, T value) { emulator::pause(); T old = *at; if (value < old) *at = value; return old; }
template <class T>
T atomicMax(T* at, T value) { emulator::pause(); T old = *at; if (value > old) *at = value; return old; }
template <class T>
T atomicCAS(T* at, T expected, T value) { emulator::pause(); T old = *at; if (old == expected) *at = value; return old; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
// One IEEE operation each: the compiler is told not to contract them.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
template <class To, class From>
To bits_of(From value) { To bits; std::memcpy(&bits, &value, sizeof(To)); return bits; }
inline long long __double_as_longlong(double x) { return bits_of<long long>(x); }
inline double __longlong_as_double(long long x) { return bits_of<double>(x); }
inline int __float_as_int(float x) { return bits_of<int>(x); }
inline float __int_as_float(int x) { return bits_of<float>(x); }
