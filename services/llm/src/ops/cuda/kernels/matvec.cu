// Products of a few rows with whole weights, for decoding: each weight is read once for up to 64 rows of the batch. Needs
// vector.cuh before it.

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
#ifndef SPLITS
#define SPLITS 1  // Blocks that share a tile's sums: 1, 2, 4 or 8, at most BATCH / 8. Does not change a bit.
#endif
#ifndef STAGES
#define STAGES 4  // Steps of 24 KB in shared memory.
#endif
#ifndef RANKS
#define RANKS 64  // The largest rank of an adapter.
#endif
#ifndef SIDE
#define SIDE 4  // Numbers of x·Aᵀ of a block: few where there are few rows, so that few steps follow each other.
#endif

#define SHARED_BYTES (STAGES * 24576)

typedef unsigned long long word;

constexpr int TILES = BATCH / 8;             // Tiles of eight rows of x; as many warps stand side by side over the weight's rows.
constexpr int STRANDS = 8;                   // Parts of a dot product, whose sums are added pairwise: ((0+1)+(2+3))+((4+5)+(6+7)).
constexpr int GROUPS = 8 / TILES;            // Warps of a block that take different strands of the same rows.
constexpr int OWN = STRANDS / (GROUPS * SPLITS);  // Strands of a warp, one after the other.
constexpr int STEP = 64;                     // Columns of a step: 128 bytes of each row.
constexpr int TILE_ROWS = 16 * TILES;        // Rows of weights of a block.
constexpr int TILE_OUT = GLU ? TILE_ROWS / 2 : TILE_ROWS;
constexpr int MODULES = GLU ? 2 : 1;         // Modules of a number of y.
constexpr int STAGE_BYTES = 24576;           // 8 warps' 16 rows of weights, and all groups' rows of x.
constexpr int LINE = TILE_ROWS + 4;          // Floats between columns of the sums: no two lanes of a warp meet in a bank.
static_assert(TILES * GROUPS == 8 && OWN >= 1 && OWN * GROUPS * SPLITS == STRANDS, "SPLITS is at most BATCH / 8");
static_assert(GROUPS * BATCH * LINE * 4 + LORA * MODULES * BATCH * RANKS * 4 <= STAGES * STAGE_BYTES, "the sums lie where the steps lay");

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

#if LORA
/// The adapters of a step's rows: slots (−1: none), ranks and scales, as the step's packed inputs hold them. These are there before
/// the step's first launch, so no launch waits for them.
struct Adapters {
    const int *slots, *ranks;
    const float* scales;

    __device__ __forceinline__ Adapters(const int* packed, word rows)
        : slots(packed + 2 * rows), ranks(packed + 3 * rows), scales(reinterpret_cast<const float*>(packed + 4 * rows)) {}
};

/// A row of B as far as it fits: ranks up to 16, which most have.
struct FewRanks {
    uint4 first, second;

    __device__ __forceinline__ void load(const bf16* b, int rank) {
        if (rank % 8 != 0) return;
        first = __ldg(reinterpret_cast<const uint4*>(b));
        if (rank > 8) second = __ldg(reinterpret_cast<const uint4*>(b) + 1);
    }
};

/// sum += Σ u[i]·b[i] over eight, in order.
__device__ __forceinline__ float eight(float sum, const float* u, const uint4& b) {
    float f[8];
    unpack(b, f);
    const float4 low = *reinterpret_cast<const float4*>(u), high = *reinterpret_cast<const float4*>(u + 4);
    sum = fmaf(low.x, f[0], sum), sum = fmaf(low.y, f[1], sum), sum = fmaf(low.z, f[2], sum), sum = fmaf(low.w, f[3], sum);
    sum = fmaf(high.x, f[4], sum), sum = fmaf(high.y, f[5], sum), sum = fmaf(high.z, f[6], sum), sum = fmaf(high.w, f[7], sum);
    return sum;
}

/// Σ u[j]·b[j] over a rank, in order; `near` has the beginning of b.
__device__ __forceinline__ float rank_sum(const float* u, const bf16* b, const FewRanks& near, int rank) {
    float sum = 0.0f;
    if (rank % 8 == 0) {
        sum = eight(sum, u, near.first);
        if (rank > 8) sum = eight(sum, u + 8, near.second);
        for (int j = 16; j < rank; j += 8) sum = eight(sum, u + j, __ldg(reinterpret_cast<const uint4*>(b + j)));
    } else {
        for (int j = 0; j < rank; ++j) sum = fmaf(u[j], __bfloat162float(b[j]), sum);
    }
    return sum;
}
#endif

struct ProductP { word rows, in, out0, out1, out2, slot, first0, first1, first2, second0, second1, second2, shrinks, launch; };

