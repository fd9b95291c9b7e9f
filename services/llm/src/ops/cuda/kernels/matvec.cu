// Products of a few rows with whole weights, for decoding: each weight is read once for up to 64 rows of the batch. Needs
// vector.cuh, tiles.cuh, product.cuh, adapters.cuh and share.cuh before it.

#ifndef BATCH
#define BATCH 8  // Rows of x that a block takes: 8, 16, 32 or 64. A row's result has the same bits with each.
#endif
#ifndef SPLITS
#define SPLITS 1  // Blocks that share a tile's sums: 1, 2, 4 or 8, at most BATCH / 8. Does not change a bit.
#endif
#ifndef STAGES
#define STAGES 4  // Steps of 24 KB in shared memory.
#endif

#define SHARED_BYTES (STAGES * 24576)

constexpr int TILES = BATCH / 8;             // Tiles of eight rows of x; as many warps stand side by side over the weight's rows.
constexpr int GROUPS = 8 / TILES;            // Warps of a block that take different strands of the same rows.
constexpr int OWN = STRANDS / (GROUPS * SPLITS);  // Strands of a warp, one after the other.
constexpr int FACTOR_OWN = FACTOR_STRANDS / (GROUPS * FACTOR_SPLITS);
constexpr int MOST_OWN = LORA && FACTOR_OWN > OWN ? FACTOR_OWN : OWN;
constexpr int LEVELS = MOST_OWN == 8 ? 3 : MOST_OWN / 2;  // Halvings.
constexpr int TILE_ROWS = 16 * TILES;        // Rows of weights of a block.
constexpr int TILE_OUT = GLU ? TILE_ROWS / 2 : TILE_ROWS;
constexpr int STAGE_BYTES = 24576;           // 8 warps' 16 rows of weights, and all groups' rows of x.
constexpr int LINE = TILE_ROWS + 4;          // Floats between columns of the sums: no two lanes of a warp meet in a bank.
constexpr int SLABS = (1 + LORA) * GROUPS;   // Each group's sums, and what it adds for adapters.
static_assert(TILES * GROUPS == 8 && OWN >= 1 && OWN * GROUPS * SPLITS == STRANDS, "SPLITS is at most BATCH / 8");
static_assert(SLABS * BATCH * LINE * 4 <= STAGES * STAGE_BYTES, "the sums lie where the steps lay");

// y_i = x·W_iᵀ (+ bias_i) (+ scale·(x·Aᵀ)·Bᵀ) for x [rows, in] with rows <= BATCH, W_i [out_i, in] and y_i [rows, out_i], or with GLU
// y_0 = act(x·W_0ᵀ) * (x·W_1ᵀ) [rows, out0]. `in` is a multiple of 8.
//
// Grid: factors · FACTOR_SPLITS + tiles · SPLITS with tiles = Σ_i ⌈out_i / (2·BATCH)⌉, with GLU ⌈out0 / BATCH⌉, and factors =
// WEIGHTS · ⌈adapters · RANKS / (2·BATCH)⌉ with LORA, else 0; 256 threads; SHARED_BYTES.
// Arguments in order, those of absent options left out: x, w0, w1, w2, [BIAS: bias0, bias1, bias2], [LORA: packed i32, the step's inputs
//   as ops/cuda/decode.rs has them; pool bf16 [slots, slot]: A_i [rank, in] of an adapter begins at firsts[i] of its slot, B_i
//   [out_i, RANKS] with zeros beyond the rank at seconds[i]; told u64 [products, 4·rows·3·RANKS], which only launches
//   with the same arguments write, and which holds no number of a step to come], y0, y1, y2, [SPLITS > 1: partial f32
//   [tiles · (SPLITS, with LORA one more) · 2·BATCH·BATCH], arrived u32 [tiles], zero before the first launch and again after each].
//
// The weights are the 16-row operand of the tensor cores, so the batch is their 8-column side: even one row costs no more
// than the weights' way from memory. Dot products are cut into 8 strands whatever BATCH and SPLITS are, and
// the strands' sums are added pairwise, so a row has the same bits in any batch. Wider batches let TILES warps share x, which
// else would be read as often as the weights; then fewer blocks would have work, so they split the strands, and the last one to
// arrive adds the sums, in their order. What an adapter adds is summed by one warp, a product of sixteen ranks after the other, so that
// it, too, has the same bits in any batch; the last sum is that of both.
extern "C" __global__ void __launch_bounds__(256, BATCH == 64 ? 1 : 2) product(
    const bf16* x, WEIGHT_PARAMETERS
#if LORA
    const int* __restrict__ packed,
#endif
    ADAPTER_PARAMETERS RESULT_PARAMETERS
#if SPLITS > 1
    float* __restrict__ partial, unsigned* __restrict__ arrived,
#endif
    const __grid_constant__ ProductP p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Matrices of = {{w0, w1, w2}, BIAS_ARGUMENTS, {y0, y1, y2}};
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int place = warp % TILES, group = warp / TILES;
    const int line = lane / 8, chunk = lane % 8;
    let_next_begin();
    const int in = static_cast<int>(p.in), rows = static_cast<int>(p.rows);

    // Whose tile it is.
    int block = blockIdx.x;
#if LORA
    __shared__ Own owns[BATCH];
    const Adapters adapters(packed, pool, told, owns, p);
    const int factor_tiles = (adapters.room * RANKS + TILE_ROWS - 1) / TILE_ROWS, factors = WEIGHTS * factor_tiles * FACTOR_SPLITS;
    const bool of_factor = block < factors;
    const int factor = block / FACTOR_SPLITS, factor_module = factor / factor_tiles, first_factor = factor % factor_tiles * TILE_ROWS;
    if (of_factor && first_factor / RANKS >= adapters.count) return;
    block = of_factor ? 0 : block - factors;
    const int split = of_factor ? blockIdx.x % FACTOR_SPLITS : block % SPLITS;
#else
    const int split = block % SPLITS;
    constexpr bool of_factor = false;
#endif
    const Tile tile = tile_at<TILE_OUT>(block / SPLITS, p);
    Lines lines = lines_of(tile, of, p, place, line, chunk);
#if LORA
    if (of_factor) lines = adapters.firsts(factor_module, first_factor + place * 16, line, chunk, p);
#endif

    // This lane's share of a step: four rows of weights and two of x, and 16 bytes of each.
    const bf16* some[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        some[i] = x + min(place * 8 + line + 4 * i, rows - 1) * p.in + chunk * 8;
        keep(some[i]);
    }
    const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const unsigned to = swizzled(line, chunk);
    const unsigned to_weights = base + warp * 2048 + to, to_rows = base + 16384 + group * (TILES * 1024) + place * 1024 + to;

    const int steps = (in + STEP - 1) / STEP, parts = of_factor ? FACTOR_STRANDS : STRANDS, own = of_factor ? FACTOR_OWN : OWN;
    const int first = (split * GROUPS + group) * own;
    auto start_of = [&](int strand) { return steps * strand / parts; };
    int next = start_of(first), left = start_of(first + own) - next;
    auto fetch_weights = [&](int stage, int step) { fetch_lines(lines, to_weights + stage * STAGE_BYTES, step, chunk, in); };
    auto fetch_rows = [&](int stage, int step) {
        const unsigned there = step * STEP + chunk * 8 < in ? 16 : 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) copy_rows(((to_rows + stage * STAGE_BYTES) ^ (i * 64)) + i * 512, some[i] + step * STEP, there);
    };
