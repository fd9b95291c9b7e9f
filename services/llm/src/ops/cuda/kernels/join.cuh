// How stretches of a row's attention become one, for the kernel that does only that and for products that begin with it. Needs
// vector.cuh before it.

#ifndef HEAD_DIM
#define HEAD_DIM 64  // 64, 128 or 256.
#endif
#ifndef SPLIT
#define SPLIT (HEAD_DIM == 256 ? 64 : 128)  // Tokens of a stretch: a multiple of 64.
#endif

__device__ __forceinline__ float nothing() { return __int_as_float(0xff800000); }  // −∞

// Stretches of a row that sees `length` tokens of its sequence, or the window's last of them (0: no window).
__device__ __forceinline__ int stretches(int length, int window, int most) {
    const int begin = window > 0 && length > window ? length - window : 0;
    return length > 0 ? min((length - 1) / SPLIT - begin / SPLIT + 1, most) : 0;
}

// COUNT neighbouring numbers of Σ exp(top_s − top)·partial_s / Σ exp(top_s − top)·sum_s over a head's `count` stretches, in their order
// (Dao et al. 2023, "Flash-Decoding"). pairs: top_s and sum_s; sums: the first of the numbers of partial_0; `top` is the largest top.
template <int COUNT>
__device__ __forceinline__ void join(const float2* pairs, const float* sums, int count, float top, float (&means)[COUNT]) {
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) means[i] = 0.0f;
#pragma unroll 4
    for (int s = 0; s < count; ++s) {
        const float2 pair = __ldcg(pairs + s);
        const float factor = exp2f(pair.x - top);
        total = fmaf(factor, pair.y, total);
        float2 part[COUNT / 2];
#pragma unroll
        for (int i = 0; i < COUNT / 2; ++i)
            part[i] = __ldcg(reinterpret_cast<const float2*>(sums + static_cast<long long>(s) * HEAD_DIM + 2 * i));
#pragma unroll
        for (int i = 0; i < COUNT / 2; ++i)
            means[2 * i] = fmaf(factor, part[i].x, means[2 * i]), means[2 * i + 1] = fmaf(factor, part[i].y, means[2 * i + 1]);
    }
    const float norm = total > 0.0f ? 1.0f / total : 0.0f;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) means[i] *= norm;
}
