// encode_rows: counts of CSR rows to codes and embeddings, one block of threads a row, nothing in between in memory.
#include "arithmetic.cuh"
#include "common.cuh"

constexpr int WINDOW = 2048;  // genes of the hasher whose presence is marked at a time
constexpr int MARKS = WINDOW / 32;
constexpr int ROOM = 512;  // selected values that are kept at a time
constexpr int TABLE = 16;  // logarithms of counts below this are taken once a row
constexpr double EXACT_TOTAL = 9007199254740992.0;  // 2**53

// As `RowFlag` in rows.py.
enum Flag { OK, EMPTY, NEGATIVE, NOT_INTEGER, NOT_FINITE, INDEX_RANGE, INDEX_ORDER };
enum Fault { FAULT_RANGE = 1, FAULT_ORDER = 2, FAULT_NEGATIVE = 4, FAULT_FRACTION = 8 };

// Columns of the file in one of two types: a branch that all threads take alike costs less than twice the kernels.
struct Columns {
    const u16* narrow;  // null where they are wide
    const int* wide;

    __device__ inline int operator[](i64 k) const { return narrow != nullptr ? narrow[k] : wide[k]; }
    __device__ inline Columns from(i64 k) const {
        return {narrow != nullptr ? narrow + k : nullptr, narrow != nullptr ? nullptr : wide + k};
    }
};

struct Layer {
    i64 n_in, n_out;
    i64 weight, bias;  // where they begin in `parameters`; weights are (n_in, n_out)
    i64 activation;
};

struct Rows {
    float value[ROOM];
    u32 weight[ROOM];  // where the weights of the gene begin
    u32 marks[MARKS];
    int before[MARKS + 1];
    float table[TABLE];
    double part[WARP];
    double total;
    u32 faults;
    int flag;
};

// What takes no part in the types of a file is compiled once, as functions.

__device__ __noinline__ float log_normalised(double count, double scale) {
    return (float)log1p_(__dmul_rn(count, scale));
}

// y = bias + x @ weights, inputs ascending.
__device__ inline void add_dense(const Layer& layer, const float* parameters, const float* x, float* y) {
    __syncthreads();
    for (i64 j = threadIdx.x; j < layer.n_out; j += blockDim.x) {
        float sum = parameters[layer.bias + j];
        const float* weight = parameters + layer.weight + j;
#pragma unroll 4
        for (i64 i = 0; i < layer.n_in; i++) sum = __fadd_rn(sum, __fmul_rn(x[i], weight[i * layer.n_out]));
        y[j] = sum;
    }
    __syncthreads();
}

// Everything from the sums of the first layer in `x` on; `y` is room for another layer.
__device__ __noinline__ void finish_row(
    const Layer* layers, i64 n_layers, bool bits_are_signs, const float* parameters, bool good, float* x, float* y,
    u32* code, float* embedding
) {
    const int t = threadIdx.x, n_threads = blockDim.x;
    const i64 n_dims = layers[n_layers].n_in, n_bits = layers[n_layers].n_out;
    const i64 n_halves = 2 * ((n_bits + 63) / 64);  // 32-bit halves of the words of a code
    const i64 n_signs = bits_are_signs && n_dims < n_bits ? n_dims : n_bits;
    // The last step is the bit head, of which no activation is asked.
    for (i64 layer = 0; layer <= n_layers; layer++) {
        if (layer == n_layers) {
            for (i64 j = t; j < n_dims; j += n_threads) embedding[j] = good ? x[j] : 0.0f;
            if (bits_are_signs) break;
        }
        if (!good) continue;
        if (layer > 0) {
            add_dense(layers[layer], parameters, x, y);
            float* const other = x;
            x = y;
            y = other;
        }
        for (i64 j = t; j < layers[layer].n_out; j += n_threads) x[j] = activate(x[j], layers[layer].activation);
    }
    __syncthreads();
    for (i64 half = t / WARP; half < n_halves; half += n_threads / WARP) {
        const i64 bit = half * 32 + t % WARP;
        const u32 word = __ballot_sync(ALL_LANES, good && bit < n_signs && x[bit] > 0.0f);
        if (t % WARP == 0) code[half] = word;
    }
    __syncthreads();
}

