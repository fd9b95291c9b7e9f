// Shared by the attention kernels: put this text before attention.cu or attention_backward.cu.
// Warp-wide tensor core products (mma.sync m16n8k16, bf16 in, f32 sums), asynchronous copies and the swizzled tile
// layout.
#ifndef HEAD_DIM
#define HEAD_DIM 64
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;  // the bits of a bfloat16

// n tokens; heads of q and of k/v; window 0: none; scale of the scores (positive).
struct P {
    u64 n, heads, kv_heads, window;
    double scale;
};

// --- instructions
__device__ __forceinline__ u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Copies 16 (or 4) bytes to shared memory; zeros where `take` is false, and then reads nothing.
__device__ __forceinline__ void copy16(u32 to, const void* from, bool take) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(take ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy4(u32 to, const void* from, bool take) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(take ? 4 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void ldmatrix(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(address)
        : "memory");
}
__device__ __forceinline__ void ldmatrix_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
        : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
        : "r"(address)
        : "memory");
}
// d[16, 8] += a[16, 16] b[16, 8]. A lane holds d at rows lane / 4 (+ 8 for d[2], d[3]), columns 2 (lane % 4) + {0, 1}.
__device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// Two rounded bf16 in one word, `low` at the lower address.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
__device__ __forceinline__ void store_shared(u32 address, u32 value) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ uint4 load_shared16(u32 address) {
    uint4 r;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
        : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
        : "r"(address)
        : "memory");
    return r;
}
// --- end of instructions

#define LOG2E 1.4426950408889634
#define LN2 0.6931471805599453
#define NOTHING __int_as_float(0xff800000)  // minus infinity, the score of what is not seen

// A tile in shared memory has rows of HEAD_DIM bf16 in chunks of 16 bytes. Within spans of up to 8 chunks the chunk's
// index is xor-ed with bits of its row, so that the 8 rows of an ldmatrix phase lie in 8 different groups of 4 banks.
constexpr int CHUNKS = HEAD_DIM / 8, ROW_BYTES = HEAD_DIM * 2;
constexpr int SPAN = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
static_assert(HEAD_DIM % 32 == 0 || HEAD_DIM == 16, "HEAD_DIM: 16, 32, 64, 96, 128, 256");

__device__ __forceinline__ u32 row_xor(u32 row) {
    return SPAN == 8 ? row & 7 : SPAN == 4 ? row >> 1 & 3 : row >> 2 & 1;
}
__device__ __forceinline__ u32 swizzle(u32 row, u32 chunk) { return row * ROW_BYTES + ((chunk ^ row_xor(row)) << 4); }

// The lane's address for operand a (rows m, columns k), and for operand b stored as rows k, columns n (read
// transposed).
__device__ __forceinline__ u32 lane_rows(u32 tile) {
    u32 lane = threadIdx.x & 31;
    return tile + swizzle(lane & 15, lane >> 4);
}
// The lane's address for operand b stored as rows n, columns k.
__device__ __forceinline__ u32 lane_columns(u32 tile) {
    u32 lane = threadIdx.x & 31;
    return tile + swizzle((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
}
// From a lane's address in the first 16 rows and columns to that in the 16 rows of `block` and the 16 columns of
// `step`.
__device__ __forceinline__ u32 at(u32 address, int block, int step) {
    return (address ^ (step % (SPAN / 2) << 5)) + step / (SPAN / 2) * (SPAN * 16) + block * 16 * ROW_BYTES;
}

// Starts the copy of ROWS rows from row `first` (< n) of a [n, stride] matrix (the pointer is at the head's first
// column).
template <int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(u32 tile, const bf16* from, int first, int n, int stride) {
    constexpr int WIDTH = THREADS % CHUNKS == 0 ? CHUNKS : CHUNKS / 3;  // threads to a row
    constexpr int STEP = THREADS / WIDTH;
    const int row = threadIdx.x / WIDTH, chunk = threadIdx.x % WIDTH;
    const bf16* row_from = from + (size_t)(first + row) * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP, row_from += STEP * stride) {
        if (ROWS % STEP != 0 && row + i >= ROWS) break;
        const bool take = first + row + i < n;
#pragma unroll
        for (int c = 0; c < CHUNKS; c += WIDTH)
            copy16(tile + swizzle(row + i, chunk + c), take ? row_from + c * 8 : from, take);
    }
}

// Writes a warp's sums, each row times its factor, as bf16 to the rows from `first` of a [n, stride] matrix, by way of
// `tile`, shared memory for M * 16 rows that only this warp uses now: so that global memory gets whole 16-byte chunks.
template <int M, int COLUMNS>
__device__ __forceinline__ void store_rows(
    float (&sums)[M][COLUMNS / 8][4], float (&factor)[M][2], u32 tile, bf16* to, int first, int n, int stride) {
    int lane = threadIdx.x & 31;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int c = 0; c < COLUMNS / 8; ++c)
#pragma unroll
            for (int h = 0; h < 2; ++h)
                store_shared(tile + swizzle(m * 16 + h * 8 + lane / 4, c) + lane % 4 * 4,
                    pack(sums[m][c][2 * h] * factor[m][h], sums[m][c][2 * h + 1] * factor[m][h]));
    __syncwarp();
#pragma unroll 4
    for (int i = lane; i < M * 16 * (COLUMNS / 8); i += 32) {
        int row = i / (COLUMNS / 8), chunk = i % (COLUMNS / 8);
        if (first + row < n)
            *(uint4*)(to + (size_t)(first + row) * stride + chunk * 8) = load_shared16(tile + swizzle(row, chunk));
    }
    __syncwarp();
}

// The first token that token i sees: its document's first, or the window's. Never decreases with i.
__device__ __forceinline__ int first_seen(const int* start, int i, int window) {
    int first = start[i];
    return window ? max(first, i - window + 1) : first;
}
