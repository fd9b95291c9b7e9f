// Needs mma.cuh and wgmma.cuh before it. Shared by the attention kernels for Hopper's tensor cores: heads of 64 or 128.
//
// A tile of R rows lies in shared memory as HEAD_DIM / 64 parts of R rows of 64 numbers, swizzled by 128 bytes, each part
// a multiple of 1024 bytes: as the bulk copies of [n, heads * HEAD_DIM] matrices in boxes of 64 * R write it. Rows
// beyond n are zero.
static_assert(HEAD_DIM == 64 || HEAD_DIM == 128, "HEAD_DIM: 64, 128");
#define PART_BYTES(rows) ((rows) * 128)
#define TILE_BYTES(rows) ((rows) * HEAD_DIM * 2)

#if __CUDA_ARCH__ == 900
// Which tile of a ring is next, and how often the ring came round, modulo two.
template <int STAGES>
struct Ring {
    u32 stage = 0, phase = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
};

// A number that all lanes of the warp have alike, so that the compiler knows: products stand on paths that all take.
__device__ __forceinline__ int uniform(int x) { return __shfl_sync(0xffffffffu, x, 0); }

// Starts the copy of a tile of ROWS rows.
template <int ROWS>
__device__ __forceinline__ void load_rows(const TensorMap* map, u32 to, u32 barrier, int column, int row) {
#pragma unroll
    for (int part = 0; part < HEAD_DIM / 64; ++part)
        load(map, to + part * PART_BYTES(ROWS), barrier, column + part * 64, row);
}

// The warp has read what the barrier guards: one arrival a warp.
__device__ __forceinline__ void release(u32 barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(barrier);
}

// d[64, COLUMNS] = a . b^T: 64 rows at `a` of a tile of ROWS rows, all rows of a tile of COLUMNS rows at `b`.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void product_of_rows(float (&d)[COLUMNS / 2], u32 a, u32 b) {
    const u64 of_a = operand(a), of_b = operand(b);
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; ++step) {
        const int part = step / 4, inside = step % 4 * 32;
        multiply<0, 0>(d, of_a + ((part * PART_BYTES(ROWS) + inside) >> 4),
            of_b + ((part * PART_BYTES(COLUMNS) + inside) >> 4), step > 0);
    }
}

// d[64, HEAD_DIM] += a . b, with b a tile of ROWS rows.
template <int ROWS>
__device__ __forceinline__ void add_product(float (&d)[HEAD_DIM / 2], const u32 (&a)[ROWS / 16][4], u32 b) {
    const u64 of_b = operand(b, PART_BYTES(ROWS));
#pragma unroll
    for (int c = 0; c < ROWS / 16; ++c) multiply<1>(d, a[c], of_b + (c * 16 * 128 >> 4));
}

// Sums of a product as operand a of the next, rounded.
template <int COLUMNS>
__device__ __forceinline__ void as_operand(u32 (&a)[COLUMNS / 16][4], const float (&d)[COLUMNS / 2]) {
#pragma unroll
    for (int c = 0; c < COLUMNS / 16; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[c][i] = pack(d[8 * c + 2 * i], d[8 * c + 2 * i + 1]);
}

// The compiler takes registers to be in use up to here, and does not move what reads or writes them across: a product
// under way uses them unseen.
template <int N>
__device__ __forceinline__ void keep(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ __forceinline__ void keep(u32 (&a)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i)
        asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
}

// Hides the lane's scores of a tile that its rows do not see: keys beyond
// `row`, or before `low`, of each of its rows.
template <int KV>
__device__ __forceinline__ void hide(float (&s)[KV / 2], int kv_first, int row, const int (&low)[2]) {
    const int at = kv_first + threadIdx.x % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int from = low[h] - at, to = row + 8 * h - at;
#pragma unroll
        for (int j = 0; j < KV / 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                if (8 * j + i > to || 8 * j + i < from) s[4 * j + 2 * h + i] = NOTHING;
    }
}

// What `x`, a sum of exponentials, depends on is computed before whatever comes next; `scale` is positive, which the
// compiler can't know. It would wait for products under way first, and then compute what could have gone on beside them.
__device__ __forceinline__ void made(float x, float scale) {
    asm volatile("{ .reg .pred never; setp.lt.f32 never, %0, %1; @never nanosleep.u32 0; }" ::"f"(x), "f"(-scale)
        : "memory");
}

// Writes a lane's sums, of rows `row` and `row + 8` of a [n, stride] matrix, each times its factor, as bf16. Four
// neighbours exchange words, so that each writes whole 16 bytes.
__device__ __forceinline__ void store_sums(
    const float (&d)[HEAD_DIM / 2], const float (&factor)[2], bf16* to, int row, int n, int stride) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 32; ++j) {
            u32 w[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = 4 * (4 * j + i) + 2 * h;
                w[i] = pack(d[at] * factor[h], d[at + 1] * factor[h]);
            }
            exchange(w, t);
            if (row + 8 * h < n)
                *(uint4*)(to + (size_t)(row + 8 * h) * stride + 32 * j + 8 * t) = make_uint4(w[0], w[1], w[2], w[3]);
        }
}
#endif
