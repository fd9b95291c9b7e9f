// What adds each row's own adapter to a product, s·(x·Aᵀ)·Bᵀ (Hu et al. 2021). Needs product.cuh before it.
//
// The rows of all adapters' A are tiles beside those of the weights, which other blocks compute at the same time, so that each
// is read once for all rows; a row keeps of x·Aᵀ what belongs to its own adapter. Those who finish y add u·Bᵀ when u is there, each
// adapter's B to the rows that have it and zeros to the others. Blocks of a grid begin in their order, and those of first factors are
// the first, so what is waited for has begun.
//
// u is told word by word, each with the step's number, so that whoever waits for it sees it as soon as it is there.

#if LORA
constexpr int MODULES = GLU ? 2 : 1;  // Modules of a number of y.

constexpr int MOST_FACTOR_SPLITS = 4;

#define ADAPTER_PARAMETERS const bf16 *__restrict__ pool, uint2 *told,

struct Adapters {
    const int* owns;           ///< [rows]: which of the step's adapters, or −1.
    const float* scales;       ///< [rows]
    const int *slots, *ranks;  ///< [count]: −1 from where there are no more.
    int count;
    unsigned now;      ///< The step's number.
    const bf16* pool;  ///< [slots, slot]
    uint2* told;       ///< [FACTOR_SPLITS, rows, WEIGHTS, RANKS] of it: a sum's bits and the number of the step that it is of.

    __device__ __forceinline__ Adapters(const int* packed, const bf16* pool, uint2* told, const ProductP& p)
        : owns(packed + 2 * p.rows), scales(reinterpret_cast<const float*>(packed + 3 * p.rows)), slots(packed + p.adapters_at),
          ranks(slots + p.adapters), count(static_cast<int>(p.adapters)), now(static_cast<unsigned>(slots[2 * count])), pool(pool),
          told(told + p.product * p.rows * (MOST_FACTOR_SPLITS * 3 * RANKS)) {}

    __device__ __forceinline__ int slot(int index) const { return index < count ? slots[index] : -1; }

    /// The lane's rows of the sixteen first factors of a module from `row` on, all adapters' rows one after another.
    __device__ __forceinline__ Lines firsts(int module, int row, int line, const ProductP& p) const {
        const int of = slot(row / RANKS), left = of < 0 ? 0 : ranks[row / RANKS] - row % RANKS - line;
        const bf16* above = pool + max(of, 0) * p.slot + p.firsts[module] + (row % RANKS + line) * p.in;
        return {above, above + 8 * p.in, left, left - 8};
    }

    /// The second factors of an adapter for a tile's row, or null.
    __device__ __forceinline__ const bf16* second(int index, int row, const Tile& tile, const ProductP& p) const {
        const int of = slot(index), o = tile.first + (GLU ? row / 16 * 8 + row % 8 : row);
        if (of < 0 || o >= tile.out) return nullptr;
        return pool + of * p.slot + p.seconds[GLU ? row / 8 % 2 : tile.module] + static_cast<word>(o) * RANKS;
    }

    /// Brings a tile's second factors nearer; for all threads of a block.
    __device__ __forceinline__ void prefetch(const Tile& tile, int tile_rows, const ProductP& p) const {
        for (int i = threadIdx.x; i < count * tile_rows; i += 256) {
            const bf16* b = second(i / tile_rows, i % tile_rows, tile, p);
            if (b != nullptr) asm volatile("prefetch.global.L2 [%0];" ::"l"(b));
        }
    }

    __device__ __forceinline__ uint2* told_at(int split, int row, int module, int rank, const ProductP& p) const {
        return told + ((split * static_cast<int>(p.rows) + row) * WEIGHTS + module) * RANKS + rank;
    }

    /// Tells a split's sums of all rows with the first factors of a tile, each if it is of the row's adapter; for all threads.
    template <class Sum> __device__ __forceinline__ void tell(const Sum& sum, int split, int module, int first, int tile_rows, const ProductP& p) const {
        for (int i = threadIdx.x; i < static_cast<int>(p.rows) * RANKS; i += 256) {
            const int row = i / RANKS, own = owns[row], r = own * RANKS + i % RANKS - first;
            if (own < 0 || r < 0 || r >= tile_rows) continue;
            asm volatile("st.relaxed.gpu.global.v2.b32 [%0], {%1, %2};" ::"l"(told_at(split, row, module, i % RANKS, p)),
                         "r"(__float_as_uint(sum(row, r))), "r"(now)
                         : "memory");
        }
    }

