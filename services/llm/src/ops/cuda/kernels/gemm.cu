// Matrix products for Hopper's tensor cores: bf16 in, f32 sums.
//
// D [m, n] = sum over segments s of A_s · B_s, with A_s [m, k_s] and B_s [k_s, n]. Segments let one launch add an adapter's
// second factor to a frozen weight's product, or the gradients that several layers send to their common input, without
// writing or rounding anything in between.
//
// A producer warp keeps a ring of tiles in shared memory filled by the bulk tensor copy engine; two warpgroups multiply them
// (wgmma) and write their 64 rows of the tile of 128 rows. The grid is persistent: one block a multiprocessor walks over the tiles.
//
// Defines of the caller:
//   TILE_N        64, 128 or 256 columns of a tile
//   SEGMENTS      1 to 6
//   A_TRANSPOSED  0: A_s lies as [m, k_s]; 1: as [k_s, m]
//   B_TRANSPOSED  0: B_s lies as [n, k_s]; 1: as [k_s, n]
//   PARTIAL       1: the sum over k is cut into p.splits parts, written as f32 [splits, m, n]; one segment
// Then the sum is multiplied by p.scale, and where p.with_bias or p.with_residual is 1, bias [n], f32, or residual [m, n], bf16, is
// added: at run time, because each further variant costs a second of compilation.
// Arguments: for each segment the tensor maps of A and B; bias; residual; D. With PARTIAL only D.
// Tensor maps, innermost dimension first, swizzled by 128 bytes: A [k, m] in boxes of 64 × 128, transposed [m, k] in boxes of
// 64 × 64; B [k, n] in boxes of 64 × TILE_N, transposed [n, k] in boxes of 64 × 64. What lies outside reads as zero.
// Block: 384 threads. Grid: min(multiprocessors, tiles · splits). n and all strides are multiples of 8.
// Dynamic shared memory: STAGES · (16384 + 128 · TILE_N) + 2048 bytes.
#include <cuda_bf16.h>

#ifndef TILE_N
#define TILE_N 256
#endif
#ifndef SEGMENTS
#define SEGMENTS 1
#endif
#ifndef A_TRANSPOSED
#define A_TRANSPOSED 0
#endif
#ifndef B_TRANSPOSED
#define B_TRANSPOSED 0
#endif
#ifndef PARTIAL
#define PARTIAL 0
#endif
#define TILE_M 128
#define TILE_K 64
#define STAGES (TILE_N == 256 ? 4 : TILE_N == 128 ? 6 : 8)
#define A_BYTES (TILE_M * TILE_K * 2)
#define STAGE_BYTES (A_BYTES + TILE_N * TILE_K * 2)
// Tiles of rows that are walked before the next tile of columns, so that a wave of blocks shares what lies in the L2 cache.
#define GROUP 16

struct alignas(64) TensorMap {
  unsigned long long opaque[16];
};

struct P {
  unsigned long long m, n, splits, with_bias, with_residual;
  double scale;
  unsigned long long k[SEGMENTS];
};

#if __CUDA_ARCH__ == 900
__device__ __forceinline__ unsigned address(const void* pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

__device__ __forceinline__ void barrier_init(unsigned barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

__device__ __forceinline__ void barrier_expect(unsigned barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void barrier_wait(unsigned barrier, unsigned phase) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(barrier), "r"(phase) : "memory");
}

__device__ __forceinline__ void load(const TensorMap* map, unsigned to, unsigned barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

// Where an operand lies in shared memory, swizzled by 128 bytes: groups of eight rows follow each other by 1024 bytes; in a
// transposed operand chunks of 64 columns follow each other by 8192.
__device__ __forceinline__ unsigned long long operand(unsigned at) {
  return (unsigned long long)((at & 0x3FFFF) >> 4) | (8192ull >> 4 << 16) | (1024ull >> 4 << 32) | 1ull << 62;
}

__device__ __forceinline__ void multiply(float (&d)[TILE_N / 2], unsigned long long a, unsigned long long b, int add) {
#if TILE_N == 64
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"
      "%26,%27,%28,%29,%30,%31"
      "}, %32, %33, p, 1, 1, %35, %36; }\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "l"(a), "l"(b), "r"(add), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
#elif TILE_N == 128
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"
      "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,"
      "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
      "}, %64, %65, p, 1, 1, %67, %68; }\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "l"(a), "l"(b), "r"(add), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
#elif TILE_N == 256
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,"
      "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,"
      "%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,"
      "%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,"
      "%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,"
      "%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
      "}, %128, %129, p, 1, 1, %131, %132; }\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]),
          "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
          "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]),
          "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]),
          "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]),
          "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]),
          "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]),
          "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
          "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]),
          "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]),
          "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
      : "l"(a), "l"(b), "r"(add), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));
#endif
}

