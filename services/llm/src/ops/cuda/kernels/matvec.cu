// Products of a few rows with whole weights, for decoding: each weight is read once for up to 64 rows of the batch. Needs
// vector.cuh, norm_row.cuh and join.cuh before it.

#ifndef BATCH
#define BATCH 8  // Rows of x that a block takes: 8, 16, 32 or 64. A row's result has the same bits with each.
#endif
#ifndef WEIGHTS
#define WEIGHTS 1  // Weights that share x: 1, 2 or 3.
#endif
#ifndef GLU
#define GLU 0  // 1: y = silu(gate) * up, 2: with GELU's tanh approximation; needs WEIGHTS 2.
#endif
#ifndef BIAS
#define BIAS 0
#endif
#ifndef LORA
#define LORA 0  // 1: each row's own adapter is added before y is rounded.
#endif
#ifndef ROW
#define ROW 0  // Where the one row of x comes from if not from memory: 1: a norm (D, ADD, AFTER), 2: joined attention (HEAD_DIM).
#endif
#ifndef SPLITS
#define SPLITS 1  // Blocks that share a tile's sums: 1, 2, 4 or 8, at most BATCH / 8. Does not change a bit.
#endif
#ifndef STAGES
#define STAGES 4  // Steps of 24 KB in shared memory.
#endif
#ifndef RANKS
#define RANKS 16  // Room for an adapter's rank, a multiple of 16.
#endif

#define SHARED_BYTES (STAGES * 24576)

typedef u64 word;

constexpr int TILES = BATCH / 8;             // Tiles of eight rows of x; as many warps stand side by side over the weight's rows.
constexpr int STRANDS = 8;                   // Parts of a dot product, whose sums are added pairwise: ((0+1)+(2+3))+((4+5)+(6+7)).
constexpr int GROUPS = 8 / TILES;            // Warps of a block that take different strands of the same rows.
constexpr int OWN = STRANDS / (GROUPS * SPLITS);  // Strands of a warp, one after the other.
constexpr int STEP = 64;                     // Columns of a step: 128 bytes of each row.
constexpr int TILE_ROWS = 16 * TILES;        // Rows of weights of a block.
constexpr int TILE_OUT = GLU ? TILE_ROWS / 2 : TILE_ROWS;
constexpr int WEIGHT_BYTES = 16384;          // A step of weights: 8 warps' 16 rows.
constexpr int STAGE_BYTES = ROW ? WEIGHT_BYTES : 24576;  // The same with all groups' rows of x; the one row lies behind the steps.
constexpr int LINE = TILE_ROWS + 4;          // Floats between columns of the sums: no two lanes of a warp meet in a bank.
static_assert(TILES * GROUPS == 8 && OWN >= 1 && OWN * GROUPS * SPLITS == STRANDS, "SPLITS is at most BATCH / 8");
static_assert(GROUPS * BATCH * LINE * 4 <= STAGES * STAGE_BYTES, "the sums lie where the steps lay");
static_assert(!ROW || (BATCH == 8 && SPLITS == 1), "one row has no more blocks than tiles");
static_assert(RANKS % 16 == 0, "a warp's rows of first factors belong to one adapter");