    /// Brings s·u of a tile's modules to shared memory, bf16 [MODULES, rows, RANKS], as it is told; for thread `index` of `threads`.
    __device__ __forceinline__ void hear(unsigned* us, const Tile& tile, int index, int threads, const ProductP& p) const {
        const int rows = static_cast<int>(p.rows);
        for (int i = index; i < MODULES * rows * (RANKS / 2); i += threads) {
            const int pair = i % (RANKS / 2), row = i / (RANKS / 2) % rows, module = i / (RANKS / 2) / rows;
            if (owns[row] < 0) continue;
            uint4 words[FACTOR_SPLITS];
            bool there;
            do {
                there = true;
#pragma unroll
                for (int s = 0; s < FACTOR_SPLITS; ++s)
                    asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(words[s].x), "=r"(words[s].y), "=r"(words[s].z), "=r"(words[s].w)
                                 : "l"(told_at(s, row, tile.module + module, 2 * pair, p))
                                 : "memory");
#pragma unroll
                for (int s = 0; s < FACTOR_SPLITS; ++s) there = there && words[s].y == now && words[s].w == now;
            } while (!there);
            const float low = pairwise<FACTOR_SPLITS>([&](int s) { return __uint_as_float(words[s].x); });
            const float high = pairwise<FACTOR_SPLITS>([&](int s) { return __uint_as_float(words[s].z); });
            us[i] = pack(scales[row] * low, scales[row] * high);
        }
    }

    /// A lane's part of four adapters' second factors for sixteen rows of a tile from `row` on, at a rank.
    struct Seconds {
        uint2 above[4], below[4];
    };
    __device__ __forceinline__ Seconds seconds(int begin, int row, int rank, const Tile& tile, const ProductP& p) const {
        const int g = threadIdx.x % 32 / 4;
        Seconds found;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const bf16 *b = second(begin + i, row + g, tile, p), *c = second(begin + i, row + g + 8, tile, p);
            found.above[i] = b != nullptr ? __ldg(reinterpret_cast<const uint2*>(b + rank)) : make_uint2(0, 0);
            found.below[i] = c != nullptr ? __ldg(reinterpret_cast<const uint2*>(c + rank)) : make_uint2(0, 0);
        }
        return found;
    }
    /// The first of them, which are asked for before u is there.
    __device__ __forceinline__ Seconds near(int row, const Tile& tile, const ProductP& p) const {
        return seconds(0, row, threadIdx.x % 4 * 4, tile, p);
    }

    /// sum += u·Bᵀ for a warp's sixteen rows of a tile from `row` on and all rows of x, sixteen ranks and four adapters at once.
    template <int TILES>
    __device__ __forceinline__ void add(float (&sum)[TILES][4], const unsigned* us, Seconds bs, int row, const Tile& tile, const ProductP& p) const {
        const int g = threadIdx.x % 32 / 4, rows = static_cast<int>(p.rows);
        int own[TILES];
#pragma unroll
        for (int j = 0; j < TILES; ++j) own[j] = 8 * j + g < rows ? owns[8 * j + g] : -1;
        for (int rank = threadIdx.x % 4 * 4; rank < RANKS; rank += 16) {
            uint2 u[MODULES][TILES];
#pragma unroll
            for (int m = 0; m < MODULES; ++m)
#pragma unroll
                for (int j = 0; j < TILES; ++j)
                    u[m][j] = own[j] < 0 ? make_uint2(0, 0) : *reinterpret_cast<const uint2*>(us + ((m * rows + 8 * j + g) * RANKS + rank) / 2);
            for (int begin = 0; slot(begin) >= 0; begin += 4) {
                if (rank >= 16 || begin > 0) bs = seconds(begin, row, rank, tile, p);
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int j = 0; j < TILES; ++j) {
                        const bool mine = own[j] == begin + i;
                        const uint2 v = mine ? u[0][j] : make_uint2(0, 0);
#if GLU
                        // A warp's upper rows are the gate's, its lower ones the other's.
                        const uint2 w = mine ? u[1][j] : make_uint2(0, 0);
                        mma(sum[j], bs.above[i].x, 0, bs.above[i].y, 0, v.x, v.y);
                        mma(sum[j], 0, bs.below[i].x, 0, bs.below[i].y, w.x, w.y);
#else
                        mma(sum[j], bs.above[i].x, bs.below[i].x, bs.above[i].y, bs.below[i].y, v.x, v.y);
#endif
                    }
            }
        }
    }
};
#else
#define ADAPTER_PARAMETERS
#endif
