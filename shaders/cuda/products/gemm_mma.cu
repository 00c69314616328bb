// y[M, N] = x[M, K] w[N, K]^T on tensor cores (mma.sync), the weight read in its stored form.
//
//   floats, of x's type               y = sum x w
//   codes, a scale a row              y = scale[n] sum x (code - ZERO)
//   codes, a scale a GROUP            y = sum_g scale[n, g] sum_{k in g} x (code - ZERO)
//                                         + offset[n, g] sum_{k in g} x
//   ROUNDS: x and w int8              y = float(sum xq q) xscale[m] scale[n], the sum exact in int32
//   then + bias[n] + residual[m, n], rounded once to OUT. Codes become 16-bit floats exactly.
//
// Up to three weights with the same K lie side by side in y (q, k, v; gate, up).
//
// The weight is the A operand (16 rows of n), tokens are the 8 columns of B, so that few tokens
// cost little: TOKENS may be 8. A block makes ROWS x TOKENS results over a share of K (gridDim.y
// shares); with more than one the last block to arrive adds all shares in order (deterministic).
// Threads: WARPS_R x WARPS_T warps, each (16 MT) x (8 NT) results. K goes by in stages of 128 bytes
// of weight row through a ring of STAGES buffers filled by cp.async.
// A sum does not care about the order of k, so lane 4g + t takes 8 consecutive k of every 32 (16 of
// every 64 bytes under ROUNDS) where mma's layout would have it take 2 + 2 of every 16: fragments of
// x and w are then one wide shared load each. Of codes of fewer than 8 bits it takes 4 of every 16,
// which are in the same words for both steps, and so groups may be as small as a step. 16-byte
// chunks are swizzled by row against bank conflicts.
//
// Macros: those of weights.cuh (GROUP of codes of 8 bits at least 32), X (c type of x), OUT, BIAS,
// RESIDUAL (c types), WARPS_R, WARPS_T, MT, NT, STAGES, SPLIT (1: gridDim.y > 1), HIGH_PIECE and
// PIECE (bytes in which high bits, and scales and offsets, are copied). Needs sm_80; 16-byte aligned
// rows of x and codes.
#include "prelude.cuh"
#include "weights.cuh"
#include "gemm_terms.cuh"

#if ROUNDS
typedef i8 x_t;
typedef int acc_t;
#else
typedef X x_t;
typedef float acc_t;
#endif
#ifndef PIECE
#define PIECE 16
#endif
#ifndef HIGH_PIECE
#define HIGH_PIECE 16
#endif
#define CODED (!IS_FLOAT && !ROUNDS)      // codes are converted to x's type
#define TERMS (TABLE_FLOATS ? 2 : 1)      // 16-bit floats that make a number
#define ROWS (WARPS_R * MT * 16)
#define TOKENS (WARPS_T * NT * 8)
#define THREADS (WARPS_R * WARPS_T * 32)
#define X_BYTES (ROUNDS ? 1 : 2)          // of one element of x
#define BK (IS_FLOAT ? 64 : 128)          // elements of k in a stage
#define W_CHUNKS (LOW_BITS ? LOW_BITS : 8)  // 16-byte chunks of a row's codes in a stage
#define X_CHUNKS (BK * X_BYTES / 16)      // and of a token: 8 or 16
#define HIGH_ROW (CODED ? 16 * HIGH_BITS : 0)  // bytes of a row's high bits
#define SCALES (GROUP == 0 ? 0 : GROUP > BK ? 1 : BK / (GROUP ? GROUP : 1))  // of a row
#define STEP_SCALES (GROUP == 16 ? 2 : 1)  // and in 32 k
#define W_STAGE (ROWS * W_CHUNKS * 16)
#define X_STAGE (TOKENS * X_CHUNKS * 16)
#define SCALE_ROW (SCALES * (int)sizeof(SCALE_T))
#define OFFSET_ROW (OFFSETS ? SCALES * (int)sizeof(OFFSET_T) : 0)
// where a stage's parts begin after its codes
#define X_AT W_STAGE
#define HIGH_AT (X_AT + X_STAGE)
#define SCALES_AT (HIGH_AT + ROWS * HIGH_ROW)
#define SUPERS_AT (SCALES_AT + ROWS * SCALE_ROW)
#define FLOORS_AT (SUPERS_AT + (SUPER ? ROWS * 4 : 0))
#define OFFSETS_AT (FLOORS_AT + (FLOORS ? ROWS * 4 : 0))
#define STAGE_BYTES ((OFFSETS_AT + ROWS * OFFSET_ROW + 15) / 16 * 16)
static_assert(GROUP == 0 || GROUP >= (LOW_BITS ? 16 : 32), "GROUP");
static_assert(SUPER_INPUTS % BK == 0 && HIGH_ROW % HIGH_PIECE == 0, "SUPER, HIGH_PIECE");
static_assert(SCALE_ROW % PIECE == 0 && OFFSET_ROW % PIECE == 0, "PIECE");
// how many blocks of k the compiler may interleave without running out of registers
#define UNROLL (IS_FLOAT || MT * NT < 8 ? 4 : GROUP == 0 && MT * NT <= 16 ? 2 : 1)
#define LD_TILE (ROWS + 4)                // floats of a token in the epilogue's tile
#include "gemm_epilogue.cuh"

