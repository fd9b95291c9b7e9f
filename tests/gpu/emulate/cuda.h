// What the kernels of products take from CUDA, on a CPU: a thread for each of a block's 256, blocks one after the other, copies at
// once. Products of tensor cores are exact in f32, term by term. Shared memory is NaN where a block has written nothing.
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

using std::max, std::min;

#define __device__
#define __forceinline__ inline
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline float __uint_as_float(unsigned bits) { float f; memcpy(&f, &bits, 4); return f; }
inline float __int_as_float(int bits) { float f; memcpy(&f, &bits, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned bits; memcpy(&bits, &f, 4); return bits; }
struct __nv_bfloat16 { uint16_t bits; };
struct __nv_bfloat162 { __nv_bfloat16 low, high; };
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
    unsigned bits = __float_as_uint(f);
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) { return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)}; }

template <class T> inline T __ldg(const T* from) { return *from; }
template <class T> inline T __ldcg(const T* from) { return *from; }
template <class T> inline void __stcg(T* to, T value) { *to = value; }
inline float __expf(float x) { return expf(x); }
inline unsigned arrive(unsigned* at) { return (*at)++; }

struct Place { unsigned x, y, z; };
inline thread_local Place threadIdx;
inline Place blockIdx, gridDim;
using Barrier = std::barrier<>;
inline Barrier* block_barrier;
inline std::vector<Barrier*> warp_barriers, group_barriers;
inline void __syncthreads() { block_barrier->arrive_and_wait(); }
inline void __syncwarp() { warp_barriers[threadIdx.x / 32]->arrive_and_wait(); }
inline void group_sync(int group) { group_barriers[group]->arrive_and_wait(); }

inline unsigned char* dynamic_shared;
/// For all threads of a block: no block knows what the one before left.
inline void forget(void* shared, size_t size) {
    __syncthreads();
    if (threadIdx.x == 0) memset(shared, 0xff, size);
    __syncthreads();
}
inline unsigned __cvta_generic_to_shared(const void* at) { return unsigned(static_cast<const unsigned char*>(at) - dynamic_shared); }
inline void copy_weights(unsigned to, const void* from, unsigned there) {
    if (there) memcpy(dynamic_shared + to, from, 16);
    else memset(dynamic_shared + to, 0, 16);
}
inline void copy_rows(unsigned to, const void* from, unsigned there) { copy_weights(to, from, there); }
inline void commit() {}
template <int PENDING> inline void wait() {}

// mma.m16n8k16: a lane holds of A rows lane / 4 and 8 after it, columns 2·(lane % 4), the next, and both 8 after; of B the same columns
// of row lane / 4; of C columns 2·(lane % 4) and the next of A's rows.
inline unsigned operands[8][32][6];
inline float half_of(unsigned pair, int high) { return __uint_as_float(high ? pair & 0xffff0000u : pair << 16); }
inline void mma(float (&c)[4], const uint4& a, unsigned b0, unsigned b1) {
    const unsigned own[6] = {a.x, a.y, a.z, a.w, b0, b1}, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    memcpy(operands[warp][lane], own, sizeof own);
    __syncwarp();
    for (int i = 0; i < 4; ++i) {
        const int row = lane / 4, column = 2 * (lane % 4) + i % 2;
        for (int k = 0; k < 16; ++k) {
            const int of = k % 8 / 2;
            const unsigned a = operands[warp][row * 4 + of][i / 2 + k / 8 * 2], b = operands[warp][column * 4 + of][4 + k / 8];
            c[i] += half_of(a, k % 2) * half_of(b, k % 2);
        }
    }
    __syncwarp();
}

// ldmatrix: a lane gets of each of four matrices two neighbouring numbers of row lane / 4.
inline unsigned places[8][32];
inline uint4 load_matrices(unsigned from) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    places[warp][lane] = from;
    __syncwarp();
    unsigned v[4];
    for (int i = 0; i < 4; ++i) memcpy(v + i, dynamic_shared + places[warp][8 * i + lane / 4] + lane % 4 * 4, 4);
    __syncwarp();
    return {v[0], v[1], v[2], v[3]};
}
inline void keep(const void*) {}
