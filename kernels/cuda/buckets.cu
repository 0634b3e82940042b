// count_buckets: a stream of codes into an open-addressing table, with rows in the order in which buckets are met.
//
// A batch of codes goes through three kernels. `insert_codes` finds or claims a slot for every code; a claimed slot holds
// -2 - (the first row of the batch with this code), so that whoever compares keys reads the code there, which nobody
// writes. `claim_rows` gives new buckets rows of the table in the order of those first rows, as counting one by one
// does, up to where the table is full. `add_rows` adds the cells before that point: integers, in any order the same.
#include "common.cuh"

constexpr int FREE = -1;
constexpr int FIRST = -2;  // slot of a bucket that row r of the batch met first: FIRST - r
constexpr double FIXED_POINT_SCALE = 1048576.0, FIXED_POINT_LIMIT = 1048576.0;
constexpr double ROUNDER = 6755399441055744.0;  // 1.5 * 2**52
constexpr i64 ROUNDER_BITS = 0x4338000000000000ll;

__device__ inline u64 hash_of(const u64* code, const u64* mask, i64 n_words) {
    u64 h = 0;
    for (i64 word = 0; word < n_words; word++) h = mix(h ^ (code[word] & mask[word]));
    return h;
}

__device__ inline bool same(const u64* a, const u64* b, const u64* mask, i64 n_words) {
    for (i64 word = 0; word < n_words; word++) {
        if ((a[word] ^ b[word]) & mask[word]) return false;
    }
    return true;
}

// found[r]: slot of the bucket of row r. There are always more slots than buckets, those of the batch included.
extern "C" __global__ void insert_codes(
    int* slots, i64 capacity, const u64* keys, const u64* codes, const u64* mask, i64 n_words, i64 n, int* found
) {
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < n; row += (i64)gridDim.x * blockDim.x) {
        const u64* code = codes + row * n_words;
        const int mine = FIRST - (int)row;
        u64 at = hash_of(code, mask, n_words) & (u64)(capacity - 1);
        for (;;) {
            int held = *(volatile int*)&slots[at];
            if (held == FREE) {
                held = atomicCAS(&slots[at], FREE, mine);
                if (held == FREE) break;
            }
            const u64* key = held >= 0 ? keys + held * n_words : codes + (FIRST - held) * n_words;
            if (same(key, code, mask, n_words)) {
                if (held < 0) atomicMax(&slots[at], mine);  // the lower row has the higher mark
                break;
            }
            at = (at + 1) & (u64)(capacity - 1);
        }
        found[row] = (int)at;
    }
}

// first[r]: whether row r is the first with its code, which the table does not know.
extern "C" __global__ void mark_firsts(const int* slots, const int* found, i64 n, int* first) {
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < n; row += (i64)gridDim.x * blockDim.x) {
        first[row] = slots[found[row]] == FIRST - (int)row;
    }
}

// `rank` is the inclusive sum of `first`. `stop` ends as the first row whose bucket finds the table full.
extern "C" __global__ void claim_rows(
    int* slots, u64* keys, const i64* used, i64 max_rows, const u64* codes, const u64* mask, i64 n_words, i64 n,
    const int* found, const int* first, const int* rank, i64* stop
) {
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < n; row += (i64)gridDim.x * blockDim.x) {
        if (!first[row]) continue;
        const i64 bucket = used[0] + rank[row] - 1;
        if (bucket >= max_rows) {
            atomicMin((u64*)stop, (u64)row);
            continue;
        }
        slots[found[row]] = (int)bucket;
        for (i64 word = 0; word < n_words; word++) keys[bucket * n_words + word] = codes[row * n_words + word] & mask[word];
    }
}

// A warp a row: counts and sums of the rows before `stop`. Two's complement makes unsigned additions do for signed sums.
extern "C" __global__ void add_rows(
    const int* slots, u64* counts, u64* half_counts, u64* sums, i64* used, i64 max_rows, const float* embedding,
    i64 n_halves, i64 n_dims, i64 n, i64 first_row, const int* found, const int* rank, const i64* stop
) {
    const int lane = threadIdx.x % WARP;
    const i64 n_warps = (i64)gridDim.x * (blockDim.x / WARP);
    const i64 end = stop[0];
    for (i64 row = (i64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; row < end; row += n_warps) {
        const i64 bucket = slots[found[row]];
        i64 target = bucket;
        if (n_halves == 2) {
            const u64 half = mix((u64)(first_row + row)) & 1;
            target = 2 * bucket + (i64)half;
            if (lane == 0 && half == 0) atomicAdd(&half_counts[bucket], 1ull);
        }
        if (lane == 0) atomicAdd(&counts[bucket], 1ull);
        for (i64 i = lane; i < n_dims; i += WARP) {
            double x = (double)embedding[row * n_dims + i];
            x = x == x ? x : 0.0;  // NaN counts as 0
            x = x > -FIXED_POINT_LIMIT ? x : -FIXED_POINT_LIMIT;
            x = x < FIXED_POINT_LIMIT ? x : FIXED_POINT_LIMIT;
            const i64 units = __double_as_longlong(__dadd_rn(__dmul_rn(x, FIXED_POINT_SCALE), ROUNDER)) - ROUNDER_BITS;
            atomicAdd(&sums[target * n_dims + i], (u64)units);
        }
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        const i64 more = used[0] + rank[n - 1];
        used[0] = more < max_rows ? more : max_rows;
    }
}

// Puts the used rows of the table into empty slots: after the table was found full, as claimed slots cannot be freed
// one by one without hiding others behind them.
extern "C" __global__ void place_keys(int* slots, i64 capacity, const u64* keys, const u64* mask, i64 n_words, i64 n) {
    for (i64 row = (i64)blockIdx.x * blockDim.x + threadIdx.x; row < n; row += (i64)gridDim.x * blockDim.x) {
        u64 at = hash_of(keys + row * n_words, mask, n_words) & (u64)(capacity - 1);
        while (atomicCAS(&slots[at], FREE, (int)row) != FREE) at = (at + 1) & (u64)(capacity - 1);
    }
}
