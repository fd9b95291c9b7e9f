// Needs wgmma.cuh before it.
// Matrix products for Hopper's tensor cores: bf16 in, f32 sums.
//
// D [m, n] = sum over segments s of A_s · B_s, with A_s [m, k_s] and B_s [k_s, n]. Segments let one launch add an adapter's
// second factor to a frozen weight's product, or the gradients that several layers send to their common input, without
// writing or rounding anything in between.
//
// A producer warp keeps a ring of tiles in shared memory filled by the bulk tensor copy engine; two warpgroups multiply them
// (wgmma), each 64 rows of the tile of 128. The grid is persistent: one block a multiprocessor walks over the tiles. Sums are
// written through shared memory by the copy engine, while the next tile's products are on their way already.
//
// Defines of the caller:
//   TILE_N        64, 128 or 256 columns of a tile
//   SEGMENTS      1 to 6
//   A_TRANSPOSED  0: A_s lies as [m, k_s]; 1: as [k_s, m]
//   B_TRANSPOSED  0: B_s lies as [n, k_s]; 1: as [k_s, n]
//   PARTIAL       1: the sum over k is cut into p.splits parts, written as f32 [splits, m, n]; one segment
// Then the sum is multiplied by p.scale, and where p.with_bias or p.with_residual is 1, bias [n], f32, or residual [m, n], bf16, is
// added: at run time, because each further variant costs a second of compilation.
// Arguments: for each segment the tensor maps of A and B; that of D; bias; residual. With PARTIAL D itself after those of A and B.
// Tensor maps, innermost dimension first, swizzled by 128 bytes: A [k, m] in boxes of 64 × 128, transposed [m, k] in boxes of
// 64 × 64; B [k, n] in boxes of 64 × TILE_N, transposed [n, k] in boxes of 64 × 64; D [n, m] in boxes of 64 × 64. What lies outside
// reads as zero and is not written.
// Block: 384 threads. Grid: min(multiprocessors, tiles · splits). n and all strides are multiples of 8.
// Dynamic shared memory: STAGES · (16384 + 128 · TILE_N) + 2048 bytes, and 256 · WRITTEN if not PARTIAL.
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
// Columns that a warpgroup writes at once.
#define WRITTEN (TILE_N < 128 ? TILE_N : 128)
// Columns whose sums are rounded together.
#define CHUNK 32
#define CHUNKS (TILE_N / CHUNK)
// Tiles of rows that are walked before the next tile of columns, so that a wave of blocks shares what lies in the L2 cache.
#define GROUP 16

struct P {
  unsigned long long m, n, splits, with_bias, with_residual;
  double scale;
  unsigned long long k[SEGMENTS];
};

#if __CUDA_ARCH__ == 900
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

__device__ __forceinline__ unsigned pack(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<unsigned*>(&pair);
}

#if !PARTIAL
// A warpgroup's 64 rows of a tile on their way to D.
struct Writer {
  const P& p;
  const float* bias;
  const __nv_bfloat16* residual;
  // Shared memory of this warpgroup, and the barrier at which its threads meet.
  const unsigned staged, meeting;
  const unsigned lane, t;
  // What is added: of as many chunks as registers are free for.
  uint4 added[CHUNKS][2];

  __device__ Writer(const P& p, const float* bias, const __nv_bfloat16* residual, unsigned staged, unsigned meeting)
      : p(p), bias(bias), residual(residual), staged(staged), meeting(meeting), lane(threadIdx.x % 32), t(lane % 4) {}

  __device__ void meet() const { asm volatile("bar.sync %0, 128;" ::"r"(meeting) : "memory"); }

  // Asks for residuals of these chunks.
  __device__ __forceinline__ void fetch(unsigned row, unsigned column, int begin, int end) {
    if (!p.with_residual) return;
#pragma unroll
    for (int c = begin; c < min(end, CHUNKS); c++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const unsigned long long m = row + threadIdx.x / 32 % 4 * 16 + lane / 4 + 8 * half, n = column + CHUNK * c + 8 * t;
        added[c][half] = m < p.m && n < p.n ? *reinterpret_cast<const uint4*>(residual + m * p.n + n) : make_uint4(0, 0, 0, 0);
      }
  }

