// Keys and values in pages of sixteen tokens (Kwon et al. 2023), and the attention of single rows to them.
//
// A pool is bf16 [pages, kv_heads, 16, HEAD_DIM]: what one key head has of a page lies together (2 KB at 64, 4 KB at 128), so a
// block that reads one head reads whole lines in a row. As [pages, 16, kv_heads·HEAD_DIM] the same head would be 128 bytes, then
// a gap, sixteen times. A slot is page·16 + place. Needs vector.cuh, tiles.cuh and join.cuh before it.

#ifndef FRESH
#define FRESH 0  // 1: queries are still to be turned, and the newest token's key to be turned and stored, as in a step of one token.
#endif
#ifndef QK_NORM
#define QK_NORM 0  // 1: with FRESH, queries and keys are normed, head by head, before they are turned.
#endif

#define PAGE 16
#define WARPS 4
#define LINE (HEAD_DIM + 8)  // Floats between heads of a warp's sums.
#define TOKENS_BYTES (SPLIT * HEAD_DIM * 4)
#define SUMS_BYTES (WARPS * 16 * LINE * 4)
#define SHARED_BYTES (TOKENS_BYTES > SUMS_BYTES ? TOKENS_BYTES : SUMS_BYTES)

typedef u64 word;

__device__ __forceinline__ float low(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

/// Where a head of a slot begins in a pool.
__device__ __forceinline__ long long pool_at(long long slot, long long kv_heads, long long head) {
    return ((slot / PAGE * kv_heads + head) * PAGE + slot % PAGE) * HEAD_DIM;
}

struct StoreP { word rows, kv_heads; };

// Writes keys and values bf16 [rows, kv_heads·HEAD_DIM] to slots i32 [rows] of the pools; a negative slot is passed over.
// Grid: ⌈rows·kv_heads·(HEAD_DIM / 8) / 256⌉; 256 threads. Arguments: k, v, slots, k_pool, v_pool.
extern "C" __global__ void __launch_bounds__(256) paged_store(
    const bf16* __restrict__ k, const bf16* __restrict__ v, const int* __restrict__ slots, bf16* __restrict__ k_pool,
    bf16* __restrict__ v_pool, const __grid_constant__ StoreP p) {
    let_next_begin();
    wait_for_previous();
    const long long index = static_cast<long long>(blockIdx.x) * 256 + threadIdx.x;
    const long long kv_heads = p.kv_heads, head = index / (HEAD_DIM / 8), row = head / kv_heads;
    if (row >= static_cast<long long>(p.rows)) return;
    const long long slot = slots[row];
    if (slot < 0) return;
    const long long to = pool_at(slot, kv_heads, head % kv_heads) + index % (HEAD_DIM / 8) * 8;
    *reinterpret_cast<uint4*>(k_pool + to) = __ldg(reinterpret_cast<const uint4*>(k) + index);
    *reinterpret_cast<uint4*>(v_pool + to) = __ldg(reinterpret_cast<const uint4*>(v) + index);
}

__device__ __forceinline__ void copy(unsigned to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

#if FRESH
/// Turns a head by a position whose cosines and sines [HEAD_DIM / 2] are given, in the half-split layout (Su et al. 2021). Lane t of four
/// holds numbers 32·j + 8·t and the seven after of each j. With QK_NORM the head is first divided by its root mean square and
/// multiplied by weight f32 [HEAD_DIM]; then all lanes of the warp take part.
__device__ __forceinline__ void turn(uint4 (&head)[HEAD_DIM / 32], const float* cos, const float* sin, const float* weight, float eps, int t) {
    constexpr int HALF = HEAD_DIM / 64;
#if QK_NORM
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 32; ++j) {
        float v[8];
        unpack(head[j], v);
#pragma unroll
        for (int i = 0; i < 8; ++i) squares = fmaf(v[i], v[i], squares);
    }
    squares += __shfl_xor_sync(~0u, squares, 1);
    squares += __shfl_xor_sync(~0u, squares, 2);
    const float inverse = rsqrtf(squares / HEAD_DIM + eps);
#endif
#pragma unroll
    for (int j = 0; j < HALF; ++j) {
        float a[8], b[8];
        unpack(head[j], a);
        unpack(head[j + HALF], b);
        const int at = 32 * j + 8 * t;
#if QK_NORM
#pragma unroll
        for (int i = 0; i < 8; ++i) a[i] *= inverse * weight[at + i], b[i] *= inverse * weight[HEAD_DIM / 2 + at + i];
#endif
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
            const float4 cs = __ldg(reinterpret_cast<const float4*>(cos + at + i)), sn = __ldg(reinterpret_cast<const float4*>(sin + at + i));
            const float by_cos[4] = {cs.x, cs.y, cs.z, cs.w}, by_sin[4] = {sn.x, sn.y, sn.z, sn.w};
#pragma unroll
            for (int l = 0; l < 4; ++l) {
                const float x = a[i + l], y = b[i + l];
                a[i + l] = x * by_cos[l] - y * by_sin[l];
                b[i + l] = y * by_cos[l] + x * by_sin[l];
            }
        }
        head[j] = pack(a), head[j + HALF] = pack(b);
    }
}
#endif