// What one block works on, in order.
struct Walk {
  unsigned tiles_m, tiles_n, splits;
  __device__ Walk(const P& p)
      : tiles_m((p.m + TILE_M - 1) / TILE_M), tiles_n((p.n + TILE_N - 1) / TILE_N), splits(PARTIAL ? p.splits : 1) {}
  __device__ unsigned count() const { return tiles_m * tiles_n * splits; }
  __device__ void at(unsigned item, unsigned& row, unsigned& column, unsigned& split) const {
    split = item % splits;
    item /= splits;
    unsigned wide = GROUP * tiles_n, first = item / wide * GROUP, inside = item % wide;
    unsigned high = min(tiles_m - first, (unsigned)GROUP);
    row = (first + inside % high) * TILE_M;
    column = inside / high * TILE_N;
  }
};

__device__ __forceinline__ unsigned steps(unsigned long long k) { return (unsigned)((k + TILE_K - 1) / TILE_K); }

// Steps along k that part `split` of the sum takes.
__device__ __forceinline__ void part(const P& p, unsigned split, unsigned& begin, unsigned& end) {
  unsigned all = steps(p.k[0]), each = (all + p.splits - 1) / p.splits;
  begin = min(split * each, all);
  end = min(begin + each, all);
}

// Four words a thread of four neighbours: word i of thread t goes to word t of thread i.
__device__ __forceinline__ void exchange(unsigned (&w)[4], unsigned t) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    unsigned other = __shfl_xor_sync(~0u, t & 1 ? w[i] : w[i + 1], 1);
    if (t & 1) w[i] = other; else w[i + 1] = other;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    unsigned other = __shfl_xor_sync(~0u, t & 2 ? w[i] : w[i + 2], 2);
    if (t & 2) w[i] = other; else w[i + 2] = other;
  }
}

__device__ __forceinline__ unsigned pack(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<unsigned*>(&pair);
}

__device__ __forceinline__ unsigned add(unsigned a, unsigned b) {
  __nv_bfloat162 x = *reinterpret_cast<__nv_bfloat162*>(&a), y = *reinterpret_cast<__nv_bfloat162*>(&b);
  float2 u = __bfloat1622float2(x), v = __bfloat1622float2(y);
  return pack(u.x + v.x, u.y + v.y);
}
#endif

