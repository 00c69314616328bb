// y[M, N] = x[M, K] w[N, K]^T on tensor cores (mma.sync), the weight read in its stored form.
//
//   FORM 0: w in x's type           y = sum x w
//   FORM 1: int8, scale per row     y = scale[n] sum x q
//   FORM 2: int8, scale per GROUP   y = sum_g scale[n, g] sum_{k in g} x q
//   FORM 3: x and w int8 (w8a8)     y = float(sum xq q) xscale[m] scale[n], the sum exact in int32
//   then + bias[n] + residual[m, n], rounded once to OUT.
//
// Up to three weights with the same K lie side by side in y (q, k, v; gate, up).
//
// The weight is the A operand (16 rows of n), tokens are the 8 columns of B, so that few tokens
// cost little: TOKENS may be 8. A block makes ROWS x TOKENS results over a share of K (gridDim.y
// shares); with more than one the last block to arrive adds all shares in order (deterministic).
// Threads: WARPS_R x WARPS_T warps, each (16 MT) x (8 NT) results. K goes by in stages of 128 bytes
// of weight row through a ring of STAGES buffers filled by cp.async.
// A sum does not care about the order of k, so lane 4g + t takes 8 consecutive k of every 32 (16 of
// every 64 bytes in FORM 3) where mma's layout would have it take 2 + 2 of every 16: fragments of x
// and w are then one wide shared load each. 16-byte chunks are swizzled by row against bank
// conflicts.
//
// Macros: X (c type of x), FORM, GROUP, OUT, BIAS, RESIDUAL (c types), WARPS_R, WARPS_T, MT, NT,
// STAGES, SPLIT (1: gridDim.y > 1). Needs sm_80; 16-byte aligned x and w rows (ldx, K).
#include "prelude.cuh"

#if FORM == 3
typedef i8 x_t;
typedef int acc_t;
#else
typedef X x_t;
typedef float acc_t;
#endif
#ifndef GROUP
#define GROUP 128
#endif
#define ROWS (WARPS_R * MT * 16)
#define TOKENS (WARPS_T * NT * 8)
#define THREADS (WARPS_R * WARPS_T * 32)
#define W_BYTES (FORM == 0 ? 2 : 1)       // of one weight
#define X_BYTES (FORM == 3 ? 1 : 2)       // of one element of x
#define BK (128 / W_BYTES)                // elements of k in a stage
#define X_CHUNKS (BK * X_BYTES / 16)      // 16-byte chunks of a token in a stage: 8 or 16
#define STAGE_SCALES (FORM == 2 ? BK / GROUP : 0)
#define W_STAGE (ROWS * 128)
#define X_STAGE (TOKENS * X_CHUNKS * 16)
#define STAGE_BYTES (W_STAGE + X_STAGE + ROWS * STAGE_SCALES * 4)
// how many blocks of k the compiler may interleave without running out of registers
#define UNROLL (FORM == 0 || MT * NT < 8 ? 4 : FORM != 2 && MT * NT <= 16 ? 2 : 1)
#define LD_TILE (ROWS + 4)                // floats of a token in the epilogue's tile
#include "gemm_epilogue.cuh"

// -- PTX ------------------------------------------------------------------------------------------
DEVICE void copy4(u32 to, const void* from, int bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :: "r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE uint4 shared16(u32 p) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(p));
  return v;
}
DEVICE uint2 shared8(u32 p) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(p));
  return v;
}
DEVICE void mma(float* c, const u32* a, const u32* b, bf16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma(float* c, const u32* a, const u32* b, f16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma(int* c, const u32* a, const u32* b, i8) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// -- four int8 to two pairs of 16-bit floats, exactly ---------------------------------------------
// bf16: 0x4300 | low 7 bits is 128 + v; the sign bit turns 128 into 256: (128 + v) - (128 or 256).
DEVICE void widen(u32 q, u32* pair, bf16) {
  const u32 bytes[2] = {__byte_perm(q, 0, 0x4140), __byte_perm(q, 0, 0x4342)};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    u32 value = (bytes[i] & 0x007f007fu) | 0x43004300u;
    u32 minus = (bytes[i] & 0x00800080u) | 0xc300c300u;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;"  // there is no bf16 subtraction below sm_90
        : "=r"(pair[i]) : "r"(value), "r"(0x3f803f80u), "r"(minus));
  }
}
// f16: 0x6400 | u is 1024 + u, and u = q + 128.
DEVICE void widen(u32 q, u32* pair, f16) {
  const u32 u = q ^ 0x80808080u, base = 0x64806480u;  // 1152
  const u32 value[2] = {__byte_perm(u, 0x64646464u, 0x4140), __byte_perm(u, 0x64646464u, 0x4342)};
#pragma unroll
  for (int i = 0; i < 2; ++i)
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair[i]) : "r"(value[i]), "r"(base));
}