struct AttentionP {
    word rows, heads, kv_heads, max_pages, splits, window;
    double scale;
    word context;  // FRESH
    double eps;    // QK_NORM
};

// Attention of each row to a stretch of SPLIT tokens of its sequence, for all query heads of a key head (at most 16 in a block):
// sums exp(scale·q·k − top)·v, and top and Σ exp, which join.cuh joins (Dao et al. 2023, "Flash-Decoding").
// q bf16 [rows, heads·HEAD_DIM]; lengths i32 [rows]: the tokens that a row sees, itself included (0: nothing, zeros come out);
// sequences i32 [rows]; tables i32 [sequences, max_pages]; partial f32 [rows, heads, splits, HEAD_DIM]; tops f32
// [rows, heads, splits, 2]. window: a row sees so many tokens, itself included; 0: all.
// Grid: (splits, kv_heads·⌈heads / kv_heads / 16⌉, rows); 128 threads; SHARED_BYTES = max(4·SPLIT·HEAD_DIM, 256·(HEAD_DIM + 8)).
// splits ≥ ⌈longest / SPLIT⌉, with a window ⌈(min(window, longest) − 1) / SPLIT⌉ + 1 are enough. A graph is captured with the splits of
// the longest row it will see: blocks of no tokens end at once.
// Arguments: q, k_pool, v_pool, [FRESH: packed i32, the step's inputs as ops/step_words.rs has them; k and v bf16
// [rows, kv_heads·HEAD_DIM]; cos and sin f32 [context, HEAD_DIM / 2]; QK_NORM: q_weight and k_weight f32 [HEAD_DIM]], [else:
// lengths, sequences, tables], partial, tops.
//
// With FRESH the row's last token is in k and v, not yet in the pools, where the block that needs it puts it; what is older was there
// before the step began, so it is on its way before the launch's turn. Positions are clamped to the tables.
//
// Stretches begin at multiples of SPLIT and each warp takes a quarter, so a row's sums fall in an order that depends on its
// length and window alone. Heads are the 16-row operand of the tensor cores; as in FlashAttention-2, scores become the next product's
// operand in place. Tokens beyond the row's are zeros in shared memory: whatever lies in their pages is not read.
extern "C" __global__ void __launch_bounds__(128) paged_attention(
#if FRESH
    const bf16* q, bf16* k_pool, bf16* v_pool, const int* __restrict__ packed, const bf16* k, const bf16* v, const float* __restrict__ cos, const float* __restrict__ sin,
#if QK_NORM
    const float* __restrict__ q_weight, const float* __restrict__ k_weight,
#endif
#else
    const bf16* __restrict__ q, const bf16* __restrict__ k_pool, const bf16* __restrict__ v_pool, const int* __restrict__ lengths,
    const int* __restrict__ sequences, const int* __restrict__ tables,
#endif
    float* __restrict__ partial, float* __restrict__ tops, const __grid_constant__ AttentionP p) {
    extern __shared__ __align__(1024) unsigned char shared[];
    __shared__ float warp_tops[WARPS][16], warp_sums[WARPS][16];
    constexpr int OWN = SPLIT / WARPS;         // Tokens of a warp: whole pages.
    constexpr int CHUNKS = HEAD_DIM / 8;       // 16-byte pieces of a token.
    constexpr int COPIES = OWN * CHUNKS / 32;  // Pieces of a lane.
    constexpr int AT_ONCE = 32 / CHUNKS;       // Tokens that a warp copies at once.
    static_assert(OWN % PAGE == 0 && AT_ONCE >= 1, "warps take whole pages");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const long long row = blockIdx.z;
    const int heads = static_cast<int>(p.heads), kv_heads = static_cast<int>(p.kv_heads), of_kv = heads / kv_heads;
    const int blocks = (of_kv + 15) / 16, kv = blockIdx.y / blocks, first_head = blockIdx.y % blocks * 16;
    const int count = min(of_kv - first_head, 16), splits = static_cast<int>(p.splits);

    let_next_begin();
#if FRESH
    const int *lengths = packed + p.rows, *table = packed + 4 * p.rows + row * static_cast<long long>(p.max_pages);
#else
    wait_for_previous();
    const int* table = tables + sequences[row] * static_cast<long long>(p.max_pages);
#endif
    const int length = lengths[row], window = static_cast<int>(p.window);
    const int begin = window > 0 && length > window ? length - window : 0;
    const int from = (begin / SPLIT + static_cast<int>(blockIdx.x)) * SPLIT;
    if (from >= length) return;
    const int own = from + warp * OWN;

    // Keys: pieces of odd tokens with their halves exchanged, values: exchanged by the token's number, so that the reads
    // below meet all banks once.
    const unsigned base = static_cast<unsigned>(__cvta_generic_to_shared(shared)) + warp * (OWN * HEAD_DIM * 4);
    const unsigned value_base = base + OWN * HEAD_DIM * 2;
    const int token_of_lane = lane / CHUNKS, chunk = lane % CHUNKS;
    int pages[OWN / PAGE];
#pragma unroll
    for (int i = 0; i < OWN / PAGE; ++i) pages[i] = own + i * PAGE < length ? table[own / PAGE + i] : 0;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
        const bf16* pool = (which == 0 ? k_pool : v_pool) + chunk * 8;
#pragma unroll
        for (int i = 0; i < COPIES; ++i) {
            const int token = i * AT_ONCE + token_of_lane;
            const bool there = own + token < length && own + token >= begin;
#if FRESH
            if (own + token == length - 1) continue;
#endif
            const long long at = ((static_cast<long long>(pages[i * AT_ONCE / PAGE]) * kv_heads + kv) * PAGE + token % PAGE) * HEAD_DIM;
            const int place = which == 0 ? chunk ^ ((token & 1) << 2) : chunk ^ (token & 7);
            copy((which == 0 ? base : value_base) + token * (HEAD_DIM * 2) + place * 16, there ? pool + at : pool, there);
        }
        commit();
    }