#if LORA
/// Block `index` of those that compute u = x·A_iᵀ for each row's own adapter (Hu et al. 2021): SIDE numbers of a row and a module.
/// Counts itself in `ready` when they are written. Places beyond the rank or without adapter are left alone and never read.
__device__ __forceinline__ void shrink(
    const bf16* x, const Adapters& adapters, const bf16* pool, float* u, unsigned* ready, int index, const ProductP& p) {
    __shared__ float parts[SIDE][8];
    constexpr int PIECES = (RANKS + SIDE - 1) / SIDE;
    const int j = index % PIECES * SIDE, module = index / PIECES % WEIGHTS;
    const long long row = index / (PIECES * WEIGHTS);
    const int adapter = adapters.slots[row], count = adapter < 0 ? 0 : adapters.ranks[row] - j;
    if (count > 0) {
        const word first = module == 0 ? p.first0 : module == 1 ? p.first1 : p.first2;
        const int vectors = static_cast<int>(p.in / 8);
        const uint4* xs = reinterpret_cast<const uint4*>(x) + row * vectors;
        const uint4* as = reinterpret_cast<const uint4*>(pool + adapter * p.slot + first) + static_cast<long long>(j) * vectors;
        uint4 rows[SIDE];
        auto load = [&](int k) {
#pragma unroll
            for (int i = 0; i < SIDE; ++i)
                rows[i] = i < count ? __ldg(as + static_cast<long long>(i) * vectors + k) : make_uint4(0, 0, 0, 0);
        };
        // A is there before x is: all of it is on its way before the wait.
        int k = threadIdx.x;
        if (k < vectors) load(k);
        for (int later = k + 256; later < vectors; later += 256)
#pragma unroll
            for (int i = 0; i < SIDE; ++i)
                if (i < count) asm volatile("prefetch.global.L2 [%0];" ::"l"(as + static_cast<long long>(i) * vectors + later));
        wait_for_previous();
        float sums[SIDE] = {};
        while (k < vectors) {
            float v[8], a[8];
            unpack(xs[k], v);
#pragma unroll
            for (int i = 0; i < SIDE; ++i) {
                unpack(rows[i], a);
#pragma unroll
                for (int l = 0; l < 8; ++l) sums[i] = fmaf(v[l], a[l], sums[i]);
            }
            k += 256;
            if (k < vectors) load(k);
        }
#pragma unroll
        for (int i = 0; i < SIDE; ++i) {
#pragma unroll
            for (int step = 16; step > 0; step /= 2) sums[i] += __shfl_xor_sync(~0u, sums[i], step);
            if (threadIdx.x % 32 == 0) parts[i][threadIdx.x / 32] = sums[i];
        }
        __syncthreads();
        if (threadIdx.x < SIDE && static_cast<int>(threadIdx.x) < count) {
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; ++i) sum += parts[threadIdx.x][i];
            __stcg(u + (row * WEIGHTS + module) * RANKS + j + threadIdx.x, sum);
            __threadfence();
        }
    } else {
        wait_for_previous();
    }
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(ready, 1u);
}

/// Waits until `count` blocks have counted themselves.
__device__ __forceinline__ void wait_for(const unsigned* ready, unsigned count) {
    if (threadIdx.x == 0) {
        unsigned arrived;
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(ready) : "memory");
        while (arrived < count);
    }
    __syncthreads();
}
#endif