// -- where things lie in a stage ------------------------------------------------------------------
DEVICE u32 w_offset(int row, int chunk) {
  const int turn = (FORM == 1 || FORM == 2) ? (row & 3) << 1 : (row & 1) << 2;
  return row * 128 + ((chunk ^ turn) << 4);
}
DEVICE u32 x_offset(int token, int chunk) {
  const int half = chunk >> 3;  // 128 bytes of every token, then the next 128
  return half * (TOKENS * 128) + token * 128 + (((chunk & 7) ^ ((token & 1) << 2)) << 4);
}

struct Weight {
  const char* rows;       // its first row of this tile
  const float* scales;    // likewise
  int left;               // rows from there to the end
};

DEVICE void load_w(u32 stage, Weight w, int k0, int K, int groups) {
  const i64 row_bytes = (i64)K * W_BYTES;
#pragma unroll
  for (int i = 0; i < ROWS * 8 / THREADS; ++i) {
    const int at = threadIdx.x + i * THREADS, row = at >> 3, chunk = at & 7;
    const i64 byte = (i64)k0 * W_BYTES + chunk * 16;
    const i64 rest = row_bytes - byte;
    const int bytes = row < w.left ? (int)max(0ll, min(16ll, rest)) : 0;
    cp_async_part(stage + w_offset(row, chunk), bytes ? w.rows + row * row_bytes + byte : w.rows,
                  bytes);
  }
#if FORM == 2
  const u32 scales = stage + W_STAGE + X_STAGE;
#pragma unroll
  for (int i = 0; i < (ROWS * STAGE_SCALES + THREADS - 1) / THREADS; ++i) {
    const int at = threadIdx.x + i * THREADS;
    if (ROWS * STAGE_SCALES % THREADS && at >= ROWS * STAGE_SCALES) break;
    const int row = at / STAGE_SCALES, group = k0 / GROUP + at % STAGE_SCALES;
    const bool real = row < w.left && group < groups;
    copy4(scales + at * 4, real ? w.scales + (i64)row * groups + group : w.scales, real ? 4 : 0);
  }
#endif
}

DEVICE void load_x(u32 stage, const x_t* x, i64 ldx, int tokens, int k0, int K) {
  const u32 base = stage + W_STAGE;
#pragma unroll
  for (int i = 0; i < (TOKENS * X_CHUNKS + THREADS - 1) / THREADS; ++i) {
    const int at = threadIdx.x + i * THREADS;
    if (TOKENS * X_CHUNKS % THREADS && at >= TOKENS * X_CHUNKS) break;
    const int token = at / X_CHUNKS, chunk = at % X_CHUNKS;
    const int k = k0 + chunk * (16 / X_BYTES);
    const int bytes = token < tokens ? max(0, min(16, (K - k) * X_BYTES)) : 0;
    cp_async_part(base + x_offset(token, chunk), bytes ? x + token * ldx + k : x, bytes);
  }
}