/// c += a · b for 16 × 16 by 16 × 8.
__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Sixteen bytes into shared memory, zeros if they are not there. The hint brings the neighbours into L2, which come next.
__device__ __forceinline__ void copy_weights(unsigned to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_rows(unsigned to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

/// The sum of COUNT values, pairwise.
template <int COUNT, class Get> __device__ __forceinline__ float pairwise(const Get& get, int first = 0) {
    if constexpr (COUNT == 1) return get(first);
    else return pairwise<COUNT / 2>(get, first) + pairwise<COUNT / 2>(get, first + COUNT / 2);
}

/// The sums of COUNT strands from `strand` on, pairwise.
template <int COUNT, class Run> __device__ __forceinline__ void strands(float (&sum)[TILES][4], int strand, Run& run) {
    if constexpr (COUNT == 1) {
#pragma unroll
        for (int j = 0; j < TILES; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[j][i] = 0.0f;
        run(sum, strand);
    } else {
        strands<COUNT / 2>(sum, strand, run);
        float other[TILES][4];
        strands<COUNT / 2>(other, strand + COUNT / 2, run);
#pragma unroll
        for (int j = 0; j < TILES; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[j][i] += other[j][i];
    }
}

__device__ __forceinline__ float activation(float x) {
#if GLU == 2
    const float inner = 0.7978845608f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
#else
    return x / (1.0f + __expf(-x));
#endif
}

struct ProductP {
    word rows, in, out0, out1, out2;
    word slot, first0, first1, first2, second0, second1, second2, adapters, adapters_at, launch;  // LORA
    word splits, window;                                                                          // ROW 2
    double eps;                                                                                   // ROW 1
};

#if LORA
constexpr int MODULES = GLU ? 2 : 1;  // Modules of a number of y.

/// Whose adapter each row has, and the adapters themselves, as the step's packed inputs hold them. These are there before the
/// step's first launch, so no launch waits for them.
struct Adapters {
    const int* owns;      ///< [rows]: which of the adapters, or −1.
    const float* scales;  ///< [rows]
    const int *slots, *ranks;  ///< [count]: −1 from where there are no more.
    int count;

    __device__ __forceinline__ Adapters(const int* packed, const ProductP& p)
        : owns(packed + 2 * p.rows), scales(reinterpret_cast<const float*>(packed + 3 * p.rows)), slots(packed + p.adapters_at),
          ranks(packed + p.adapters_at + p.adapters), count(static_cast<int>(p.adapters)) {}
    __device__ __forceinline__ int slot(int index) const { return index < count ? slots[index] : -1; }
};

/// Waits until `count` tiles have counted themselves; for the lanes of a warp.
__device__ __forceinline__ void wait_for(const unsigned* ready, unsigned count) {
    if (threadIdx.x % 32 == 0) {
        unsigned arrived;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(ready) : "memory");
        while (arrived < count);
    }
    __syncwarp();
}
#endif

// y_i = x·W_iᵀ (+ bias_i) (+ scale·(x·Aᵀ)·Bᵀ) for x [rows, in], W_i [out_i, in] and y_i [rows, out_i], or with GLU
// y = act(x·W_0ᵀ) * (x·W_1ᵀ) [rows, out0]. `in` is a multiple of 8; out2 (out1) are 0 with fewer weights.
//
// Grid: ((factors + tiles) · SPLITS, ⌈rows / BATCH⌉) with tiles = Σ_i ⌈out_i / (2·BATCH)⌉, with GLU ⌈out0 / BATCH⌉, and factors =
// WEIGHTS · ⌈adapters · RANKS / (2·BATCH)⌉ with LORA, which takes rows <= BATCH, else 0; 256 threads; SHARED_BYTES = 24576·STAGES.
// Arguments in order, those of absent options left out:
//   x, or with ROW 1: x bf16 [D], [ADD: delta bf16 [D]], weight f32 [D], [AFTER: after f32 [D]], [ADD: sum bf16 [D], which is written and
//   not x], with ROW 2: partial f32 [heads, splits, HEAD_DIM] and tops f32 [heads, splits, 2] of paged_attention; rows is 1, in <= 16384,
//   w0, w1, w2, [BIAS: bias0, bias1, bias2 f32 [out_i]], [LORA or ROW 2: packed i32, the step's inputs as ops/cuda/decode.rs has them],
//   [LORA: pool bf16 [slots, slot]: A_i [rank, in] of an adapter begins at first_i of its slot, B_i [out_i, RANKS] with zeros beyond the
//   rank at second_i; u bf16 [rows, WEIGHTS, RANKS], anything; ready u32, whose element `launch` is zero before],
//   y0, y1, y2 (GLU: y0), [SPLITS > 1: partial f32 [⌈rows / BATCH⌉ · (factors + tiles) · SPLITS · 2·BATCH·BATCH], arrived u32
//   [⌈rows / BATCH⌉ · (factors + tiles)], zero before the first launch and again after each].
//
// The weights are the 16-row operand of the tensor cores, so the batch is their 8-column side: even one row costs no more
// than the weights' way from memory. A lane holds 8 neighbouring columns of a row where the instruction wants 2 and 2; x is
// held alike, and the order of columns in a sum is free. Dot products are cut into 8 strands whatever BATCH and SPLITS are, and
// the strands' sums are added pairwise, so a row has the same bits in any batch. Wider batches let TILES warps share x, which
// else would be read as often as the weights; then fewer blocks would have work, so they split the strands, and the last one to
// arrive adds the sums, in their order.
//
// Adapters (Hu et al. 2021): the rows of all adapters' A lie before those of the weights, in tiles like theirs, so that each is read
// once for all rows; a row keeps of u = s·x·Aᵀ what belongs to its own adapter. Those who compute y's first strand add u·Bᵀ when u is
// there, each adapter's B to the rows that have it and zeros to the others. Blocks of a grid begin in their order, so what is waited
// for has begun.
extern "C" __global__ void __launch_bounds__(256) product(
#if ROW == 1
    const bf16* x,
#if ADD
    const bf16* delta,
#endif
    const float* __restrict__ norm,
#if AFTER
    const float* __restrict__ after,
#endif
#if ADD
    bf16* sum_of_row,
#endif
#elif ROW == 2
    const float *stretch_sums, const float* tops,
#else
    const bf16* __restrict__ x,
#endif
    const bf16* __restrict__ w0,
#if WEIGHTS > 1
    const bf16* __restrict__ w1,
#endif
#if WEIGHTS > 2
    const bf16* __restrict__ w2,
#endif
#if BIAS
    const float* __restrict__ bias0,
#if WEIGHTS > 1
    const float* __restrict__ bias1,
#endif
#if WEIGHTS > 2
    const float* __restrict__ bias2,
#endif
#endif
#if LORA || ROW == 2
    const int* __restrict__ packed,
#endif
#if LORA
    const bf16* __restrict__ pool, bf16* u, unsigned* ready,
#endif
    bf16* __restrict__ y0,
#if WEIGHTS > 1 && !GLU
    bf16* __restrict__ y1,
#endif
#if WEIGHTS > 2
    bf16* __restrict__ y2,
#endif
#if SPLITS > 1
    float* __restrict__ partial, unsigned* __restrict__ arrived,
#endif
    const __grid_constant__ ProductP p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int place = warp % TILES, group = warp / TILES;
    let_next_begin();
    int tile = blockIdx.x / SPLITS;
    const int split = blockIdx.x % SPLITS;
    const int in = static_cast<int>(p.in);
    const long long batch = static_cast<long long>(blockIdx.y) * BATCH;
    const int rows = static_cast<int>(min(static_cast<long long>(p.rows) - batch, static_cast<long long>(BATCH)));
    [[maybe_unused]] const long long place_of_tile = static_cast<long long>(blockIdx.y) * (gridDim.x / SPLITS) + tile;

    // Whose tile it is.
#if LORA
    const Adapters adapters(packed, p);
    const word firsts[3] = {p.first0, p.first1, p.first2}, seconds[3] = {p.second0, p.second1, p.second2};
    const int factor_tiles = (adapters.count * RANKS + TILE_ROWS - 1) / TILE_ROWS, factor = tile;
    tile -= WEIGHTS * factor_tiles;
    const bool of_factor = tile < 0;
#endif
    [[maybe_unused]] int module = 0;
    int part = tile;  // Below zero for a first factor's.
    const bf16* weight = w0;
    bf16* y = y0;
    int out = static_cast<int>(p.out0);
#if WEIGHTS > 1 && !GLU
    const int tiles0 = (static_cast<int>(p.out0) + TILE_OUT - 1) / TILE_OUT;
    if (tile >= tiles0) module = 1, part = tile - tiles0, weight = w1, y = y1, out = static_cast<int>(p.out1);
#endif
#if WEIGHTS > 2
    const int tiles1 = tiles0 + (static_cast<int>(p.out1) + TILE_OUT - 1) / TILE_OUT;
    if (tile >= tiles1) module = 2, part = tile - tiles1, weight = w2, y = y2, out = static_cast<int>(p.out2);
#endif
    int first_out = part * TILE_OUT;

    // This lane's share of a step: rows line, + 4, and line + 8, + 12 of the warp's sixteen, and 16 bytes of each.
    const int line = lane / 8, chunk = lane % 8;
#if GLU
    const int top = first_out + place * 8 + line;
    const bf16 *above = weight + static_cast<long long>(top) * in, *below = w1 + static_cast<long long>(top) * in;
    int above_left = out - top, below_left = above_left;
#else
    const int top = first_out + place * 16 + line;
    const bf16 *above = weight + static_cast<long long>(top) * in, *below = above + 8ll * in;
    int above_left = out - top, below_left = above_left - 8;
#endif
#if LORA
    if (of_factor) {
        module = factor / factor_tiles, first_out = factor % factor_tiles * TILE_ROWS;
        const int row = first_out + place * 16, slot = adapters.slot(row / RANKS);
        above_left = slot < 0 ? 0 : adapters.ranks[row / RANKS] - row % RANKS - line, below_left = above_left - 8;
        above = pool + max(slot, 0) * p.slot + firsts[module] + static_cast<word>(row % RANKS + line) * in, below = above + 8ll * in;
        if (adapters.slot(first_out / RANKS) < 0) {
            wait_for_previous();
            if (split == 0 && threadIdx.x == 0) atomicAdd(ready + p.launch, 1u);
            return;
        }
    }
#endif
    [[maybe_unused]] const int column = place * 8 + line;
#if !ROW
    const bf16* row = x + (batch + column) * in;
#endif
    // Rows of odd number lie with their halves exchanged: eight lanes that read two rows' halves then meet all banks once.
    const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const unsigned to = line * 128 + ((chunk ^ ((line & 1) << 2)) << 4);
    const unsigned to_weights = base + warp * 2048 + to;
    [[maybe_unused]] const unsigned to_rows = base + WEIGHT_BYTES + group * (TILES * 1024) + place * 1024 + to;
    [[maybe_unused]] uint4* whole = reinterpret_cast<uint4*>(shared + STAGES * STAGE_BYTES);

    const int steps = (in + STEP - 1) / STEP;
    const int first = (split * GROUPS + group) * OWN;
    auto start_of = [&](int strand) { return steps * strand / STRANDS; };
    auto steps_of = [&](int strand) { return start_of(strand + 1) - start_of(strand); };
    int next = start_of(first), left = start_of(first + OWN) - next;

    auto fetch_weights = [&](int stage, int step) {
        const int k = step * STEP + chunk * 8;
        const bool inside = k < in;
        const unsigned at = stage * STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool here = inside && 4 * i < above_left, there = inside && 4 * i < below_left;
            copy_weights(to_weights + at + i * 512, here ? above + static_cast<long long>(4 * i) * in + k : weight, here);
            copy_weights(to_weights + at + 1024 + i * 512, there ? below + static_cast<long long>(4 * i) * in + k : weight, there);
        }
    };
#if !ROW
    auto fetch_rows = [&](int stage, int step) {
        const int k = step * STEP + chunk * 8;
        const bool inside = k < in;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool here = inside && column + 4 * i < rows;
            copy_rows(to_rows + stage * STAGE_BYTES + i * 512, here ? row + static_cast<long long>(4 * i) * in + k : x, here);
        }
    };
#endif
    auto fetch = [&](int stage) {
        if (left > 0) {
            fetch_weights(stage, next);
#if !ROW
            fetch_rows(stage, next);
#endif
            --left;
            ++next;
        }
        commit();
    };

    const int g = lane / 4, t = lane % 4;
    int at = 0;
    [[maybe_unused]] int now = next;
    auto run = [&](float (&sum)[TILES][4], int strand) {
        for (int count = steps_of(strand); count > 0; --count) {
            wait<STAGES - 2>();
            // The warps of a group share x.
            if constexpr (TILES == 1) __syncwarp();
            else asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(TILES * 32) : "memory");
            fetch(at == 0 ? STAGES - 1 : at - 1);
            const unsigned char* weights = shared + at * STAGE_BYTES + warp * 2048;
            [[maybe_unused]] const unsigned char* columns = shared + at * STAGE_BYTES + WEIGHT_BYTES + group * (TILES * 1024);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int from = g * 128 + (((t + 4 * half) ^ ((g & 1) << 2)) << 4);
                const uint4 a = *reinterpret_cast<const uint4*>(weights + from);
                const uint4 b = *reinterpret_cast<const uint4*>(weights + from + 1024);
#pragma unroll
                for (int j = 0; j < TILES; ++j) {
#if ROW
                    const uint4 c = g == 0 ? whole[now * (STEP / 8) + t + 4 * half] : make_uint4(0, 0, 0, 0);
#else
                    const uint4 c = *reinterpret_cast<const uint4*>(columns + j * 1024 + from);
#endif
                    mma(sum[j], a.x, b.x, a.y, b.y, c.x, c.y);
                    mma(sum[j], a.z, b.z, a.w, b.w, c.z, c.w);
                }
            }
            at = at + 1 == STAGES ? 0 : at + 1;
            ++now;
        }
    };
