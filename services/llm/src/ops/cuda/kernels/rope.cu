// Rotary position embedding (Su et al. 2021) in the half-split layout of Hugging Face's checkpoints.
// Needs vector.cuh before it.

// A multiple of 16.
#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#define SHARED_BYTES 0

constexpr int BLOCK = 256;
constexpr unsigned ROWS = 4;
constexpr unsigned CHUNKS = HEAD_DIM / 16;
static_assert(HEAD_DIM % 16 == 0, "head dimension");

struct RopeP {
    u64 rows, q_heads, k_heads, inverse;
};

__device__ __forceinline__ void read(const float* from, u64 quad, float* v) {
    const float4 a = reinterpret_cast<const float4*>(from)[quad], b = reinterpret_cast<const float4*>(from)[quad + 1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// For each head, with halves a and b and the row's angles: a' = a cos − b sin, b' = b cos + a sin; inverse turns the
// sine around, which gives the backward. q: bf16 [rows, q_heads · HEAD_DIM], k: bf16 [rows, k_heads · HEAD_DIM]; cos,
// sin: f32 [positions, HEAD_DIM / 2]; positions: int32 [rows]. q_out may be q, k_out may be k. For q alone k_heads is 0
// and k and k_out are any pointers. Block 256, grid ceil(rows / 4).
//
// A thread takes eight values of the low half of a head and the eight that they pair with.
extern "C" __global__ void __launch_bounds__(BLOCK)
rope(const bf16* q, const bf16* k, const float* cos, const float* sin, const int* positions, bf16* q_out, bf16* k_out,
     const __grid_constant__ RopeP p) {
    const unsigned heads = (unsigned)(p.q_heads + p.k_heads), q_heads = (unsigned)p.q_heads;
    const unsigned in_row = heads * CHUNKS;
    const u64 first = (u64)blockIdx.x * ROWS;
    const unsigned rows = p.rows - first < ROWS ? (unsigned)(p.rows - first) : ROWS;
    const float sign = p.inverse ? -1.0f : 1.0f;
    for (unsigned item = threadIdx.x; item < rows * in_row; item += BLOCK) {
        const unsigned in_block = item / in_row, rest = item - in_block * in_row;
        const unsigned head = rest / CHUNKS, chunk = rest % CHUNKS;
        const u64 row = first + in_block;
        const bool is_q = head < q_heads;
        const u64 at = (is_q ? row * q_heads + head : row * p.k_heads + (head - q_heads)) * (HEAD_DIM / 8) + chunk;
        const uint4* from = reinterpret_cast<const uint4*>(is_q ? q : k) + at;
        uint4* to = reinterpret_cast<uint4*>(is_q ? q_out : k_out) + at;
        const uint4 low = from[0], high = from[CHUNKS];
        const u64 angle = ((u64)positions[row] * CHUNKS + chunk) * 2;
        float a[8], b[8], c[8], s[8];
        read(cos, angle, c), read(sin, angle, s);
        unpack(low, a), unpack(high, b);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float x = a[j], y = b[j], turn = s[j] * sign;
            a[j] = x * c[j] - y * turn;
            b[j] = y * c[j] + x * turn;
        }
        to[0] = pack(a), to[CHUNKS] = pack(b);
    }
}
