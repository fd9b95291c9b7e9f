// Needs mma.cuh before it.
// A warp owns 16 * FORWARD_M rows of queries. 32 rows instead of 16 halve what each product reads of K and V from
// shared memory, which bounds mma.sync on recent GPUs.
#ifndef FORWARD_WARPS
#define FORWARD_WARPS 4
#endif
#ifndef FORWARD_M
#define FORWARD_M (HEAD_DIM > 128 ? 1 : 2)
#endif
#ifndef FORWARD_KV  // keys of a tile
#define FORWARD_KV (HEAD_DIM > 128 ? 32 : 64)
#endif
#ifndef FORWARD_HOLD  // whether Q's operands stay in registers
#define FORWARD_HOLD (HEAD_DIM <= 64)
#endif
#ifndef FORWARD_CTAS
#define FORWARD_CTAS 2
#endif
#define FORWARD_Q (FORWARD_WARPS * FORWARD_M * 16)
#define SHARED_BYTES (HEAD_DIM * 2 * (FORWARD_Q + 4 * FORWARD_KV))

// FlashAttention-2's forward pass (Dao 2023), causal within documents:
//   o[i, h] = sum_j p[i, j] v[j, h / group], p = softmax_j(scale q[i, h] . k[j, h / group])
//   lse[h, i] = ln sum_j exp(scale q . k), over j with start[i] <= j <= i and j > i - window
// q, o: [n, heads * HEAD_DIM] bf16; k, v: [n, kv_heads * HEAD_DIM] bf16; start: [n] i32, the first token of each token's
// document; lse: [heads, n] f32.
// Grid (heads, ceil(n / FORWARD_Q)), FORWARD_WARPS * 32 threads, SHARED_BYTES. The last rows come first: of causal tiles
// those are the longest.
extern "C" __global__ void __launch_bounds__(FORWARD_WARPS * 32, FORWARD_CTAS)
    attention_forward(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
        const int* __restrict__ start, bf16* __restrict__ o, float* __restrict__ lse, const __grid_constant__ P p) {
    constexpr int M = FORWARD_M, KV = FORWARD_KV, THREADS = FORWARD_WARPS * 32, STEPS = HEAD_DIM / 16,
                  WARP_ROWS = M * 16;
    constexpr u32 TILE = KV * ROW_BYTES;
    extern __shared__ __align__(1024) unsigned char shared[];
    const int n = (int)p.n, heads = (int)p.heads, kv_heads = (int)p.kv_heads, window = (int)p.window;
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int head = blockIdx.x, kv_head = head / (heads / kv_heads), q_stride = heads * HEAD_DIM,
              kv_stride = kv_heads * HEAD_DIM;
    const int q_first = (gridDim.y - 1 - blockIdx.y) * FORWARD_Q, q_last = min(q_first + FORWARD_Q, n) - 1;
    const int first = q_first + warp * WARP_ROWS, last = first + WARP_ROWS - 1;
    const float scale = (float)(p.scale * LOG2E);  // scores in powers of two
    const u32 q_tile = shared_address(shared), k_tile = q_tile + FORWARD_Q * ROW_BYTES, v_tile = k_tile + 2 * TILE;
    const u32 q_rows = q_tile + warp * WARP_ROWS * ROW_BYTES;
    k += kv_head * HEAD_DIM;
    v += kv_head * HEAD_DIM;

    int tile = q_last / KV;
    const int tile_end = first_seen(start, q_first, window) / KV;
    load_tile<FORWARD_Q, THREADS>(q_tile, q + head * HEAD_DIM, q_first, n, q_stride);
    copy_commit();
    load_tile<KV, THREADS>(k_tile + (tile & 1) * TILE, k, tile * KV, n, kv_stride);
    load_tile<KV, THREADS>(v_tile + (tile & 1) * TILE, v, tile * KV, n, kv_stride);
    copy_commit();

    const int low_last = first_seen(start, min(last, n - 1), window);

    u32 held[FORWARD_HOLD ? M : 1][FORWARD_HOLD ? STEPS : 1][4];
    if (FORWARD_HOLD) {
        copy_wait<1>();
        __syncthreads();
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int step = 0; step < STEPS; ++step)
                ldmatrix(held[FORWARD_HOLD ? m : 0][FORWARD_HOLD ? step : 0], at(lane_rows(q_rows), m, step));
    }

    float out[M][HEAD_DIM / 8][4] = {}, sum[M][2] = {}, top[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m) top[m][0] = top[m][1] = NOTHING;

    for (; tile >= tile_end; --tile) {
        const int stage = tile & 1;
        copy_wait<0>();
        __syncthreads();  // the tile is there, and nobody reads the other stage any more
        if (tile > tile_end) {
            load_tile<KV, THREADS>(k_tile + (stage ^ 1) * TILE, k, (tile - 1) * KV, n, kv_stride);
            load_tile<KV, THREADS>(v_tile + (stage ^ 1) * TILE, v, (tile - 1) * KV, n, kv_stride);
            copy_commit();
        }
        const int kv_first = tile * KV;
        if (kv_first > last) continue;  // none of the warp's rows sees it

        float s[M][KV / 8][4] = {};
        const u32 q_lane = lane_rows(q_rows), k_lane = lane_columns(k_tile + stage * TILE),
                  v_lane = lane_rows(v_tile + stage * TILE);
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            u32 a[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m) {
                if (!FORWARD_HOLD) ldmatrix(a[m], at(q_lane, m, step));
                else
#pragma unroll
                    for (int i = 0; i < 4; ++i) a[m][i] = held[FORWARD_HOLD ? m : 0][FORWARD_HOLD ? step : 0][i];
            }
#pragma unroll
            for (int c = 0; c < KV / 16; ++c) {
                u32 b[4];
                ldmatrix(b, at(k_lane, c, step));
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    mma(s[m][2 * c], a[m], b[0], b[1]);
                    mma(s[m][2 * c + 1], a[m], b[2], b[3]);
                }
            }
        }
        if (kv_first + KV - 1 > first || kv_first < low_last) {
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int row = first + m * 16 + h * 8 + lane / 4, low = first_seen(start, min(row, n - 1), window);
#pragma unroll
                    for (int c = 0; c < KV / 8; ++c)
#pragma unroll
                        for (int i = 0; i < 2; ++i) {
                            int column = kv_first + c * 8 + lane % 4 * 2 + i;
                            if (column > row || column < low) s[m][c][2 * h + i] = NOTHING;
                        }
                }
        }

        // `top` is what exponents are relative to: any value near the row's maximum will do. Only when some row of the
        // warp outgrows it by 2^8 is it raised to the maximum so far, and the sums are scaled down: mostly that is in
        // the first tiles alone.
        float peak[M][2];
        bool grows = false;
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float x = NOTHING;
#pragma unroll
                for (int c = 0; c < KV / 8; ++c) x = fmaxf(x, fmaxf(s[m][c][2 * h], s[m][c][2 * h + 1]));
                peak[m][h] = x * scale;
                grows |= peak[m][h] > top[m][h] + 8.0f;
            }
        if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float x = fmaxf(peak[m][h], __shfl_xor_sync(0xffffffffu, peak[m][h], 1));
                    x = fmaxf(top[m][h], fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2)));
                    float factor = x == NOTHING ? 1.0f : exp2_fast(top[m][h] - x);
                    top[m][h] = x;
                    sum[m][h] *= factor;