#if LORA
    // B is on its way before it is needed. The row of it for a row of the tile, or null.
    const bool adds = !of_factor && split == 0;
    auto second_factor = [&](int index, int row) -> const bf16* {
        const int slot = adapters.slot(index), o = first_out + (GLU ? row / 16 * 8 + row % 8 : row);
        if (slot < 0 || o >= out) return nullptr;
        return pool + slot * p.slot + seconds[GLU ? row / 8 % 2 : module] + static_cast<word>(o) * RANKS;
    };
    for (int i = threadIdx.x; adds && i < adapters.count * TILE_ROWS; i += 256) {
        const bf16* b = second_factor(i / TILE_ROWS, i % TILE_ROWS);
        if (b != nullptr) asm volatile("prefetch.global.L2 [%0];" ::"l"(b));
    }
#endif
    // The weights are there before the launch is: their way from memory overlaps with the kernel before.
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < left) fetch_weights(stage, next + stage);
#if ROW
        commit();
#endif
    }
#if ROW
    const int fetched = min(left, STAGES - 1);
    left -= fetched, next += fetched;
#if ROW == 1
#if !ADD
    const bf16* delta = nullptr;
    bf16* sum_of_row = nullptr;
#endif
#if !AFTER
    const float* after = nullptr;
#endif
    // The last block leaves the sum to the launches after.
    norm_row(reinterpret_cast<const uint4*>(x), reinterpret_cast<const uint4*>(delta), norm, after, static_cast<float>(p.eps),
             blockIdx.x == gridDim.x - 1 ? reinterpret_cast<uint4*>(sum_of_row) : nullptr, [&](int i, const uint4& v) { whole[i] = v; });
