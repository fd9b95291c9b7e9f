// What is read from rows of logits: cross-entropy with its gradient, and the greedy choice. Rows of any width: where a
// row does not begin at a multiple of 16 bytes, its first and last values are taken one by one ("edges"), the rest as
// vectors of eight. Needs vector.cuh before it.

// Of cross_entropy's block, and of the argmax kernels' block.
#ifndef THREADS
#define THREADS 1024
#endif
#ifndef ARGMAX_THREADS
#define ARGMAX_THREADS 256
#endif
// Bytes of a row that cross_entropy keeps between its passes, a multiple of 16: ideally min(2 · width rounded up to 16,
// what a block may have: 225,280 on sm_90, 163,840 on sm_80, 98,304 on sm_86 and sm_89). The rest is read again from
// L2.
#ifndef CACHED_BYTES
#define CACHED_BYTES 98304
#endif
// 0: cross_entropy leaves the logits as they are, for evaluation.
#ifndef GRADIENT
#define GRADIENT 1
#endif
#define SHARED_BYTES (GRADIENT ? CACHED_BYTES : 0)

constexpr float LOG2_E = 1.4426950408889634f;
// Below every logit that counts, and finite, so that differences of empty maxima are no NaN.
constexpr float LOWEST = -1e38f;
constexpr int BATCH = 4;

struct RowsP {
    u64 rows, width;
};

struct PartsP {
    u64 rows, width, parts;
};

// A row's vectors, and the edges: at most seven values before them, seven after.
struct Row {
    bf16* values;
    unsigned width, head, vectors;

    __device__ __forceinline__ Row(bf16* start, u64 size) : values(start), width((unsigned)size) {
        const unsigned skip = (unsigned)((16 - (reinterpret_cast<u64>(start) & 15)) & 15) / 2;
        head = skip < width ? skip : width;
        vectors = (width - head) / 8;
    }
    __device__ __forceinline__ uint4* body() const { return reinterpret_cast<uint4*>(values + head); }
    // Index of edge `t` of 16 or, where there is none, the width.
    __device__ __forceinline__ unsigned edge(unsigned t) const {
        const unsigned after = head + 8 * vectors + (t - 8);
        return t < 8 ? (t < head ? t : width) : (after < width ? after : width);
    }
};

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Maximum, and the sum of exponentials relative to it (Milakov & Gimelshein 2018).
struct Softmax {
    float top, sum;

    __device__ __forceinline__ void raise(float to) {
        to = fmaxf(to, top);
        sum *= exp2_approx((top - to) * LOG2_E);
        top = to;
    }
    __device__ __forceinline__ void add(float x) { sum += exp2_approx(x * LOG2_E - top * LOG2_E); }
    // Of all lanes of the warp, the same in each.
    __device__ __forceinline__ void merge() {
        float to = top;
#pragma unroll
        for (int step = 16; step > 0; step /= 2) to = fmaxf(to, __shfl_xor_sync(~0u, to, step));
        raise(to);
#pragma unroll
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    }
};

// For row r with target t: loss = ln Σ exp(x) − x_t; correct = x_t is the maximum (of equal maxima each counts); and
// the logits become weight · (softmax(x) − onehot(t)). logits: bf16 [rows, width], width at most 2^31; targets: int32
// [rows], a negative one is ignored: loss, correct and gradient 0; weights, loss: f32 [rows]; correct: int32 [rows].
// Block THREADS, grid rows, shared SHARED_BYTES.
extern "C" __global__ void __launch_bounds__(THREADS)
cross_entropy(const int* targets, const float* weights, bf16* logits, float* loss, int* correct,
              const __grid_constant__ RowsP p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    __shared__ Softmax warps[32];
    uint4* cache = reinterpret_cast<uint4*>(shared);
    constexpr unsigned CACHED = CACHED_BYTES / 16;
    const unsigned thread = threadIdx.x;
    const u64 index = blockIdx.x;
    const Row row(logits + index * p.width, p.width);
    uint4* body = row.body();
    const unsigned edge = thread < 16 ? row.edge(thread) : row.width;
    const int target = targets[index];
    if (target < 0) {
        if (thread == 0) loss[index] = 0.0f, correct[index] = 0;
#if GRADIENT
        for (unsigned i = thread; i < row.vectors; i += THREADS) body[i] = make_uint4(0, 0, 0, 0);
        if (edge < row.width) row.values[edge] = __float2bfloat16_rn(0.0f);
#endif
        return;
    }

    Softmax own = {LOWEST, 0.0f};
    float at_edge = 0.0f;
    if (edge < row.width) {
        at_edge = __bfloat162float(row.values[edge]);
        own.raise(at_edge);
        own.add(at_edge);
    }
    for (unsigned start = thread; start < row.vectors; start += BATCH * THREADS) {
        uint4 words[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const unsigned i = start + k * THREADS;
            // Minus infinity.
            words[k] = make_uint4(0xff80ff80u, 0xff80ff80u, 0xff80ff80u, 0xff80ff80u);
            if (i < row.vectors) words[k] = body[i];
        }
        float top = LOWEST;
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const unsigned i = start + k * THREADS;
            if (GRADIENT && i < row.vectors && i < CACHED) cache[i] = words[k];
            float v[8];
            unpack(words[k], v);
#pragma unroll
            for (int j = 0; j < 8; j++) top = fmaxf(top, v[j]);
        }
        own.raise(top);
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            if (start + k * THREADS < row.vectors) {
                float v[8];
                unpack(words[k], v);
#pragma unroll
                for (int j = 0; j < 8; j++) own.add(v[j]);
            }
        }
    }
    own.merge();
    if (thread % 32 == 0) warps[thread / 32] = own;
    const float at_target = __bfloat162float(row.values[target]);
    __syncthreads();
    Softmax all = {LOWEST, 0.0f};
    if (thread % 32 < THREADS / 32) all = warps[thread % 32];
    all.merge();
    if (thread == 0) {
        loss[index] = all.top - at_target + logf(all.sum);
        correct[index] = at_target >= all.top;
    }

