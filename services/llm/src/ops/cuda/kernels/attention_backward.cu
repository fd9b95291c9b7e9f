// Needs mma.cuh before it.
// The backward pass of attention.cu (FlashAttention-2, Dao 2023, algorithm 2), with the same bits from run to run:
//   p[i, j] = exp(scale q[i] . k[j] - lse[i]), dp[i, j] = do[i] . v[j], ds = p (dp - delta[i]), delta[i] = o[i] . do[i]
//   dv[j] = sum_i p[i, j] do[i], dk[j] = scale sum_i ds[i, j] q[i], dq[i] = scale sum_j ds[i, j] k[j]
// One kernel makes dk and dv, another dq, each with its own p and dp: 7 products in place of 5. In return every sum has
// one owner and a fixed order (no atomics), and p and ds never leave registers: a transposed product's sums are the
// next product's operand.

// A warp owns 16 * M rows of keys (dk, dv) or of queries (dq), with their sums; HOLD: whether the rows' own operands (k
// and v; q and do) stay in registers. SLICE: columns of p and dp that it makes at a time.
#ifndef KV_WARPS
#define KV_WARPS (HEAD_DIM == 96 || HEAD_DIM == 128 ? 8 : 4)
#endif
#ifndef KV_M
#define KV_M (HEAD_DIM > 64 ? 1 : 2)
#endif
#ifndef KV_HOLD
#define KV_HOLD (HEAD_DIM <= 128)
#endif
#ifndef KV_SLICE
#define KV_SLICE 16
#endif
#ifndef KV_Q  // queries of a tile
#define KV_Q (HEAD_DIM > 128 ? 16 : 64)
#endif
#ifndef KV_PARTS  // the columns of dk and dv are made by so many blocks, each of which makes p and dp again
#define KV_PARTS (HEAD_DIM > 128 ? 2 : 1)
#endif
#ifndef KV_CTAS
#define KV_CTAS (KV_WARPS > 4 ? 1 : 2)
#endif
#define KV_ROWS (KV_WARPS * KV_M * 16)
// Held rows are read through the space of the tiles.
#define KV_OWN (2 * KV_ROWS * HEAD_DIM * 2)
#define KV_TILES (4 * KV_Q * HEAD_DIM * 2)
#define KV_SHARED_BYTES ((KV_HOLD ? (KV_OWN > KV_TILES ? KV_OWN : KV_TILES) : KV_OWN + KV_TILES) + 2 * 3 * KV_Q * 4)

#ifndef Q_WARPS
#define Q_WARPS 4
#endif
#ifndef Q_M
#define Q_M (HEAD_DIM > 128 ? 1 : 2)
#endif
#ifndef Q_HOLD
#define Q_HOLD (HEAD_DIM <= 64)
#endif
#ifndef Q_SLICE
#define Q_SLICE (HEAD_DIM == 96 || HEAD_DIM == 128 ? 32 : 16)
#endif
#ifndef Q_KV  // keys of a tile
#define Q_KV (HEAD_DIM > 128 ? 16 : HEAD_DIM > 64 ? 32 : 64)
#endif
#ifndef Q_CTAS
#define Q_CTAS 2
#endif
#define Q_ROWS (Q_WARPS * Q_M * 16)
#define Q_OWN (2 * Q_ROWS * HEAD_DIM * 2)
#define Q_TILES (4 * Q_KV * HEAD_DIM * 2)
#define Q_SHARED_BYTES (Q_HOLD ? (Q_OWN > Q_TILES ? Q_OWN : Q_TILES) : Q_OWN + Q_TILES)

// delta[h, i] = sum over the head's columns of o[i, h] do[i, h]: o, do [n, heads * HEAD_DIM] bf16, delta [heads, n]
// f32. Grid ceil(n * heads * DELTA_LANES / 256), 256 threads: DELTA_LANES neighbours share a row of one head.
#define DELTA_LANES (HEAD_DIM % 64 == 0 ? 8 : HEAD_DIM % 32 == 0 ? 4 : 2)
extern "C" __global__ void __launch_bounds__(256) attention_delta(const uint4* __restrict__ o,
    const uint4* __restrict__ dout, float* __restrict__ delta, const __grid_constant__ P p) {
    const u64 index = (u64)blockIdx.x * 256 + threadIdx.x, pair = index / DELTA_LANES, pairs = p.n * p.heads;
    const int lane = index % DELTA_LANES;
    float sum = 0.0f;
    if (pair < pairs) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c += DELTA_LANES) {
            const uint4 x4 = o[pair * CHUNKS + c + lane], y4 = dout[pair * CHUNKS + c + lane];
            const u32 x[4] = {x4.x, x4.y, x4.z, x4.w}, y[4] = {y4.x, y4.y, y4.z, y4.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sum = fmaf(__uint_as_float(x[i] << 16), __uint_as_float(y[i] << 16), sum);
                sum = fmaf(__uint_as_float(x[i] & 0xffff0000u), __uint_as_float(y[i] & 0xffff0000u), sum);
            }
        }
    }