#else
    wait_for_previous();
    const int stretch_count = stretches(packed[1], static_cast<int>(p.window), static_cast<int>(p.splits));
    for (int i = threadIdx.x; i < in / 8; i += 256) {
        const long long head = i / (HEAD_DIM / 8);
        const float2* pairs = reinterpret_cast<const float2*>(tops) + head * p.splits;
        float most = nothing(), means[8];
#pragma unroll 8
        for (int s = 0; s < stretch_count; ++s) most = fmaxf(most, __ldcg(pairs + s).x);
        join<8>(pairs, stretch_sums + head * p.splits * HEAD_DIM + i % (HEAD_DIM / 8) * 8, stretch_count, most, means);
        whole[i] = pack(means);
    }
#endif
    for (int i = in / 8 + threadIdx.x; i < steps * (STEP / 8); i += 256) whole[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
#else
    wait_for_previous();
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (left > 0) {
            fetch_rows(stage, next);
            --left;
            ++next;
        }
        commit();
    }
#endif
    float sum[TILES][4];
    strands<OWN>(sum, first, run);
#if LORA
    // u·Bᵀ, sixteen ranks and four adapters at once. With GLU a warp's upper rows are the gate's and its lower ones the other's.
    if (adds && group == 0) {
        int owns[TILES];
#pragma unroll
        for (int j = 0; j < TILES; ++j) owns[j] = 8 * j + g < rows ? adapters.owns[8 * j + g] : -1;
        bool waited = false;
        for (int k = 0; k < RANKS; k += 16) {
            uint2 us[MODULES][TILES];
            for (int begin = 0; adapters.slot(begin) >= 0; begin += 4) {
                uint2 above_b[4], below_b[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    above_b[i] = below_b[i] = make_uint2(0, 0);
                    const bf16 *b = second_factor(begin + i, place * 16 + g), *c = second_factor(begin + i, place * 16 + g + 8);
                    if (b != nullptr) above_b[i] = __ldg(reinterpret_cast<const uint2*>(b + k + 4 * t));
                    if (c != nullptr) below_b[i] = __ldg(reinterpret_cast<const uint2*>(c + k + 4 * t));
                }
                if (!waited) wait_for(ready + p.launch, WEIGHTS * factor_tiles), waited = true;
                // The first-level cache has none of it: blocks of this launch wrote it.
                if (begin == 0)
#pragma unroll
                    for (int m = 0; m < MODULES; ++m)
#pragma unroll
                        for (int j = 0; j < TILES; ++j)
                            if (owns[j] >= 0)
                                us[m][j] = __ldcg(reinterpret_cast<const uint2*>(u + ((8 * j + g) * WEIGHTS + module + m) * RANKS + k + 4 * t));
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int j = 0; j < TILES; ++j) {
                        const bool own = owns[j] == begin + i;
                        const uint2 v = own ? us[0][j] : make_uint2(0, 0);
#if GLU
                        const uint2 w = own ? us[1][j] : make_uint2(0, 0);
                        mma(sum[j], above_b[i].x, 0, above_b[i].y, 0, v.x, v.y);
                        mma(sum[j], 0, below_b[i].x, 0, below_b[i].y, w.x, w.y);
#else
                        mma(sum[j], above_b[i].x, below_b[i].x, above_b[i].y, below_b[i].y, v.x, v.y);
#endif
                    }
            }
        }
    }
