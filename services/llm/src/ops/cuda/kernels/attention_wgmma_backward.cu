// Needs mma.cuh, wgmma.cuh and attention_wgmma.cuh before it.
// What attention_backward.cu computes, by Hopper's tensor cores, in the same two kernels of seven products: each sum has
// one owner and a fixed order, and p and ds never leave registers, because a product's sums lie as the next product's
// operand a. A producer warp keeps rings of tiles filled; warpgroups own 64 keys (dk, dv) or queries (dq) each.
#define KV_GROUPS 2
#define KV_ROWS (KV_GROUPS * 64)
#define KV_Q 64  // queries of a tile
#define KV_STAGES 4
#define KV_BARRIERS (2 * TILE_BYTES(KV_ROWS) + KV_STAGES * 2 * TILE_BYTES(KV_Q))
#define KV_NUMBERS (KV_BARRIERS + 128)

#define Q_GROUPS 2
#define Q_ROWS (Q_GROUPS * 64)
#define Q_KV 128  // keys of a tile
#define Q_STAGES (HEAD_DIM == 64 ? 4 : 2)
#define Q_BARRIERS (2 * TILE_BYTES(Q_ROWS) + Q_STAGES * 2 * TILE_BYTES(Q_KV))

#ifdef SPLIT
typedef float Partial;
#else
typedef bf16 Partial;
#endif

