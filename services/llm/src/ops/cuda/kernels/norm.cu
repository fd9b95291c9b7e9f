// RMSNorm (Zhang & Sennrich 2019), forward and backward. Every kernel has one row in the registers of LANES threads, so
// that a row is read once. D (a multiple of 8, at most 16384) is the row's width; with w = D / 8:
//   LANES = w <= 2: 1, <= 4: 2, <= 8: 4, <= 16: 8, <= 32: 16, <= 128: 32; above, one row a block:
//           w <= 512: 32 * ceil(w / 64), else 32 * ceil(w / 128)
//   block = w <= 128 ? 256 : LANES
//   grid = ceil(rows / (block / LANES))
// No dynamic shared memory. The weight is the whole factor: a family's "1 + w" is added before.
// Needs vector.cuh before it.

#ifndef D
#define D 4096
#endif
// 1: rms_norm_backward adds the gradient that reaches x by the residual connection.
#ifndef RESIDUAL
#define RESIDUAL 0
#endif
#define SHARED_BYTES 0

constexpr int W = D / 8;
constexpr int LANES = W <= 2     ? 1
                      : W <= 4   ? 2
                      : W <= 8   ? 4
                      : W <= 16  ? 8
                      : W <= 32  ? 16
                      : W <= 128 ? 32
                      : W <= 512 ? (W + 63) / 64 * 32
                                 : (W + 127) / 128 * 32;
constexpr int VECTORS = (W + LANES - 1) / LANES;
constexpr int BLOCK = W <= 128 ? 256 : LANES;
constexpr int ROWS = BLOCK / LANES;
static_assert(D % 8 == 0 && D >= 8 && D <= 16384, "width");

struct NormP {
    u64 rows;
    double eps;
};

struct NormBackwardP {
    u64 rows;
};

// Sum over a row's threads, given to all of them; every thread of the block must come. Once a kernel: its shared words
// are written without a barrier before.
__device__ __forceinline__ float row_sum(float v) {
#pragma unroll
    for (int step = (LANES < 32 ? LANES : 32) / 2; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
    if (LANES > 32) {
        __shared__ float warps[LANES / 32 + 1];
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
        __syncthreads();
        v = 0.0f;
#pragma unroll
        for (int i = 0; i < LANES / 32; i++) v += warps[i];
    }
    return v;
}

// Eight of the weight's values.
__device__ __forceinline__ void weights(const float* w, int vector, float* v) {
    const float4* from = reinterpret_cast<const float4*>(w) + 2 * vector;
    const float4 a = from[0], b = from[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// With ADD, x + r takes the place of x, as rounded to bf16: what the backward will read is what is normed here.
template <bool ADD>
__device__ __forceinline__ void forward(const uint4* x, const uint4* r, const float* w, uint4* s, uint4* y, float* rstd,
                                        const NormP& p) {
    const int lane = threadIdx.x % LANES;
    const u64 row = (u64)blockIdx.x * ROWS + threadIdx.x / LANES;
    const bool live = row < p.rows;
    uint4 kept[VECTORS], other[ADD ? VECTORS : 1];
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int i = lane + k * LANES;
        kept[k] = make_uint4(0, 0, 0, 0);
        if (ADD) other[ADD ? k : 0] = kept[k];
        if (live && i < W) {
            kept[k] = x[row * W + i];
            if (ADD) other[ADD ? k : 0] = r[row * W + i];
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        float v[8];
        unpack(kept[k], v);
        if (ADD) {
            float u[8];
            unpack(other[ADD ? k : 0], u);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] += u[j];
            kept[k] = pack(v);
            unpack(kept[k], v);
            const int i = lane + k * LANES;
            if (live && i < W) s[row * W + i] = kept[k];
        }
#pragma unroll
        for (int j = 0; j < 8; j++) sum += v[j] * v[j];
    }
    const float scale = rsqrtf(row_sum(sum) / D + (float)p.eps);
    if (live && lane == 0) rstd[row] = scale;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int i = lane + k * LANES;
        if (live && i < W) {
            float v[8], f[8];
            unpack(kept[k], v);
            weights(w, i, f);
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] *= scale * f[j];
            y[row * W + i] = pack(v);
        }
    }
}

// y = x · rstd · w, rstd = 1 / sqrt(mean(x²) + eps). x, y: bf16 [rows, D]; w: f32 [D]; rstd: f32 [rows]. y may be x.
extern "C" __global__ void __launch_bounds__(BLOCK)
rms_norm_forward(const bf16* x, const float* w, bf16* y, float* rstd, const __grid_constant__ NormP p) {
    forward<false>(reinterpret_cast<const uint4*>(x), nullptr, w, nullptr, reinterpret_cast<uint4*>(y), rstd, p);
}

// s = x + r, y = norm(s): the end of one half of a block and the start of the next. s may be x or r.
extern "C" __global__ void __launch_bounds__(BLOCK)
add_rms_norm_forward(const bf16* x, const bf16* r, const float* w, bf16* s, bf16* y, float* rstd,
                     const __grid_constant__ NormP p) {
    forward<true>(reinterpret_cast<const uint4*>(x), reinterpret_cast<const uint4*>(r), w, reinterpret_cast<uint4*>(s),
                  reinterpret_cast<uint4*>(y), rstd, p);
}

// dx = rstd · (dy · w − x · rstd² · mean(dy · w · x)), and with RESIDUAL the argument residual (bf16 [rows, D]) is
// added. dx may be dy, x or residual.
extern "C" __global__ void __launch_bounds__(BLOCK)
rms_norm_backward(const bf16* dy, const bf16* x, const float* w, const float* rstd,
#if RESIDUAL
                  const bf16* residual,
#endif
                  bf16* dx, const __grid_constant__ NormBackwardP p) {
    const int lane = threadIdx.x % LANES;
    const u64 row = (u64)blockIdx.x * ROWS + threadIdx.x / LANES;
    const bool live = row < p.rows;
    uint4 slope[VECTORS], value[VECTORS];
#if RESIDUAL
    uint4 other[VECTORS];
#endif
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int i = lane + k * LANES;
        slope[k] = value[k] = make_uint4(0, 0, 0, 0);
        if (live && i < W) {
            slope[k] = reinterpret_cast<const uint4*>(dy)[row * W + i];
            value[k] = reinterpret_cast<const uint4*>(x)[row * W + i];
#if RESIDUAL
            other[k] = reinterpret_cast<const uint4*>(residual)[row * W + i];
#endif
        }
    }
    const float scale = live ? rstd[row] : 0.0f;
    float dot = 0.0f;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int i = lane + k * LANES;
        if (i < W) {
            float g[8], v[8], f[8];
            unpack(slope[k], g), unpack(value[k], v), weights(w, i, f);
#pragma unroll
            for (int j = 0; j < 8; j++) dot += g[j] * f[j] * v[j];
        }
    }
    const float mean = row_sum(dot) * scale * scale / D;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
        const int i = lane + k * LANES;
        if (live && i < W) {
            float g[8], v[8], f[8];
            unpack(slope[k], g), unpack(value[k], v), weights(w, i, f);
#pragma unroll
            for (int j = 0; j < 8; j++) g[j] = (g[j] * f[j] - v[j] * mean) * scale;
#if RESIDUAL
            unpack(other[k], v);
#pragma unroll
            for (int j = 0; j < 8; j++) g[j] += v[j];
#endif
            reinterpret_cast<uint4*>(dx)[row * W + i] = pack(g);
        }
    }
}
