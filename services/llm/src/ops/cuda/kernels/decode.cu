// What lies between the products of a decoding step: embeddings, the norms with the residual's sum, the adapters' pool, and the
// greedy choice. Needs vector.cuh and norm_row.cuh before it.

#define SHARED_BYTES 0

constexpr int BLOCK = 256;

struct EmbedP {
    u64 rows, width;
    double scale;
};

// x[r] = scale · table[ids[r]], the first launch of a step. table: bf16 [vocabulary, width], width a multiple of 8; ids: int32 [rows];
// x: bf16 [rows, width]. Block 256, grid rows.
extern "C" __global__ void __launch_bounds__(BLOCK)
embed(const bf16* __restrict__ table, const int* ids, bf16* __restrict__ x, const __grid_constant__ EmbedP p) {
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

struct NormP {
    u64 rows;
    double eps;
};

// x += delta; y = x / sqrt(mean(x²) + eps) · weight, row by row, as norm_row has it. delta, x, y: bf16 [rows, D]; weights: f32 [D].
// Block 256, grid rows. Arguments: [ADD: delta], weight, [AFTER: after], x (in place with ADD), y.
extern "C" __global__ void __launch_bounds__(BLOCK)
norm_add(
#if ADD
    const bf16* delta,
#endif
    const float* __restrict__ weight,
#if AFTER
    const float* __restrict__ after,
#endif
    bf16* x, bf16* __restrict__ y, const __grid_constant__ NormP p) {
#if !ADD
    const bf16* delta = nullptr;
#endif
#if !AFTER
    const float* after = nullptr;
#endif
    const u64 row = (u64)blockIdx.x * (D / 8);
    uint4* stream = reinterpret_cast<uint4*>(x) + row;
    uint4* to = reinterpret_cast<uint4*>(y) + row;
    let_next_begin();
    norm_row(stream, reinterpret_cast<const uint4*>(delta) + row, weight, after, (float)p.eps, stream,
             [&](int at, const uint4& vector) { to[at] = vector; });
}

struct StoreP {
    u64 rows, width, room, at;
};

// Rows of x in a pool, with zeros up to the room of a row: pool[at + r·room + i] = i < width ? x[r·width + i] : 0 for i < room, r < rows.
// x: f32; pool: bf16. Block 256, grid ceil(rows · room / 256).
extern "C" __global__ void __launch_bounds__(BLOCK)
store_factor(const float* x, bf16* pool, const __grid_constant__ StoreP p) {
    wait_for_previous();
    const u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x, row = i / p.room, column = i % p.room;
    if (row < p.rows) pool[p.at + i] = __float2bfloat16_rn(column < p.width ? x[row * p.width + column] : 0.0f);
}

// A maximum and where it is first.
struct alignas(8) Best {
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
__device__ __forceinline__ Best nowhere() { return {__uint_as_float(0xff800000u), NOWHERE}; }

struct ArgmaxP {
    u64 rows, width, parts, number_at;
};

// Index of each row's maximum, the lowest of equal ones, int32 [rows]; 0 where all are NaN. The last launch of a step: where the step's
// inputs (ops/step_words.rs) ask for it, they become those of the next. logits: bf16 [rows, width]; best_of_part: value f32 and index
// int32 [rows, parts]; arrived: u32 [rows], zero before the first launch and again after each. Each block looks through a part, and a
// row's last one through the parts'. Block 256, grid (parts, rows).
extern "C" __global__ void __launch_bounds__(BLOCK)
argmax(const bf16* logits, Best* best_of_part, unsigned* arrived, int* __restrict__ out, int* packed, const __grid_constant__ ArgmaxP p) {
    __shared__ Best warps[BLOCK / 32];
    let_next_begin();
    wait_for_previous();
    const bf16* row = logits + (u64)blockIdx.y * p.width;
    Best best = nowhere();
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
    best = threadIdx.x < BLOCK / 32 ? warps[threadIdx.x] : nowhere();
    best.merge();
    const u64 row_of_all = blockIdx.y;
    Best* parts = best_of_part + row_of_all * p.parts;
    bool last = false;
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = best;
        __threadfence();
        last = atomicAdd(arrived + row_of_all, 1u) == p.parts - 1;
        __threadfence();
    }
    if (!__shfl_sync(~0u, last, 0)) return;
    best = nowhere();
    for (u64 i = threadIdx.x; i < p.parts; i += 32) {
        const float2 part = __ldcg(reinterpret_cast<const float2*>(parts) + i);
        best.take(part.x, __float_as_int(part.y));
    }
    best.merge();
    if (threadIdx.x > 0) return;
    arrived[row_of_all] = 0;
    const int chosen = best.index == NOWHERE ? 0 : best.index;
    out[row_of_all] = chosen;
    if (packed[p.number_at + 1] == 0) return;
    int *id = packed + row_of_all, *length = id + p.rows;
    if (*length > 0) *id = chosen, ++*length;
    if (row_of_all == 0) ++packed[p.number_at];
}
