// Products of one row with whole weights, for decoding a single sequence. Needs vector.cuh, norm_row.cuh, join.cuh, tiles.cuh,
// product.cuh and adapters.cuh before it.

#ifndef ROW
#define ROW 0  // 0: x is there. What every block makes by itself: 1: x is a norm (D, ADD, AFTER), 2: joined attention (HEAD_DIM).
#endif
#ifndef STAGES
#define STAGES 4  // Steps of 16 KB in shared memory, behind which the row lies.
#endif

constexpr int GROUPS = 8;      // Warps of a block: a strand for each.
constexpr int TILE_ROWS = 16;  // Rows of weights of a tile.
constexpr int TILE_OUT = GLU ? 8 : 16;
constexpr int STAGE_BYTES = 16384;
static_assert(GROUPS == STRANDS && GROUPS * FACTOR_SPLITS == FACTOR_STRANDS, "a warp takes one strand");

// The same as `product` of matvec.cu for one row, to the last bit. The row lies in shared memory whole, and a block goes on from
// tile to tile while the weights of the next are on their way.
//
// Grid: factors · FACTOR_SPLITS + any number of blocks up to that of tiles, as there; 256 threads; dynamic shared memory of
// at least 16384·STAGES + 2·in, which is rounded up to 128, and so much that a multiprocessor has room for two: a third is one less elsewhere.
// Arguments: those of matvec.cu for SPLITS 1; x is bf16 [in], or with ROW 1: x bf16 [D], [ADD: delta bf16 [D]], weight f32 [D], [AFTER:
// after f32 [D]], [ADD: sum bf16 [D], which is written, not x], with ROW 2: sums f32 [heads, splits, HEAD_DIM] and tops f32
// [heads, splits, 2] of paged_attention, and `packed` as with LORA.
extern "C" __global__ void __launch_bounds__(256, 2) product(
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
    const bf16* x,
#endif
    WEIGHT_PARAMETERS
#if LORA || ROW == 2
    const int* __restrict__ packed,
#endif
    ADAPTER_PARAMETERS RESULT_PARAMETERS const __grid_constant__ ProductP p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    __shared__ __align__(16) float sums[2][GROUPS + LORA][TILE_ROWS];
    const Matrices of = {{w0, w1, w2}, BIAS_ARGUMENTS, {y0, y1, y2}};
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int line = lane / 8, chunk = lane % 8, g = lane / 4, t = lane % 4;
    const int in = static_cast<int>(p.in), steps = (in + STEP - 1) / STEP;
    const int tiles = tiles_of<TILE_OUT>(p.out[0]) + (GLU ? 0 : tiles_of<TILE_OUT>(p.out[1]) + tiles_of<TILE_OUT>(p.out[2]));
    let_next_begin();

    // Which tiles are this block's.
#if LORA
    __shared__ __align__(16) unsigned us[MODULES][RANKS / 2];
    __shared__ Own owns[1];
    const Adapters adapters(packed, pool, told, owns, 0, 1, p);
    const int factor_tiles = adapters.room * (RANKS / TILE_ROWS), factors = WEIGHTS * factor_tiles * FACTOR_SPLITS;
    const bool of_factor = blockIdx.x < factors;
    static_assert(sizeof sums + sizeof us + sizeof owns <= 2960, "with what a norm has 3 KB, which a block of sm_86 has beside 96");
    const int factor = blockIdx.x / FACTOR_SPLITS, factor_module = factor / factor_tiles, first_factor = factor % factor_tiles * TILE_ROWS;
    const int split = of_factor ? blockIdx.x % FACTOR_SPLITS : 0;
#else
    constexpr bool of_factor = false;
    constexpr int factors = 0, split = 0;
#endif
    const int strand = split * GROUPS + warp, parts = of_factor ? FACTOR_STRANDS : STRANDS;
    const int stride = gridDim.x - factors, begin = steps * strand / parts, end = steps * (strand + 1) / parts;

    // The weights' way: a lane's share of a step are four rows, and 16 bytes of each.
    const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const unsigned to = base + warp * 2048 + swizzled(line, chunk);
    // Where the lane's operands are: the row is each of the eight columns.
    const unsigned from = base + warp * 2048 + sixteen_rows(), row = base + STAGES * STAGE_BYTES + lane / 8 * 16;
    int coming = of_factor ? tiles : static_cast<int>(blockIdx.x) - factors, next = begin;
    Lines lines = lines_of(tile_at<TILE_OUT>(min(coming, tiles - 1), p), of, p, 0, line, chunk);
#if LORA
    if (of_factor) {
        if (first_factor / RANKS >= adapters.count) return;
        lines = adapters.firsts(factor_module, first_factor, line, chunk, p);
    }
#endif
    auto fetch = [&](int stage) {
        if (next == end && coming + stride < tiles && begin < end) {
            coming += stride, next = begin;
            lines = lines_of(tile_at<TILE_OUT>(coming, p), of, p, 0, line, chunk);
        }
        if (next < end) fetch_lines(lines, to + stage * STAGE_BYTES, next++, chunk, in);
        commit();
    };
#if LATE
    wait_for_previous();
#endif
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage) fetch(stage);
#if LORA
    adapters.share();
