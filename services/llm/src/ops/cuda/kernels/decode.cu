// What lies between the products of a decoding step: its inputs, embeddings, the norms with the residual's sum, the adapters'
// pool, and the greedy choice. Needs vector.cuh before it.

#ifndef D
#define D 2048  // Width of norm_add's rows, a multiple of 8, at most 16384.
#endif
#ifndef ADD
#define ADD 1  // 1: x += delta first; 0: there is no delta.
#endif
#ifndef AFTER
#define AFTER 0  // 1: delta is normed by a weight of its own before it is added, as Gemma 3 does.
#endif
#define SHARED_BYTES 0

constexpr int PAGE = 16;
constexpr int BLOCK = 256;

struct InputsP {
    u64 rows, pages, launches;
};

// Takes a step's inputs apart. packed i32 [rows] five times (ids; tokens that a row sees, itself included, 0 for a row that only
// fills the batch up; slot of the adapter, or -1; its rank; its scale, the bits of an f32: the last three are read where they are),
// then [rows, pages]: pages of each sequence. Gives i32 [rows] ids, lengths, positions, sequences and slots (where a row's keys and
// values go; -1: nowhere), and tables. Sets ready u32 [launches] to 0, where the products of the step count what of their adapters
// is done. Block 256, grid ceil(max(rows · pages, launches) / 256); pages >= 1.
extern "C" __global__ void __launch_bounds__(BLOCK)
decode_inputs(const int* packed, int* ids, int* lengths, int* positions, int* slots, int* sequences, int* tables,
              unsigned* ready, const __grid_constant__ InputsP p) {
    let_next_begin();
    wait_for_previous();
    const u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x;
    const int* pages = packed + 5 * p.rows;
    if (i < p.launches) ready[i] = 0;
    if (i < p.rows * p.pages) tables[i] = pages[i];
    if (i >= p.rows) return;
    const int length = packed[p.rows + i], last = length > 0 ? length - 1 : 0;
    ids[i] = packed[i];
    lengths[i] = length;
    positions[i] = last;
    slots[i] = length > 0 ? pages[i * p.pages + last / PAGE] * PAGE + last % PAGE : -1;
    sequences[i] = (int)i;
}

struct EmbedP {
    u64 rows, width;
    double scale;
};

// x[r] = scale · table[ids[r]]. table: bf16 [vocabulary, width], width a multiple of 8; ids: int32 [rows]; x: bf16
// [rows, width]. Block 256, grid rows.
extern "C" __global__ void __launch_bounds__(BLOCK)
embed(const bf16* __restrict__ table, const int* __restrict__ ids, bf16* __restrict__ x, const __grid_constant__ EmbedP p) {
    let_next_begin();
    wait_for_previous();
    const u64 row = blockIdx.x, vectors = p.width / 8;
    const uint4* from = reinterpret_cast<const uint4*>(table) + (u64)ids[row] * vectors;
    uint4* to = reinterpret_cast<uint4*>(x) + row * vectors;
    const float scale = (float)p.scale;
    for (u64 i = threadIdx.x; i < vectors; i += BLOCK) {
        float v[8];
        unpack(from[i], v);
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] *= scale;
        to[i] = pack(v);
    }
}

// The sum over the block's threads, in a fixed order; the same in every thread.
__device__ __forceinline__ float block_sum(float value, float* parts) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < BLOCK / 32; i++) sum += parts[i];
    return sum;
}

__device__ __forceinline__ void load(const float* from, int vector, float* v) {
    const float4 a = __ldg(reinterpret_cast<const float4*>(from) + 2 * vector);
    const float4 b = __ldg(reinterpret_cast<const float4*>(from) + 2 * vector + 1);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

struct NormP {
    u64 rows;
    double eps;
};

// x += delta; y = x / sqrt(mean(x²) + eps) · weight, row by row (Zhang & Sennrich 2019). delta, x, y: bf16 [rows, D]; weights: f32
// [D]. The mean is that of x as it is stored. Block 256, grid rows. Arguments: [ADD: delta], weight, [AFTER: after], x (in
// place with ADD), y.
extern "C" __global__ void __launch_bounds__(BLOCK)
norm_add(
#if ADD
    const bf16* __restrict__ delta,
#endif
    const float* __restrict__ weight,
#if AFTER
    const float* __restrict__ after,
#endif
    bf16* __restrict__ x, bf16* __restrict__ y, const __grid_constant__ NormP p) {
    constexpr int W = D / 8, VECTORS = (W + BLOCK - 1) / BLOCK;
    __shared__ float parts[2][BLOCK / 32];
    const u64 row = (u64)blockIdx.x * W;
    const float eps = (float)p.eps;
    let_next_begin();
    wait_for_previous();
    uint4 held[VECTORS];
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = k * BLOCK + threadIdx.x;
        if (at < W) held[k] = reinterpret_cast<const uint4*>(x)[row + at];
    }
#if ADD
    uint4 added[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = k * BLOCK + threadIdx.x;
        if (at < W) added[k] = reinterpret_cast<const uint4*>(delta)[row + at];
    }
#if AFTER
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        if (k * BLOCK + threadIdx.x < W) {
            float v[8];
            unpack(added[k], v);
#pragma unroll
            for (int j = 0; j < 8; j++) sum = fmaf(v[j], v[j], sum);
        }
    }
    const float scale = rsqrtf(block_sum(sum, parts[1]) / D + eps);