#if GRADIENT
    const float weight = weights[index], shift = all.top * LOG2_E + log2f(all.sum);
    for (unsigned start = thread; start < row.vectors; start += BATCH * THREADS) {
        uint4 words[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const unsigned i = start + k * THREADS;
            words[k] = make_uint4(0, 0, 0, 0);
            if (i < row.vectors) words[k] = i < CACHED ? cache[i] : body[i];
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            const unsigned i = start + k * THREADS;
            if (i < row.vectors) {
                float v[8];
                unpack(words[k], v);
#pragma unroll
                for (int j = 0; j < 8; j++) v[j] = weight * exp2_approx(v[j] * LOG2_E - shift);
                body[i] = pack(v);
            }
        }
    }
    if (edge < row.width) row.values[edge] = __float2bfloat16_rn(weight * exp2_approx(at_edge * LOG2_E - shift));
    // The target's own value comes last, over what its vector's thread wrote.
    __syncthreads();
    if (thread == 0) {
        const float p_target = exp2_approx(at_target * LOG2_E - shift);
        row.values[target] = __float2bfloat16_rn(weight * (p_target - 1.0f));
    }
#endif
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

// Best of the vectors `from` to `to` of a row, and of its edges if asked for; the same in every thread of warp 0.
__device__ __forceinline__ Best best_of(const Row& row, unsigned from, unsigned to, bool edges) {
    __shared__ Best warps[ARGMAX_THREADS / 32];
    const unsigned thread = threadIdx.x;
    Best best = nothing();
    if (edges && thread < 16) {
        const unsigned edge = row.edge(thread);
        if (edge < row.width) best.take(__bfloat162float(row.values[edge]), (int)edge);
    }
#pragma unroll 4
    for (unsigned i = from + thread; i < to; i += ARGMAX_THREADS) {
        float v[8];
        unpack(row.body()[i], v);
#pragma unroll
        for (int j = 0; j < 8; j++) best.take(v[j], (int)(row.head + 8 * i + j));
    }
    best.merge();
    if (thread % 32 == 0) warps[thread / 32] = best;
    __syncthreads();
    best = thread % 32 < ARGMAX_THREADS / 32 ? warps[thread % 32] : nothing();
    best.merge();
    return best;
}

// Index of each row's maximum, the lowest of equal ones. logits: bf16 [rows, width]; out: int32 [rows]. Block
// ARGMAX_THREADS, grid rows. For few rows use the two kernels below.
extern "C" __global__ void __launch_bounds__(ARGMAX_THREADS)
argmax_rows(const bf16* logits, int* out, const __grid_constant__ RowsP p) {
    const Row row(const_cast<bf16*>(logits) + blockIdx.x * p.width, p.width);
    const Best best = best_of(row, 0, row.vectors, true);
    if (threadIdx.x == 0) out[blockIdx.x] = best.index == NOWHERE ? 0 : best.index;
}

// The same of a part of each row: 8 bytes (value f32, index int32) [rows, parts]. Block ARGMAX_THREADS, grid (parts,
// rows).
extern "C" __global__ void __launch_bounds__(ARGMAX_THREADS)
argmax_parts(const bf16* logits, Best* best_of_part, const __grid_constant__ PartsP p) {
    const Row row(const_cast<bf16*>(logits) + blockIdx.y * p.width, p.width);
    const unsigned size = (row.vectors + (unsigned)p.parts - 1) / (unsigned)p.parts;
    const unsigned from = blockIdx.x * size, end = from + size;
    const Best best = best_of(row, from, end < row.vectors ? end : row.vectors, blockIdx.x == 0);
    if (threadIdx.x == 0) best_of_part[blockIdx.y * p.parts + blockIdx.x] = best;
}

// And the best of the parts: out int32 [rows]. Block 32, grid rows.
extern "C" __global__ void __launch_bounds__(32)
argmax_merge(const Best* best_of_part, int* out, const __grid_constant__ PartsP p) {
    Best best = nothing();
    for (u64 i = threadIdx.x; i < p.parts; i += 32) {
        const Best other = best_of_part[blockIdx.x * p.parts + i];
        best.take(other.value, other.index);
    }
    best.merge();
    if (threadIdx.x == 0) out[blockIdx.x] = best.index == NOWHERE ? 0 : best.index;
}
