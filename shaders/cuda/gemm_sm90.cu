// y[M, N] = x[M, K] w[N, K]^T for packed weights and many tokens on Hopper's warpgroup products.
//
//   FORM 1: int8, scale per row     FORM 2: int8, scale per GROUP     FORM 3: x and w int8 (w8a8)
//   then + bias[n] + residual[m, n], rounded once to OUT; see gemm_mma.cu for the formulas.
//
// A block makes 128 rows of w x TOKENS tokens. One warp copies tiles by TMA into a ring of STAGES
// (w [128][BK], x [TOKENS][BK], swizzled); two warpgroups multiply 64 rows each.
// FORM 1 and 2: w's bytes become bf16/f16 A fragments in registers, exactly, while the products of the
// stage before are under way. FORM 2 adds each group's sums to the total by its scale; two groups
// alternate, so that these additions overlap with products. FORM 3: both operands from shared memory.
// The tile goes out through shared memory (gemm_epilogue.cuh).
//
// Macros: X (bf16 | f16 | i8), FORM, GROUP, OUT, BIAS, RESIDUAL, TOKENS (128 | 256; 128 for FORM 2), STAGES.
// Source of the idea (A converted in registers): CUTLASS example 55, mixed-input GEMM.
#include "hopper.cuh"

#define ROWS 128
#define BK (FORM == 3 ? 128 : 64)
#define LD_TILE (ROWS + 4)
#define W_STAGE (ROWS * BK)
#define X_STAGE (TOKENS * 128)
#define STAGE_BYTES (W_STAGE + X_STAGE)
#define ACC (TOKENS / 2)  // accumulators of a thread
#include "gemm_epilogue.cuh"

#if FORM == 3
typedef int acc_t;
#else
typedef float acc_t;
#endif
#ifndef GROUP
#define GROUP 128
#endif

// -- instructions that hopper.cuh does not have -------------------------------------------------------
#define WG_R96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WG_R104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WG_R112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WG_R120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WG_T128 WG_T96 ", " WG_R96 ", " WG_R104 ", " WG_R112 ", " WG_R120
#define WG_O128 WG_O96, WG_O8(96), WG_O8(104), WG_O8(112), WG_O8(120)
WGMMA_BOTH(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#define WG_I8(i)                                                                            \
  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), \
      "+r"(d[i + 6]), "+r"(d[i + 7])
#define WG_I32(i) WG_I8(i), WG_I8(i + 8), WG_I8(i + 16), WG_I8(i + 24)
DEVICE void wgmma_int8(int (&d)[64], u64 a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" WG_T64 "}, %64, %65, 1;"
               : WG_I32(0), WG_I32(32) : "l"(a), "l"(b));
}
DEVICE void wgmma_int8(int (&d)[128], u64 a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {" WG_T128 "}, %128, %129, 1;"
               : WG_I32(0), WG_I32(32), WG_I32(64), WG_I32(96) : "l"(a), "l"(b));
}
DEVICE void tma_load_2d(u32 target, const TensorMap* map, u32 barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(target), "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

// -- two int8 in the low half of q to a pair of 16-bit floats, exactly: see gemm_mma.cu -----------------
DEVICE u32 widen(u32 q, bf16) {
  const u32 bytes = __byte_perm(q, 0, 0x4140);
  const u32 value = (bytes & 0x007f007fu) | 0x43004300u, minus = (bytes & 0x00800080u) | 0xc300c300u;
  u32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(value), "r"(0x3f803f80u), "r"(minus));
  return pair;
}
DEVICE u32 widen(u32 q, f16) {
  const u32 value = __byte_perm(q ^ 0x8080u, 0x64646464u, 0x4140);
  u32 pair;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(value), "r"(0x64806480u));
  return pair;
}
template <int N> DEVICE void pin(int (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}
DEVICE u32 shared_u16(u32 p) {
  u16 v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(p));
  return v;
}

// A fragments of the stage's four steps of 16 k, for rows `row` and row + 8 (64-byte rows, swizzled).
#if FORM != 3
DEVICE void load_a(u32 stage, int row, u32 (&a)[4][4]) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + half * 8;
      const u32 p = stage + r * 64 + ((s ^ ((r >> 1) & 3)) << 4) + t * 2;
      a[s][half] = widen(shared_u16(p), X());
      a[s][half + 2] = widen(shared_u16(p + 8), X());
    }
  }
}
#endif

