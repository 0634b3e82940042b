// hamming_topk and hamming_histogram: distances of a tile of queries to a slab of codes, counted and never stored.
//
// `count_distances` counts, in every slab of consecutive codes, those at each distance of a query up to its limit: an
// upper bound of the distance of its k-th nearest, from a sample of the codes, so that hardly any code is counted.
// `place_distances` turns the counts into places of a sorted list: nearer first, then earlier slabs. `collect_rows` goes
// through the few slabs that own one of the first k places once more, in the order of rows. Ties thus go by row.
#include "common.cuh"

constexpr int TILE = 8;  // queries that a block keeps
constexpr int MAX_WORDS = 4;
constexpr int MAX_BINS = 64 * MAX_WORDS + 1;

// Codes that fill whole 16-byte loads: two where a code has an odd number of words.
template <int W>
struct Group {
    static constexpr int N_CODES = W % 2 ? 2 : 1;
    static constexpr int N_WORDS = W * N_CODES;
    u64 words[N_WORDS];

    __device__ inline void load(const u64* from, bool wide) {
        if (wide) {
            for (int i = 0; i < N_WORDS / 2; i++) {
                const ulonglong2 pair = ((const ulonglong2*)from)[i];
                words[2 * i] = pair.x;
                words[2 * i + 1] = pair.y;
            }
        } else {
            for (int i = 0; i < N_WORDS; i++) words[i] = from[i];
        }
    }
};

template <int W>
__device__ inline int distance(const u64* code, const u64* query) {
    int d = 0;
    for (int word = 0; word < W; word++) d += __popcll(code[word] ^ query[word]);
    return d;
}

// counts (n_queries, n_bins, n_slabs), or null; totals (n_queries, n_bins), to which the sums over slabs are added.
// Slab s is rows s * slab_step to s * slab_step + slab_rows; both numbers are even. `wide`: codes begin at a multiple of
// 16 bytes. limits (n_queries,), or null to count every distance.
template <int W>
__device__ void count(
    const u64* queries, i64 n_queries, const u64* codes, i64 n, i64 slab_rows, i64 slab_step, i64 n_slabs, i64 wide,
    const int* limits, int* counts, u64* totals
) {
    constexpr int N_BINS = 64 * W + 1;
    __shared__ int bins[TILE * N_BINS];
    __shared__ u64 tile[TILE * W];
    __shared__ int limit[TILE];
    const int t = threadIdx.x, n_threads = blockDim.x;
    const i64 slab = blockIdx.x, first = (i64)blockIdx.y * TILE;
    const int n_here = (int)(n_queries - first < TILE ? n_queries - first : TILE);
    for (int i = t; i < n_here * N_BINS; i += n_threads) bins[i] = 0;
    for (int i = t; i < n_here * W; i += n_threads) tile[i] = queries[first * W + i];
    for (int i = t; i < n_here; i += n_threads) limit[i] = limits == nullptr ? 64 * W : limits[first + i];
    __syncthreads();
    const i64 start = slab * slab_step;
    const i64 stop = start + slab_rows < n ? start + slab_rows : n;
    constexpr int STEP = Group<W>::N_CODES;
    for (i64 row = start + (i64)t * STEP; row < stop; row += (i64)n_threads * STEP) {
        Group<W> group;
        const int n_codes = row + STEP <= stop ? STEP : 1;
        if (n_codes == STEP) group.load(codes + row * W, wide != 0);
        else for (int word = 0; word < W; word++) group.words[word] = codes[row * W + word];
#pragma unroll 2
        for (int q = 0; q < n_here; q++) {
            for (int i = 0; i < STEP; i++) {
                const int d = distance<W>(group.words + i * W, tile + q * W);
                if (i < n_codes && d <= limit[q]) atomicAdd(&bins[q * N_BINS + d], 1);
            }
        }
    }
    __syncthreads();
    for (int i = t; i < n_here * N_BINS; i += n_threads) {
        const i64 bin = first * N_BINS + i;
        if (counts != nullptr) counts[bin * n_slabs + slab] = bins[i];
        if (bins[i]) atomicAdd(&totals[bin], (u64)bins[i]);
    }
}

// limits[q]: the distance of the k-th nearest of those counted, or the largest there is if they are fewer.
extern "C" __global__ void find_limits(const u64* totals, i64 n_queries, i64 n_bins, i64 k, int* limits) {
    for (i64 q = (i64)blockIdx.x * blockDim.x + threadIdx.x; q < n_queries; q += (i64)gridDim.x * blockDim.x) {
        u64 sum = 0;
        i64 d = 0;
        for (; d < n_bins - 1; d++) {
            sum += totals[q * n_bins + d];
            if (sum >= (u64)k) break;
        }
        limits[q] = (int)d;
    }
}

