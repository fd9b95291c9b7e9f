// What is read from rows of logits: cross-entropy with its gradient. Rows of any width: where a
// row does not begin at a multiple of 16 bytes, its first and last values are taken one by one ("edges"), the rest as
// vectors of eight. Needs vector.cuh before it.

// Of cross_entropy's block.
#ifndef THREADS
#define THREADS 1024
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
