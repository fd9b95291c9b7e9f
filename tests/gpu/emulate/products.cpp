// One product of invented rows, weights and adapters: behind the kernel's text. Writes the f32 sums of all rows before they are
// rounded, and prints the largest difference of the rounded ones to sums in double precision, as a share of the largest.
static uint64_t state;
static std::vector<bf16> halves(size_t count, uint64_t seed, float scale) {
    state = seed;
    std::vector<bf16> values(count);
    for (auto& value : values) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        value = __float2bfloat16_rn(scale * float(int(state >> 40) - (1 << 23)) / float(1 << 23));
    }
    return values;
}
static double real(bf16 value) { return __uint_as_float(unsigned(value.bits) << 16); }

int main(int, char** arguments) {
    constexpr int rows = ROWS, in = IN, outs[3] = {OUT0, OUT1, OUT2}, adapters = 4, results = GLU ? 1 : WEIGHTS;
    const int slots[adapters] = {3, 0, 4, -1}, ranks[adapters] = {12, 16, min(32, RANKS), 0};
    const auto owner = [](int row) { return row % 4 == 3 ? -1 : row % 4; };
    const auto x = halves(size_t(rows) * in, 1, 1);
    std::vector<bf16> weights[3], y[3];
    for (int i = 0; i < 3; ++i) weights[i] = halves(size_t(outs[i]) * in, 10 + i, 0.1f), y[i].resize(size_t(rows) * outs[i]);

    ProductP p = {};
    p.rows = rows, p.in = in, p.adapters = adapters, p.adapters_at = 4 * rows, p.product = 1;
    for (int i = 0; i < 3; ++i) {
        p.out[i] = i < WEIGHTS ? outs[i] : 0;
        p.firsts[i] = p.slot, p.slot += RANKS * in, p.seconds[i] = p.slot, p.slot += RANKS * outs[i];
    }
    auto pool = halves(p.slot * 5, 77, 0.3f);
    std::vector<int> packed(4 * rows + 2 * adapters + 2);
    for (int row = 0; row < rows; ++row) {
        const float scale = 0.5f + owner(row);
        packed[2 * rows + row] = owner(row), packed[3 * rows + row] = int(__float_as_uint(scale));
    }
    for (int a = 0; a < adapters; ++a) {
        packed[4 * rows + a] = slots[a], packed[4 * rows + adapters + a] = ranks[a];
        for (int i = 0; slots[a] >= 0 && i < 3; ++i)
            for (int o = 0; o < outs[i]; ++o)
                for (int rank = ranks[a]; rank < RANKS; ++rank) pool[slots[a] * p.slot + p.seconds[i] + o * RANKS + rank] = {0};
    }
    packed[4 * rows + 2 * adapters] = 3, packed.back() = 7;
    std::vector<u64> told(2 * 4 * 3 * RANKS * rows, 0x7fc0000000000006ull);
    std::vector<float> partial(1 << 18, NAN);
    std::vector<unsigned> arrived(1024, 0);
    // What the kernel asks for, and no more: a sanitizer sees what reads beyond.
    const size_t shared_bytes = ONE ? STAGES * 16384 + (2 * in + 127) / 128 * 128 : 98304;
    dynamic_shared = static_cast<unsigned char*>(aligned_alloc(128, shared_bytes));

    const int tile_rows = ONE ? 16 : 2 * BATCH, tile_out = GLU ? tile_rows / 2 : tile_rows;
    int tiles = 0;
    for (int i = 0; i < results; ++i) tiles += (outs[i] + tile_out - 1) / tile_out;
    const int factors = LORA ? WEIGHTS * ((adapters * RANKS + tile_rows - 1) / tile_rows) * FACTOR_SPLITS : 0;
    gridDim = {unsigned(ONE ? factors + min(tiles, 2) : BANDS * (factors + tiles * SPLITS)), 1, 1};
    block_barrier = new Barrier(256);
    for (int i = 0; i < 8; ++i) warp_barriers.push_back(new Barrier(32)), group_barriers.push_back(new Barrier(4 * BATCH));
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < 256; ++thread)
        threads.emplace_back([&, thread] {
            threadIdx = {thread, 0, 0};
            for (unsigned block = 0; block < gridDim.x; ++block) {
                if (thread == 0) blockIdx = {block, 0, 0};
                forget(dynamic_shared, shared_bytes);
                product(x.data(), weights[0].data(), weights[1].data(), weights[2].data(),
#if LORA
                        packed.data(), pool.data(), told.data(),
#endif
                        y[0].data(), y[1].data(), y[2].data(),
#if SPLITS > 1
                        partial.data(), arrived.data(),
#endif
                        p);
                block_barrier->arrive_and_wait();
            }
        });
    for (auto& thread : threads) thread.join();

    const auto expected = [&](int row, int i, int o) {
        double sum = 0;
        for (int k = 0; k < in; ++k) sum += real(x[row * in + k]) * real(weights[i][o * in + k]);
        const int own = LORA ? owner(row) : -1;
        for (int rank = 0; own >= 0 && rank < ranks[own]; ++rank) {
            const bf16* slot = pool.data() + slots[own] * p.slot;
            double inner = 0;
            for (int k = 0; k < in; ++k) inner += real(x[row * in + k]) * real(slot[p.firsts[i] + rank * in + k]);
            sum += (0.5 + own) * inner * real(slot[p.seconds[i] + o * RANKS + rank]);
        }
        return sum;
    };
    double worst = 0, largest = 0;
    for (int i = 0; i < results; ++i)
        for (int row = 0; row < rows; ++row)
            for (int o = 0; o < outs[i]; ++o) {
                double of = expected(row, i, o), found = real(y[i][row * outs[i] + o]);
                if (GLU) of = of / (1 + exp(-of)) * expected(row, 1, o);
                worst = max(worst, std::isnan(found) ? INFINITY : fabs(found - of)), largest = max(largest, fabs(of));
            }
    FILE* file = fopen(arguments[1], "wb");
    for (int row = 0; row < rows; ++row)
        for (int i = 0; i < results; ++i) fwrite(&unrounded[i][row * outs[i]], 4, outs[i], file);
    fclose(file);
    printf("%g\n", worst / largest);
}
