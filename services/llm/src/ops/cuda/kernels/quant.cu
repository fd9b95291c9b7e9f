// Frozen weights from 4 or 8 bits to bf16, as bitsandbytes stores them. Needs vector.cuh before it.

// 1: the blocks' scales are themselves bytes ("double quantisation").
#ifndef DOUBLE
#define DOUBLE 0
#endif
#define SHARED_BYTES 0

constexpr int BLOCK = 256;
constexpr int BATCH = 4;

struct Nf4P {
    u64 count;
    // Of the scales, with DOUBLE; else 0.
    double mean;
};

struct Int8P {
    u64 rows, width;
};

// Quantiles of a normal distribution (QLoRA, Dettmers et al. 2023).
__constant__ float LEVELS[16] = {-1.0f,          -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                                 -0.091050036f,  0.0f,        0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                                 0.44070983f,    0.562617f,   0.72295684f,  1.0f};

// out[i] = LEVELS[code i] · scale of block i / 64; with DOUBLE scale b = levels[scale_codes[b]] · tops[b / 256] + mean.
// codes: u8 [ceil(count / 2)], the first of two in the high half; absmax: f32 [ceil(count / 64)]; with DOUBLE in its
// place scale_codes: u8 [ceil(count / 64)], tops: f32 [ceil(blocks / 256)], levels: f32 [256], what a byte stands for;
// out: bf16 [count]. Block 256, grid ceil(count / 8192).
//
// A thread takes eight values, four bytes, at a time, so that a warp's loads and stores are each in one piece. The
// levels lie in 16 banks of shared memory: no two addresses of one bank, no conflict, whatever the codes.
extern "C" __global__ void __launch_bounds__(BLOCK)
nf4_dequantise(const unsigned char* codes,
#if DOUBLE
               const unsigned char* scale_codes, const float* tops, const float* levels,
#else
               const float* absmax,
#endif
               bf16* out, const __grid_constant__ Nf4P p) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = LEVELS[threadIdx.x];
    const u64 vectors = p.count / 8, start = (u64)blockIdx.x * (BATCH * BLOCK) + threadIdx.x;
    const auto scale = [&](u64 block) {
#if DOUBLE
        // Two roundings, as on a CPU.
        return __fadd_rn(__fmul_rn(levels[scale_codes[block]], tops[block / 256]), (float)p.mean);
#else
        return absmax[block];
#endif
    };
    unsigned words[BATCH];
    float scales[BATCH];
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
        const u64 i = start + k * BLOCK;
        words[k] = 0, scales[k] = 0.0f;
        if (i < vectors) words[k] = reinterpret_cast<const unsigned*>(codes)[i], scales[k] = scale(i / 8);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < BATCH; k++) {
        const u64 i = start + k * BLOCK;
        if (i < vectors) {
            float v[8];
#pragma unroll
            for (int j = 0; j < 8; j++) v[j] = table[(words[k] >> (4 * (j ^ 1))) & 15] * scales[k];
            reinterpret_cast<uint4*>(out)[i] = pack(v);
        }
    }
    if (blockIdx.x == 0 && threadIdx.x < p.count % 8) {
        const u64 i = 8 * vectors + threadIdx.x;
        const unsigned code = (codes[i / 2] >> (i % 2 ? 0 : 4)) & 15;
        out[i] = __float2bfloat16_rn(table[code] * scale(i / 64));
    }
}

// out = code · absmax of the row / 127 (the weights of LLM.int8(), Dettmers et al. 2022). codes: i8 [rows, width],
// width a multiple of 8; absmax: f32 [rows]; out: bf16 [rows, width]. Block 256, grid rows.
extern "C" __global__ void __launch_bounds__(BLOCK)
int8_dequantise(const signed char* __restrict__ codes, const float* absmax, bf16* __restrict__ out,
                const __grid_constant__ Int8P p) {
    const u64 row = blockIdx.x, vectors = p.width / 8;
    const float scale = absmax[row] / 127.0f;
    const uint2* from = reinterpret_cast<const uint2*>(codes) + row * vectors;
    uint4* to = reinterpret_cast<uint4*>(out) + row * vectors;
#pragma unroll 4
    for (u64 i = threadIdx.x; i < vectors; i += BLOCK) {
        const uint2 words = from[i];
        float v[8];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            v[j] = (float)(signed char)(words.x >> (8 * j)) * scale;
            v[4 + j] = (float)(signed char)(words.y >> (8 * j)) * scale;
        }
        to[i] = pack(v);
    }
}