#if LORA
    // Second factors follow the weights, four products of sixteen ranks a step.
    typedef Share<GROUPS * SPLITS> OfBlocks;
    const OfBlocks share = {group * SPLITS + split, adapters.count};
    const int more = of_factor ? 0 : share.steps();
    int brought = 0;
    auto fetch_seconds = [&](int stage, int step) {
        share.fetch(adapters, to_weights + stage * STAGE_BYTES, step, tile.first + place * (GLU ? 8 : 16) + line, chunk, tile, p);
    };
#endif
    auto fetch = [&](int stage) {
        if (left > 0) {
            fetch_weights(stage, next);
            fetch_rows(stage, next);
            --left;
            ++next;
        }
#if LORA
        else if (brought < more) fetch_seconds(stage, brought++);
#endif
        commit();
    };

    const int g = lane / 4, t = lane % 4;
    const unsigned from_weights = base + warp * 2048 + sixteen_rows(), from_rows = base + 16384 + group * (TILES * 1024) + eight_rows();
    int at = 0;
#if LATE
    wait_for_previous();
#endif
    // The weights are there before the launch is: their way from memory overlaps with the kernel before.
#pragma unroll(LORA ? 1 : STAGES)
    for (int stage = 0; stage < STAGES - 1; ++stage) {
        if (stage < left) fetch_weights(stage, next + stage);
#if LORA
        else if (brought < more) fetch_seconds(stage, brought++);
#endif
    }
#if LORA
    __syncthreads();
#endif
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

    // Strands, and what is added for adapters as one more: `sum` is that of one, and `kept` those of halves of them whose other half
    // is still to come. At last the sum of all strands is the first of them.
    float sum[TILES][4], kept[LEVELS + (LEVELS == 0)][TILES][4];
