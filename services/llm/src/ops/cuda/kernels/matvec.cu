// Products of a few rows with whole weights, for decoding: each weight is read once for up to 64 rows of the batch. Needs
// vector.cuh, tiles.cuh, product.cuh and adapters.cuh before it.

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
constexpr int TILE_ROWS = 16 * TILES;        // Rows of weights of a block.
constexpr int TILE_OUT = GLU ? TILE_ROWS / 2 : TILE_ROWS;
constexpr int STAGE_BYTES = 24576;           // 8 warps' 16 rows of weights, and all groups' rows of x.
constexpr int LINE = TILE_ROWS + 4;          // Floats between columns of the sums: no two lanes of a warp meet in a bank.
static_assert(TILES * GROUPS == 8 && OWN >= 1 && OWN * GROUPS * SPLITS == STRANDS, "SPLITS is at most BATCH / 8");
static_assert(GROUPS * BATCH * LINE * 4 <= STAGES * STAGE_BYTES, "the sums lie where the steps lay");

// y_i = x·W_iᵀ (+ bias_i) (+ scale·(x·Aᵀ)·Bᵀ) for x [rows, in] with rows <= BATCH, W_i [out_i, in] and y_i [rows, out_i], or with GLU
// y_0 = act(x·W_0ᵀ) * (x·W_1ᵀ) [rows, out0]. `in` is a multiple of 8.
//
// Grid: factors · FACTOR_SPLITS + tiles · SPLITS with tiles = Σ_i ⌈out_i / (2·BATCH)⌉, with GLU ⌈out0 / BATCH⌉, and factors =
// WEIGHTS · ⌈adapters · RANKS / (2·BATCH)⌉ with LORA, else 0; 256 threads; SHARED_BYTES, which hold with LORA
// 4·(64 + BATCH)·(2·BATCH + 4) + 2·(1, with GLU 2)·rows·RANKS.
// Arguments in order, those of absent options left out: x, w0, w1, w2, [BIAS: bias0, bias1, bias2], [LORA: packed i32, the step's inputs
//   as ops/cuda/decode.rs has them; pool bf16 [slots, slot]: A_i [rank, in] of an adapter begins at firsts[i] of its slot, B_i
//   [out_i, RANKS] with zeros beyond the rank at seconds[i]; told u32 [products, 4·rows·3·RANKS, 2], which only launches
//   with the same arguments write, and which holds no number of a step to come], y0, y1, y2, [SPLITS > 1: partial f32
//   [tiles · SPLITS · 2·BATCH·BATCH], arrived u32 [tiles], zero before the first launch and again after each].
//
// The weights are the 16-row operand of the tensor cores, so the batch is their 8-column side: even one row costs no more
// than the weights' way from memory. A lane holds 8 neighbouring columns of a row where the instruction wants 2 and 2; x is
// held alike, and the order of columns in a sum is free. Dot products are cut into 8 strands whatever BATCH and SPLITS are, and
// the strands' sums are added pairwise, so a row has the same bits in any batch. Wider batches let TILES warps share x, which
// else would be read as often as the weights; then fewer blocks would have work, so they split the strands, and the last one to
// arrive adds the sums, in their order.
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
    const Adapters adapters(packed, pool, told, p);
    const int factor_tiles = (adapters.count * RANKS + TILE_ROWS - 1) / TILE_ROWS, factors = WEIGHTS * factor_tiles * FACTOR_SPLITS;
    const bool of_factor = block < factors;
    const int factor = block / FACTOR_SPLITS, factor_module = factor / factor_tiles, first_factor = factor % factor_tiles * TILE_ROWS;
    if (of_factor && adapters.slot(first_factor / RANKS) < 0) return;
    block = of_factor ? 0 : block - factors;
    const int split = of_factor ? blockIdx.x % FACTOR_SPLITS : block % SPLITS;
#else
    const int split = block % SPLITS;
    constexpr bool of_factor = false;
#endif
    const Tile tile = tile_at<TILE_OUT>(block / SPLITS, p);
    Lines lines = lines_of(tile, of, p, place, line);
#if LORA
    if (of_factor) lines = adapters.firsts(factor_module, first_factor + place * 16, line, p);
#endif

    // This lane's share of a step: four rows, and 16 bytes of each. Rows of odd number lie with their halves exchanged: eight
    // lanes that read two rows' halves then meet all banks once.
    const int column = place * 8 + line;
    const bf16* row = x + static_cast<long long>(column) * in;
    const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    const unsigned to = line * 128 + ((chunk ^ ((line & 1) << 2)) << 4);
    const unsigned to_weights = base + warp * 2048 + to, to_rows = base + 16384 + group * (TILES * 1024) + place * 1024 + to;

    const int steps = (in + STEP - 1) / STEP, parts = of_factor ? FACTOR_STRANDS : STRANDS, own = of_factor ? FACTOR_OWN : OWN;
    const int first = (split * GROUPS + group) * own;
    auto start_of = [&](int strand) { return steps * strand / parts; };
    int next = start_of(first), left = start_of(first + own) - next;
    auto fetch_weights = [&](int stage, int step) { fetch_lines(lines, to_weights + stage * STAGE_BYTES, step, chunk, w0, in); };
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
        for (int count = start_of(strand + 1) - start_of(strand); count > 0; --count) {
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
    // The weights are there before the launch is: their way from memory overlaps with the kernel before.
#pragma unroll
    for (int stage = 0; stage < STAGES - 1; ++stage)
        if (stage < left) fetch_weights(stage, next + stage);
#if LORA
    if (!of_factor && split == 0) adapters.prefetch(tile, TILE_ROWS, p);
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
    float sum[TILES][4];
#if LORA
    if (of_factor) strands<FACTOR_OWN>(sum, first, run);
    else strands<OWN>(sum, first, run);
#else
    strands<OWN>(sum, first, run);
#endif

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
    put(group, sum);
    __syncthreads();
    auto of_groups = [&](int c, int r) {
        return pairwise<GROUPS>([&](int part) { return sums[(part * BATCH + c) * LINE + r]; });
    };
#if LORA
    if (of_factor) {
        adapters.tell(of_groups, split, factor_module, first_factor, TILE_ROWS, p);
        return;
    }
#endif
#if SPLITS > 1
    __shared__ unsigned before;
    const int place_of_tile = block / SPLITS;
    float* partials = partial + static_cast<long long>(place_of_tile) * (SPLITS * TILE_ROWS * BATCH);
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
    // What the adapters add comes last, whatever the sums before were made of.
    unsigned* us = reinterpret_cast<unsigned*>(sums + (GROUPS + 1) * BATCH * LINE);
    Adapters::Seconds near;
    if (group == 0) near = adapters.near(place * 16, tile, p);
    adapters.hear(us, tile, threadIdx.x, 256, p);
    __syncthreads();
    if (group == 0) {
        float added[TILES][4] = {};
        adapters.add(added, us, near, place * 16, tile, p);
        put(GROUPS, added);
    }
    __syncthreads();
    auto total = [&](int c, int r) { return value(c, r) + sums[(GROUPS * BATCH + c) * LINE + r]; };
#else
    auto total = value;
#endif
    for (int i = threadIdx.x; i < rows * TILE_OUT; i += 256) {
        const int c = i / TILE_OUT, r = i % TILE_OUT, at_row = GLU ? r / 8 * 16 + r % 8 : r;
        if (tile.first + r >= tile.out) continue;
        finish(total(c, at_row), GLU ? total(c, at_row + 8) : 0.0f, tile, of, c, tile.first + r);
    }
}