#endif

    // The row.
    uint4* whole = reinterpret_cast<uint4*>(shared + STAGES * STAGE_BYTES);
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
#elif ROW == 2
    wait_for_previous();
    const int stretch_count = stretches(packed[p.rows], static_cast<int>(p.window), static_cast<int>(p.splits));
    for (int i = threadIdx.x; i < in / 8; i += 256) {
        const long long head = i / (HEAD_DIM / 8);
        const float2* pairs = reinterpret_cast<const float2*>(tops) + head * p.splits;
        float most = nothing(), means[8];
#pragma unroll 8
        for (int s = 0; s < stretch_count; ++s) most = fmaxf(most, __ldcg(pairs + s).x);
        join<8>(pairs, stretch_sums + head * p.splits * HEAD_DIM + i % (HEAD_DIM / 8) * 8, stretch_count, most, means);
        whole[i] = pack(means);
    }
#else
    wait_for_previous();
#pragma unroll 4
    for (int i = threadIdx.x; i < in / 8; i += 256) whole[i] = reinterpret_cast<const uint4*>(x)[i];
#endif
    for (int i = in / 8 + threadIdx.x; i < steps * (STEP / 8); i += 256) whole[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();

    int at = 0;
    float sum[4];
    auto run = [&] {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = 0.0f;
        for (int step = begin; step < end; ++step) {
            wait<STAGES - 2>();
            __syncwarp();
            fetch(at == 0 ? STAGES - 1 : at - 1);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const unsigned weights = (from + at * STAGE_BYTES) ^ (half * 64);
                const uint4 c = load_matrices(row + step * (2 * STEP) + half * 64);
                mma(sum, load_matrices(weights), c.x, c.y);
                mma(sum, load_matrices(weights ^ 32), c.z, c.w);
            }
            at = at + 1 == STAGES ? 0 : at + 1;
        }
    };
    int turn = 0;
    auto put = [&](int slab, const float (&of)[4]) {
        if (t == 0) sums[turn][slab][g] = of[0], sums[turn][slab][g + 8] = of[2];
    };
    auto value = [&](int, int r) { return pairwise<GROUPS>([&](int part) { return sums[turn][part][r]; }); };
#if LORA
    if (of_factor) {
        run();
        put(warp, sum);
        __syncthreads();
        auto four = [&](int, int r) { return pairwise<GROUPS>([&](int part) { return *reinterpret_cast<const float4*>(&sums[turn][part][r]); }); };
        adapters.tell(four, split, factor_module, first_factor, TILE_ROWS, p);
        return;
    }
    const int adapter = owns[0].adapter;
    int heard = -1;
#endif
    for (int index = blockIdx.x - factors; index < tiles; index += stride, turn ^= 1) {
        const Tile tile = tile_at<TILE_OUT>(index, p);
#if LORA
        uint4 seconds = {};
        if (warp == 0 && adapter >= 0) seconds = adapters.seconds(adapter, 0, tile, p);
#endif
        run();
#if LORA
        if (warp == 0) {
            for (int pair = lane; adapter >= 0 && heard != tile.module && pair < RANKS / 2; pair += 32) {
                unsigned heard_of[MODULES];
                adapters.hear(heard_of, 0, tile.module, 2 * pair, p);
#pragma unroll
                for (int m = 0; m < MODULES; ++m) us[m][pair] = heard_of[m];
            }
            heard = tile.module;
            __syncwarp();
            float added[4] = {};
            for (int rank = 0; adapter >= 0 && rank < RANKS; rank += 16) {
                if (rank > 0) seconds = adapters.seconds(adapter, rank, tile, p);
                auto u = [&](int m, int further) { return us[m][rank / 2 + t + further]; };
#if GLU
                // A tile's upper rows are the gate's, its lower ones the other's.
                mma(added, make_uint4(seconds.x, 0, seconds.z, 0), u(0, 0), u(0, 4));
                mma(added, make_uint4(0, seconds.y, 0, seconds.w), u(1, 0), u(1, 4));
#else
                mma(added, seconds, u(0, 0), u(0, 4));
#endif
            }
            put(GROUPS, added);
        }
#endif
        put(warp, sum);
        __syncthreads();
#if LORA
        // What the adapter adds comes last.
        auto total = [&](int r) { return adapter >= 0 ? value(0, r) + sums[turn][GROUPS][r] : value(0, r); };
#else
        auto total = [&](int r) { return value(0, r); };
#endif
        if (threadIdx.x < TILE_OUT && tile.first + threadIdx.x < tile.out)
            finish(total(threadIdx.x), GLU ? total(threadIdx.x + 8) : 0.0f, tile, of, 0, tile.first + threadIdx.x);
    }
}