extern "C" __global__ void __launch_bounds__(384, 1) gemm(
    const __grid_constant__ TensorMap a0, const __grid_constant__ TensorMap b0,
#if SEGMENTS > 1
    const __grid_constant__ TensorMap a1, const __grid_constant__ TensorMap b1,
#endif
#if SEGMENTS > 2
    const __grid_constant__ TensorMap a2, const __grid_constant__ TensorMap b2,
#endif
#if SEGMENTS > 3
    const __grid_constant__ TensorMap a3, const __grid_constant__ TensorMap b3,
#endif
#if SEGMENTS > 4
    const __grid_constant__ TensorMap a4, const __grid_constant__ TensorMap b4,
#endif
#if SEGMENTS > 5
    const __grid_constant__ TensorMap a5, const __grid_constant__ TensorMap b5,
#endif
#if PARTIAL
    float* __restrict__ out,
#else
    const float* __restrict__ bias, const __nv_bfloat16* residual, __nv_bfloat16* out,
#endif
    const __grid_constant__ P p) {
#if __CUDA_ARCH__ == 900
  extern __shared__ unsigned char shared[];
  const unsigned base = (address(shared) + 1023) & ~1023u;
  const unsigned full = base + STAGES * STAGE_BYTES, empty = full + 8 * STAGES;
  const unsigned group = threadIdx.x / 128;
  const Walk walk(p);
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 2);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  unsigned stage = 0, phase = 0;
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      for (unsigned item = blockIdx.x; item < walk.count(); item += gridDim.x) {
        unsigned row, column, split;
        walk.at(item, row, column, split);
#pragma unroll
        for (int s = 0; s < SEGMENTS; s++) {
          const TensorMap *a = &a0, *b = &b0;
#if SEGMENTS > 1
          if (s == 1) a = &a1, b = &b1;
#endif
#if SEGMENTS > 2
          if (s == 2) a = &a2, b = &b2;
#endif
#if SEGMENTS > 3
          if (s == 3) a = &a3, b = &b3;
#endif
#if SEGMENTS > 4
          if (s == 4) a = &a4, b = &b4;
#endif
#if SEGMENTS > 5
          if (s == 5) a = &a5, b = &b5;
#endif
          unsigned begin = 0, end = steps(p.k[s]);
          if (PARTIAL) part(p, split, begin, end);
          for (unsigned step = begin; step < end; step++) {
            barrier_wait(empty + 8 * stage, phase ^ 1);
            const unsigned ready = full + 8 * stage, to = base + stage * STAGE_BYTES, k = step * TILE_K;
            barrier_expect(ready, STAGE_BYTES);
            if (A_TRANSPOSED) {
              load(a, to, ready, row, k);
              load(a, to + 8192, ready, row + 64, k);
            } else {
              load(a, to, ready, k, row);
            }
            if (B_TRANSPOSED) {
#pragma unroll
              for (int c = 0; c < TILE_N / 64; c++) load(b, to + A_BYTES + 8192 * c, ready, column + 64 * c, k);
            } else {
              load(b, to + A_BYTES, ready, k, column);
            }
            if (++stage == STAGES) stage = 0, phase ^= 1;
          }
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const unsigned consumer = group - 1, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, t = lane % 4;
    float d[TILE_N / 2];
    for (unsigned item = blockIdx.x; item < walk.count(); item += gridDim.x) {
      unsigned row, column, split, begin = 0, end = 0;
      walk.at(item, row, column, split);
#pragma unroll
      for (int s = 0; s < SEGMENTS; s++) end += steps(p.k[s]);
      if (PARTIAL) part(p, split, begin, end);
#pragma unroll
      for (int i = 0; i < TILE_N / 2; i++) d[i] = 0;
      unsigned before = stage;
      for (unsigned step = begin; step < end; step++) {
        barrier_wait(full + 8 * stage, phase);
        const unsigned at = base + stage * STAGE_BYTES;
        const unsigned long long a = operand(at + 8192 * consumer), b = operand(at + A_BYTES);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < TILE_K / 16; k++)
          multiply(d, a + k * (A_TRANSPOSED ? 2048 >> 4 : 32 >> 4), b + k * (B_TRANSPOSED ? 2048 >> 4 : 32 >> 4),
                   step > begin || k > 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        // The step before is done when only this one is under way: its tiles may be overwritten.
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (step > begin && threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * before);
        before = stage;
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      if (end > begin && threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * before);

      const float scale = (float)p.scale;
      const unsigned first = row + 64 * consumer + 16 * warp + lane / 4;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const unsigned long long m = first + 8 * half;
#if PARTIAL
        if (m < p.m)
#pragma unroll
          for (int j = 0; j < TILE_N / 8; j++) {
            const unsigned n = column + 8 * j + 2 * t;
            if (n < p.n)
              *reinterpret_cast<float2*>(out + ((unsigned long long)split * p.m + m) * p.n + n) =
                  make_float2(scale * d[4 * j + 2 * half], scale * d[4 * j + 2 * half + 1]);
          }
#else
#pragma unroll
        for (int j = 0; j < TILE_N / 32; j++) {
          unsigned w[4];
#pragma unroll
          for (int i = 0; i < 4; i++) {
            float low = scale * d[4 * (4 * j + i) + 2 * half], high = scale * d[4 * (4 * j + i) + 2 * half + 1];
            const unsigned at = column + 32 * j + 8 * i + 2 * t;
            if (p.with_bias && at < p.n) low += bias[at], high += bias[at + 1];
            w[i] = pack(low, high);
          }
          exchange(w, t);
          const unsigned n = column + 32 * j + 8 * t;
          if (m < p.m && n < p.n) {
            const unsigned long long to = m * p.n + n;
            if (p.with_residual) {
              const uint4 other = *reinterpret_cast<const uint4*>(residual + to);
              w[0] = add(w[0], other.x), w[1] = add(w[1], other.y), w[2] = add(w[2], other.z), w[3] = add(w[3], other.w);
            }
            *reinterpret_cast<uint4*>(out + to) = make_uint4(w[0], w[1], w[2], w[3]);
          }
        }
#endif
      }
    }
  }
#endif
}