// Which of the things that no count can be a value is.
__device__ inline u32 fault_of(u8) { return 0; }
__device__ inline u32 fault_of(u16) { return 0; }
__device__ inline u32 fault_of(float c) { return (c < 0.0f ? FAULT_NEGATIVE : 0) | (c != floorf(c) ? FAULT_FRACTION : 0); }
__device__ inline u32 fault_of(double c) { return (c < 0.0 ? FAULT_NEGATIVE : 0) | (c != floor(c) ? FAULT_FRACTION : 0); }

// Sets the flag and the total of a row. Integers up to 2**53 sum exactly in any order.
template <typename Count>
__device__ void check_row(Rows& s, Columns indices, const Count* data, i64 n, i64 n_file_genes) {
    const int t = threadIdx.x, n_threads = blockDim.x;
    if (t == 0) s.faults = 0;
    __syncthreads();
    u32 faults = 0;
    double total = 0.0;
#pragma unroll 2
    for (i64 k = t; k < n; k += n_threads) {
        const int column = indices[k];
        if (column < 0 || column >= n_file_genes) faults |= FAULT_RANGE;
        if (k > 0 && column <= indices[k - 1]) faults |= FAULT_ORDER;
        faults |= fault_of(data[k]);
        total = __dadd_rn(total, (double)data[k]);
    }
    for (int step = WARP / 2; step > 0; step /= 2) total = __dadd_rn(total, __shfl_down_sync(ALL_LANES, total, step));
    if (t % WARP == 0) s.part[t / WARP] = total;
    if (faults) atomicOr(&s.faults, faults);
    __syncthreads();
    if (t == 0) {
        total = 0.0;
        for (int warp = 0; warp < n_threads / WARP; warp++) total = __dadd_rn(total, s.part[warp]);
        int flag = total > 0.0 ? OK : EMPTY;
        if (s.faults & FAULT_FRACTION) flag = NOT_INTEGER;
        if (s.faults & FAULT_NEGATIVE) flag = NEGATIVE;
        if (!(fabs(total) <= EXACT_TOTAL)) flag = NOT_FINITE;
        if (s.faults & FAULT_ORDER) flag = INDEX_ORDER;
        if (s.faults & FAULT_RANGE) flag = INDEX_RANGE;
        s.flag = flag;
        s.total = flag == OK ? total : 0.0;
    }
    __syncthreads();
}

// x[j] += the first m values kept times the weights of column j.
__device__ __noinline__ void add_values(const Rows& s, int m, const float* weights, i64 n_out, float* x) {
    for (i64 j = threadIdx.x; j < n_out; j += blockDim.x) {
        float sum = x[j];
#pragma unroll 4
        for (int i = 0; i < m; i++) sum = __fadd_rn(sum, __fmul_rn(s.value[i], weights[s.weight[i] + j]));
        x[j] = sum;
    }
}

// The place in `s.marks` of a stored value if it belongs to the window, else -1.
template <typename Count>
__device__ inline int place_of(int column, Count count, const int* gene_map, i64 window) {
    if (!(count > (Count)0)) return -1;  // stored zeros are as if not stored
    const i64 place = (i64)gene_map[column] - window;
    return place >= 0 && place < WINDOW ? (int)place : -1;
}