  // `d` of rows from `row` and columns from `column`, scaled and added to.
  __device__ __forceinline__ void write(const TensorMap* map, const float (&d)[TILE_N / 2], unsigned row, unsigned column) {
    const float scale = (float)p.scale;
    // The row that this lane names to stmatrix: lanes 0 to 7 those of the first matrix, 8 to 15 those below, then the columns beside.
    const unsigned named = threadIdx.x / 32 % 4 * 16 + lane % 16;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
      const bool begins = CHUNK * c % WRITTEN == 0, ends = CHUNK * (c + 1) % WRITTEN == 0;
      if (begins) {
        // What lay here has been read.
        if (threadIdx.x % 128 == 0) store_wait();
        meet();
      }
      unsigned words[2][4];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        unsigned other[4] = {added[c][half].x, added[c][half].y, added[c][half].z, added[c][half].w};
        if (p.with_residual) exchange(other, t);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int at = 4 * (4 * c + i) + 2 * half;
          float low = scale * d[at], high = scale * d[at + 1];
          const unsigned n = column + CHUNK * c + 8 * i + 2 * t;
          if (p.with_bias && n < p.n) low += bias[n], high += bias[n + 1];
          if (p.with_residual) low += __uint_as_float(other[i] << 16), high += __uint_as_float(other[i] & 0xFFFF0000u);
          words[half][i] = pack(low, high);
        }
      }
      // Sums of this chunk are done with: so are registers for three more.
      fetch(row, column, 2 + 3 * c, 5 + 3 * c);
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const unsigned chunk = (CHUNK * c % WRITTEN) / 8 + i + lane / 16;
        store_matrices(staged + chunk / 8 * 8192 + named * 128 + (chunk % 8 ^ named % 8) * 16, words[0][i], words[1][i], words[0][i + 1],
                       words[1][i + 1]);
      }
      if (ends) {
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        meet();
        if (threadIdx.x % 128 == 0 && row < p.m) {
#pragma unroll
          for (int box = 0; box < WRITTEN / 64; box++) {
            const unsigned n = column + CHUNK * (c + 1) - WRITTEN + 64 * box;
            if (n < p.n) store(map, staged + 8192 * box, n, row);
          }
          store_commit();
        }
      }
    }
  }
};
#endif
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
    const __grid_constant__ TensorMap out, const float* __restrict__ bias, const __nv_bfloat16* __restrict__ residual,
#endif
    const __grid_constant__ P p) {
#if __CUDA_ARCH__ == 900
  extern __shared__ unsigned char shared[];
  const unsigned base = (address(shared) + 1023) & ~1023u;
  const unsigned staged = base + STAGES * STAGE_BYTES;
  const unsigned full = staged + (PARTIAL ? 0 : 2 * 64 * WRITTEN * 2), empty = full + 8 * STAGES;
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
    const unsigned consumer = group - 1;
    float d[TILE_N / 2];
#if !PARTIAL
    Writer writer(p, bias, residual, staged + consumer * 64 * WRITTEN * 2, 1 + consumer);
#endif
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
        products_begin();
#pragma unroll
        for (int k = 0; k < TILE_K / 16; k++)
          multiply<A_TRANSPOSED, B_TRANSPOSED>(d, a + k * (A_TRANSPOSED ? 2048 >> 4 : 32 >> 4), b + k * (B_TRANSPOSED ? 2048 >> 4 : 32 >> 4),
                   step > begin || k > 0);
        products_commit();
        // The step before is done when only this one is under way: its tiles may be overwritten.
        products_wait<1>();
        if (step > begin && threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * before);
        before = stage;
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
#if !PARTIAL
      writer.fetch(row + 64 * consumer, column, 0, 2);
#endif
      products_wait<0>();
      if (end > begin && threadIdx.x % 128 == 0) barrier_arrive(empty + 8 * before);

#if PARTIAL
      const float scale = (float)p.scale;
      const unsigned warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const unsigned long long m = row + 64 * consumer + 16 * warp + lane / 4 + 8 * half;
        if (m < p.m)
#pragma unroll
          for (int j = 0; j < TILE_N / 8; j++) {
            const unsigned n = column + 8 * j + 2 * (lane % 4);
            if (n < p.n)
              *reinterpret_cast<float2*>(out + ((unsigned long long)split * p.m + m) * p.n + n) =
                  make_float2(scale * d[4 * j + 2 * half], scale * d[4 * j + 2 * half + 1]);
          }
      }
#else
      writer.write(&out, d, row + 64 * consumer, column);
#endif
    }
#if !PARTIAL
    if (threadIdx.x % 128 == 0) store_wait();
#endif
  }
#endif
}
