// AdamW (Loshchilov & Hutter 2019) with clipping by the global norm, on one flat buffer. The norm never leaves the
// device: square_sums writes a partial sum a block, and every block of adamw adds them in the same order.
#include <cuda_bf16.h>

typedef __nv_bfloat16 bf16;
typedef unsigned long long u64;

#define SHARED_BYTES 0

constexpr int BLOCK = 256;

struct CountP {
    u64 count;
};

struct AdamWP {
    u64 count, partials;
    // Largest norm, 0: no clipping; keep = 1 − rate · weight_decay; size = rate / (1 − beta1^t);
    // root = 1 / sqrt(1 − beta2^t).
    double max_norm, beta1, beta2, eps, keep, size, root;
};

// Sum over the block in a fixed order, given to every thread. Once a kernel.
__device__ __forceinline__ float block_sum(float v) {
    __shared__ float warps[BLOCK / 32];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
#pragma unroll
    for (int i = 0; i < BLOCK / 32; i++) v += warps[i];
    return v;
}

// partials[b] = Σ g² of block b's share. gradients: f32 [count]; partials: f32 [grid]. Block 256, grid
// min(1024, max(1, ceil(count / 4096))): it decides the order of the sum, so it must follow from the count alone.
extern "C" __global__ void __launch_bounds__(BLOCK)
square_sums(const float* gradients, float* partials, const __grid_constant__ CountP p) {
    const u64 vectors = p.count / 4, stride = (u64)gridDim.x * BLOCK;
    float sum = 0.0f;
#pragma unroll 4
    for (u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x; i < vectors; i += stride) {
        const float4 g = reinterpret_cast<const float4*>(gradients)[i];
        sum += (g.x * g.x + g.y * g.y) + (g.z * g.z + g.w * g.w);
    }
    if (blockIdx.x == 0 && threadIdx.x < p.count % 4) {
        const float g = gradients[4 * vectors + threadIdx.x];
        sum += g * g;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

struct Step {
    float clip, beta1, rest1, beta2, rest2, eps, keep, size, root;

    __device__ __forceinline__ void operator()(float& x, float g, float& m, float& v) const {
        g *= clip;
        m = m * beta1 + g * rest1;
        v = v * beta2 + g * g * rest2;
        x = x * keep - size * m / (sqrtf(v) * root + eps);
    }
};

// With norm = sqrt(Σ partials) and g = gradient · min(1, max_norm / (norm + 1e-6)):
//   m = β1 m + (1 − β1) g,  v = β2 v + (1 − β2) g²,  x = keep · x − size · m / (sqrt(v) · root + eps)
// gradients, parameters, first (m), second (v): f32 [count]; partials: f32 [P.partials]; norm: f32 [1], before clipping. Block 256, grid min(2048, max(1, ceil(count /
// 1024))).
extern "C" __global__ void __launch_bounds__(BLOCK)
adamw(const float* gradients, const float* partials, float* parameters, float* first, float* second, float* norm,
      const __grid_constant__ AdamWP p) {
    float squares = 0.0f;
    for (u64 i = threadIdx.x; i < p.partials; i += BLOCK) squares += partials[i];
    const float length = sqrtf(block_sum(squares));
    if (blockIdx.x == 0 && threadIdx.x == 0) *norm = length;
    const float most = (float)p.max_norm;
    const Step step = {most > 0.0f ? fminf(most / (length + 1e-6f), 1.0f) : 1.0f,
                       (float)p.beta1, (float)(1.0 - p.beta1), (float)p.beta2, (float)(1.0 - p.beta2),
                       (float)p.eps, (float)p.keep, (float)p.size, (float)p.root};
    const u64 vectors = p.count / 4, stride = (u64)gridDim.x * BLOCK;
    for (u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x; i < vectors; i += stride) {
        const float4 g = reinterpret_cast<const float4*>(gradients)[i];
        float4 x = reinterpret_cast<float4*>(parameters)[i];
        float4 m = reinterpret_cast<float4*>(first)[i], v = reinterpret_cast<float4*>(second)[i];
        step(x.x, g.x, m.x, v.x), step(x.y, g.y, m.y, v.y), step(x.z, g.z, m.z, v.z), step(x.w, g.w, m.w, v.w);
        reinterpret_cast<float4*>(parameters)[i] = x;
        reinterpret_cast<float4*>(first)[i] = m;
        reinterpret_cast<float4*>(second)[i] = v;
    }
    if (blockIdx.x == 0 && threadIdx.x < p.count % 4) {
        const u64 i = 4 * vectors + threadIdx.x;
        float x = parameters[i], m = first[i], v = second[i];
        step(x, gradients[i], m, v);
        parameters[i] = x, first[i] = m, second[i] = v;
    }
}
