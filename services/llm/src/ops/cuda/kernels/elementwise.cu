// Sums of parts, casts and biases. Needs vector.cuh before it.

// 1: sum_partials adds to what is there.
#ifndef ACCUMULATE
#define ACCUMULATE 0
#endif
#define SHARED_BYTES 0

constexpr int BLOCK = 256;

struct CountP {
    u64 count;
};

struct CastP {
    u64 count;
    double factor;
};

struct BiasP {
    u64 rows, width;
};

struct PartialsP {
    u64 splits, count;
    double factor;
};

// out = factor · x. x: f32 [count]; out: bf16 [count]. Block 256, grid max(1, ceil(count / 2048)).
extern "C" __global__ void __launch_bounds__(BLOCK)
cast_scale(const float* x, bf16* out, const __grid_constant__ CastP p) {
    const u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x, vectors = p.count / 8;
    const float factor = (float)p.factor;
    if (i < vectors) {
        const float4 a = reinterpret_cast<const float4*>(x)[2 * i], b = reinterpret_cast<const float4*>(x)[2 * i + 1];
        const float v[8] = {a.x * factor, a.y * factor, a.z * factor, a.w * factor,
                            b.x * factor, b.y * factor, b.z * factor, b.w * factor};
        reinterpret_cast<uint4*>(out)[i] = pack(v);
    }
    if (i < p.count % 8) out[8 * vectors + i] = __float2bfloat16_rn(x[8 * vectors + i] * factor);
}

// out = x + bias, the bias the same for every row. x, out: bf16 [rows, width], width a multiple of 8; bias: f32
// [width]. out may be x. Block 256, grid ceil(rows · width / 8192).
extern "C" __global__ void __launch_bounds__(BLOCK)
bias_add(const bf16* x, const float* bias, bf16* out, const __grid_constant__ BiasP p) {
    constexpr int BATCH = 4;
    const unsigned in_row = (unsigned)(p.width / 8);
    const u64 vectors = p.rows * in_row, first = (u64)blockIdx.x * (BATCH * BLOCK);
    // One long division a thread; within the block the columns fit 32 bits.
    const unsigned column = (unsigned)(first % in_row) + threadIdx.x;
    uint4 words[BATCH];
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
        const u64 i = first + threadIdx.x + k * BLOCK;
        words[k] = make_uint4(0, 0, 0, 0);
        if (i < vectors) words[k] = reinterpret_cast<const uint4*>(x)[i];
    }
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
        const u64 i = first + threadIdx.x + k * BLOCK;
        if (i < vectors) {
            const float4* four = reinterpret_cast<const float4*>(bias) + (column + k * BLOCK) % in_row * 2;
            const float4 a = four[0], b = four[1];
            float v[8];
            unpack(words[k], v);
            v[0] += a.x, v[1] += a.y, v[2] += a.z, v[3] += a.w, v[4] += b.x, v[5] += b.y, v[6] += b.z, v[7] += b.w;
            reinterpret_cast<uint4*>(out)[i] = pack(v);
        }
    }
}

// out[j] = factor · Σ partials[s][j], s ascending; with ACCUMULATE what was there is added. partials: f32 [splits,
// count]; out: f32 [count]. Block 256, grid ceil(count / 256).
extern "C" __global__ void __launch_bounds__(BLOCK)
sum_partials(const float* partials, float* out, const __grid_constant__ PartialsP p) {
    const u64 j = (u64)blockIdx.x * BLOCK + threadIdx.x;
    if (j >= p.count) return;
    float sum = 0.0f;
#pragma unroll 8
    for (u64 s = 0; s < p.splits; s++) sum += partials[s * p.count + j];
    sum *= (float)p.factor;
#if ACCUMULATE
    sum += out[j];
#endif
    out[j] = sum;
}
