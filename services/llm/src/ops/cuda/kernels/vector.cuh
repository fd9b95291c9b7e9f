// Shared by the kernels that pass over rows: put this text before theirs. Vectors of eight bf16, as f32 and back.
#include <cuda_bf16.h>

typedef __nv_bfloat16 bf16;
typedef unsigned long long u64;

// Sixteen bytes are eight bf16, the first in the low half of a word; a bf16 is the upper half of its f32.
__device__ __forceinline__ void unpack(const uint4& words, float* v) {
    const unsigned w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = __uint_as_float(w[i] << 16);
        v[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ unsigned pack(float low, float high) {
    const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const unsigned*>(&two);
}

__device__ __forceinline__ uint4 pack(const float* v) {
    return make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}

// Waits until what was launched before is done and its writes are seen. A kernel that does this may be launched before that
// (programmatic dependent launch, Hopper on): what comes before the wait, launch and weights' way from memory, overlaps with it.
// Every thread must wait, or end, before it reads or writes anything but what no launch before the step's last writes: weights and its
// packed inputs. Nothing of the next step is launched before that one is done. What it reads after must not be __restrict__ const
// where it could be read early, as invariant memory may be.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel be launched as soon as all blocks of this one have come here or ended; it waits by itself for what they write.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
