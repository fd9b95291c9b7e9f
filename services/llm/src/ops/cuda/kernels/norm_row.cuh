// The norm of one row by a block of 256 threads, for the kernel that does only that and for products that begin with it. Needs
// vector.cuh before it.

#ifndef D
#define D 2048  // Width of a row, a multiple of 8, at most 16384.
#endif
#ifndef ADD
#define ADD 1  // 1: delta is added first; 0: there is no delta.
#endif
#ifndef AFTER
#define AFTER 0  // 1: delta is normed by a weight of its own before it is added, as Gemma 3 does.
#endif

// The sum over the block's 256 threads, in a fixed order; the same in every thread.
__device__ __forceinline__ float block_sum(float value, float* parts) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum += parts[i];
    return sum;
}

__device__ __forceinline__ void load(const float* from, int vector, float* v) {
    const float4 a = __ldg(reinterpret_cast<const float4*>(from) + 2 * vector);
    const float4 b = __ldg(reinterpret_cast<const float4*>(from) + 2 * vector + 1);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ __forceinline__ float squares_of(const uint4& vector, float sum) {
    float v[8];
    unpack(vector, v);
#pragma unroll
    for (int j = 0; j < 8; j++) sum = fmaf(v[j], v[j], sum);
    return sum;
}

// Waits for the launch before, then computes s = x (+ delta), which goes to `sum` unless that is null, and emits
// s / sqrt(mean(s²) + eps) · weight (Zhang & Sennrich 2019), vector by vector, each in the thread that holds it. The mean is that of s as
// it is stored. x, delta, sum: a row of bf16 [D], where sum may be x; weight, after: f32 [D]. Every thread of the block calls it.
template <class Emit>
__device__ __forceinline__ void norm_row(const uint4* x, const uint4* delta, const float* __restrict__ weight, const float* __restrict__ after,
                                         float eps, uint4* sum, const Emit& emit) {
    constexpr int W = D / 8, VECTORS = (W + 255) / 256;
    // Weights that have room wait in registers: no launch writes them.
    constexpr bool EARLY = VECTORS <= 2;
    __shared__ float parts[2][8];
    float weights[EARLY ? VECTORS : 1][8];
    if constexpr (EARLY) {
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
            if (k * 256 + threadIdx.x < W) load(weight, k * 256 + threadIdx.x, weights[k]);
    }
    wait_for_previous();
    uint4 held[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = k * 256 + threadIdx.x;
        if (at < W) held[k] = x[at];
    }
#if ADD
    uint4 added[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = k * 256 + threadIdx.x;
        if (at < W) added[k] = delta[at];
    }
#if AFTER
    float squares_of_delta = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (k * 256 + threadIdx.x < W) squares_of_delta = squares_of(added[k], squares_of_delta);
    const float scale = rsqrtf(block_sum(squares_of_delta, parts[1]) / D + eps);
#endif
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = k * 256 + threadIdx.x;
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
            if (sum != nullptr) sum[at] = held[k];
        }
    }
#endif
    float squares = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; k++)
        if (k * 256 + threadIdx.x < W) squares = squares_of(held[k], squares);
    const float inverse = rsqrtf(block_sum(squares, parts[0]) / D + eps);
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int at = k * 256 + threadIdx.x;
        if (at < W) {
            float v[8], w[8];
            unpack(held[k], v);
            if constexpr (!EARLY) load(weight, at, w);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] *= inverse * (EARLY ? weights[EARLY ? k : 0][j] : w[j]);
            emit(at, pack(v));
        }
    }
}