// x[j] += values * weights of column j, in ascending order of the hasher's genes whatever their order in the file: the
// rank of a gene is the number of marked genes before it. Every x[j] is touched by one thread only.
template <typename Count>
__device__ void add_selected(
    Rows& s, Columns indices, const Count* data, i64 n, const int* gene_map, i64 n_genes, const float* cap,
    double target_sum, const float* weights, i64 n_out, float* x
) {
    const int t = threadIdx.x, n_threads = blockDim.x;
    const double scale = __ddiv_rn(target_sum, s.total);
    if (t < TABLE) s.table[t] = log_normalised((double)t, scale);
    for (i64 window = 0; window < n_genes; window += WINDOW) {
        for (int i = t; i < MARKS; i += n_threads) s.marks[i] = 0;
        __syncthreads();
#pragma unroll 2
        for (i64 k = t; k < n; k += n_threads) {
            const int place = place_of(indices[k], data[k], gene_map, window);
            if (place >= 0) atomicOr(&s.marks[place / 32], 1u << (place % 32));
        }
        __syncthreads();
        if (t < WARP) {  // two words a lane
            const int left = __popc(s.marks[2 * t]), right = __popc(s.marks[2 * t + 1]);
            const int sum = sum_before(left + right);
            s.before[2 * t] = sum;
            s.before[2 * t + 1] = sum + left;
            if (t == WARP - 1) s.before[MARKS] = sum + left + right;
        }
        __syncthreads();
        for (int first = 0; first < s.before[MARKS]; first += ROOM) {
#pragma unroll 2
            for (i64 k = t; k < n; k += n_threads) {
                const int place = place_of(indices[k], data[k], gene_map, window);
                if (place < 0) continue;
                const u32 lower = (1u << (place % 32)) - 1;
                const int rank = s.before[place / 32] + __popc(s.marks[place / 32] & lower) - first;
                if (rank < 0 || rank >= ROOM) continue;
                const i64 gene = window + place;
                const Count count = data[k];
                const float y = count < (Count)TABLE ? s.table[(int)count] : log_normalised((double)count, scale);
                s.value[rank] = y < cap[gene] ? y : cap[gene];
                s.weight[rank] = (u32)(gene * n_out);
            }
            __syncthreads();
            const int m = s.before[MARKS] - first < ROOM ? s.before[MARKS] - first : ROOM;
            add_values(s, m, weights, n_out, x);
            __syncthreads();
        }
        __syncthreads();
    }
}

// `layers` holds the n_layers layers and then the bit head, which is skipped where the bits are the signs themselves.
// `scratch` holds two rows of `width` floats a block, or is null where these fit into shared memory.
template <typename Count>
__device__ void encode(
    const i64* indptr, Columns indices, const Count* data, i64 n_rows, const int* gene_map, i64 n_file_genes,
    const float* cap, double target_sum, const Layer* layers, i64 n_layers, i64 bits_are_signs, const float* parameters,
    float* scratch, i64 width, u32* codes, float* embedding, double* totals, u8* flags
) {
    extern __shared__ float dynamic[];
    __shared__ Rows s;
    float* const room = scratch == nullptr ? dynamic : scratch + 2 * width * blockIdx.x;
    const int t = threadIdx.x;
    const i64 n_dims = layers[n_layers].n_in, n_halves = 2 * ((layers[n_layers].n_out + 63) / 64);
    for (i64 row = blockIdx.x; row < n_rows; row += gridDim.x) {
        const i64 start = indptr[row], n = indptr[row + 1] - start;
        check_row(s, indices.from(start), data + start, n, n_file_genes);
        if (t == 0) {
            totals[row] = s.total;
            flags[row] = (u8)s.flag;
        }
        const int flag = s.flag;
        for (i64 j = t; j < layers[0].n_out; j += blockDim.x) room[j] = parameters[layers[0].bias + j];
        if (flag == OK) {
            add_selected(
                s, indices.from(start), data + start, n, gene_map, layers[0].n_in, cap, target_sum,
                parameters + layers[0].weight, layers[0].n_out, room
            );
        }
        finish_row(
            layers, n_layers, bits_are_signs != 0, parameters, flag < NEGATIVE, room, room + width,
            codes + row * n_halves, embedding + row * n_dims
        );
    }
}

#define ENCODE(name, Count)                                                                                          \
    extern "C" __global__ void name(                                                                                 \
        const i64* indptr, const u16* narrow, const int* wide, const Count* data, i64 n_rows, const int* gene_map,   \
        i64 n_file_genes, const float* cap, double target_sum, const Layer* layers, i64 n_layers,                    \
        i64 bits_are_signs, const float* parameters, float* scratch, i64 width, u32* codes, float* embedding,        \
        double* totals, u8* flags                                                                                    \
    ) {                                                                                                              \
        encode(                                                                                                      \
            indptr, Columns{narrow, wide}, data, n_rows, gene_map, n_file_genes, cap, target_sum, layers, n_layers,  \
            bits_are_signs, parameters, scratch, width, codes, embedding, totals, flags                              \
        );                                                                                                           \
    }

ENCODE(encode_rows_uint8, u8)
ENCODE(encode_rows_uint16, u16)
ENCODE(encode_rows_float32, float)
ENCODE(encode_rows_float64, double)