#endif

    // Sums of the groups' strands, [group][column][row].
    wait<0>();
    __syncthreads();
    float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int j = 0; j < TILES; ++j) {
        float* to_sums = sums + (group * BATCH + 8 * j + 2 * t) * LINE + place * 16 + g;
        to_sums[0] = sum[j][0], to_sums[LINE] = sum[j][1];
        to_sums[8] = sum[j][2], to_sums[LINE + 8] = sum[j][3];
    }
    __syncthreads();
    auto of_groups = [&](int c, int r) {
        return pairwise<GROUPS>([&](int part) { return sums[(part * BATCH + c) * LINE + r]; });
    };
#if SPLITS > 1
    __shared__ unsigned before;
    float* partials = partial + place_of_tile * (SPLITS * TILE_ROWS * BATCH);
    for (int i = threadIdx.x; i < rows * TILE_ROWS; i += 256)
        __stcg(partials + split * (TILE_ROWS * BATCH) + i, of_groups(i / TILE_ROWS, i % TILE_ROWS));
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) before = atomicAdd(arrived + place_of_tile, 1u);
    __syncthreads();
    if (before != SPLITS - 1) return;
    if (threadIdx.x == 0) arrived[place_of_tile] = 0;
    __threadfence();
    auto value = [&](int c, int r) {
        return pairwise<SPLITS>([&](int part) { return __ldcg(partials + part * (TILE_ROWS * BATCH) + c * TILE_ROWS + r); });
    };