// A block a distance (x) and query (y): counts become places, clipped to k; `hits` marks slabs with a place below k.
extern "C" __global__ void place_distances(const u64* totals, i64 n_slabs, i64 k, int* counts, u8* hits) {
    __shared__ int warps[WARP];
    __shared__ u64 nearer;  // codes at smaller distances
    const int t = threadIdx.x, n_threads = blockDim.x, lane = t % WARP;
    const i64 q = blockIdx.y, bin = (i64)blockIdx.y * gridDim.x + blockIdx.x;
    if (t == 0) nearer = 0;
    __syncthreads();
    for (i64 d = t; d < (i64)blockIdx.x; d += n_threads) {
        if (totals[q * gridDim.x + d]) atomicAdd(&nearer, totals[q * gridDim.x + d]);
    }
    __syncthreads();
    i64 start = (i64)nearer;
    if (start >= k) return;  // `collect_rows` looks no further than the k-th nearest
    for (i64 first = 0; first < n_slabs; first += n_threads) {
        const i64 slab = first + t;
        const int n = slab < n_slabs ? counts[bin * n_slabs + slab] : 0;
        i64 before = sum_before(n);
        if (lane == WARP - 1) warps[t / WARP] = (int)before + n;
        __syncthreads();
        i64 all = 0;
        for (int warp = 0; warp < n_threads / WARP; warp++) {
            if (warp == t / WARP) before += all;
            all += warps[warp];
        }
        const i64 place = start + before;
        if (slab < n_slabs) {
            counts[bin * n_slabs + slab] = (int)(place < k ? place : k);
            if (n && place < k) hits[q * n_slabs + slab] = 1;
        }
        start += all;
        __syncthreads();
    }
}

// A warp a slab and query. limits (n_queries,) are now exact: the distance of the k-th nearest.
template <int W>
__device__ void collect(
    const u64* queries, i64 n_queries, const u64* codes, i64 n, i64 slab_rows, i64 n_slabs, const int* limits,
    const int* places, const u8* hits, i64 k, int* distances, i64* rows
) {
    constexpr int N_BINS = 64 * W + 1;
    constexpr int N_WARPS = 4;
    __shared__ int next[N_WARPS * N_BINS];
    const int lane = threadIdx.x % WARP;
    int* const mine = next + threadIdx.x / WARP * N_BINS;
    const i64 slab = (i64)blockIdx.x * N_WARPS + threadIdx.x / WARP, q = blockIdx.y;
    if (slab >= n_slabs || !hits[q * n_slabs + slab]) return;
    const int limit = limits[q];
    for (int d = lane; d <= limit; d += WARP) mine[d] = places[(q * N_BINS + d) * n_slabs + slab];
    u64 query[W];
    for (int word = 0; word < W; word++) query[word] = queries[q * W + word];
    __syncwarp();
    const i64 start = slab * slab_rows;
    const i64 stop = start + slab_rows < n ? start + slab_rows : n;
    for (i64 first = start; first < stop; first += WARP) {
        const i64 row = first + lane;
        int d = MAX_BINS;
        if (row < stop) d = distance<W>(codes + row * W, query);
        if (!__any_sync(ALL_LANES, d <= limit)) continue;
        const u32 peers = __match_any_sync(ALL_LANES, d);
        i64 place = k;
        if (d <= limit) place = (i64)mine[d] + __popc(peers & ((1u << lane) - 1));
        if (place < k) {
            distances[q * k + place] = d;
            rows[q * k + place] = row;
        }
        __syncwarp();
        if (d <= limit && lane == 31 - __clz((int)peers)) {
            const i64 after = place + 1;
            mine[d] = (int)(after < k ? after : k);
        }
        __syncwarp();
    }
}

#define HAMMING(W)                                                                                                   \
    extern "C" __global__ void count_distances_##W(                                                                  \
        const u64* queries, i64 n_queries, const u64* codes, i64 n, i64 slab_rows, i64 slab_step, i64 n_slabs,       \
        i64 wide, const int* limits, int* counts, u64* totals                                                        \
    ) {                                                                                                              \
        count<W>(queries, n_queries, codes, n, slab_rows, slab_step, n_slabs, wide, limits, counts, totals);         \
    }                                                                                                                \
    extern "C" __global__ void collect_rows_##W(                                                                     \
        const u64* queries, i64 n_queries, const u64* codes, i64 n, i64 slab_rows, i64 n_slabs, const int* limits,   \
        const int* places, const u8* hits, i64 k, int* distances, i64* rows                                          \
    ) {                                                                                                              \
        collect<W>(queries, n_queries, codes, n, slab_rows, n_slabs, limits, places, hits, k, distances, rows);      \
    }

HAMMING(1)
HAMMING(2)
HAMMING(3)
HAMMING(4)