// -- one stage of products ------------------------------------------------------------------------
// Blocks of 32 k (64 in FORM 3): two steps of mma each.
DEVICE void products(u32 stage, acc_t (&acc)[MT][NT][4], int row0, int token0) {
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
  const u32 xs = stage + W_STAGE;
#pragma unroll UNROLL
  for (int b = 0; b < (FORM == 1 || FORM == 2 ? 4 : 2); ++b) {
    uint4 xv[NT];
#pragma unroll
    for (int n = 0; n < NT; ++n) xv[n] = shared16(xs + x_offset(token0 + n * 8 + g, b * 4 + t));
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      const int row = row0 + m * 16 + g;
      u32 a[2][4];  // the A fragments of both steps
#if FORM == 1 || FORM == 2
      const uint2 lo = shared8(stage + w_offset(row, b * 2 + (t >> 1)) + (t & 1) * 8);
      const uint2 hi = shared8(stage + w_offset(row + 8, b * 2 + (t >> 1)) + (t & 1) * 8);
      u32 pair[2];
      widen(lo.x, pair, X()); a[0][0] = pair[0]; a[0][2] = pair[1];
      widen(hi.x, pair, X()); a[0][1] = pair[0]; a[0][3] = pair[1];
      widen(lo.y, pair, X()); a[1][0] = pair[0]; a[1][2] = pair[1];
      widen(hi.y, pair, X()); a[1][1] = pair[0]; a[1][3] = pair[1];
#else
      const uint4 lo = shared16(stage + w_offset(row, b * 4 + t));
      const uint4 hi = shared16(stage + w_offset(row + 8, b * 4 + t));
      a[0][0] = lo.x; a[0][1] = hi.x; a[0][2] = lo.y; a[0][3] = hi.y;
      a[1][0] = lo.z; a[1][1] = hi.z; a[1][2] = lo.w; a[1][3] = hi.w;
#endif
#if FORM == 2
      const float* scales = (const float*)__cvta_shared_to_generic(stage + W_STAGE + X_STAGE);
      const int group = b * 32 / GROUP;
      const float scale_lo = scales[row * STAGE_SCALES + group];
      const float scale_hi = scales[(row + 8) * STAGE_SCALES + group];
#endif
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const u32 b0[2] = {xv[n].x, xv[n].y}, b1[2] = {xv[n].z, xv[n].w};
#if FORM == 2
        float sum[4] = {0.f, 0.f, 0.f, 0.f};
        mma(sum, a[0], b0, x_t());
        mma(sum, a[1], b1, x_t());
        acc[m][n][0] += scale_lo * sum[0];
        acc[m][n][1] += scale_lo * sum[1];
        acc[m][n][2] += scale_hi * sum[2];
        acc[m][n][3] += scale_hi * sum[3];
#else
        mma(acc[m][n], a[0], b0, x_t());
        mma(acc[m][n], a[1], b1, x_t());
#endif
      }
    }
  }
}

// All shares of this tile added in order; false for the blocks that are not the last to arrive.
// Shares lie as the registers do: [tile][share][register][thread].
DEVICE bool add_shares(acc_t (&acc)[MT][NT][4], acc_t* partials, u32* counters, int tile) {
  __shared__ bool last;
  const int shares = gridDim.y;
  acc_t* mine = partials + ((i64)tile * shares + blockIdx.y) * (ROWS * TOKENS) + threadIdx.x * 4;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int n = 0; n < NT; ++n)
      *(int4*)(mine + (m * NT + n) * THREADS * 4) = *(int4*)acc[m][n];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(&counters[tile], 1) == shares - 1;
    if (last) counters[tile] = 0;  // ready for the next launch
    __threadfence();
  }
  __syncthreads();
  if (!last) return false;
  const acc_t* all = partials + (i64)tile * shares * (ROWS * TOKENS) + threadIdx.x * 4;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[m][n][i] = 0;
  for (int s = 0; s < shares; ++s, all += ROWS * TOKENS)
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        int4 v = __ldcg((const int4*)(all + (m * NT + n) * THREADS * 4));
        const acc_t* part = (const acc_t*)&v;
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[m][n][i] += part[i];
      }
  return true;
}

