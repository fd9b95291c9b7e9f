// Needs mma.cuh, wgmma.cuh and attention_wgmma.cuh before it.
// What attention.cu computes, by Hopper's tensor cores, as FlashAttention-3 (Shah et al. 2024) has it: a producer warp
// keeps rings of tiles of k and v filled; warpgroups own 64 queries each, and while one makes a tile's exponentials, the
// tensor cores have its last tile's product with v, and other warpgroups' products, to do.
#define FORWARD_GROUPS (HEAD_DIM == 64 ? 3 : 2)
#define FORWARD_Q (FORWARD_GROUPS * 64)
#define FORWARD_KV 128  // keys of a tile
#define FORWARD_STAGES (HEAD_DIM == 64 ? 4 : 2)
#define FORWARD_BARRIERS (TILE_BYTES(FORWARD_Q) + 2 * FORWARD_STAGES * TILE_BYTES(FORWARD_KV))

#if __CUDA_ARCH__ == 900
// Warpgroups take turns in giving work to the tensor cores, so that one's exponentials fall together with another's
// products: left alone, all would multiply at once, and then all make exponentials. Each takes as many turns as the block
// has tiles.
__device__ __forceinline__ void wait_for_turn(int group) {
    asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}
__device__ __forceinline__ void end_turn(int group) {
    asm volatile("bar.arrive %0, 256;" ::"r"(1 + (group + 1 < FORWARD_GROUPS ? group + 1 : 0)) : "memory");
}

// The exponentials of a tile of scores, in place, their sums, and the row's `top`, as in attention.cu: `factor` is what
// the sums so far are scaled by, if the result is true.
__device__ __forceinline__ bool exponentials(
    float (&s)[FORWARD_KV / 2], float (&sum)[2], float (&top)[2], float (&factor)[2], float scale) {
    float peak[2];
    bool grows = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float x = NOTHING;
#pragma unroll
        for (int j = 0; j < FORWARD_KV / 8; ++j) x = fmaxf(x, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
        peak[h] = x * scale;
        grows |= peak[h] > top[h] + 8.0f;
    }
    grows = __any_sync(0xffffffffu, grows);
    if (grows)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float x = fmaxf(peak[h], __shfl_xor_sync(0xffffffffu, peak[h], 1));
            x = fmaxf(top[h], fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2)));
            factor[h] = x == NOTHING ? 1.0f : exp2_fast(top[h] - x);
            top[h] = x;
            sum[h] *= factor[h];
        }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const float base = top[h] == NOTHING ? 0.0f : top[h];
#pragma unroll
        for (int j = 0; j < FORWARD_KV / 8; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float& x = s[4 * j + 2 * h + i];
                x = exp2_fast(fmaf(x, scale, -base));
                sum[h] += x;
            }
    }
    return grows;
}
#endif

