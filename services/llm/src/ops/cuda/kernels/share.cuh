// How a block of a product of several rows adds what their adapters do. Needs adapters.cuh before it.

#if LORA
/// u·Bᵀ, sixteen ranks after the other, so that a block keeps u of sixteen alone. Of them a warp adds each SLOTS-th adapter's, with GLU for
/// one module after the other. Four such products are a step, as one of weights is.
template <int SLOTS, int COLUMNS> struct Share {
    static constexpr int LINE = 8 * MODULES + 4;   ///< Words between rows of u: no two lanes of a warp meet in a bank.
    static constexpr int SLICES = RANKS / 16;
    typedef unsigned Us[COLUMNS][LINE];            ///< Two neighbouring ranks in a word.

    const Adapters& of;
    int slot;  ///< The first adapter.

    struct Part {
        int adapter, module;
    };
    __device__ __forceinline__ Part part(int index) const { return {slot + index / MODULES * SLOTS, index % MODULES}; }

    /// Of which of SLOTS an adapter is.
    static __device__ __forceinline__ int slot_of(int adapter) { return adapter % SLOTS; }

    /// Steps of sixteen ranks.
    __device__ __forceinline__ int steps() const { return ((of.count - slot + SLOTS - 1) / SLOTS * MODULES + 3) / 4; }

    /// Brings a lane's share of a step's second factors to where the lane's weights lie: of those for the numbers of y from `o` on, four
    /// apart, `chunk` of their sixteen bytes.
    __device__ __forceinline__ void fetch(unsigned to, int step, int o, int chunk, const Tile& tile, const ProductP& p) const {
        const int slice = SLICES == 1 ? 0 : step / steps();
        const Part part = this->part(4 * (step - slice * steps()) + chunk / 2);
        const bool any = part.adapter < of.count;
        const bf16* from = of.pool + (any ? of.slots[part.adapter] : 0) * p.slot + p.seconds[GLU ? part.module : tile.module] +
                           static_cast<word>(o) * RANKS + slice * 16 + chunk % 2 * 8;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int further = 4 * (GLU ? i % 2 : i);
            const bool there = any && o + further < tile.out && (!GLU || part.module == i / 2);
            copy_rows((to ^ (i % 2 * 64)) + i * 512, there ? from + further * RANKS : of.pool, there ? 16 : 0);
        }
    }

    /// Writes u of all rows that have an adapter; for all threads.
    __device__ __forceinline__ void hear(Us& us, int slice, int module, const ProductP& p) const {
        const int pair = threadIdx.x % 8;
#pragma unroll 1
        for (int row = threadIdx.x / 8; row < of.rows; row += 32) {
            if (of.owns[row].adapter < 0) continue;
            unsigned heard[MODULES];
            of.hear(heard, row, module, slice * 16 + 2 * pair, p);
#pragma unroll
            for (int m = 0; m < MODULES; ++m) us[row][8 * m + pair] = heard[m];
        }
    }

    /// Adds the products of sixteen ranks to a warp's sums, of each row its own adapter's. `next` brings the next step's second factors,
    /// and gives what the lane says to `load_matrices` for them.
    template <class Next> __device__ __forceinline__ void add(float (&sum)[COLUMNS / 8][4], const Us& us, const Next& next) const {
        const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
        int owners[COLUMNS / 8];
        unsigned u[COLUMNS / 8][MODULES][2];
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
            const int row = 8 * j + g;
            owners[j] = row < of.rows ? of.owns[row].adapter : -1;
#pragma unroll
            for (int m = 0; m < MODULES; ++m) u[j][m][0] = us[row][8 * m + t], u[j][m][1] = us[row][8 * m + t + 4];
        }
#pragma unroll 1
        for (int step = 0; step < steps(); ++step) {
            const unsigned seconds = next();
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int adapter = part(4 * step + i).adapter;
                if (adapter >= of.count) break;
                const uint4 a = load_matrices(seconds ^ (i * 32));
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) {
                    const unsigned(&own)[2] = u[j][i % MODULES];
                    mma(sum[j], a, owners[j] == adapter ? own[0] : 0, owners[j] == adapter ? own[1] : 0);
                }
            }
        }
    }
};
#endif