#pragma unroll 1
    for (int strand = 0; strand < own + LORA; ++strand) {
#pragma unroll
        for (int i = 0; i < TILES * 4; ++i) sum[i / 4][i % 4] = 0.0f;
        const bool is_strand = strand < own;
#if LORA
        const int count = is_strand ? start_of(first + strand + 1) - start_of(first + strand) : more;
#else
        const int count = start_of(first + strand + 1) - start_of(first + strand);
#endif
#pragma unroll 1
        for (int step = 0; step < count; ++step) {
#if LORA
            unsigned char* us = shared + at * STAGE_BYTES + 16384 + group * (TILES * 1024);
            if (!is_strand) share.template hear<TILES>(adapters, us, step, place * 32 + lane, tile.module, p);
#endif
            wait<STAGES - 2>();
            // The warps of a group share x.
            if constexpr (TILES == 1) __syncwarp();
            else asm volatile("bar.sync %0, %1;" ::"r"(1 + group), "n"(TILES * 32) : "memory");
            fetch(at == 0 ? STAGES - 1 : at - 1);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const unsigned weights = (from_weights + at * STAGE_BYTES) ^ (half * 64), columns = (from_rows + at * STAGE_BYTES) ^ (half * 64);
                const uint4 a = load_matrices(weights), b = load_matrices(weights ^ 32);
#pragma unroll
                for (int j = 0; j < TILES; ++j) {
                    const uint4 c = load_matrices(columns + j * 1024);
                    mma(sum[j], a, c.x, c.y);
                    mma(sum[j], b, c.z, c.w);
                }
            }
            at = at + 1 == STAGES ? 0 : at + 1;
        }
        // A half that is whole is added to the one before it, as a binary counter carries.
        bool carries = is_strand;
#pragma unroll
        for (int level = 0; level < LEVELS; ++level)
            if (carries) {
                carries = strand >> level & 1;
#pragma unroll
                for (int i = 0; i < TILES * 4; ++i) {
                    float &one = kept[level][i / 4][i % 4], &other = sum[i / 4][i % 4];
                    if (carries) other = one + other;
                    else one = other;
                }
            }
        if (strand + 1 == own) {
#pragma unroll
            for (int i = 0; i < TILES * 4; ++i) kept[0][i / 4][i % 4] = sum[i / 4][i % 4];
        }
    }

    // Sums of the groups' strands, [group][column][row].
    wait<0>();
    __syncthreads();
    float* sums = reinterpret_cast<float*>(shared);
    auto put = [&](int slab, const float (&of)[TILES][4]) {
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
            float* to_sums = sums + (slab * BATCH + 8 * j + 2 * t) * LINE + place * 16 + g;
            to_sums[0] = of[j][0], to_sums[LINE] = of[j][1];
            to_sums[8] = of[j][2], to_sums[LINE + 8] = of[j][3];
        }
    };
    put(group, kept[0]);
#if LORA
    put(GROUPS + group, sum);
#endif
    __syncthreads();
    auto of_groups = [&](int c, int r) {
        return pairwise<GROUPS>([&](int part) { return sums[(part * BATCH + c) * LINE + r]; });
    };
#if LORA
    if (of_factor) {
        adapters.tell(of_groups, split, factor_module, first_factor, TILE_ROWS, p);
        return;
    }
    // What the adapters add comes last, whatever the sums before were made of. One warp has it.
    auto slot_of = [&](int c) { return OfBlocks::slot_of(owns[c].adapter); };
    auto of_adapter = [&](int c, int r) { return sums[((GROUPS + slot_of(c) / SPLITS) * BATCH + c) * LINE + r]; };
#endif
#if SPLITS > 1
    __shared__ unsigned before;
    const int place_of_tile = block / SPLITS;
    // [SPLITS, with LORA one more for what is added][column][row]
    float* partials = partial + static_cast<long long>(place_of_tile) * ((SPLITS + LORA) * TILE_ROWS * BATCH);
    auto partial_of = [&](int part, int c, int r) { return partials + (part * BATCH + c) * TILE_ROWS + r; };
    for (int i = threadIdx.x; i < rows * TILE_ROWS; i += 256) {
        const int c = i / TILE_ROWS, r = i % TILE_ROWS;
        __stcg(partial_of(split, c, r), of_groups(c, r));
#if LORA
        if (owns[c].adapter >= 0 && slot_of(c) % SPLITS == split) __stcg(partial_of(SPLITS, c, r), of_adapter(c, r));
#endif
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) before = atomicAdd(arrived + place_of_tile, 1u);
    __syncthreads();
    if (before != SPLITS - 1) return;
    if (threadIdx.x == 0) arrived[place_of_tile] = 0;
    __threadfence();
    auto value = [&](int c, int r) { return pairwise<SPLITS>([&](int part) { return __ldcg(partial_of(part, c, r)); }); };
#if LORA
    auto added = [&](int c, int r) { return __ldcg(partial_of(SPLITS, c, r)); };
#endif
#else
    auto value = of_groups;
#if LORA
    auto added = of_adapter;
#endif
#endif
#if LORA
    auto total = [&](int c, int r) { return owns[c].adapter >= 0 ? value(c, r) + added(c, r) : value(c, r); };
#else
    auto total = value;
#endif
    for (int i = threadIdx.x; i < rows * TILE_OUT; i += 256) {
        const int c = i / TILE_OUT, r = i % TILE_OUT, at_row = GLU ? r / 8 * 16 + r % 8 : r;
        if (tile.first + r >= tile.out) continue;
        finish(total(c, at_row), GLU ? total(c, at_row + 8) : 0.0f, tile, of, c, tile.first + r);
    }
}