#endif
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = k * BLOCK + threadIdx.x;
        if (at < W) {
            float v[8], d[8];
            unpack(held[k], v);
            unpack(added[k], d);
#if AFTER
            float w[8];
            load(after, at, w);
#pragma unroll
            for (int j = 0; j < 8; j++) d[j] *= scale * w[j];
#endif
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] += d[j];
            held[k] = pack(v);
            reinterpret_cast<uint4*>(x)[row + at] = held[k];
        }
    }
#endif
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        if (k * BLOCK + threadIdx.x < W) {
            float v[8];
            unpack(held[k], v);
#pragma unroll
            for (int j = 0; j < 8; j++) squares = fmaf(v[j], v[j], squares);
        }
    }
    const float inverse = rsqrtf(block_sum(squares, parts[0]) / D + eps);
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = k * BLOCK + threadIdx.x;
        if (at < W) {
            float v[8], w[8];
            unpack(held[k], v);
            load(weight, at, w);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] *= inverse * w[j];
            reinterpret_cast<uint4*>(y)[row + at] = pack(v);
        }
    }
}

struct StoreP {
    u64 count, at, there;
};

// pool[at + i] = x[i] for i < count, or zeros if the adapter has no such factor (there = 0). x: f32; pool: bf16. Block 256, grid
// ceil(count / 256).
extern "C" __global__ void __launch_bounds__(BLOCK)
store_factor(const float* x, bf16* pool, const __grid_constant__ StoreP p) {
    const u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x;
    if (i < p.count) pool[p.at + i] = __float2bfloat16_rn(p.there ? x[i] : 0.0f);
}

// A maximum and where it is first.
struct Best {
    float value;
    int index;

    __device__ __forceinline__ void take(float v, int i) {
        if (v > value || (v == value && i < index)) value = v, index = i;
    }
    __device__ __forceinline__ void merge() {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const float v = __shfl_xor_sync(~0u, value, step);
            const int i = __shfl_xor_sync(~0u, index, step);
            take(v, i);
        }
    }
};

constexpr int NOWHERE = 0x7fffffff;
__device__ __forceinline__ Best nothing() { return {__uint_as_float(0xff800000u), NOWHERE}; }

struct ArgmaxP {
    u64 rows, width, parts;
};

// Maximum of a part of each row of logits bf16 [rows, width] (value f32, index int32) [rows, parts]. Block 256, grid (parts, rows).
extern "C" __global__ void __launch_bounds__(BLOCK)
argmax_parts(const bf16* __restrict__ logits, Best* __restrict__ best_of_part, const __grid_constant__ ArgmaxP p) {
    __shared__ Best warps[BLOCK / 32];
    let_next_begin();
    wait_for_previous();
    const bf16* row = logits + (u64)blockIdx.y * p.width;
    Best best = nothing();
    if (p.width % 8 == 0) {
        const u64 vectors = p.width / 8, size = (vectors + p.parts - 1) / p.parts;
        const u64 from = blockIdx.x * size, end = from + size < vectors ? from + size : vectors;
#pragma unroll 4
        for (u64 i = from + threadIdx.x; i < end; i += BLOCK) {
            float v[8];
            unpack(reinterpret_cast<const uint4*>(row)[i], v);
#pragma unroll
            for (int j = 0; j < 8; j++) best.take(v[j], (int)(8 * i + j));
        }
    } else {
        const u64 size = (p.width + p.parts - 1) / p.parts;
        const u64 from = blockIdx.x * size, end = from + size < p.width ? from + size : p.width;
        for (u64 i = from + threadIdx.x; i < end; i += BLOCK) best.take(__bfloat162float(row[i]), (int)i);
    }
    best.merge();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    best = threadIdx.x < BLOCK / 32 ? warps[threadIdx.x] : nothing();
    best.merge();
    if (threadIdx.x == 0) best_of_part[blockIdx.y * p.parts + blockIdx.x] = best;
}

// Index of each row's maximum, the lowest of equal ones, from those of its parts: int32 [rows]; 0 where all are NaN. Block 32, grid
// rows.
extern "C" __global__ void __launch_bounds__(32)
argmax_merge(const Best* __restrict__ best_of_part, int* __restrict__ out, const __grid_constant__ ArgmaxP p) {
    Best best = nothing();
    wait_for_previous();
    for (u64 i = threadIdx.x; i < p.parts; i += 32) {
        const Best other = best_of_part[blockIdx.x * p.parts + i];
        best.take(other.value, other.index);
    }
    best.merge();
    if (threadIdx.x == 0) out[blockIdx.x] = best.index == NOWHERE ? 0 : best.index;
}