#if FRESH
    const long long at_position = min(static_cast<long long>(length) - 1, static_cast<long long>(p.context) - 1) * (HEAD_DIM / 2);
#if QK_NORM
    const float eps = static_cast<float>(p.eps);
#else
    const float *q_weight = nullptr, *k_weight = nullptr, eps = 0.0f;
#endif
    wait_for_previous();
    const int fresh = length - 1 - own;
    if (fresh >= 0 && fresh < OWN) {
        const bf16 *key = k + (row * kv_heads + kv) * HEAD_DIM, *value = v + (row * kv_heads + kv) * HEAD_DIM;
        const long long slot = static_cast<long long>(table[(length - 1) / PAGE]) * PAGE + (length - 1) % PAGE;
        const long long to = pool_at(slot, kv_heads, kv);
        unsigned char* to_token = shared + warp * (OWN * HEAD_DIM * 4) + fresh * (HEAD_DIM * 2);
        uint4 turned[HEAD_DIM / 32];
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 32; ++j) turned[j] = *reinterpret_cast<const uint4*>(key + 32 * j + 8 * t);
        turn(turned, cos + at_position, sin + at_position, k_weight, eps, t);
        if (g == 0) {
#pragma unroll
            for (int j = 0; j < HEAD_DIM / 32; ++j) {
                *reinterpret_cast<uint4*>(to_token + (((4 * j + t) ^ ((fresh & 1) << 2)) << 4)) = turned[j];
                if (first_head == 0) *reinterpret_cast<uint4*>(k_pool + to + 32 * j + 8 * t) = turned[j];
            }
        }
        if (lane < CHUNKS) {
            const uint4 piece = *reinterpret_cast<const uint4*>(value + 8 * lane);
            *reinterpret_cast<uint4*>(to_token + OWN * HEAD_DIM * 2 + ((lane ^ (fresh & 7)) << 4)) = piece;
            if (first_head == 0) *reinterpret_cast<uint4*>(v_pool + to + 8 * lane) = piece;
        }
    }
