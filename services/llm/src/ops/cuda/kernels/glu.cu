// Gated activation (Shazeer 2020): act = f(gate) · up, f = SiLU or GELU in its tanh form. Both are x · sigmoid(a(x)),
// with a(x) = x, or a(x) = 2 sqrt(2 / pi) (x + 0.044715 x³), as (1 + tanh(u)) / 2 = sigmoid(2u).
// Needs vector.cuh before it.

// 0: SiLU, 1: GELU.
#ifndef GELU
#define GELU 0
#endif
// 1: glu_backward also writes act, so that the forward need not keep it.
#ifndef WRITE_ACT
#define WRITE_ACT 0
#endif
#define SHARED_BYTES 0

constexpr int BLOCK = 256;

struct GluP {
    u64 count;
};

// f(x) and f'(x).
__device__ __forceinline__ float2 activation(float x) {
#if GELU
    constexpr float ROOT = 1.5957691216057308f, CUBIC = 0.044715f;
    const float inner = ROOT * x * (1.0f + CUBIC * x * x), slope = ROOT * (1.0f + 3.0f * CUBIC * x * x);
#else
    const float inner = x, slope = 1.0f;
#endif
    const float s = __fdividef(1.0f, 1.0f + __expf(-inner));
    const float value = x * s;
    return make_float2(value, s + value * (1.0f - s) * slope);
}

// act = f(gate) · up. All bf16 [count], count a multiple of 8. act may be gate or up. Block 256, grid ceil(count /
// 2048).
extern "C" __global__ void __launch_bounds__(BLOCK)
glu_forward(const bf16* gate, const bf16* up, bf16* act, const __grid_constant__ GluP p) {
    const u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= p.count / 8) return;
    const uint4 gates = reinterpret_cast<const uint4*>(gate)[i], ups = reinterpret_cast<const uint4*>(up)[i];
    float g[8], u[8];
    unpack(gates, g), unpack(ups, u);
#pragma unroll
    for (int j = 0; j < 8; j++) g[j] = activation(g[j]).x * u[j];
    reinterpret_cast<uint4*>(act)[i] = pack(g);
}

// dgate = dact · up · f'(gate), dup = dact · f(gate); with WRITE_ACT the argument act (after dup) gets f(gate) · up.
// Shapes and grid as above. An output may be any input.
extern "C" __global__ void __launch_bounds__(BLOCK)
glu_backward(const bf16* dact, const bf16* gate, const bf16* up, bf16* dgate, bf16* dup,
#if WRITE_ACT
             bf16* act,
#endif
             const __grid_constant__ GluP p) {
    const u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= p.count / 8) return;
    const uint4 slopes = reinterpret_cast<const uint4*>(dact)[i], gates = reinterpret_cast<const uint4*>(gate)[i];
    const uint4 ups = reinterpret_cast<const uint4*>(up)[i];
    float d[8], g[8], u[8];
#if WRITE_ACT
    float a[8];
#endif
    unpack(slopes, d), unpack(gates, g), unpack(ups, u);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const float2 f = activation(g[j]);
#if WRITE_ACT
        a[j] = f.x * u[j];
#endif
        g[j] = d[j] * u[j] * f.y;
        u[j] = d[j] * f.x;
    }
    reinterpret_cast<uint4*>(dgate)[i] = pack(g);
    reinterpret_cast<uint4*>(dup)[i] = pack(u);
#if WRITE_ACT
    reinterpret_cast<uint4*>(act)[i] = pack(a);
#endif
}