// y_i = x·W_iᵀ (+ bias_i) (+ scale·(x·Aᵀ)·Bᵀ) for x [rows, in], W_i [out_i, in] and y_i [rows, out_i], or with GLU
// y = act(x·W_0ᵀ) * (x·W_1ᵀ) [rows, out0]. `in` is a multiple of 8; out2 (out1) are 0 with fewer weights.
//
// Grid: (shrinks + tiles · SPLITS, ⌈rows / BATCH⌉) with tiles = Σ_i ⌈out_i / (2·BATCH)⌉, with GLU ⌈out0 / BATCH⌉, and
// shrinks = rows · WEIGHTS · ⌈RANKS / SIDE⌉ with LORA, which takes rows <= BATCH, else 0; 256 threads; SHARED_BYTES = 24576·STAGES.
// Arguments in order, those of absent options left out:
//   x, w0, w1, w2, [BIAS: bias0, bias1, bias2 f32 [out_i]],
//   [LORA: packed, the step's inputs as decode_inputs takes them; pool bf16 [slots, slot]: an adapter's A_i [rank, in] begins at
//   first_i of its slot, B_i [out_i, rank] at second_i; u f32 [rows, WEIGHTS, RANKS], anything; ready u32, whose element `launch` is
//   zero before],
//   y0, y1, y2 (GLU: y0), [SPLITS > 1: partial f32 [⌈rows / BATCH⌉ · tiles · SPLITS · 2·BATCH·BATCH], arrived u32 [⌈rows / BATCH⌉ · tiles],
//   zero before the first launch and again after each].
//
// The weights are the 16-row operand of the tensor cores, so the batch is their 8-column side: even one row costs no more
// than the weights' way from memory. A lane holds 8 neighbouring columns of a row where the instruction wants 2 and 2; x is
// held alike, and the order of columns in a sum is free. Dot products are cut into 8 strands whatever BATCH and SPLITS are, and
// the strands' sums are added pairwise, so a row has the same bits in any batch. Wider batches let TILES warps share x, which
// else would be read as often as the weights; then fewer blocks would have work, so they split the strands, and the last one to
// arrive adds the sums, in their order. With LORA the first blocks compute u while the others stream the weights, and these wait
// for it before they add it: blocks of a grid begin in their order, so what is waited for has begun.
extern "C" __global__ void __launch_bounds__(256) product(
    const bf16* __restrict__ x, const bf16* __restrict__ w0,
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
#if LORA
    const int* __restrict__ packed, const bf16* __restrict__ pool, float* u, unsigned* ready,
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
    int block = blockIdx.x;
#if LORA
    const Adapters adapters(packed, p.rows);
    if (block < static_cast<int>(p.shrinks)) {
        shrink(x, adapters, pool, u, ready + p.launch, block, p);
        return;
    }
    block -= static_cast<int>(p.shrinks);
#endif
    const int tile = block / SPLITS, split = block % SPLITS;
    const int in = static_cast<int>(p.in);
    const long long batch = static_cast<long long>(blockIdx.y) * BATCH;
    const int rows = static_cast<int>(min(static_cast<long long>(p.rows) - batch, static_cast<long long>(BATCH)));

    // Whose tile it is.
    [[maybe_unused]] int module = 0;
    int part = tile;
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
    const int first_out = part * TILE_OUT;

    // This lane's share of a step: rows lane / 8, + 4, + 8, + 12 of the warp's sixteen, and 16 bytes of each.
    const int line = lane / 8, chunk = lane % 8;
#if GLU
    const int top = first_out + place * 8 + line, bottom = top;
    const bf16 *above = weight + static_cast<long long>(top) * in, *below = w1 + static_cast<long long>(bottom) * in;
#else
    const int top = first_out + place * 16 + line, bottom = top + 8;
    const bf16 *above = weight + static_cast<long long>(top) * in, *below = weight + static_cast<long long>(bottom) * in;
#endif
    const int column = place * 8 + line;
    const bf16* row = x + (batch + column) * in;
    // Rows of odd number lie with their halves exchanged: eight lanes that read two rows' halves then meet all banks once.
    const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const unsigned to = line * 128 + ((chunk ^ ((line & 1) << 2)) << 4);
    const unsigned to_weights = base + warp * 2048 + to, to_rows = base + 16384 + group * (TILES * 1024) + place * 1024 + to;

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
            const bool here = inside && top + 4 * i < out, there = inside && bottom + 4 * i < out;
            copy_weights(to_weights + at + i * 512, here ? above + static_cast<long long>(4 * i) * in + k : weight, here);
            copy_weights(to_weights + at + 1024 + i * 512, there ? below + static_cast<long long>(4 * i) * in + k : weight, there);
        }
    };
    auto fetch_rows = [&](int stage, int step) {
        const int k = step * STEP + chunk * 8;
        const bool inside = k < in;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const bool here = inside && column + 4 * i < rows;
            copy_rows(to_rows + stage * STAGE_BYTES + i * 512, here ? row + static_cast<long long>(4 * i) * in + k : x, here);
        }
    };
    auto fetch = [&](int stage) {
        if (left > 0) {
            fetch_weights(stage, next);
            fetch_rows(stage, next);
            --left;
            ++next;
        }
        commit();
    };

    const int g = lane / 4, t = lane % 4;
    int at = 0;
    auto run = [&](float (&sum)[TILES][4], int strand) {
        for (int count = steps_of(strand); count > 0; --count) {
            wait<STAGES - 2>();
            // The warps of a group share x.
            if constexpr (TILES == 1) __syncwarp();
            else asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(TILES * 32) : "memory");
            fetch(at == 0 ? STAGES - 1 : at - 1);
            const unsigned char* weights = shared + at * STAGE_BYTES + warp * 2048;
            const unsigned char* columns = shared + at * STAGE_BYTES + 16384 + group * (TILES * 1024);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int from = g * 128 + (((t + 4 * half) ^ ((g & 1) << 2)) << 4);
                const uint4 a = *reinterpret_cast<const uint4*>(weights + from);
                const uint4 b = *reinterpret_cast<const uint4*>(weights + from + 1024);
#pragma unroll
                for (int j = 0; j < TILES; ++j) {
                    const uint4 c = *reinterpret_cast<const uint4*>(columns + j * 1024 + from);
                    mma(sum[j], a.x, b.x, a.y, b.y, c.x, c.y);
                    mma(sum[j], a.z, b.z, a.w, b.w, c.z, c.w);
                }
            }
            at = at + 1 == STAGES ? 0 : at + 1;
        }
    };