#pragma unroll
    for (int i = DELTA_LANES / 2; i > 0; i /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, i);
    if (pair < pairs && lane == 0) delta[pair % p.heads * p.n + pair / p.heads] = sum;
}

// The operands a of M * 16 rows, in registers or read from shared memory when needed: OFFSET bytes after the address of
// `set`. The second of two tiles is always named by its constant distance from the first, so that both share their
// addresses' registers.
template <bool HOLD, int M, int OFFSET>
struct Rows {
    u32 held[HOLD ? M : 1][HOLD ? HEAD_DIM / 16 : 1][4], lane;

    __device__ __forceinline__ void set(u32 rows) {
        lane = lane_rows(rows);
        if (HOLD)
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int step = 0; step < HEAD_DIM / 16; ++step)
                    ldmatrix(held[HOLD ? m : 0][HOLD ? step : 0], at(lane, m, step) + OFFSET);
    }
    __device__ __forceinline__ void get(u32 (&a)[4], int m, int step) const {
        if (HOLD)
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = held[HOLD ? m : 0][HOLD ? step : 0][i];
        else ldmatrix(a, at(lane, m, step) + OFFSET);
    }
};

// s[M * 16 rows, WIDTH columns] = a . b and d = e . f, with b the rows from the lane's address, f those NEXT
// bytes after.
template <int WIDTH, int NEXT, bool HOLD, int M, int OFFSET>
__device__ __forceinline__ void two_products(float (&s)[M][WIDTH / 8][4], float (&d)[M][WIDTH / 8][4],
    const Rows<HOLD, M, 0>& a, const Rows<HOLD, M, OFFSET>& e, u32 b_lane) {
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; ++step) {
        u32 x[M][4], y[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            a.get(x[m], m, step);
            e.get(y[m], m, step);
        }
#pragma unroll
        for (int c = 0; c < WIDTH / 16; ++c) {
            u32 b[4], f[4];
            ldmatrix(b, at(b_lane, c, step));
            ldmatrix(f, at(b_lane, c, step) + NEXT);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                mma(s[m][2 * c], x[m], b[0], b[1]);
                mma(s[m][2 * c + 1], x[m], b[2], b[3]);
                mma(d[m][2 * c], y[m], f[0], f[1]);
                mma(d[m][2 * c + 1], y[m], f[2], f[3]);
            }
        }
    }
}

// The sums of 16 columns (two tiles of 8) as operand a.
__device__ __forceinline__ void as_operand(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack(left[0], left[1]);
    a[1] = pack(left[2], left[3]);
    a[2] = pack(right[0], right[1]);
    a[3] = pack(right[2], right[3]);
}

// sums[M * 16 rows, COLUMNS] += a . b, with b the 16 rows from the lane's address, and `offset`.
template <int M, int COLUMNS>
__device__ __forceinline__ void add_product(
    float (&sums)[M][COLUMNS / 8][4], const u32 (&a)[M][4], u32 b_lane, int offset) {
#pragma unroll
    for (int step = 0; step < COLUMNS / 16; ++step) {
        u32 b[4];
        ldmatrix_trans(b, at(b_lane, 0, step) + offset);
#pragma unroll
        for (int m = 0; m < M; ++m) {
            mma(sums[m][2 * step], a[m], b[0], b[1]);
            mma(sums[m][2 * step + 1], a[m], b[2], b[3]);
        }
    }
}

