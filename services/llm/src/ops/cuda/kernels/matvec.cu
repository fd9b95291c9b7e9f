// Products of a few rows with whole weights, for decoding: each weight is read once for up to 32 rows of the batch. Needs
// vector.cuh, tiles.cuh, product.cuh, adapters.cuh and share.cuh before it.

#ifndef BATCH
#define BATCH 8  // Rows of x that a block takes: 8, 16 or 32. A row's result has the same bits with each.
#endif
#ifndef BANDS
#define BANDS 1  // Bands of so many rows.
#endif
#ifndef SPLITS
#define SPLITS 1  // Blocks that share a tile's sums: 1, 2 or 4, at most BATCH / 8. Does not change a bit.
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
constexpr int LEVELS = MOST_OWN / 2;  // Halvings.
constexpr int TILE_ROWS = 16 * TILES;        // Rows of weights of a block.
constexpr int TILE_OUT = GLU ? TILE_ROWS / 2 : TILE_ROWS;
constexpr int STAGE_BYTES = 24576;           // 8 warps' 16 rows of weights, and all groups' rows of x.
constexpr int LINE = TILE_ROWS + 4;          // Floats between columns of the sums: no two lanes of a warp meet in a bank.
constexpr int SLABS = (SPLITS == 1 ? 1 + LORA : 1) * GROUPS;  // Each group's sums, and what it adds for adapters.
#if BATCH == 32
typedef float4 Run;  // Neighbouring numbers of y that a thread finishes at once: so many that all threads have some.
#else
typedef float Run;
#endif
constexpr int RUN = sizeof(Run) / 4, MINE = (BATCH * TILE_OUT + 256 * RUN - 1) / (256 * RUN);
static_assert(MOST_OWN <= 4, "a half of four is two, and of two one");
static_assert(TILES * GROUPS == 8 && OWN >= 1 && OWN * GROUPS * SPLITS == STRANDS, "SPLITS is at most BATCH / 8");
static_assert(SLABS * BATCH * LINE * 4 <= STAGES * STAGE_BYTES, "the sums lie where the steps lay");

/// Has each run of numbers of y that is a thread's: which of its runs, whose row and where in a tile it is, and the first of its sums'
/// rows.
template <class Use> __device__ __forceinline__ void each_mine(int rows, const Use& use) {
#pragma unroll
    for (int i = 0; i < MINE; ++i) {
        const int place = RUN * (threadIdx.x + 256 * i), c = place / TILE_OUT, r = place % TILE_OUT;
        if (c < rows) use(i, c, r, GLU ? r / 8 * 16 + r % 8 : r);
    }
}