// dk and dv as attention_backward.cu's attention_backward_kv makes them, with SPLIT as there. Arguments: maps of k and v
// (boxes of KV_ROWS rows), q and do (KV_Q); then the rest as there. Grid (kv_heads, or heads with SPLIT, ceil(n /
// KV_ROWS)), (KV_GROUPS + 1) * 128 threads. Dynamic shared memory: KV_NUMBERS + KV_STAGES * 3 * KV_Q * 4 + 1024 bytes.
extern "C" __global__ void __launch_bounds__((KV_GROUPS + 1) * 128, 1)
    attention_backward_kv(const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
        const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap do_map,
        const float* __restrict__ lse, const float* __restrict__ delta, const int* __restrict__ start,
        const int* __restrict__ end, Partial* __restrict__ dk_out, Partial* __restrict__ dv_out,
        const __grid_constant__ P p) {
#if __CUDA_ARCH__ == 900
    constexpr u32 TILE = TILE_BYTES(KV_Q);
    extern __shared__ unsigned char shared[];
    const int n = (int)p.n, heads = (int)p.heads, kv_heads = (int)p.kv_heads, window = (int)p.window,
              group_size = heads / kv_heads;
#ifdef SPLIT
    const int kv_head = blockIdx.x / group_size, head_first = blockIdx.x, head_end = head_first + 1;
#else
    const int kv_head = blockIdx.x, head_first = kv_head * group_size, head_end = head_first + group_size;
#endif
    const int kv_first = blockIdx.y * KV_ROWS;
    // The last tile of queries that see some of the keys up to `last`.
    auto tile_of = [&](int last) { return (window ? min(end[last], last + window) - 1 : end[last] - 1) / KV_Q; };
    const int first_tile = kv_first / KV_Q, last_tile = tile_of(min(kv_first + KV_ROWS, n) - 1);
    const u32 k_tile = (address(shared) + 1023) & ~1023u, v_tile = k_tile + TILE_BYTES(KV_ROWS),
              tiles = v_tile + TILE_BYTES(KV_ROWS);
    const u32 own_full = k_tile + KV_BARRIERS, full = own_full + 8, empty = full + 8 * KV_STAGES;
    // Of each stage's queries: - lse in powers of two, delta, and the first key that they see.
    float* numbers = (float*)(shared + (k_tile - address(shared)) + KV_NUMBERS);
    if (threadIdx.x == 0) {
        barrier_init(own_full, 1);
        for (int s = 0; s < KV_STAGES; ++s) {
            barrier_init(full + 8 * s, 33);
            barrier_init(empty + 8 * s, KV_GROUPS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    Ring<KV_STAGES> ring;

    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x >= 32) return;
        const int lane = threadIdx.x;
        if (lane == 0) {
            barrier_expect(own_full, 2 * TILE_BYTES(KV_ROWS));
            load_rows<KV_ROWS>(&k_map, k_tile, own_full, kv_head * HEAD_DIM, kv_first);
            load_rows<KV_ROWS>(&v_map, v_tile, own_full, kv_head * HEAD_DIM, kv_first);
        }
#pragma unroll 1
        for (int head = head_first; head < head_end; ++head)
#pragma unroll 1
            for (int tile = first_tile; tile <= last_tile; ++tile, ring.next()) {
                float of_lse[2], of_delta[2];
                int low[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int row = tile * KV_Q + i * 32 + lane, safe = min(row, n - 1);
                    const size_t at = (size_t)head * n + safe;
                    // Queries beyond n see nothing.
                    of_lse[i] = row < n ? lse[at] * -(float)LOG2E : NOTHING;
                    of_delta[i] = delta[at];
                    low[i] = first_seen(start, safe, window);
                }
                const u32 ready = full + 8 * ring.stage, to = tiles + ring.stage * 2 * TILE;
                barrier_wait(empty + 8 * ring.stage, ring.phase ^ 1);
                if (lane == 0) {
                    barrier_expect(ready, 2 * TILE);
                    load_rows<KV_Q>(&q_map, to, ready, head * HEAD_DIM, tile * KV_Q);
                    load_rows<KV_Q>(&do_map, to + TILE, ready, head * HEAD_DIM, tile * KV_Q);
                }
                __syncwarp();
                float* of_stage = numbers + ring.stage * 3 * KV_Q;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    of_stage[i * 32 + lane] = of_lse[i];
                    of_stage[KV_Q + i * 32 + lane] = of_delta[i];
                    ((int*)of_stage)[2 * KV_Q + i * 32 + lane] = low[i];
                }
                barrier_arrive(ready);
            }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int group = uniform(threadIdx.x / 128) - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32,
              t = lane % 4;
    const int first = kv_first + group * 64, warp_first = first + warp * 16, row = warp_first + lane / 4;
    const float scale = (float)(p.scale * LOG2E);
    const u32 k_rows = k_tile + group * PART_BYTES(64), v_rows = v_tile + group * PART_BYTES(64);
    // Of the block's tiles, those whose queries see some of the group's keys; none where all keys lie beyond n.
    const int seen_first = first < n ? first / KV_Q : last_tile + 1,
              seen_last = first < n ? uniform(tile_of(min(first + 63, n - 1))) : last_tile;
    auto pass = [&] {  // others need the tile
        barrier_wait(full + 8 * ring.stage, ring.phase);
        release(empty + 8 * ring.stage);
        ring.next();
    };

    float dk[HEAD_DIM / 2], dv[HEAD_DIM / 2];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) dk[i] = dv[i] = 0.0f;
    float s[KV_Q / 2], d[KV_Q / 2];
    u32 a[KV_Q / 16][4], b[KV_Q / 16][4];
    if (seen_first <= seen_last) barrier_wait(own_full, 0);
#pragma unroll 1
    for (int head = head_first; head < head_end; ++head) {
        int tile = first_tile;
        u32 before = empty;
#pragma unroll 1
        for (; tile < seen_first; ++tile) pass();
#pragma unroll 1
        for (; tile <= seen_last; ++tile) {
            const int q_first = tile * KV_Q;
            const u32 q_now = tiles + ring.stage * 2 * TILE, do_now = q_now + TILE;
            const float* of_stage = numbers + ring.stage * 3 * KV_Q;
            const int* low = (const int*)of_stage + 2 * KV_Q;
            barrier_wait(full + 8 * ring.stage, ring.phase);
            products_begin();
            product_of_rows<KV_ROWS, KV_Q>(s, k_rows, q_now);
            products_commit();
            products_wait<1>();  // the last tile's products are done: d gets the registers of a and b
            keep(a);
            keep(b);
            if (tile > seen_first) release(before);
            before = empty + 8 * ring.stage;
            ring.next();
            products_begin();
            product_of_rows<KV_ROWS, KV_Q>(d, v_rows, do_now);
            products_commit();
            products_wait<1>();
            keep(s);

            // Where some query does not see some of the warp's keys.
            if (q_first < warp_first + 15 || low[KV_Q - 1] > warp_first)
#pragma unroll
                for (int j = 0; j < KV_Q / 8; ++j) {
                    const int2 from = *(const int2*)(low + 8 * j + 2 * t);
                    const int query = q_first + 8 * j + 2 * t;
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const int key = row + 8 * h;
                        if (key > query || key < from.x) s[4 * j + 2 * h] = NOTHING;
                        if (key > query + 1 || key < from.y) s[4 * j + 2 * h + 1] = NOTHING;
                    }
                }
#pragma unroll
            for (int j = 0; j < KV_Q / 8; ++j) {
                const float2 of_lse = *(const float2*)(of_stage + 8 * j + 2 * t);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float &x = s[4 * j + 2 * h], &y = s[4 * j + 2 * h + 1];
                    x = exp2_fast(fmaf(x, scale, of_lse.x));
                    y = exp2_fast(fmaf(y, scale, of_lse.y));
                }
            }
            as_operand<KV_Q>(a, s);
            keep(a);
            keep(dv);
            products_begin();
            add_product<KV_Q>(dv, a, do_now);
            products_commit();
            products_wait<1>();  // d is there
            keep(d);
#pragma unroll
            for (int j = 0; j < KV_Q / 8; ++j) {
                const float2 of_delta = *(const float2*)(of_stage + KV_Q + 8 * j + 2 * t);
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    d[4 * j + 2 * h] = s[4 * j + 2 * h] * (d[4 * j + 2 * h] - of_delta.x);
                    d[4 * j + 2 * h + 1] = s[4 * j + 2 * h + 1] * (d[4 * j + 2 * h + 1] - of_delta.y);
                }
            }
            as_operand<KV_Q>(b, d);
            keep(b);
            keep(dk);
            products_begin();
            add_product<KV_Q>(dk, b, q_now);
            products_commit();
        }
        products_wait<0>();
        keep(a);
        keep(b);
        keep(dk);
        keep(dv);
        if (seen_first <= seen_last) release(before);