// What one warp does with one tile of queries: p^T and ds^T of its keys, and their products with do and q. `rows` holds
// lse, delta and start of the tile's queries.
typedef Rows<KV_HOLD, KV_M, 0> KeyRows;
typedef Rows<KV_HOLD, KV_M, KV_OWN / 2> ValueRows;
template <bool MASK>
__device__ __forceinline__ void backward_kv_tile(float (&dk)[KV_M][HEAD_DIM / KV_PARTS / 8][4],
    float (&dv)[KV_M][HEAD_DIM / KV_PARTS / 8][4], const KeyRows& k, const ValueRows& v, u32 q_tile, const float* rows,
    int first, int q_first, int n, int window, float scale) {
    constexpr int M = KV_M;
    const int lane = threadIdx.x & 31;
    const u32 part = KV_PARTS > 1 ? blockIdx.z * (HEAD_DIM / KV_PARTS * 2) : 0;  // whole spans of chunks
#pragma unroll
    for (int slice = 0; slice < KV_Q; slice += KV_SLICE) {
        if (MASK && q_first + slice + KV_SLICE <= first) continue;  // all before the warp's keys
        float s[M][KV_SLICE / 8][4] = {}, d[M][KV_SLICE / 8][4] = {};
        two_products<KV_SLICE, KV_TILES / 2>(s, d, k, v, lane_columns(q_tile) + slice * ROW_BYTES);
#pragma unroll
        for (int c = 0; c < KV_SLICE / 8; ++c) {
            const int at_row = slice + c * 8 + lane % 4 * 2;
            const float2 lse = *(const float2*)(rows + at_row), delta = *(const float2*)(rows + KV_Q + at_row);
            int low[2] = {0, 0};
            if (MASK)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int row = q_first + at_row + i;
                    low[i] = row < n ? first_seen((const int*)(rows + 2 * KV_Q) - q_first, row, window) : n;
                }
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int key = first + m * 16 + i / 2 * 8 + lane / 4;
                    const bool seen = !MASK || (key <= q_first + at_row + i % 2 && key >= low[i % 2]);
                    s[m][c][i] =
                        exp2_fast(seen ? fmaf(s[m][c][i], scale, (i % 2 ? lse.y : lse.x) * -(float)LOG2E) : NOTHING);
                    d[m][c][i] = s[m][c][i] * (d[m][c][i] - (i % 2 ? delta.y : delta.x));
                }
        }
#pragma unroll
        for (int c = 0; c < KV_SLICE / 16; ++c) {
            u32 a[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m) as_operand(a[m], s[m][2 * c], s[m][2 * c + 1]);
            add_product<M, HEAD_DIM / KV_PARTS>(
                dv, a, lane_rows(q_tile + part) + (slice + c * 16) * ROW_BYTES, KV_TILES / 2);
#pragma unroll
            for (int m = 0; m < M; ++m) as_operand(a[m], d[m][2 * c], d[m][2 * c + 1]);
            add_product<M, HEAD_DIM / KV_PARTS>(dk, a, lane_rows(q_tile + part) + (slice + c * 16) * ROW_BYTES, 0);
        }
    }
}