#endif

    // Scores [16 heads, OWN tokens]. A lane holds 8 neighbouring numbers of q and k where the instruction wants 2 and 2: the
    // order of a sum's terms is free.
    const bf16* query = q + (row * heads + kv * of_kv + first_head) * HEAD_DIM;
    uint4 upper[HEAD_DIM / 32], lower[HEAD_DIM / 32];
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 32; ++j) {
        upper[j] = lower[j] = make_uint4(0, 0, 0, 0);
        if (g < count) upper[j] = *reinterpret_cast<const uint4*>(query + g * HEAD_DIM + j * 32 + t * 8);
        if (g + 8 < count) lower[j] = *reinterpret_cast<const uint4*>(query + (g + 8) * HEAD_DIM + j * 32 + t * 8);
    }
#if FRESH
    turn(upper, cos + at_position, sin + at_position, q_weight, eps, t);
    turn(lower, cos + at_position, sin + at_position, q_weight, eps, t);
#endif
    wait<1>();
    __syncwarp();
    float scores[OWN / 8][4];
    const unsigned char* keys = shared + warp * (OWN * HEAD_DIM * 4);
#pragma unroll
    for (int n = 0; n < OWN / 8; ++n) {
        scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 32; ++j) {
            const int place = (4 * j + t) ^ ((g & 1) << 2);
            const uint4 key = *reinterpret_cast<const uint4*>(keys + (n * 8 + g) * (HEAD_DIM * 2) + place * 16);
            mma(scores[n], make_uint4(upper[j].x, lower[j].x, upper[j].y, lower[j].y), key.x, key.y);
            mma(scores[n], make_uint4(upper[j].z, lower[j].z, upper[j].w, lower[j].w), key.z, key.w);
        }
    }

    // Softmax over the warp's tokens, in powers of two. The sums are those of the rounded weights, as the mean has them.
    const float scale = static_cast<float>(p.scale) * 1.44269504f;
    float top[2] = {nothing(), nothing()}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < OWN / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int token = own + n * 8 + 2 * t + (i & 1);
            scores[n][i] = token < length && token >= begin ? scores[n][i] * scale : nothing();
            top[i / 2] = fmaxf(top[i / 2], scores[n][i]);
        }
    float shift[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 1));
        top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 2));
        shift[h] = top[h] == nothing() ? 0.0f : top[h];
    }
    unsigned weights[OWN / 8][2];
#pragma unroll
    for (int n = 0; n < OWN / 8; ++n)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            weights[n][h] = pack(exp2f(scores[n][2 * h] - shift[h]), exp2f(scores[n][2 * h + 1] - shift[h]));
            sum[h] += low(weights[n][h]) + high(weights[n][h]);
        }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
        if (t == 0) warp_tops[warp][g + 8 * h] = top[h], warp_sums[warp][g + 8 * h] = sum[h];
    }

    // Weighted sums of the values [16 heads, HEAD_DIM].
    float means[HEAD_DIM / 8][4];
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; ++n) means[n][0] = means[n][1] = means[n][2] = means[n][3] = 0.0f;
    wait<0>();
    __syncwarp();
