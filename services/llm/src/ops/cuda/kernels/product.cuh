// What products of one row and of a few with whole weights share. Needs vector.cuh and tiles.cuh before it.

#ifndef WEIGHTS
#define WEIGHTS 1  // Weights that share x: 1, 2 or 3.
#endif
#ifndef GLU
#define GLU 0  // 1: y = silu(gate) * up, 2: with GELU's tanh approximation; needs WEIGHTS 2.
#endif
#ifndef BIAS
#define BIAS 0
#endif
#ifndef LATE
#define LATE 0  // 1: the launch before may write the weights, so they are not asked for before it is done.
#endif
#ifndef LORA
#define LORA 0  // 1: each row's own adapter is added before y is rounded.
#endif
#ifndef RANKS
#define RANKS 16  // Room for an adapter's rank, a multiple of 16.
#endif
#ifndef FACTOR_SPLITS
#define FACTOR_SPLITS 2  // Blocks that share a tile of first factors: 2, or 4 if BATCH is more than 8. Does not change a bit.
#endif

typedef u64 word;

constexpr int STRANDS = 8;          // Parts of a dot product, whose sums are added pairwise: ((0+1)+(2+3))+((4+5)+(6+7)).
constexpr int FACTOR_STRANDS = 16;  // The same of one with a first factor: others wait for it.
constexpr int STEP = 64;            // Columns of a step: 128 bytes of each row.
static_assert(RANKS % 16 == 0, "a warp's rows of first factors belong to one adapter");

struct ProductP {
    word rows, in, out[3];
    word slot, firsts[3], seconds[3], adapters, adapters_at, product;  // LORA
    word splits, window;                                               // Rows that are stretches of attention.
    double eps;                                                        // Rows that are normed.
};

// The weights bf16 [out_i, in], their biases f32 [out_i] and results; absent ones are 0 wide, and anything.
#if BIAS
#define BIAS_PARAMETERS const float *__restrict__ bias0, const float *__restrict__ bias1, const float *__restrict__ bias2,
#define BIAS_ARGUMENTS {bias0, bias1, bias2}
#else
#define BIAS_PARAMETERS
#define BIAS_ARGUMENTS {}
#endif
#define WEIGHT_PARAMETERS const bf16 *__restrict__ w0, const bf16 *__restrict__ w1, const bf16 *__restrict__ w2, BIAS_PARAMETERS
#define RESULT_PARAMETERS bf16 *__restrict__ y0, bf16 *__restrict__ y1, bf16 *__restrict__ y2,
struct Matrices {
    const bf16* weights[3];
    const float* biases[3];
    bf16* results[3];
};
/// One of three that are in registers, which no index reaches.
template <class T> __device__ __forceinline__ T pick(const T (&of)[3], int module) { return module == 0 ? of[0] : module == 1 ? of[1] : of[2]; }

/// Sixteen bytes into shared memory, the first `there` of them and zeros. The hint brings the neighbours into L2, which come next.
__device__ __forceinline__ void copy_weights(unsigned to, const void* from, unsigned there) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there) : "memory");
}
__device__ __forceinline__ void copy_rows(unsigned to, const void* from, unsigned there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there) : "memory");
}
/// Counts a block that has written what the others of its tile read: gives how many were before it, whose writes it sees. For one thread
/// between barriers of the block.
__device__ __forceinline__ unsigned arrive(unsigned* at) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(at) : "memory");
    return before;
}
/// Four matrices of 8 × 8 from shared memory as operands of `mma` are: the i-th eight lanes say where the rows of the i-th are.
__device__ __forceinline__ uint4 load_matrices(unsigned from) {
    uint4 v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
    return v;
}
/// Keeps the compiler from computing an address anew at each use.
__device__ __forceinline__ void keep(const bf16*& address) { asm volatile("" : "+l"(address)); }

/// Where sixteen bytes of a step's row lie behind its first row: so that eight rows' same bytes meet all banks once.
__device__ __forceinline__ unsigned swizzled(int row, int chunk) { return row * 128 + ((chunk ^ row % 8) << 4); }
/// What a lane says to `load_matrices` for sixteen rows and sixteen columns: those of columns 16·i are where this is, XOR 32·i.
__device__ __forceinline__ unsigned sixteen_rows() { return swizzled(threadIdx.x % 16, threadIdx.x % 32 / 16); }
/// The same for eight rows and 32 columns; those of the second 32 are where this is, XOR 64.
__device__ __forceinline__ unsigned eight_rows() { return swizzled(threadIdx.x % 8, threadIdx.x % 32 / 8); }

__device__ __forceinline__ float4 operator+(const float4& a, const float4& b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
/// The sum of COUNT values, or fours of them, pairwise.
template <int COUNT, class Get> __device__ __forceinline__ auto pairwise(const Get& get, int first = 0) {
    if constexpr (COUNT == 1) return get(first);
    else return pairwise<COUNT / 2>(get, first) + pairwise<COUNT / 2>(get, first + COUNT / 2);
}

__device__ __forceinline__ float activation(float x) {
#if GLU == 2
    const float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
#else
    return x / (1.0f + __expf(-x));
#endif
}

/// A tile of SIZE numbers of y: which of the results it is in, the first of them, and how many that result has.
struct Tile {
    int module, first, out;
};
template <int SIZE> __device__ __forceinline__ int tiles_of(word out) { return (static_cast<int>(out) + SIZE - 1) / SIZE; }
template <int SIZE> __device__ __forceinline__ Tile tile_at(int index, const ProductP& p) {
    int module = 0;
#pragma unroll
    for (int i = 0; i < (GLU ? 0 : WEIGHTS - 1); ++i)
        if (module == i && index >= tiles_of<SIZE>(p.out[i])) index -= tiles_of<SIZE>(p.out[i]), ++module;
    return {module, index * SIZE, static_cast<int>(p.out[module])};
}

/// A lane's four rows of a warp's sixteen, four apart, from the lane's sixteen bytes of the first step on. Rows that are not there are
/// others: nobody reads their sums.
struct Lines {
    const bf16* rows[4];
};

/// Those of weights: `place` sixteens after the tile's beginning; with GLU eights of both weights.
__device__ __forceinline__ Lines lines_of(const Tile& tile, const Matrices& of, const ProductP& p, int place, int line, int chunk) {
    Lines lines;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int o = tile.first + place * (GLU ? 8 : 16) + line + 4 * (GLU ? i % 2 : i);
        lines.rows[i] = (GLU ? of.weights[i / 2] : pick(of.weights, tile.module)) + min(o, tile.out - 1) * p.in + chunk * 8;
        keep(lines.rows[i]);
    }
    return lines;
}

/// Brings a step of the lines to where the lane's first is to lie, as swizzled has it; zeros beyond the rows' end.
__device__ __forceinline__ void fetch_lines(const Lines& lines, unsigned to, int step, int chunk, int in) {
    const unsigned there = step * STEP + chunk * 8 < in ? 16 : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) copy_weights((to ^ (i % 2 * 64)) + i * 512, lines.rows[i] + step * STEP, there);
}

/// Writes a number of y from its sums, which with GLU are two.
__device__ __forceinline__ void finish(float result, [[maybe_unused]] float other, const Tile& tile, const Matrices& of, long long row, int o) {
#if BIAS
    result += pick(of.biases, tile.module)[o];
    if (GLU) other += of.biases[1][o];
#endif
    pick(of.results, tile.module)[row * tile.out + o] = __float2bfloat16_rn(GLU ? activation(result) * other : result);
}