struct Ring {
  u32 stages, full, empty;  // shared addresses; barriers 8 bytes apart
};

#if FORM == 3
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int steps, int group, const float*, const float*) {
  for (int i = 0; i < steps; ++i) {
    const int s = i % STAGES;
    const u32 stage = ring.stages + s * STAGE_BYTES;
    mbarrier_wait(ring.full + s * 8, i / STAGES & 1);
    const u64 a = swizzled_descriptor(stage + group * 64 * 128);
    const u64 b = swizzled_descriptor(stage + W_STAGE);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      wgmma_int8(acc, descriptor_plus(a, k * 32), descriptor_plus(b, k * 32));
    wgmma_commit();
    wgmma_wait<1>();
    if (i && threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + (i - 1) % STAGES * 8);
  }
  wgmma_wait<0>();
  pin(acc);
}
#elif FORM == 1
DEVICE void one_stage(acc_t (&acc)[ACC], Ring ring, int i, int row, u32 (&a)[4][4]) {
  const int s = i % STAGES;
  const u32 stage = ring.stages + s * STAGE_BYTES;
  mbarrier_wait(ring.full + s * 8, i / STAGES & 1);
  load_a(stage, row, a);
  const u64 b = swizzled_descriptor(stage + W_STAGE);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    Wgmma<X, TOKENS>::template rs<0>(acc, a[k], descriptor_plus(b, k * 32), 1);
  wgmma_commit();
  wgmma_wait<1>();
  if (i && threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + (i - 1) % STAGES * 8);
}
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int steps, int group, const float*, const float*) {
  const int row = group * 64 + (threadIdx.x % 128 >> 5) * 16 + ((threadIdx.x & 31) >> 2);
  u32 a[2][4][4];
  int i = 0;
  for (; i + 1 < steps; i += 2) {
    one_stage(acc, ring, i, row, a[0]);
    one_stage(acc, ring, i + 1, row, a[1]);
  }
  if (i < steps) one_stage(acc, ring, i, row, a[0]);
  wgmma_wait<0>();
  pin(acc);
}
#else
DEVICE void add_scaled(acc_t (&acc)[ACC], const float (&sum)[ACC], float low, float high) {
#pragma unroll
  for (int j = 0; j < ACC; j += 4) {
    acc[j] += low * sum[j];
    acc[j + 1] += low * sum[j + 1];
    acc[j + 2] += high * sum[j + 2];
    acc[j + 3] += high * sum[j + 3];
  }
}
// Units of PART steps of 16 k, each within one group: half a stage for GROUP 32, else a stage. The
// sums of one unit are under way while those of the unit before are scaled and added.
#define PART (GROUP == 32 ? 2 : 4)
DEVICE void unit(float (&sum)[ACC], u32 stage, int row, int k0, u32 (&a)[4][4]) {
  if (k0 == 0) load_a(stage, row, a);
  const u64 b = swizzled_descriptor(stage + W_STAGE);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < PART; ++k)
    Wgmma<X, TOKENS>::template rs<0>(sum, a[k0 + k], descriptor_plus(b, (k0 + k) * 32), k != 0);
  wgmma_commit();
}
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int steps, int group, const float* low,
                     const float* high) {
  const int row = group * 64 + (threadIdx.x % 128 >> 5) * 16 + ((threadIdx.x & 31) >> 2);
  u32 a[4][4];
  float sum[2][ACC];
#if GROUP == 32
  float scale_low = 0.f, scale_high = 0.f;  // of the unit that is under way
#endif
  for (int i = 0; i < steps; ++i) {
    const int s = i % STAGES;
    const u32 stage = ring.stages + s * STAGE_BYTES;
    float next_low[2], next_high[2];
#pragma unroll
    for (int h = 0; h < (GROUP == 32 ? 2 : 1); ++h) {
      const int at = (i * BK + h * 32) / GROUP;
      next_low[h] = low ? low[at] : 0.f;
      next_high[h] = high ? high[at] : 0.f;
    }
    mbarrier_wait(ring.full + s * 8, i / STAGES & 1);
#if GROUP == 32
    unit(sum[0], stage, row, 0, a);
    if (i) {
      wgmma_wait<1>();
      pin(sum[1]);
      add_scaled(acc, sum[1], scale_low, scale_high);
    }
    unit(sum[1], stage, row, 2, a);
    wgmma_wait<1>();
    pin(sum[0]);
    add_scaled(acc, sum[0], next_low[0], next_high[0]);
    scale_low = next_low[1], scale_high = next_high[1];
    wgmma_wait<0>();
    pin(sum[1]);
    if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + s * 8);
#else
    unit(sum[0], stage, row, 0, a);
    wgmma_wait<0>();
    pin(sum[0]);
    if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + s * 8);
    add_scaled(acc, sum[0], next_low[0], next_high[0]);