// -- PTX ------------------------------------------------------------------------------------------
// BYTES of a small plane, or zeros; cp.async knows no less than 4: those bytes wait for memory.
template <int BYTES> DEVICE void copy_piece(u32 to, const void* from, bool real) {
  if constexpr (BYTES == 16) {
    cp_async_part(to, from, real ? 16 : 0);
  } else if constexpr (BYTES >= 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                 :: "r"(to), "l"(from), "n"(BYTES), "r"(real ? BYTES : 0) : "memory");
  } else if constexpr (BYTES == 2) {
    const u16 word = real ? *(const u16*)from : 0;
    asm volatile("st.shared.u16 [%0], %1;" :: "r"(to), "h"(word) : "memory");
  } else {
    const u32 byte = real ? *(const u8*)from : 0;
    asm volatile("st.shared.u8 [%0], %1;" :: "r"(to), "r"(byte) : "memory");
  }
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
DEVICE u32 shared4(u32 p) {
  u32 v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(p));
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

// -- where things lie in a stage ------------------------------------------------------------------
DEVICE u32 w_offset(int row, int chunk) {
  const int turn = W_CHUNKS == 2   ? row >> 2 & 1
                   : W_CHUNKS == 4 ? row >> 1 & 3
                   : CODED         ? (row & 3) << 1
                                   : (row & 1) << 2;
  return row * (W_CHUNKS * 16) + ((chunk ^ turn) << 4);
}
DEVICE u32 x_offset(int token, int chunk) {
  const int half = chunk >> 3;  // 128 bytes of every token, then the next 128
  const int turn = LOW_BITS ? (token & 3) << 1 : (token & 1) << 2;
  return half * (TOKENS * 128) + token * 128 + (((chunk & 7) ^ turn) << 4);
}

struct Weight {
  Planes at;              // of its first row of this tile
  int left;               // rows from there to the end
};

// CHUNKS chunks of 16 bytes of each row, from byte `begin` of row_bytes; zeros past both ends.
template <int CHUNKS, typename Place>
DEVICE void load_codes(const u8* rows, int left, i64 row_bytes, i64 begin, Place place) {
#pragma unroll
  for (int i = 0; i < (ROWS * CHUNKS + THREADS - 1) / THREADS; ++i) {
    const int at = threadIdx.x + i * THREADS, row = at / CHUNKS, chunk = at % CHUNKS;
    if (ROWS * CHUNKS % THREADS && at >= ROWS * CHUNKS) break;
    const i64 byte = begin + chunk * 16, rest = row_bytes - byte;
    const int bytes = row < left ? (int)max(0ll, min(16ll, rest)) : 0;
    cp_async_part(place(row, chunk), bytes ? rows + row * row_bytes + byte : rows, bytes);
  }
}