#if LORA
    // B is on its way before it is needed, and who has which adapter is known.
    __shared__ int slots[BATCH], row_ranks[BATCH];
    __shared__ float scales[BATCH];
    const word seconds[3] = {p.second0, p.second1, p.second2};
    auto second_factor = [&](int c, int o, int m) {
        return pool + adapters.slots[batch + c] * p.slot + seconds[module + m] + static_cast<word>(o) * adapters.ranks[batch + c];
    };
    if (static_cast<int>(threadIdx.x) < rows) {
        slots[threadIdx.x] = adapters.slots[batch + threadIdx.x];
        row_ranks[threadIdx.x] = adapters.ranks[batch + threadIdx.x];
        scales[threadIdx.x] = adapters.scales[batch + threadIdx.x];
    }
    for (int i = threadIdx.x; split == 0 && i < rows * TILE_OUT; i += 256) {
        const int c = i / TILE_OUT, o = first_out + i % TILE_OUT;
        if (o >= out || adapters.slots[batch + c] < 0) continue;
#pragma unroll
        for (int m = 0; m < MODULES; ++m) asm volatile("prefetch.global.L2 [%0];" ::"l"(second_factor(c, o, m)));
    }
#endif
    // The weights are there before the launch is: their way from memory overlaps with the kernel before.
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage)
        if (stage < left) fetch_weights(stage, next + stage);
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
    float sum[TILES][4];
    strands<OWN>(sum, first, run);

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
    const long long tiles = (gridDim.x - p.shrinks) / SPLITS;
    const long long place_of_tile = static_cast<long long>(blockIdx.y) * tiles + tile;
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
    // A thread's numbers of y, a few at a time: what they need of B is asked for together.
    constexpr int NUMBERS = (BATCH * TILE_OUT + 255) / 256, AT_ONCE = NUMBERS < 4 / MODULES ? NUMBERS : 4 / MODULES;
#pragma unroll 1
    for (int begin = 0; begin < NUMBERS; begin += AT_ONCE) {
#if LORA
        FewRanks near[AT_ONCE][MODULES];
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
            const int i = (begin + n) * 256 + threadIdx.x, c = i / TILE_OUT, o = first_out + i % TILE_OUT;
            if (i >= rows * TILE_OUT || o >= out || slots[c] < 0) continue;
#pragma unroll
            for (int m = 0; m < MODULES; ++m) near[n][m].load(second_factor(c, o, m), row_ranks[c]);
        }
        float* us = sums + GROUPS * BATCH * LINE;
        if (begin == 0) {
            wait_for(ready + p.launch, static_cast<unsigned>(p.shrinks));
            // The first-level cache has none of it: blocks of this launch wrote it.
            for (int i = threadIdx.x; i < rows * MODULES * (RANKS / 4); i += 256) {
                const int c = i / (MODULES * (RANKS / 4)), rest = i % (MODULES * (RANKS / 4)), m = rest / (RANKS / 4);
                const float* from = u + ((batch + c) * WEIGHTS + module + m) * RANKS + rest % (RANKS / 4) * 4;
                reinterpret_cast<float4*>(us)[i] = __ldcg(reinterpret_cast<const float4*>(from));
            }
            __syncthreads();
        }
#endif
#pragma unroll
        for (int n = 0; n < AT_ONCE; ++n) {
            const int i = (begin + n) * 256 + threadIdx.x, c = i / TILE_OUT, r = i % TILE_OUT, o = first_out + r;
            if (i >= rows * TILE_OUT || o >= out) continue;
#if GLU
            const int at_row = r / 8 * 16 + r % 8;
            float result[2] = {value(c, at_row), value(c, at_row + 8)};
#else
            float result[1] = {value(c, r)};
#endif
#if BIAS
#if GLU
            result[0] += bias0[o], result[1] += bias1[o];
#else
            const float* bias = bias0;
#if WEIGHTS > 1
            if (module == 1) bias = bias1;
#endif
#if WEIGHTS > 2
            if (module == 2) bias = bias2;
#endif
            result[0] += bias[o];
#endif
#endif
#if LORA
            if (slots[c] >= 0) {
#pragma unroll
                for (int m = 0; m < MODULES; ++m) {
                    const float* own = us + (c * MODULES + m) * RANKS;
                    result[m] += scales[c] * rank_sum(own, second_factor(c, o, m), near[n][m], row_ranks[c]);
                }
            }
#endif
#if GLU
            y[(batch + c) * out + o] = __float2bfloat16_rn(activation(result[0]) * result[1]);
#else
            y[(batch + c) * out + o] = __float2bfloat16_rn(result[0]);
#endif
        }
    }
}
