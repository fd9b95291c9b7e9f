// How the warps of products of several rows share what adapters add. Needs adapters.cuh before it.

#if LORA
constexpr int CHUNKS = RANKS / 16;  // Products of sixteen ranks.

/// What a warp adds of u·Bᵀ: products of sixteen ranks of each SLOTS-th adapter, with GLU for one module after the other. Four of them
/// are a step as one of weights is.
template <int SLOTS> struct Share {
    int slot, count;  ///< The first adapter, and how many there are.

    struct Part {
        int adapter, rank, module;
    };
    __device__ __forceinline__ Part part(int index) const {
        return {slot + index / (CHUNKS * MODULES) * SLOTS, index / MODULES % CHUNKS * 16, index % MODULES};
    }

    /// Of which of SLOTS an adapter is.
    static __device__ __forceinline__ int slot_of(int adapter) { return adapter % SLOTS; }

    __device__ __forceinline__ int steps() const { return ((count - slot + SLOTS - 1) / SLOTS * (CHUNKS * MODULES) + 3) / 4; }

    /// Brings a lane's share of a step's second factors to where the lane's weights lie: of those for the numbers of y from `o` on, four
    /// apart, `chunk` of their sixteen bytes.
    __device__ __forceinline__ void fetch(const Adapters& of, unsigned to, int step, int o, int chunk, const Tile& tile, const ProductP& p) const {
        const Part part = this->part(4 * step + chunk / 2);
        const bool any = part.adapter < of.count;
        const bf16* from = of.pool + (any ? of.slots[part.adapter] : 0) * p.slot + p.seconds[GLU ? part.module : tile.module] +
                           static_cast<word>(o) * RANKS + part.rank + chunk % 2 * 8;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int further = 4 * (GLU ? i % 2 : i);
            const bool there = any && o + further < tile.out && (!GLU || part.module == i / 2);
            copy_rows((to ^ (i % 2 * 64)) + i * 512, there ? from + further * RANKS : of.pool, there ? 16 : 0);
        }
    }

    /// Writes a step's u, zeros to the rows that have other adapters, to where rows of x lie; for thread `index` of TILES · 32.
    template <int TILES>
    __device__ __forceinline__ void hear(const Adapters& of, unsigned char* to, int step, int index, int module, const ProductP& p) const {
        constexpr int AT_ONCE = MODULES * FACTOR_SPLITS > 4 ? 1 : 2;
        const int pair = index % 8;
#pragma unroll 1
        for (int begin = 0; begin < 2; begin += AT_ONCE) {
            int rows[AT_ONCE], owns[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) {
                rows[i] = index / 8 + 4 * TILES * (begin + i);
                owns[i] = rows[i] < static_cast<int>(p.rows) ? of.owns[rows[i]].adapter : -1;
            }
#pragma unroll 1
            for (int first = 0; first < 4; first += MODULES) {
                const Part part = this->part(4 * step + first);
                unsigned us[AT_ONCE][MODULES] = {};
                int wanted[AT_ONCE];
                bool any = false;
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) {
                    wanted[i] = owns[i] == part.adapter ? rows[i] : -1;
                    any = any || wanted[i] >= 0;
                }
                if (any) of.hear(us, wanted, module, part.rank + 2 * pair, p);
#pragma unroll
                for (int i = 0; i < AT_ONCE * MODULES; ++i) {
                    const unsigned at = swizzled(rows[i / MODULES], 2 * (first + i % MODULES) + pair / 4) + pair % 4 * 4;
                    *reinterpret_cast<unsigned*>(to + at) = us[i / MODULES][i % MODULES];
                }
            }
        }
    }
};
#endif