// BYTES of each row of a small plane, from byte `begin` of row_bytes on.
template <int BYTES, int SIZE>
DEVICE void load_small(u32 to, const void* plane, int left, int row_bytes, int begin) {
  constexpr int PIECES = BYTES / SIZE, ALL = ROWS * PIECES;
  if constexpr (PIECES > 0) {
#pragma unroll
    for (int i = 0; i < (ALL + THREADS - 1) / THREADS; ++i) {
      const int at = threadIdx.x + i * THREADS, row = at / PIECES;
      if (ALL % THREADS && at >= ALL) break;
      const int byte = begin + at % PIECES * SIZE;
      const bool real = row < left && byte < row_bytes;
      const u8* from = (const u8*)plane;
      copy_piece<SIZE>(to + at * SIZE, real ? from + (i64)row * row_bytes + byte : from, real);
    }
  }
}

DEVICE void load_w(u32 stage, const Weight& w, int k0, int K) {
  load_codes<W_CHUNKS>(w.at.codes, w.left, code_bytes(K), code_bytes(k0),
                       [&](int row, int chunk) { return stage + w_offset(row, chunk); });
  const int groups = groups_of(K), group = k0 / GROUP_INPUTS;
  const int supers = supers_of(K) * 4, super = k0 / SUPER_INPUTS * 4;
  load_small<HIGH_ROW, HIGH_PIECE>(stage + HIGH_AT, w.at.high, w.left, high_bytes(K),
                                   high_bytes(k0));
  load_small<SCALE_ROW, PIECE>(stage + SCALES_AT, w.at.scales, w.left,
                               groups * (int)sizeof(SCALE_T), group * (int)sizeof(SCALE_T));
  load_small<SUPER ? 4 : 0, 4>(stage + SUPERS_AT, w.at.supers, w.left, supers, super);
  load_small<FLOORS ? 4 : 0, 4>(stage + FLOORS_AT, w.at.floors, w.left, supers, super);
  load_small<OFFSET_ROW, PIECE>(stage + OFFSETS_AT, w.at.offsets, w.left,
                                groups * (int)sizeof(OFFSET_T), group * (int)sizeof(OFFSET_T));
}