// y_i = x·W_iᵀ (+ bias_i) (+ scale·(x·Aᵀ)·Bᵀ) for x [rows, in] with rows <= BANDS · BATCH, W_i [out_i, in] and y_i [rows, out_i], or with GLU
// y_0 = act(x·W_0ᵀ) * (x·W_1ᵀ) [rows, out0]. `in` is a multiple of 8.
//
// Grid: BANDS · (factors · FACTOR_SPLITS + tiles · SPLITS) with tiles = Σ_i ⌈out_i / (2·BATCH)⌉, with GLU ⌈out0 / BATCH⌉, and factors =
// WEIGHTS · ⌈adapters · RANKS / (2·BATCH)⌉ with LORA, else 0; 256 threads; SHARED_BYTES.
// Arguments in order, those of absent options left out: x, w0, w1, w2, [BIAS: bias0, bias1, bias2], [LORA: packed i32, the step's inputs
//   as ops/step_words.rs has them; pool bf16 [slots, slot]: A_i [rank, in] of an adapter begins at firsts[i] of its slot, B_i
//   [out_i, RANKS] with zeros beyond the rank at seconds[i]; told u64 [products, 4·rows·3·RANKS], which only launches
//   with the same arguments write, and which holds no number of a step to come], y0, y1, y2, [SPLITS > 1: partial f32
//   [BANDS · tiles · SPLITS · 2·BATCH·BATCH], arrived u32 [BANDS · tiles], zero before the first launch and again after each].
//
// The weights are the 16-row operand of the tensor cores, so the batch is their 8-column side: even one row costs no more
// than the weights' way from memory. Bands of rows lie side by side in the grid: the second one's weights come from L2. Dot
// products are cut into 8 strands whatever BATCH and SPLITS are, and the strands' sums are added pairwise, so a row has the same
// bits in any batch. Wider batches let TILES warps share x, which else would be read as often as the weights; then fewer blocks
// would have work, so they split the strands, and the last one to arrive adds the sums, in their order, and what adapters add,
// whose x·Aᵀ is there by then. That is summed by one warp, a product of sixteen ranks after the other, so that it, too, has the
// same bits in any batch; the last sum is that of both.
extern "C" __global__ void __launch_bounds__(256, 2) product(
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
    const int in = static_cast<int>(p.in), band = blockIdx.x % BANDS, first_row = band * BATCH;
    const int rows = min(static_cast<int>(p.rows) - first_row, BATCH);

    // Whose tile it is.
    int block = blockIdx.x / BANDS;
#if LORA
    __shared__ Own owns[BATCH];
    const Adapters adapters(packed, pool, told, owns, first_row, rows, p);
    const int factor_tiles = (adapters.room * RANKS + TILE_ROWS - 1) / TILE_ROWS, factors = WEIGHTS * factor_tiles * FACTOR_SPLITS;
    const bool of_factor = block < factors;
    const int factor = block / FACTOR_SPLITS, factor_module = factor / factor_tiles, first_factor = factor % factor_tiles * TILE_ROWS;
    const int split = of_factor ? block % FACTOR_SPLITS : (block - factors) % SPLITS;
    block = of_factor ? 0 : block - factors;
#else
    const int split = block % SPLITS;
    constexpr bool of_factor = false;
#endif
    const Tile tile = tile_at<TILE_OUT>(block / SPLITS, p);
    Lines lines = lines_of(tile, of, p, place, line, chunk);
#if LORA
    if (of_factor) {
        if (first_factor / RANKS >= adapters.count) return;
        lines = adapters.firsts(factor_module, first_factor + place * 16, line, chunk, p);
    }
#endif

    // This lane's share of a step: four rows of weights and two of x, and 16 bytes of each.
    const bf16* some[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        some[i] = x + (first_row + min(place * 8 + line + 4 * i, rows - 1)) * p.in + chunk * 8;
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
    // Second factors follow the weights; where blocks share the sums, the last one alone needs them.
    typedef Share<GROUPS, BATCH> Added;
    __shared__ Added::Us us;
    static_assert(SHARED_BYTES + (sizeof us + sizeof owns + 4 + 1023) / 1024 * 1024 <= 101376, "a block of sm_86 has no more");
    const Added share = {adapters, group};
    int more = of_factor || SPLITS > 1 ? 0 : Added::SLICES * share.steps(), brought = 0;
    auto fetch_seconds = [&](int stage, int step) {
        share.fetch(to_weights + stage * STAGE_BYTES, step, tile.first + place * (GLU ? 8 : 16) + line, chunk, tile, p);
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

#if LORA
    adapters.share();
    __syncthreads();
#endif

    // The sums of a strand, and those of halves of the strands whose other half is still to come. At last the sum of all strands is the
    // first of them.
    float sum[TILES][4], kept[LEVELS + (LEVELS == 0)][TILES][4];
    auto clear = [&] {
#pragma unroll
        for (int i = 0; i < TILES * 4; ++i) sum[i / 4][i % 4] = 0.0f;
    };
#pragma unroll 1
    for (int strand = 0; strand < own; ++strand) {
        clear();
        const int count = start_of(first + strand + 1) - start_of(first + strand);
#pragma unroll 1
        for (int step = 0; step < count; ++step) {
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
        bool carries = true;
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

#if LORA
    // What the adapters add, a warp each one's: a row's is one sum, whatever those of strands were made of.
    auto add = [&] {
        clear();
#pragma unroll 1
        for (int slice = 0; slice < Added::SLICES; ++slice) {
            if (slice > 0) __syncthreads();
            share.hear(us, slice, tile.module, p);
            __syncthreads();
            share.add(sum, us, [&] {
                wait<STAGES - 2>();
                __syncwarp();
                fetch(at == 0 ? STAGES - 1 : at - 1);
                const unsigned here = from_weights + at * STAGE_BYTES;
                at = at + 1 == STAGES ? 0 : at + 1;
                return here;
            });
        }
    };
    if (SPLITS == 1 && !of_factor) add();
#endif

    // Sums of the groups, [group][column][row].
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
#if LORA && SPLITS == 1
    put(GROUPS + group, sum);
#endif
    __syncthreads();
    auto sums_at = [&](int slab, int c, int r) { return sums + (slab * BATCH + c) * LINE + r; };
    auto of_groups = [&](int c, int r) { return pairwise<GROUPS>([&](int part) { return *reinterpret_cast<const Run*>(sums_at(part, c, r)); }); };
#if LORA
    if (of_factor) {
        auto four = [&](int c, int r) { return pairwise<GROUPS>([&](int part) { return *reinterpret_cast<const float4*>(sums_at(part, c, r)); }); };
        adapters.tell(four, split, factor_module, first_factor, TILE_ROWS, p);
        return;
    }
#endif
#if SPLITS > 1
    __shared__ unsigned before;
    const int place_of_tile = block / SPLITS * BANDS + band;
    // [SPLITS][column][row]
    Run* partials = reinterpret_cast<Run*>(partial) + static_cast<long long>(place_of_tile) * (SPLITS * TILE_ROWS * BATCH / RUN);
    auto partial_of = [&](int part, int c, int r) { return partials + ((part * BATCH + c) * TILE_ROWS + r) / RUN; };
    for (int i = RUN * threadIdx.x; i < rows * TILE_ROWS; i += RUN * 256) {
        const int c = i / TILE_ROWS, r = i % TILE_ROWS;
        __stcg(partial_of(split, c, r), of_groups(c, r));
    }
    __syncthreads();
    if (threadIdx.x == 0) before = arrive(arrived + place_of_tile);
#if LORA
    // Each may be the last, and the second factors' way overlaps with the count's.
    more = Added::SLICES * share.steps();
    at = 0;
    for (int stage = 0; stage < STAGES - 1; ++stage) fetch(stage);
#endif
    __syncthreads();
    if (before != SPLITS - 1) {
        wait<0>();  // No copy comes to a block that has ended.
        return;
    }
    if (threadIdx.x == 0) arrived[place_of_tile] = 0;
    auto part_of = [&](int part, int c, int r) { return __ldcg(partial_of(part, c, r)); };
#else
    auto part_of = [&](int, int c, int r) { return of_groups(c, r); };
#endif
    // All at once, those of rows that are not there, too: one way to memory rather than one for each.
    constexpr int SUMS = GLU ? 2 : 1;
    Run parts_of[MINE][SUMS][SPLITS];
    each_mine(BATCH, [&](int i, int c, int, int row) {
#pragma unroll
        for (int m = 0; m < SUMS * SPLITS; ++m) parts_of[i][m / SPLITS][m % SPLITS] = part_of(m % SPLITS, c, row + 8 * (m / SPLITS));
    });
#if LORA && SPLITS > 1
    add();
    wait<0>();
    __syncthreads();
    put(group, sum);
    __syncthreads();
#endif
    each_mine(rows, [&](int i, int c, int r, int row) {
        Run totals[SUMS];
#pragma unroll
        for (int m = 0; m < SUMS; ++m) totals[m] = pairwise<SPLITS>([&](int part) { return parts_of[i][m][part]; });
#if LORA
        // What the adapters add comes last.
        const int adapter = owns[c].adapter, slab = (SPLITS == 1 ? GROUPS : 0) + Added::slot_of(adapter);
#pragma unroll
        for (int m = 0; m < SUMS; ++m)
            if (adapter >= 0) totals[m] = totals[m] + *reinterpret_cast<const Run*>(sums_at(slab, c, row + 8 * m));
#endif
#pragma unroll
        for (int o = 0; o < RUN; ++o) {
            auto number = [&](const Run& of) { return reinterpret_cast<const float*>(&of)[o]; };
            if (tile.first + r + o < tile.out) finish(number(totals[0]), number(totals[SUMS - 1]), tile, of, first_row + c, tile.first + r + o);
        }
    });
}