// dk, dv [n, kv_heads * HEAD_DIM] bf16 from q, do [n, heads * HEAD_DIM], k, v (bf16), lse, delta [heads, n] f32, start
// and end [n] i32 (the first token of each token's document, and one past its last). A block owns KV_ROWS keys of one
// head and loops over the heads of its group and the tiles of queries that see them.
// Grid (kv_heads, ceil(n / KV_ROWS), KV_PARTS), KV_WARPS * 32 threads, KV_SHARED_BYTES. The first rows come first: with
// causal tiles those are the longest.
// With SPLIT the grid is (heads, ...): each block takes one head of q, dk and dv are [n, heads * HEAD_DIM] f32, and
// attention_group_sum adds them up: for few keys and few kv_heads, where the blocks would not fill the device.
#ifdef SPLIT
typedef float Partial;
#else
typedef bf16 Partial;
#endif
extern "C" __global__ void __launch_bounds__(KV_WARPS * 32, KV_CTAS)
    attention_backward_kv(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
        const bf16* __restrict__ dout, const float* __restrict__ lse, const float* __restrict__ delta,
        const int* __restrict__ start, const int* __restrict__ end, Partial* __restrict__ dk_out,
        Partial* __restrict__ dv_out, const __grid_constant__ P p) {
    constexpr int M = KV_M, THREADS = KV_WARPS * 32, WARP_ROWS = M * 16, COLUMNS = HEAD_DIM / KV_PARTS;
    constexpr u32 TILE = KV_Q * ROW_BYTES;
    extern __shared__ __align__(1024) unsigned char shared[];
    const int n = (int)p.n, heads = (int)p.heads, kv_heads = (int)p.kv_heads, window = (int)p.window,
              group = heads / kv_heads;
    const int warp = threadIdx.x / 32, q_stride = heads * HEAD_DIM, kv_stride = kv_heads * HEAD_DIM;
#ifdef SPLIT
    const int kv_head = blockIdx.x / group, head_end = blockIdx.x + 1;
    int head = blockIdx.x;
#else
    const int kv_head = blockIdx.x, head_end = (kv_head + 1) * group;
    int head = kv_head * group;
#endif
    const int kv_first = blockIdx.y * KV_ROWS, kv_last = min(kv_first + KV_ROWS, n) - 1;
    const int first = kv_first + warp * WARP_ROWS, last = min(first + WARP_ROWS, n) - 1;
    const float scale = (float)(p.scale * LOG2E);
    const u32 own = shared_address(shared), q_tile = KV_HOLD ? own : own + KV_OWN, do_tile = q_tile + 2 * TILE;
    const u32 own_rows = own + warp * WARP_ROWS * ROW_BYTES;
    float* rows = (float*)(shared + KV_SHARED_BYTES - 2 * 3 * KV_Q * 4);  // of two stages: lse, delta, start

    load_tile<KV_ROWS, THREADS>(own, k + kv_head * HEAD_DIM, kv_first, n, kv_stride);
    load_tile<KV_ROWS, THREADS>(own + KV_ROWS * ROW_BYTES, v + kv_head * HEAD_DIM, kv_first, n, kv_stride);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    KeyRows k_rows;
    ValueRows v_rows;
    k_rows.set(own_rows);
    v_rows.set(own_rows);
    if (KV_HOLD) __syncthreads();

    const int tile_first = kv_first / KV_Q,
              tile_last = (window ? min(end[kv_last], kv_last + window) - 1 : end[kv_last] - 1) / KV_Q;
    auto stage_of = [&](int head, int tile) {  // each step changes it
        return (head * (tile_last - tile_first + 1) + tile) & 1;
    };
    auto load = [&](int head, int tile) {
        const int stage = stage_of(head, tile);
        load_tile<KV_Q, THREADS>(q_tile + stage * TILE, q + head * HEAD_DIM, tile * KV_Q, n, q_stride);
        load_tile<KV_Q, THREADS>(do_tile + stage * TILE, dout + head * HEAD_DIM, tile * KV_Q, n, q_stride);
        if (threadIdx.x < KV_Q) {
            const int row = tile * KV_Q + threadIdx.x, safe = min(row, n - 1);
            const u32 to = shared_address(rows + stage * 3 * KV_Q + threadIdx.x);
            copy4(to, lse + (size_t)head * n + safe, row < n);
            copy4(to + KV_Q * 4, delta + (size_t)head * n + safe, row < n);
            copy4(to + 2 * KV_Q * 4, start + safe, row < n);
        }
        copy_commit();
    };
    int tile = tile_first;
    load(head, tile);

    float dk[M][COLUMNS / 8][4] = {}, dv[M][COLUMNS / 8][4] = {};
    while (head < head_end) {
        copy_wait<0>();
        __syncthreads();  // the tile is there, and nobody reads the other stage any more
        const int q_first = tile * KV_Q, stage = stage_of(head, tile);
        if (++tile > tile_last) {
            tile = tile_first;
            ++head;
        }
        if (head < head_end) load(head, tile);

        const float* tile_rows = rows + stage * 3 * KV_Q;
        const int* starts = (const int*)(tile_rows + 2 * KV_Q) - q_first;
        const int q_last = min(q_first + KV_Q, n) - 1;
        if (q_last < first || first_seen(starts, q_first, window) > last) continue;  // none of the warp's keys is seen
        const bool whole =
            q_first >= first + WARP_ROWS - 1 && q_first + KV_Q <= n && first_seen(starts, q_last, window) <= first;
        const u32 q_now = q_tile + stage * TILE;
        if (whole) backward_kv_tile<false>(dk, dv, k_rows, v_rows, q_now, tile_rows, first, q_first, n, window, scale);
        else backward_kv_tile<true>(dk, dv, k_rows, v_rows, q_now, tile_rows, first, q_first, n, window, scale);
    }

#ifdef SPLIT
    const int lane = threadIdx.x & 31, column = blockIdx.x * HEAD_DIM + blockIdx.z * COLUMNS + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = first + m * 16 + h * 8 + lane / 4;
            if (row >= n) continue;
#pragma unroll
            for (int c = 0; c < COLUMNS / 8; ++c) {
                const size_t to = (size_t)row * q_stride + column + c * 8;
                *(float2*)(dk_out + to) =
                    make_float2(dk[m][c][2 * h] * (float)p.scale, dk[m][c][2 * h + 1] * (float)p.scale);
                *(float2*)(dv_out + to) = make_float2(dv[m][c][2 * h], dv[m][c][2 * h + 1]);
            }
        }
