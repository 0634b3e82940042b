// Types and helpers that all kernels share. No header of a compiler is needed, so NVRTC compiles these files alone.
//
// Floating point: every product, sum and quotient is one IEEE operation, rounded to nearest, in the order in which
// `reference.py` and the CPU kernels do it. The intrinsics below are never fused into multiply-adds.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// A bijection of 64 bits in which every output bit depends on every input bit (as murmur3 ends).
__device__ inline u64 mix(u64 h) {
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdull;
    h ^= h >> 33;
    h *= 0xc4ceb9fe1a85ec53ull;
    return h ^ (h >> 33);
}

// Sum of `value` over the lanes before this one.
__device__ inline int sum_before(int value) {
    const int lane = threadIdx.x % WARP;
    int sum = value;
    for (int step = 1; step < WARP; step *= 2) {
        const int other = __shfl_up_sync(ALL_LANES, sum, step);
        sum += lane >= step ? other : 0;
    }
    return sum - value;
}