// Grid: (row tiles of all weights x token tiles, shares of K). Eight token tiles go together
// through the rows, so that what one wave of blocks reads stays in the L2 cache.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_mma(
    const x_t* x, i64 ldx, const float* x_scales,
    const char* w0, const char* w1, const char* w2,
    const float* s0, const float* s1, const float* s2,
    const BIAS* b0, const BIAS* b1, const BIAS* b2, int n0, int n1, int n2,
    const RESIDUAL* residual, OUT* y, i64 ldy, int M, int K, int groups, int wide, int early,
    acc_t* partials, u32* counters) {
  extern __shared__ __align__(128) char room[];
  pdl_launch();
  const int tiles0 = (n0 + ROWS - 1) / ROWS, tiles1 = (n1 + ROWS - 1) / ROWS;
  const int row_tiles = tiles0 + tiles1 + (n2 + ROWS - 1) / ROWS;
  const int token_tiles = (M + TOKENS - 1) / TOKENS;
  const int band = blockIdx.x / (8 * row_tiles), in_band = blockIdx.x % (8 * row_tiles);
  const int band_tokens = min(8, token_tiles - band * 8);
  const int token0 = (band * 8 + in_band % band_tokens) * TOKENS;
  int tile = in_band / band_tokens, n = n0, column0 = 0;
  Weight w = {w0, s0, 0};
  const BIAS* bias = b0;
  if (tile >= tiles0) {
    tile -= tiles0, n = n1, column0 = n0, w.rows = w1, w.scales = s1, bias = b1;
    if (tile >= tiles1) {
      tile -= tiles1, n = n2, column0 += n1, w.rows = w2, w.scales = s2, bias = b2;
    }
  }
  const int first = tile * ROWS;
  w.rows += (i64)first * K * W_BYTES;
  if (FORM != 0) w.scales += (i64)first * (FORM == 2 ? groups : 1);
  w.left = n - first;
  const int tokens = M - token0;
  x += (i64)token0 * ldx;

  const int warp = threadIdx.x >> 5;
  const int warp_row = warp % WARPS_R * (MT * 16), warp_token = warp / WARPS_R * (NT * 8);
  const int steps = (K + BK - 1) / BK;
  const int begin = (i64)steps * blockIdx.y / gridDim.y;
  const int count = (i64)steps * (blockIdx.y + 1) / gridDim.y - begin;
  const u32 ring = shared_address(room);
  acc_t acc[MT][NT][4] = {};

  // early: no kernel near this one wrote the weights, so their copies need not wait for it
  if (!early) pdl_wait();
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s)
    if (s < count) load_w(ring + s * STAGE_BYTES, w, (begin + s) * BK, K, groups);
  if (early) pdl_wait();
#pragma unroll
  for (int s = 0; s < STAGES - 1; ++s) {
    if (s < count) load_x(ring + s * STAGE_BYTES, x, ldx, tokens, (begin + s) * BK, K);
    cp_async_commit();
  }
  for (int i = 0; i < count; ++i) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    const int next = i + STAGES - 1;
    if (next < count) {
      const u32 stage = ring + next % STAGES * STAGE_BYTES;
      load_w(stage, w, (begin + next) * BK, K, groups);
      load_x(stage, x, ldx, tokens, (begin + next) * BK, K);
    }
    cp_async_commit();
    products(ring + i % STAGES * STAGE_BYTES, acc, warp_row, warp_token);
  }
  cp_async_wait<0>();
#if SPLIT
  if (!add_shares(acc, partials, counters, blockIdx.x)) return;
#endif
  __syncthreads();  // the ring becomes the tile of results
  float* out = (float*)room;
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int j = 0; j < NT; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = warp_token + j * 8 + 2 * t + (i & 1);
        out[token * LD_TILE + warp_row + m * 16 + g + (i >> 1) * 8] = (float)acc[m][j][i];
      }
  __syncthreads();
  const i64 corner = (i64)token0 * ldy + column0 + first;
  Epilogue e = {w.scales, FORM == 3 ? x_scales + token0 : nullptr, bias ? bias + first : nullptr,
                residual ? residual + corner : nullptr, y + corner, ldy, w.left, tokens,
                (wide && (column0 & 3) == 0)};
  auto read = [&](int token, int row) { return *(const float4*)(out + token * LD_TILE + row); };
  store_tile<THREADS>(read, e, threadIdx.x, 0, TOKENS * ROWS / 4);
}