#else
    __syncthreads();  // all have read the last tile
    float of_k[M][2], of_v[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m) {
        of_k[m][0] = of_k[m][1] = (float)p.scale;
        of_v[m][0] = of_v[m][1] = 1.0f;
    }
    const int column = kv_head * HEAD_DIM + blockIdx.z * COLUMNS;
    store_rows<M, COLUMNS>(dk, of_k, own_rows, dk_out + column, first, n, kv_stride);
    store_rows<M, COLUMNS>(dv, of_v, own_rows, dv_out + column, first, n, kv_stride);
#endif
}

// Sums of the heads of each group, in the order of the heads: in [n, heads * HEAD_DIM] f32 -> out [n, kv_heads *
// HEAD_DIM] bf16. Grid ceil(n * kv_heads * HEAD_DIM / 4 / 256), 256 threads of 4 numbers.
extern "C" __global__ void __launch_bounds__(256)
    attention_group_sum(const float4* __restrict__ in, uint2* __restrict__ out, const __grid_constant__ P p) {
    const u64 index = (u64)blockIdx.x * 256 + threadIdx.x, pair = index / (HEAD_DIM / 4);  // a token's head of k or v
    if (pair >= p.n * p.kv_heads) return;
    const int group = (int)(p.heads / p.kv_heads), column = index % (HEAD_DIM / 4);
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int i = 0; i < group; ++i) {
        const float4 x = in[(pair * group + i) * (HEAD_DIM / 4) + column];  // heads of a group lie side by side
        sum.x += x.x;
        sum.y += x.y;
        sum.z += x.z;
        sum.w += x.w;
    }
    out[index] = make_uint2(pack(sum.x, sum.y), pack(sum.z, sum.w));
}

// What one warp does with one tile of keys: ds of its queries, and its product with k.
typedef Rows<Q_HOLD, Q_M, 0> QueryRows;
typedef Rows<Q_HOLD, Q_M, Q_OWN / 2> GradientRows;
template <bool MASK>
__device__ __forceinline__ void backward_q_tile(float (&dq)[Q_M][HEAD_DIM / 8][4], const QueryRows& q,
    const GradientRows& dout, u32 k_tile, const float (&lse)[Q_M][2], const float (&delta)[Q_M][2],
    const int* __restrict__ start, int first, int kv_first, int n, int window, float scale) {
    constexpr int M = Q_M;
    const int lane = threadIdx.x & 31;
#pragma unroll 2  // more slices at once would spill registers
    for (int slice = 0; slice < Q_KV; slice += Q_SLICE) {
        if (MASK && kv_first + slice > first + M * 16 - 1) continue;  // all after the warp's queries
        float s[M][Q_SLICE / 8][4] = {}, d[M][Q_SLICE / 8][4] = {};
        two_products<Q_SLICE, Q_TILES / 2>(s, d, q, dout, lane_columns(k_tile) + slice * ROW_BYTES);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = first + m * 16 + h * 8 + lane / 4,
                          low = MASK ? first_seen(start, min(row, n - 1), window) : 0;
#pragma unroll
                for (int c = 0; c < Q_SLICE / 8; ++c)
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const int column = kv_first + slice + c * 8 + lane % 4 * 2 + i;
                        const bool seen = !MASK || (column <= row && column >= low);
                        const float x = exp2_fast(seen ? fmaf(s[m][c][2 * h + i], scale, -lse[m][h]) : NOTHING);
                        d[m][c][2 * h + i] = x * (d[m][c][2 * h + i] - delta[m][h]);
                    }
            }
#pragma unroll
        for (int c = 0; c < Q_SLICE / 16; ++c) {
            u32 a[M][4];
#pragma unroll
            for (int m = 0; m < M; ++m) as_operand(a[m], d[m][2 * c], d[m][2 * c + 1]);
            add_product<M, HEAD_DIM>(dq, a, lane_rows(k_tile) + (slice + c * 16) * ROW_BYTES, 0);
        }
    }
}

