// What adds each row's own adapter to a product, s·(x·Aᵀ)·Bᵀ (Hu et al. 2021). Needs product.cuh before it.
//
// The rows of all adapters' A are tiles beside those of the weights, which other blocks compute at the same time, so that each
// is read once for all rows; a row keeps of x·Aᵀ what belongs to its own adapter, u. Those who finish y add u·Bᵀ when u is there, each
// adapter's B to the rows that have it and zeros to the others. Blocks of a grid begin in their order, and those of first factors are
// the first, so what is waited for has begun.
//
// u is told word by word, each with the step's number, so that whoever waits for it sees it as soon as it is there.

#if LORA
constexpr int MOST_FACTOR_SPLITS = 4;
constexpr int MODULES = GLU ? 2 : 1;  // Modules of a number of y.
#define ADAPTER_PARAMETERS const bf16 *__restrict__ pool, word *told,

/// A row's own adapter and its scale.
struct Own {
    int adapter;  ///< Which of the step's, or −1.
    float scale;
};

struct Adapters {
    Own* owns;                 ///< [rows], in shared memory: others wait for what is read late.
    Own own;                   ///< What the thread's row owns.
    const int *slots, *ranks;  ///< [count]
    int room, count;           ///< How many there may be, and are.
    int first_row, rows;       ///< Of the step, this block's.
    unsigned now;              ///< The step's number.
    const bf16* pool;          ///< [slots, slot]
    word* told;                ///< [FACTOR_SPLITS, rows, WEIGHTS, RANKS] of it: a sum's bits above the number of the step that it is of.

    __device__ __forceinline__ Adapters(const int* packed, const bf16* pool, word* told, Own* owns, int first_row, int rows, const ProductP& p)
        : owns(owns), slots(packed + p.adapters_at), ranks(slots + p.adapters), room(static_cast<int>(p.adapters)), count(slots[2 * room]),
          first_row(first_row), rows(rows), now(static_cast<unsigned>(slots[2 * room + 1])), pool(pool),
          told(told + p.product * p.rows * (MOST_FACTOR_SPLITS * 3 * RANKS)) {
        const int* of_rows = packed + 2 * p.rows + first_row + threadIdx.x;
        if (threadIdx.x < rows) own = {of_rows[0], __int_as_float(of_rows[p.rows])};
    }

    /// Brings what the rows own to shared memory, where it is after the block's next barrier. It is on its way from the beginning, and
    /// whoever writes it waits for it.
    __device__ __forceinline__ void share() const {
        if (threadIdx.x < rows) owns[threadIdx.x] = own;
    }

    /// The lane's rows of the sixteen first factors of a module from `row` on, all adapters' rows one after another.
    __device__ __forceinline__ Lines firsts(int module, int row, int line, int chunk, const ProductP& p) const {
        const int index = min(row / RANKS, count - 1), last = ranks[index] - 1;
        const bf16* first = pool + slots[index] * p.slot + p.firsts[module] + chunk * 8;
        Lines lines;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            lines.rows[i] = first + min(row % RANKS + line + 4 * i, last) * p.in;
            keep(lines.rows[i]);
        }
        return lines;
    }

    /// An adapter's second factors for a row of a tile, or null where there is none.
    __device__ __forceinline__ const bf16* second(int index, int row, const Tile& tile, const ProductP& p) const {
        const int o = tile.first + (GLU ? row / 16 * 8 + row % 8 : row);
        if (index >= count || o >= tile.out) return nullptr;
        return pool + slots[index] * p.slot + p.seconds[GLU ? row / 8 % 2 : tile.module] + static_cast<word>(o) * RANKS;
    }

    __device__ __forceinline__ word* told_at(int split, int row, int module, int rank, const ProductP& p) const {
        return told + ((split * static_cast<int>(p.rows) + first_row + row) * WEIGHTS + module) * RANKS + rank;
    }

    /// Tells a split's sums of all rows with the first factors of a tile, which `sum` gives four at a time, each if it is of the row's
    /// adapter; for all threads.
    template <class Sum> __device__ __forceinline__ void tell(const Sum& sum, int split, int module, int first, int tile_rows, const ProductP& p) const {
        for (int i = threadIdx.x; i < rows * (RANKS / 4); i += 256) {
            const int row = i / (RANKS / 4), rank = i % (RANKS / 4) * 4, own = owns[row].adapter, r = own * RANKS + rank - first;
            if (own < 0 || r < 0 || r >= tile_rows) continue;
            const float4 four = sum(row, r);
            word* to = told_at(split, row, module, rank, p);
            tell_two(to, said(four.x), said(four.y));
            tell_two(to + 2, said(four.z), said(four.w));
        }
    }
    __device__ __forceinline__ word said(float sum) const { return static_cast<word>(__float_as_uint(sum)) << 32 | now; }
    static __device__ __forceinline__ void tell_two(word* to, word one, word other) {
        asm volatile("st.relaxed.gpu.global.v2.b64 [%0], {%1, %2};" ::"l"(to), "l"(one), "l"(other) : "memory");
    }

    /// s·u of a row that has an adapter, at a rank and the next one of MODULES modules from `module` on, when they are told.
    __device__ __forceinline__ void hear(unsigned (&us)[MODULES], int row, int module, int rank, const ProductP& p) const {
        word words[MODULES][FACTOR_SPLITS][2];
        bool there;
        do {
            there = true;
#pragma unroll
            for (int i = 0; i < MODULES * FACTOR_SPLITS; ++i) {
                const int split = i % FACTOR_SPLITS, m = i / FACTOR_SPLITS;
                word(&pair)[2] = words[m][split];
                asm volatile("ld.relaxed.gpu.global.v2.b64 {%0, %1}, [%2];"
                             : "=l"(pair[0]), "=l"(pair[1])
                             : "l"(told_at(split, row, module + m, rank, p))
                             : "memory");
            }
#pragma unroll
            for (int i = 0; i < MODULES * FACTOR_SPLITS * 2; ++i) there = there && static_cast<unsigned>((&words[0][0][0])[i]) == now;
        } while (!there);
#pragma unroll
        for (int m = 0; m < MODULES; ++m) {
            auto sum = [&](int side) {
                return pairwise<FACTOR_SPLITS>([&](int s) { return __uint_as_float(static_cast<unsigned>(words[m][s][side] >> 32)); });
            };
            us[m] = pack(owns[row].scale * sum(0), owns[row].scale * sum(1));
        }
    }

    /// Sixteen ranks from `rank` on of an adapter's second factors for a tile's sixteen rows, as an operand.
    __device__ __forceinline__ uint4 seconds(int index, int rank, const Tile& tile, const ProductP& p) const {
        const int lane = threadIdx.x % 32;
        const bf16 *above = second(index, lane / 4, tile, p), *below = second(index, lane / 4 + 8, tile, p);
        auto of = [&](const bf16* b, int further) {
            return b != nullptr ? __ldg(reinterpret_cast<const unsigned*>(b + rank + lane % 4 * 2 + further)) : 0;
        };
        return make_uint4(of(above, 0), of(below, 0), of(above, 8), of(below, 8));
    }
};
#else
#define ADAPTER_PARAMETERS
#endif