#endif
  }
#if GROUP == 32
  add_scaled(acc, sum[1], scale_low, scale_high);
#endif
}
#endif

// Grid: row tiles x token tiles, eight token tiles together through the rows (see gemm_mma.cu).
// groups: scales in a row.
extern "C" __global__ void __launch_bounds__(384, 1) gemm_sm90(
    const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap x_map,
    const float* x_scales, const float* scales, const BIAS* bias, const RESIDUAL* residual, OUT* y,
    i64 ldy, int M, int N, int K, int groups, int wide) {
  extern __shared__ __align__(1024) char room[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  pdl_launch();
  const int row_tiles = (N + ROWS - 1) / ROWS, token_tiles = (M + TOKENS - 1) / TOKENS;
  const int band = blockIdx.x / (8 * row_tiles), in_band = blockIdx.x % (8 * row_tiles);
  const int band_tokens = min(8, token_tiles - band * 8);
  const int token0 = (band * 8 + in_band % band_tokens) * TOKENS;
  const int row0 = in_band / band_tokens * ROWS;
  const int steps = (K + BK - 1) / BK;
  const u32 base = shared_address(room);
  const Ring ring = {(base + 1023) & ~1023u, shared_address(barriers),
                     shared_address(barriers) + STAGES * 8};
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(ring.full + s * 8, 1);
      mbarrier_init(ring.empty + s * 8, 8);  // a lane of each warp that multiplies
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  pdl_wait();
  if (threadIdx.x < 128) {
    registers_down<40>();
    if (threadIdx.x == 0) {
      for (int i = 0; i < steps; ++i) {
        const int s = i % STAGES;
        const u32 stage = ring.stages + s * STAGE_BYTES, full = ring.full + s * 8;
        mbarrier_wait(ring.empty + s * 8, (i / STAGES & 1) ^ 1);
        mbarrier_expect(full, STAGE_BYTES);
        tma_load_2d(stage, &w_map, full, i * BK, row0);
        tma_load_2d(stage + W_STAGE, &x_map, full, i * BK, token0);
      }
    }
  } else {
    registers_up<232>();
    const int thread = threadIdx.x - 128, group = thread >> 7;
    const int local = group * 64 + (thread % 128 >> 5) * 16 + ((thread & 31) >> 2);
    const float* low = nullptr;
    const float* high = nullptr;
    if (FORM == 2) {
      if (row0 + local < N) low = scales + (i64)(row0 + local) * groups;
      if (row0 + local + 8 < N) high = scales + (i64)(row0 + local + 8) * groups;
    }
    acc_t acc[ACC] = {};
    multiply(acc, ring, steps, group, low, high);
    named_sync(1, 256);  // the ring becomes the tile of results
    float* tile = (float*)(room + (ring.stages - base));
    const int t = thread & 3;
#pragma unroll
    for (int j = 0; j < ACC; ++j)
      tile[(j / 4 * 8 + 2 * t + (j & 1)) * LD_TILE + local + (j >> 1 & 1) * 8] = (float)acc[j];
    named_sync(1, 256);
    const i64 corner = (i64)token0 * ldy + row0;
    Epilogue e = {FORM == 2 ? nullptr : scales + row0, FORM == 3 ? x_scales + token0 : nullptr,
                  bias ? bias + row0 : nullptr, residual ? residual + corner : nullptr, y + corner,
                  ldy, N - row0, M - token0, (bool)wide};
    store_tile<256>(tile, e, thread);
  }
}