#else
    auto value = of_groups;
#endif
#if LORA
    if (of_factor) {
        for (int i = threadIdx.x; i < rows * TILE_ROWS; i += 256) {
            const int c = i / TILE_ROWS, r = i % TILE_ROWS, of = first_out + r;
            if (adapters.owns[c] != of / RANKS) continue;
            u[(c * WEIGHTS + module) * RANKS + of % RANKS] = __float2bfloat16_rn(adapters.scales[c] * value(c, r));
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) atomicAdd(ready + p.launch, 1u);
        return;
    }
#endif
    for (int i = threadIdx.x; i < rows * TILE_OUT; i += 256) {
        const int c = i / TILE_OUT, r = i % TILE_OUT, o = first_out + r;
        if (o >= out) continue;
#if GLU
        const int at_row = r / 8 * 16 + r % 8;
        float result[2] = {value(c, at_row), value(c, at_row + 8)};
#if BIAS
        result[0] += bias0[o], result[1] += bias1[o];
#endif
        y[(batch + c) * out + o] = __float2bfloat16_rn(activation(result[0]) * result[1]);
#else
        float result = value(c, r);
#if BIAS
        const float* bias = bias0;
#if WEIGHTS > 1
        if (module == 1) bias = bias1;
#endif
#if WEIGHTS > 2
        if (module == 2) bias = bias2;
#endif
        result += bias[o];
#endif
        y[(batch + c) * out + o] = __float2bfloat16_rn(result);
#endif
    }
}