DEVICE void load_x(u32 stage, const x_t* x, i64 ldx, int tokens, int k0, int K) {
  const u32 base = stage + X_AT;
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

// -- fragments of 32 k (64 under ROUNDS), block b of a stage: two steps of mma --------------------
// Of x: b0 and b1 of the first step, then of the second.
DEVICE uint4 x_fragments(u32 stage, int token, int b, int t) {
  const u32 xs = stage + X_AT;
  if (!LOW_BITS) return shared16(xs + x_offset(token, b * 4 + t));
  const uint2 first = shared8(xs + x_offset(token, b * 4 + (t >> 1)) + (t & 1) * 8);
  const uint2 second = shared8(xs + x_offset(token, b * 4 + 2 + (t >> 1)) + (t & 1) * 8);
  return make_uint4(first.x, first.y, second.x, second.y);
}
// The four codes of a row that this lane takes in each step.
DEVICE uint2 step_codes(u32 stage, int row, int b, int t) {
#if LOW_BITS
  const int at = b * 4 * LOW_BITS + t % LOW_BITS * 4;  // 32 codes are LOW_BITS words
  const u32 low = shared4(stage + w_offset(row, at / 16) + at % 16);
  u32 high = 0;
#if HIGH_BITS
  high = shared4(stage + HIGH_AT + row * HIGH_ROW + b * 4 * HIGH_BITS + t % HIGH_BITS * 4);
#endif
  return make_uint2(four_codes(low, high, t), four_codes(low, high, t + 4));
#else
  const uint2 v = shared8(stage + w_offset(row, b * 2 + (t >> 1)) + (t & 1) * 8);
  return make_uint2(four_codes(v.x, 0, 0), four_codes(v.y, 0, 0));
#endif
}
// Of block b in a row: its scale and offset or zero, or one of each step.
struct Affine {
  float scale[STEP_SCALES], offset[STEP_SCALES];

  template <typename T> static DEVICE T number(u32 at) {
    return *(const T*)__cvta_shared_to_generic(at);
  }
  DEVICE void load(u32 stage, int row, int b) {
#pragma unroll
    for (int i = 0; i < STEP_SCALES; ++i) {
      const int at = row * SCALES + b * 32 / GROUP_INPUTS + i;
      const float super = SUPER ? number<float>(stage + SUPERS_AT + row * 4) : 1.f;
      scale[i] = full_scale(number<SCALE_T>(stage + SCALES_AT + at * (int)sizeof(SCALE_T)), super);
      if (OFFSETS) {
        const OFFSET_T own = number<OFFSET_T>(stage + OFFSETS_AT + at * (int)sizeof(OFFSET_T));
        const float floor = FLOORS ? number<float>(stage + FLOORS_AT + row * 4) : 1.f;
        offset[i] = ZEROS ? to_float(own) : full_offset(own, floor, 1.f);
      }
    }
  }
  DEVICE float zero(int step) const { return ZEROS ? offset[step * (STEP_SCALES - 1)] : 0.f; }
};

#if CODED
// Four codes as what lane and row `half` have of a step's fragments.
DEVICE void terms(u32 codes, float zero, int half, u32 (*a)[4]) {
#if TABLE_FLOATS
  two_terms<0>(codes, a[0][half], a[1][half]);
  two_terms<2>(codes, a[0][half + 2], a[1][half + 2]);
#else
  const u32 zeros = pack2<X>(zero, zero);
  const u32 low = two_halves<0>(codes, X()), high = two_halves<2>(codes, X());
  a[0][half] = ZEROS ? less(low, zeros, X()) : low;
  a[0][half + 2] = ZEROS ? less(high, zeros, X()) : high;
#endif
}
#endif

// The A fragments of both steps, rows `row` and row + 8, of which low and high tell the zeros.
DEVICE void w_fragments(u32 stage, int row, int b, int t, const Affine& low, const Affine& high,
                        u32 (&a)[2 * TERMS][4]) {
#if CODED
  const uint2 first = step_codes(stage, row, b, t), second = step_codes(stage, row + 8, b, t);
  terms(first.x, low.zero(0), 0, a), terms(second.x, high.zero(0), 1, a);
  terms(first.y, low.zero(1), 0, a + TERMS), terms(second.y, high.zero(1), 1, a + TERMS);
#else
  const uint4 first = shared16(stage + w_offset(row, b * 4 + t));
  const uint4 second = shared16(stage + w_offset(row + 8, b * 4 + t));
  a[0][0] = first.x; a[0][1] = second.x; a[0][2] = first.y; a[0][3] = second.y;
  a[1][0] = first.z; a[1][1] = second.z; a[1][2] = first.w; a[1][3] = second.w;
#endif
}
// c += a step of w times x.
DEVICE void multiply(acc_t (&c)[4], const u32 (*a)[4], const u32 (&b)[2]) {
#pragma unroll
  for (int i = 0; i < TERMS; ++i) mma(c, a[i], b, x_t());
}

#if GROUP
// The sums of a block for rows g and g + 8 are scaled and added; x_sum: of two tokens.
DEVICE void add_scaled(acc_t (&acc)[4], const float (&sum)[4], const Affine& low,
                       const Affine& high, const float (&x_sum)[STEP_SCALES][2], int i) {
  acc[0] += low.scale[i] * sum[0];
  acc[1] += low.scale[i] * sum[1];
  acc[2] += high.scale[i] * sum[2];
  acc[3] += high.scale[i] * sum[3];
  if (OFFSETS && !ZEROS) {
    acc[0] += low.offset[i] * x_sum[i][0];
    acc[1] += low.offset[i] * x_sum[i][1];
    acc[2] += high.offset[i] * x_sum[i][0];
    acc[3] += high.offset[i] * x_sum[i][1];
  }
}

// Sums of x over the groups of a block, for the two tokens of this lane's results: a product with
// ones, whose rows are all the same.
DEVICE void sum_tokens(const uint4& xv, float (&x_sum)[STEP_SCALES][2]) {
  const u32 one = pack2<X>(1.f, 1.f), ones[4] = {one, one, one, one};
  const u32 b0[2] = {xv.x, xv.y}, b1[2] = {xv.z, xv.w};
  float sum[STEP_SCALES][4] = {};
  mma(sum[0], ones, b0, x_t());
  mma(sum[STEP_SCALES - 1], ones, b1, x_t());
#pragma unroll
  for (int i = 0; i < STEP_SCALES; ++i) x_sum[i][0] = sum[i][0], x_sum[i][1] = sum[i][1];
}
#endif

// -- one stage of products ------------------------------------------------------------------------
DEVICE void products(u32 stage, acc_t (&acc)[MT][NT][4], int row0, int token0) {
  const int g = (threadIdx.x & 31) >> 2, t = threadIdx.x & 3;
#pragma unroll UNROLL
  for (int b = 0; b < (CODED ? 4 : 2); ++b) {
    uint4 xv[NT];
#pragma unroll
    for (int n = 0; n < NT; ++n) xv[n] = x_fragments(stage, token0 + n * 8 + g, b, t);
#if GROUP
    float x_sum[NT][STEP_SCALES][2];
#pragma unroll
    for (int n = 0; n < (OFFSETS && !ZEROS ? NT : 0); ++n) sum_tokens(xv[n], x_sum[n]);
#endif
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      const int row = row0 + m * 16 + g;
      u32 a[2 * TERMS][4];
      Affine low, high;
      if (GROUP) low.load(stage, row, b), high.load(stage, row + 8, b);
      w_fragments(stage, row, b, t, low, high, a);
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const u32 b0[2] = {xv[n].x, xv[n].y}, b1[2] = {xv[n].z, xv[n].w};
#if GROUP
        float sum[STEP_SCALES][4] = {};
        multiply(sum[0], a, b0);
        multiply(sum[STEP_SCALES - 1], a + TERMS, b1);
#pragma unroll
        for (int i = 0; i < STEP_SCALES; ++i)
          add_scaled(acc[m][n], sum[i], low, high, x_sum[n], i);
#else
        multiply(acc[m][n], a, b0);
        multiply(acc[m][n], a + TERMS, b1);
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
    Planes w0, Planes w1, Planes w2,
    const BIAS* b0, const BIAS* b1, const BIAS* b2, int n0, int n1, int n2,
    const RESIDUAL* residual, OUT* y, i64 ldy, int M, int K, int wide, int early,
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
  Weight w = {w0, 0};
  const BIAS* bias = b0;
  if (tile >= tiles0) {
    tile -= tiles0, n = n1, column0 = n0, w.at = w1, bias = b1;
    if (tile >= tiles1) {
      tile -= tiles1, n = n2, column0 += n1, w.at = w2, bias = b2;
    }
  }
  const int first = tile * ROWS;
  w.at = weight_row(w.at, first, K);
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
    if (s < count) load_w(ring + s * STAGE_BYTES, w, (begin + s) * BK, K);
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
      load_w(stage, w, (begin + next) * BK, K);
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
  Epilogue e = {w.at.scales, ROUNDS ? x_scales + token0 : nullptr, bias ? bias + first : nullptr,
                residual ? residual + corner : nullptr, y + corner, ldy, w.left, tokens,
                (wide && (column0 & 3) == 0)};
  auto read = [&](int token, int row) { return *(const float4*)(out + token * LD_TILE + row); };
  Writer<ROWS, THREADS>(e, threadIdx.x).store<4>(read, threadIdx.x, TOKENS * ROWS / 4);
}