#pragma unroll
    for (int block = 0; block < OWN / 16; ++block) {
        const int token = block * 16 + lane % 16;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n += 2) {
            const unsigned at = value_base + token * (HEAD_DIM * 2) + (((n + lane / 16) ^ (token & 7)) << 4);
            unsigned b0, b1, b2, b3;
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(b0), "=r"(b1), "=r"(b2), "=r"(b3)
                         : "r"(at)
                         : "memory");
            const unsigned a0 = weights[2 * block][0], a1 = weights[2 * block][1];
            const unsigned a2 = weights[2 * block + 1][0], a3 = weights[2 * block + 1][1];
            mma(means[n], make_uint4(a0, a1, a2, a3), b0, b1);
            mma(means[n + 1], make_uint4(a0, a1, a2, a3), b2, b3);
        }
    }

    // The four warps' sums, joined in their order.
    __syncthreads();
    float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; ++n) {
        float* to = sums + (warp * 16 + g) * LINE + n * 8 + 2 * t;
        *reinterpret_cast<float2*>(to) = make_float2(means[n][0], means[n][1]);
        *reinterpret_cast<float2*>(to + 8 * LINE) = make_float2(means[n][2], means[n][3]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * HEAD_DIM; i += 128) {
        const int head = i / HEAD_DIM, d = i % HEAD_DIM;
        float most = warp_tops[0][head], mean = 0.0f, total = 0.0f;
#pragma unroll
        for (int w = 1; w < WARPS; ++w) most = fmaxf(most, warp_tops[w][head]);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            const float factor = exp2f(warp_tops[w][head] - most);  // 0 for a warp without tokens.
            mean = fmaf(factor, sums[(w * 16 + head) * LINE + d], mean);
            total = fmaf(factor, warp_sums[w][head], total);
        }
        const long long at = (row * heads + kv * of_kv + first_head + head) * splits + blockIdx.x;
        partial[at * HEAD_DIM + d] = mean;
        if (d == 0) *reinterpret_cast<float2*>(tops + 2 * at) = make_float2(most, total);
    }
}

struct CombineP { word rows, heads, splits, window, lengths_at; };

// Joins a row's stretches, as join.cuh has it: out bf16 [rows, heads·HEAD_DIM] from what paged_attention wrote. The rows' lengths
// begin at lengths_at of `lengths`.
// Grid: ⌈rows·heads / 4⌉; 128 threads: a warp joins one head. Arguments: partial, tops, lengths, out.
extern "C" __global__ void __launch_bounds__(128) paged_combine(
    const float* __restrict__ partial, const float* __restrict__ tops, const int* __restrict__ lengths, bf16* __restrict__ out,
    const __grid_constant__ CombineP p) {
    constexpr int OWN = HEAD_DIM / 32;
    const int lane = threadIdx.x % 32, heads = static_cast<int>(p.heads), splits = static_cast<int>(p.splits);
    const long long head = static_cast<long long>(blockIdx.x) * 4 + threadIdx.x / 32, row = head / heads;
    let_next_begin();
    wait_for_previous();
    if (row >= static_cast<long long>(p.rows)) return;
    const int count = stretches(lengths[p.lengths_at + row], static_cast<int>(p.window), splits);
    const float2* pairs = reinterpret_cast<const float2*>(tops) + head * splits;
    float top = nothing(), means[OWN];
    for (int s = lane; s < count; s += 32) top = fmaxf(top, __ldcg(pairs + s).x);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
    join<OWN>(pairs, partial + head * splits * HEAD_DIM + lane * OWN, count, top, means);
#pragma unroll
    for (int i = 0; i < OWN; i += 2)
        *reinterpret_cast<unsigned*>(out + head * HEAD_DIM + lane * OWN + i) = pack(means[i], means[i + 1]);
}