// dq [n, heads * HEAD_DIM] bf16; inputs as in attention_backward_kv. A block owns Q_ROWS queries of one head and loops
// over the tiles of keys that they see. Grid (heads, ceil(n / Q_ROWS)), Q_WARPS * 32 threads, Q_SHARED_BYTES; the
// longest, the last, come first.
extern "C" __global__ void __launch_bounds__(Q_WARPS * 32, Q_CTAS)
    attention_backward_q(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
        const bf16* __restrict__ dout, const float* __restrict__ lse, const float* __restrict__ delta,
        const int* __restrict__ start, bf16* __restrict__ dq_out, const __grid_constant__ P p) {
    constexpr int M = Q_M, THREADS = Q_WARPS * 32, WARP_ROWS = M * 16;
    constexpr u32 TILE = Q_KV * ROW_BYTES;
    extern __shared__ __align__(1024) unsigned char shared[];
    const int n = (int)p.n, heads = (int)p.heads, kv_heads = (int)p.kv_heads, window = (int)p.window;
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int head = blockIdx.x, kv_head = head / (heads / kv_heads), q_stride = heads * HEAD_DIM,
              kv_stride = kv_heads * HEAD_DIM;
    const int q_first = (gridDim.y - 1 - blockIdx.y) * Q_ROWS, q_last = min(q_first + Q_ROWS, n) - 1;
    const int first = q_first + warp * WARP_ROWS, last = first + WARP_ROWS - 1;
    const float scale = (float)(p.scale * LOG2E);
    const u32 own = shared_address(shared), k_tile = Q_HOLD ? own : own + Q_OWN, v_tile = k_tile + 2 * TILE;
    const u32 own_rows = own + warp * WARP_ROWS * ROW_BYTES;
    k += kv_head * HEAD_DIM;
    v += kv_head * HEAD_DIM;

    load_tile<Q_ROWS, THREADS>(own, q + head * HEAD_DIM, q_first, n, q_stride);
    load_tile<Q_ROWS, THREADS>(own + Q_ROWS * ROW_BYTES, dout + head * HEAD_DIM, q_first, n, q_stride);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    QueryRows q_rows;
    GradientRows do_rows;
    q_rows.set(own_rows);
    do_rows.set(own_rows);
    if (Q_HOLD) __syncthreads();

    float row_lse[M][2], row_delta[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const size_t row = (size_t)head * n + min(first + m * 16 + h * 8 + lane / 4, n - 1);
            row_lse[m][h] = lse[row] * (float)LOG2E;
            row_delta[m][h] = delta[row];
        }
    const int low_last = first_seen(start, min(last, n - 1), window),
              tile_end = first_seen(start, q_first, window) / Q_KV;
    int tile = q_last / Q_KV;
    load_tile<Q_KV, THREADS>(k_tile + (tile & 1) * TILE, k, tile * Q_KV, n, kv_stride);
    load_tile<Q_KV, THREADS>(v_tile + (tile & 1) * TILE, v, tile * Q_KV, n, kv_stride);
    copy_commit();

    float dq[M][HEAD_DIM / 8][4] = {};
    for (; tile >= tile_end; --tile) {
        const int stage = tile & 1;
        copy_wait<0>();
        __syncthreads();  // the tile is there, and nobody reads the other stage any more
        if (tile > tile_end) {
            load_tile<Q_KV, THREADS>(k_tile + (stage ^ 1) * TILE, k, (tile - 1) * Q_KV, n, kv_stride);
            load_tile<Q_KV, THREADS>(v_tile + (stage ^ 1) * TILE, v, (tile - 1) * Q_KV, n, kv_stride);
            copy_commit();
        }
        const int kv_first = tile * Q_KV;
        if (kv_first > last) continue;  // all after the warp's queries
        const u32 k_now = k_tile + stage * TILE;
        if (kv_first + Q_KV - 1 <= first && kv_first >= low_last)
            backward_q_tile<false>(
                dq, q_rows, do_rows, k_now, row_lse, row_delta, start, first, kv_first, n, window, scale);
        else
            backward_q_tile<true>(
                dq, q_rows, do_rows, k_now, row_lse, row_delta, start, first, kv_first, n, window, scale);
    }

    __syncthreads();  // all have read the last tile
    float factor[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m) factor[m][0] = factor[m][1] = (float)p.scale;
    store_rows<M, HEAD_DIM>(dq, factor, own_rows, dq_out + head * HEAD_DIM, first, n, q_stride);
}
