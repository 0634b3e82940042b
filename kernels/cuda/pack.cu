// pack_bits: signs to codes. A warp makes 32 half words: each is one ballot of 32 neighbouring values.
#include "common.cuh"

template <typename Value>
__device__ void pack(const Value* values, i64 n_rows, i64 n_bits, i64 n_halves, u32* codes) {
    const int lane = threadIdx.x % WARP;
    const i64 n = n_rows * n_halves;
    const i64 n_warps = (i64)gridDim.x * (blockDim.x / WARP);
    for (i64 warp = (i64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; warp * WARP < n; warp += n_warps) {
        u32 mine = 0;
        for (int i = 0; i < WARP; i++) {
            const i64 half = warp * WARP + i;
            const i64 row = half / n_halves, bit = half % n_halves * 32 + lane;
            const bool set = row < n_rows && bit < n_bits && values[row * n_bits + bit] > (Value)0;
            const u32 word = __ballot_sync(ALL_LANES, set);
            if (lane == i) mine = word;
        }
        if (warp * WARP + lane < n) codes[warp * WARP + lane] = mine;
    }
}

extern "C" __global__ void pack_bits_float32(const float* values, i64 n_rows, i64 n_bits, i64 n_halves, u32* codes) {
    pack(values, n_rows, n_bits, n_halves, codes);
}

extern "C" __global__ void pack_bits_bool(const u8* values, i64 n_rows, i64 n_bits, i64 n_halves, u32* codes) {
    pack(values, n_rows, n_bits, n_halves, codes);
}