// Arguments: maps of q (boxes of FORWARD_Q rows), k and v (FORWARD_KV); start, o, lse as attention_forward has them.
// Grid (heads, ceil(n / FORWARD_Q)), (FORWARD_GROUPS + 1) * 128 threads. Dynamic shared memory: FORWARD_BARRIERS + 2048
// bytes. The last rows come first: of causal tiles those are the longest.
extern "C" __global__ void __launch_bounds__((FORWARD_GROUPS + 1) * 128, 1)
    attention_forward(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
        const __grid_constant__ TensorMap v_map, const int* __restrict__ start, bf16* __restrict__ o,
        float* __restrict__ lse, const __grid_constant__ P p) {
#if __CUDA_ARCH__ == 900
    constexpr int KV = FORWARD_KV, STAGES = FORWARD_STAGES;
    constexpr u32 TILE = TILE_BYTES(KV);
    extern __shared__ unsigned char shared[];
    const int n = (int)p.n, heads = (int)p.heads, window = (int)p.window;
    const int head = blockIdx.x, kv_head = head / (heads / (int)p.kv_heads);
    const int q_first = (gridDim.y - 1 - blockIdx.y) * FORWARD_Q;
    // Tiles that some of the block's rows see, from the last to the first.
    const int last_tile = (min(q_first + FORWARD_Q, n) - 1) / KV, first_tile = first_seen(start, q_first, window) / KV;
    const u32 q_tile = (address(shared) + 1023) & ~1023u, k_tile = q_tile + TILE_BYTES(FORWARD_Q),
              v_tile = k_tile + STAGES * TILE;
    const u32 q_full = q_tile + FORWARD_BARRIERS, k_full = q_full + 8, k_empty = k_full + 8 * STAGES,
              v_full = k_empty + 8 * STAGES, v_empty = v_full + 8 * STAGES;
    if (threadIdx.x == 0) {
        barrier_init(q_full, 1);
        for (int s = 0; s < STAGES; ++s) {
            barrier_init(k_full + 8 * s, 1);
            barrier_init(v_full + 8 * s, 1);
            barrier_init(k_empty + 8 * s, FORWARD_GROUPS * 4);
            barrier_init(v_empty + 8 * s, FORWARD_GROUPS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();

    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FORWARD_GROUPS == 3 ? 32 : 24));
        if (threadIdx.x != 0) return;
        Ring<STAGES> ring;
        barrier_expect(q_full, TILE_BYTES(FORWARD_Q));
        load_rows<FORWARD_Q>(&q_map, q_tile, q_full, head * HEAD_DIM, q_first);
        // The last tile is on its way before the first one's number has come from memory.
#pragma unroll 1
        for (int tile = last_tile; tile == last_tile || tile >= first_tile; --tile, ring.next()) {
            const u32 at = 8 * ring.stage, free = ring.phase ^ 1;
            barrier_wait(k_empty + at, free);
            barrier_expect(k_full + at, TILE);
            load_rows<KV>(&k_map, k_tile + ring.stage * TILE, k_full + at, kv_head * HEAD_DIM, tile * KV);
            barrier_wait(v_empty + at, free);
            barrier_expect(v_full + at, TILE);
            load_rows<KV>(&v_map, v_tile + ring.stage * TILE, v_full + at, kv_head * HEAD_DIM, tile * KV);
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(FORWARD_GROUPS == 3 ? 160 : 240));
    const int group = uniform(threadIdx.x / 128) - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int first = q_first + group * 64, warp_first = first + warp * 16, row = warp_first + lane / 4;
    const float scale = (float)(p.scale * LOG2E);  // scores in powers of two
    const u32 q_rows = q_tile + group * PART_BYTES(64);
    const int low[2] = {
        first_seen(start, min(row, n - 1), window), first_seen(start, min(row + 8, n - 1), window)};
    // Of the block's tiles, those that some row of the group sees; a group whose rows all lie beyond n sees none.
    const int seen_last = first < n ? min(first + 63, n - 1) / KV : last_tile,
              seen_first = first < n ? uniform(first_seen(start, first, window)) / KV : last_tile + 1;
    const int low_last = first_seen(start, min(warp_first + 15, n - 1), window);
    Ring<STAGES> k_ring, v_ring;
    // Others see the tile.
    auto pass = [&] {
        barrier_wait(k_full + 8 * k_ring.stage, k_ring.phase);
        release(k_empty + 8 * k_ring.stage);
        k_ring.next();
        barrier_wait(v_full + 8 * v_ring.stage, v_ring.phase);
        release(v_empty + 8 * v_ring.stage);
        v_ring.next();
        wait_for_turn(group);
        end_turn(group);
    };
    auto masked = [&](int kv_first) { return kv_first + KV - 1 > warp_first || kv_first < low_last; };

    float out[HEAD_DIM / 2], sum[2] = {0.0f, 0.0f}, top[2] = {NOTHING, NOTHING}, factor[2];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) out[i] = 0.0f;
    int tile = last_tile;
    if (group == FORWARD_GROUPS - 1) end_turn(group);  // the first begins
#pragma unroll 1
    for (; tile > seen_last; --tile) pass();
    if (tile >= seen_first) {
        float s[KV / 2];
        u32 a[KV / 16][4];
        barrier_wait(q_full, 0);
        barrier_wait(k_full + 8 * k_ring.stage, k_ring.phase);
        wait_for_turn(group);
        products_begin();
        product_of_rows<FORWARD_Q, KV>(s, q_rows, k_tile + k_ring.stage * TILE);
        products_commit();
        end_turn(group);
        products_wait<0>();
        keep(s);
        release(k_empty + 8 * k_ring.stage);
        k_ring.next();
        if (masked(tile * KV)) hide<KV>(s, tile * KV, row, low);
        exponentials(s, sum, top, factor, scale);
        as_operand<KV>(a, s);
        for (--tile; tile >= seen_first; --tile) {
            // The tile's scores, and the last tile's product with v.
            barrier_wait(k_full + 8 * k_ring.stage, k_ring.phase);
            keep(s);
            keep(a);
            keep(out);
            wait_for_turn(group);
            products_begin();
            product_of_rows<FORWARD_Q, KV>(s, q_rows, k_tile + k_ring.stage * TILE);
            products_commit();
            barrier_wait(v_full + 8 * v_ring.stage, v_ring.phase);
            products_begin();
            add_product<KV>(out, a, v_tile + v_ring.stage * TILE);
            products_commit();
            end_turn(group);
            products_wait<1>();
            keep(s);
            release(k_empty + 8 * k_ring.stage);
            k_ring.next();
            if (masked(tile * KV)) hide<KV>(s, tile * KV, row, low);
            const bool grows = exponentials(s, sum, top, factor, scale);
            made(sum[0] + sum[1], scale);
            products_wait<0>();
            keep(out);
            keep(a);
            release(v_empty + 8 * v_ring.stage);
            v_ring.next();
            if (grows)
#pragma unroll
                for (int i = 0; i < HEAD_DIM / 2; ++i) out[i] *= factor[i / 2 % 2];
            as_operand<KV>(a, s);
        }
        barrier_wait(v_full + 8 * v_ring.stage, v_ring.phase);
        keep(a);
        keep(out);
        products_begin();
        add_product<KV>(out, a, v_tile + v_ring.stage * TILE);
        products_commit();
        products_wait<0>();
        keep(out);
        keep(a);
        release(v_empty + 8 * v_ring.stage);
        v_ring.next();
    }
#pragma unroll 1
    for (; tile >= first_tile; --tile) pass();

#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float x = sum[h] + __shfl_xor_sync(0xffffffffu, sum[h], 1);
        x += __shfl_xor_sync(0xffffffffu, x, 2);
        factor[h] = x > 0.0f ? 1.0f / x : 0.0f;
        if (row + 8 * h < n && lane % 4 == 0)
            lse[(size_t)head * n + row + 8 * h] = (top[h] + log2_fast(x)) * (float)LN2;
    }
    store_sums(out, factor, o + head * HEAD_DIM, row, n, heads * HEAD_DIM);
    if (group == 0) wait_for_turn(group);  // the last one's end, which nobody else waits for
#endif
}