#pragma unroll
                    for (int c = 0; c < HEAD_DIM / 8; ++c) {
                        out[m][c][2 * h] *= factor;
                        out[m][c][2 * h + 1] *= factor;
                    }
                }
        }
        float base[M][2];
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) base[m][h] = top[m][h] == NOTHING ? 0.0f : top[m][h];

#pragma unroll
        for (int c = 0; c < KV / 16; ++c) {
            u32 a[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i) {  // the layout of sums is that of operand a
                    float x = exp2_fast(fmaf(s[m][2 * c + i / 2][i % 2 * 2], scale, -base[m][i % 2]));
                    float y = exp2_fast(fmaf(s[m][2 * c + i / 2][i % 2 * 2 + 1], scale, -base[m][i % 2]));
                    sum[m][i % 2] += x + y;
                    a[m][i] = pack(x, y);
                }
#pragma unroll
            for (int d = 0; d < STEPS; ++d) {
                u32 b[4];
                ldmatrix_trans(b, at(v_lane, c, d));
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    mma(out[m][2 * d], a[m], b[0], b[1]);
                    mma(out[m][2 * d + 1], a[m], b[2], b[3]);
                }
            }
        }
    }

    float factor[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float x = sum[m][h] + __shfl_xor_sync(0xffffffffu, sum[m][h], 1);
            x += __shfl_xor_sync(0xffffffffu, x, 2);
            factor[m][h] = x > 0.0f ? 1.0f / x : 0.0f;
            int row = first + m * 16 + h * 8 + lane / 4;
            if (row < n && lane % 4 == 0) lse[(size_t)head * n + row] = (top[m][h] + log2_fast(x)) * (float)LN2;
        }
    store_rows<M, HEAD_DIM>(out, factor, q_rows, o + head * HEAD_DIM, first, n, q_stride);
}