#pragma unroll 1
        for (; tile <= last_tile; ++tile) pass();
    }

    const float of_k = (float)p.scale;
#ifdef SPLIT
    const int stride = heads * HEAD_DIM;
#pragma unroll
    for (int h = 0; h < 2; ++h)
        if (row + 8 * h < n)
#pragma unroll
            for (int j = 0; j < HEAD_DIM / 8; ++j) {
                const int at = 4 * j + 2 * h;
                const size_t to = (size_t)(row + 8 * h) * stride + blockIdx.x * HEAD_DIM + 8 * j + 2 * t;
                *(float2*)(dk_out + to) = make_float2(dk[at] * of_k, dk[at + 1] * of_k);
                *(float2*)(dv_out + to) = make_float2(dv[at], dv[at + 1]);
            }
#else
    const float of_dk[2] = {of_k, of_k}, of_dv[2] = {1.0f, 1.0f};
    store_sums(dk, of_dk, dk_out + kv_head * HEAD_DIM, row, n, kv_heads * HEAD_DIM);
    store_sums(dv, of_dv, dv_out + kv_head * HEAD_DIM, row, n, kv_heads * HEAD_DIM);
#endif
#endif
}

// dq as attention_backward.cu's attention_backward_q makes it. Arguments: maps of q and do (boxes of Q_ROWS rows), k and v
// (Q_KV); then the rest as there. Grid (heads, ceil(n / Q_ROWS)), (Q_GROUPS + 1) * 128 threads. Dynamic shared memory:
// Q_BARRIERS + 2048 bytes. The longest, the last, come first.
extern "C" __global__ void __launch_bounds__((Q_GROUPS + 1) * 128, 1)
    attention_backward_q(const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap do_map,
        const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
        const float* __restrict__ lse, const float* __restrict__ delta, const int* __restrict__ start,
        bf16* __restrict__ dq_out, const __grid_constant__ P p) {
#if __CUDA_ARCH__ == 900
    constexpr int STAGES = Q_STAGES;
    constexpr u32 TILE = TILE_BYTES(Q_KV);
    extern __shared__ unsigned char shared[];
    const int n = (int)p.n, heads = (int)p.heads, window = (int)p.window;
    const int head = blockIdx.x, kv_head = head / (heads / (int)p.kv_heads);
    const int q_first = (gridDim.y - 1 - blockIdx.y) * Q_ROWS;
    const int last_tile = (min(q_first + Q_ROWS, n) - 1) / Q_KV, first_tile = first_seen(start, q_first, window) / Q_KV;
    const u32 q_tile = (address(shared) + 1023) & ~1023u, do_tile = q_tile + TILE_BYTES(Q_ROWS),
              k_tile = do_tile + TILE_BYTES(Q_ROWS), v_tile = k_tile + STAGES * TILE;
    const u32 q_full = q_tile + Q_BARRIERS, do_full = q_full + 8, k_full = do_full + 8, k_empty = k_full + 8 * STAGES,
              v_full = k_empty + 8 * STAGES, v_empty = v_full + 8 * STAGES;
    if (threadIdx.x == 0) {
        barrier_init(q_full, 1);
        barrier_init(do_full, 1);
        for (int s = 0; s < STAGES; ++s) {
            barrier_init(k_full + 8 * s, 1);
            barrier_init(v_full + 8 * s, 1);
            barrier_init(k_empty + 8 * s, Q_GROUPS * 4);
            barrier_init(v_empty + 8 * s, Q_GROUPS * 4);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    Ring<STAGES> ring;

    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x != 0) return;
        barrier_expect(q_full, TILE_BYTES(Q_ROWS));
        load_rows<Q_ROWS>(&q_map, q_tile, q_full, head * HEAD_DIM, q_first);
        // The last tile is on its way before the first one's number has come from memory.
#pragma unroll 1
        for (int tile = last_tile; tile == last_tile || tile >= first_tile; --tile, ring.next()) {
            const u32 at = 8 * ring.stage, free = ring.phase ^ 1;
            barrier_wait(k_empty + at, free);
            barrier_expect(k_full + at, TILE);
            load_rows<Q_KV>(&k_map, k_tile + ring.stage * TILE, k_full + at, kv_head * HEAD_DIM, tile * Q_KV);
            if (tile == last_tile) {  // not before: the first product needs q and k alone
                barrier_expect(do_full, TILE_BYTES(Q_ROWS));
                load_rows<Q_ROWS>(&do_map, do_tile, do_full, head * HEAD_DIM, q_first);
            }
            barrier_wait(v_empty + at, free);
            barrier_expect(v_full + at, TILE);
            load_rows<Q_KV>(&v_map, v_tile + ring.stage * TILE, v_full + at, kv_head * HEAD_DIM, tile * Q_KV);
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    const int group = uniform(threadIdx.x / 128) - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const int first = q_first + group * 64, warp_first = first + warp * 16, row = warp_first + lane / 4;
    const float scale = (float)(p.scale * LOG2E);
    const u32 q_rows = q_tile + group * PART_BYTES(64), do_rows = do_tile + group * PART_BYTES(64);
    float of_lse[2], of_delta[2];
    int low[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        const int safe = min(row + 8 * h, n - 1);
        of_lse[h] = lse[(size_t)head * n + safe] * -(float)LOG2E;
        of_delta[h] = delta[(size_t)head * n + safe];
        low[h] = first_seen(start, safe, window);
    }
    const int seen_last = first < n ? min(first + 63, n - 1) / Q_KV : last_tile,
              seen_first = first < n ? uniform(first_seen(start, first, window)) / Q_KV : last_tile + 1;
    const int low_last = first_seen(start, min(warp_first + 15, n - 1), window);
    auto pass = [&] {  // others see the tile
        barrier_wait(k_full + 8 * ring.stage, ring.phase);
        release(k_empty + 8 * ring.stage);
        barrier_wait(v_full + 8 * ring.stage, ring.phase);
        release(v_empty + 8 * ring.stage);
        ring.next();
    };

    float dq[HEAD_DIM / 2], s[Q_KV / 2], d[Q_KV / 2];
    u32 a[Q_KV / 16][4];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; ++i) dq[i] = 0.0f;
    int tile = last_tile;
#pragma unroll 1
    for (; tile > seen_last; --tile) pass();
    if (tile >= seen_first) {
        u32 before = k_empty;
        barrier_wait(q_full, 0);
#pragma unroll 1
        for (; tile >= seen_first; --tile) {
            const int kv_first = tile * Q_KV;
            const u32 at = 8 * ring.stage, k_now = k_tile + ring.stage * TILE;
            barrier_wait(k_full + at, ring.phase);
            products_begin();
            product_of_rows<Q_ROWS, Q_KV>(s, q_rows, k_now);
            products_commit();
            products_wait<1>();  // the last tile's product is done: d gets the registers of a
            keep(a);
            if (tile < seen_last) release(before);
            before = k_empty + at;
            barrier_wait(do_full, 0);
            barrier_wait(v_full + at, ring.phase);
            products_begin();
            product_of_rows<Q_ROWS, Q_KV>(d, do_rows, v_tile + ring.stage * TILE);
            products_commit();
            products_wait<1>();
            keep(s);
            if (kv_first + Q_KV - 1 > warp_first || kv_first < low_last) hide<Q_KV>(s, kv_first, row, low);
            float some = 0.0f;
#pragma unroll
            for (int i = 0; i < Q_KV / 2; ++i) {
                s[i] = exp2_fast(fmaf(s[i], scale, of_lse[i / 2 % 2]));
                if (i % 4 == 3) some += s[i];
            }
            made(some, scale);
            products_wait<0>();
            keep(d);
            release(v_empty + at);
            ring.next();
#pragma unroll
            for (int i = 0; i < Q_KV / 2; ++i) d[i] = s[i] * (d[i] - of_delta[i / 2 % 2]);
            as_operand<Q_KV>(a, d);
            keep(a);
            keep(dq);
            products_begin();
            add_product<Q_KV>(dq, a, k_now);
            products_commit();
        }
        products_wait<0>();
        keep(a);
        keep(dq);
        release(before);
    }
#pragma unroll 1
    for (; tile >= first_tile; --tile) pass();

    const float factor[2] = {(float)p.scale, (float)p.scale};
    store_sums(dq, factor, dq_out + head * HEAD_DIM, row, n, heads * HEAD_DIM);
#endif
}
