// y[M, N] = x[M, K] w[N, K]^T on Hopper's warpgroup products, the weight read in its stored form.
//
// w of x's type (few tokens), codes, or (ROUNDS) bytes times bytes; then + bias[n] + residual[m, n],
// rounded once to OUT. The formulas and the weights side by side are those of gemm_mma.cu.
// Codes are exact 16-bit floats, and scales multiply their sums: of rows, or under FEW (up to 64
// tokens) of groups. Otherwise weights of groups, and of float tables, are FOLDED: f16, each
// rounded once or, if its scale is no f16, twice, after a power of two has brought the row into
// f16's range; x is f16 too, rows of bf16 after a power of two (exact unless 2^-31 of their
// largest). gemm_halves.cu finds the powers.
//
// A block makes ROWS = 64 GROUPS rows of w x TOKENS tokens over a share of K. One warp copies tiles
// by TMA into a ring of STAGES (w [ROWS][BK], x [TOKENS][BK], swizzled); GROUPS warpgroups multiply
// 64 rows each: w is the A operand of 64 rows, so that few tokens cost little (TOKENS may be 8).
// How they multiply is in gemm_sm90_products.cuh and the files that it includes.
// The SHARES blocks of K are one cluster: each adds a part of the tile from all their shared
// memories, in order (deterministic), and writes it (gemm_epilogue.cuh).
//
// Macros: those of weights.cuh (TABLE_FLOATS: TABLE is of f16), X (bf16 | f16 | i8), OUT, BIAS,
// RESIDUAL, GROUPS (1 | 2), TOKENS (8, 16, 32, 64, 128, 256), STAGES, SHARES (up to 8), FEW (1:
// codes of integers or E4M3 by gemm_sm90_few.cuh), BLOCKS (that are to fit a multiprocessor), WHOLE
// (K is a multiple of BK; of CODED).
// Source of the idea (A converted in registers): CUTLASS example 55, mixed-input GEMM.
#include "hopper.cuh"
#include "weights.cuh"

#ifndef FEW
#define FEW 0
#endif
#define CODED (!IS_FLOAT && !ROUNDS)
#define FOLDED (!FEW && (GROUP || TABLE_FLOATS))
#define ROWS (64 * GROUPS)
#define BK (ROUNDS || FEW ? 128 : 64)
#define X_BOXES (FEW ? 2 : 1)  // of 128 bytes of each token
// bytes of a row in a stage, and which element of a row has input k
#define W_ROW (IS_FLOAT || ROUNDS ? 128 : LOW_BITS ? BK * LOW_BITS / 8 : BK)
#define CODE_AT(k) (LOW_BITS ? (k) / 8 * LOW_BITS : (k))
#define LD_TILE (ROWS + 4)
#define W_STAGE (ROWS * W_ROW)
#define X_BOX (TOKENS * 128)
#define HIGH_ROW (FEW ? BK / 8 * HIGH_BITS : 0)  // bytes of a row's high bits
#define HIGH_AT (W_STAGE + X_BOXES * X_BOX)
#define STAGE_BYTES (HIGH_AT + ROWS * HIGH_ROW)
#define ACC (TOKENS / 2)  // accumulators of a thread
#define MANY (TOKENS >= 128)
#define CONSUMERS (128 * GROUPS)
#define THREADS (CONSUMERS + (MANY ? 128 : 32))
#ifndef BLOCKS
#define BLOCKS 1
#endif
#include "gemm_epilogue.cuh"

static_assert(GROUP % 16 == 0 && SUPER % BK == 0, "groups");

#if ROUNDS
typedef int acc_t;
#else
typedef float acc_t;
#endif

#include "gemm_sm90_products.cuh"

// Four words of another block's shared memory, at this block's address `p`.
DEVICE uint4 shared_of(u32 p, int block) {
  uint4 v;
  asm volatile("ld.shared::cluster.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(peer(p, block)));
  return v;
}
DEVICE float4 sum_shares(u32 p) {
  acc_t sum[4] = {};
#pragma unroll
  for (int s = 0; s < SHARES; ++s) {
    const uint4 v = shared_of(p, s);
    const acc_t* part = (const acc_t*)&v;
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[i] += part[i];
  }
  return make_float4((float)sum[0], (float)sum[1], (float)sum[2], (float)sum[3]);
}

struct Piece {  // of one weight: a block's rows
  const TensorMap* map;
  const TensorMap* high;  // of its high bits, if FEW
  Planes at;
  const BIAS* bias;
  int first, left, column;  // first row in the weight, rows from there to its end, column in y
};

DEVICE void load_box(u32 target, const TensorMap* map, u32 barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(target), "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}
DEVICE void produce(Ring ring, Piece w, const TensorMap* x, int token0, Walk walk, bool early) {
  const int ahead = min(walk.count, STAGES);
  prefetch_map(w.map), prefetch_map(x);
  auto weights = [&](int i) {
    const u32 full = ring.full + i % STAGES * 8;
    mbarrier_expect(full, STAGE_BYTES);
    load_box(stage_of(ring, i), w.map, full, CODE_AT(walk.k(i)), w.first);
    if (HIGH_ROW)
      load_box(stage_of(ring, i) + HIGH_AT, w.high, full, walk.k(i) / 8 * HIGH_BITS, w.first);
  };
  auto tokens = [&](int i) {
    for (int box = 0; box < X_BOXES; ++box)
      load_box(stage_of(ring, i) + W_STAGE + box * X_BOX, x, ring.full + i % STAGES * 8,
               walk.k(i) + box * 64, token0);
  };
  if (!early) pdl_wait();
  for (int i = 0; i < ahead; ++i) weights(i);
  if (early) pdl_wait();
  for (int i = 0; i < ahead; ++i) tokens(i);
  for (int i = ahead; i < walk.count; ++i) {
    mbarrier_wait(ring.empty + i % STAGES * 8, (i / STAGES & 1) ^ 1);
    weights(i);
    tokens(i);
  }
}

DEVICE void consume(Ring ring, const Work& w, u32 tile, int K) {
  const int thread = threadIdx.x, group = thread >> 7, t = thread & 3;
  const int local = group * 64 + (thread % 128 >> 5) * 16 + ((thread & 31) >> 2);
  acc_t acc[ACC] = {};
  multiply(acc, ring, group, w, K);
  named_sync(1, CONSUMERS);  // the ring becomes the tile of results
#pragma unroll
  for (int j = 0; j < ACC; ++j) {
    const int token = j / 4 * 8 + 2 * t + (j & 1), row = local + (j >> 1 & 1) * 8;
    u32 word;
    memcpy(&word, &acc[j], 4);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(tile + (token * LD_TILE + row) * 4), "r"(word)
                 : "memory");
  }
}

// Grid: (row tiles of all weights x token tiles, SHARES); eight token tiles go together through the
// rows (see gemm_mma.cu).
extern "C" __global__ void
#if SHARES > 1
__cluster_dims__(1, SHARES, 1)
#endif
__launch_bounds__(THREADS, BLOCKS) gemm_sm90(
    const __grid_constant__ TensorMap map0, const __grid_constant__ TensorMap map1,
    const __grid_constant__ TensorMap map2, const __grid_constant__ TensorMap high0,
    const __grid_constant__ TensorMap high1, const __grid_constant__ TensorMap high2,
    const __grid_constant__ TensorMap x_map,
    const float* x_scales, const float* downs, Planes w0, Planes w1, Planes w2, const BIAS* b0,
    const BIAS* b1, const BIAS* b2, int n0, int n1, int n2, const RESIDUAL* residual, OUT* y,
    i64 ldy, int M, int K, int wide, int early) {
  extern __shared__ __align__(1024) char room[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  __shared__ Work work;
  __shared__ Epilogue end;
  pdl_launch();
  const int tiles0 = (n0 + ROWS - 1) / ROWS, tiles1 = (n1 + ROWS - 1) / ROWS;
  const int row_tiles = tiles0 + tiles1 + (n2 + ROWS - 1) / ROWS;
  const int token_tiles = (M + TOKENS - 1) / TOKENS;
  const int band = blockIdx.x / (8 * row_tiles), in_band = blockIdx.x % (8 * row_tiles);
  const int band_tokens = min(8, token_tiles - band * 8);
  const int token0 = (band * 8 + in_band % band_tokens) * TOKENS;
  const int tile = in_band / band_tokens;
  Piece w = {&map0, &high0, w0, b0, tile * ROWS, n0, 0};
  if (tile >= tiles0) {
    const int last = tile - tiles0 - tiles1;
    w = {&map1, &high1, w1, b1, (tile - tiles0) * ROWS, n1, n0};
    if (last >= 0) w = {&map2, &high2, w2, b2, last * ROWS, n2, n0 + n1};
  }
  w.left -= w.first;
  const int steps = (K + BK - 1) / BK, share = blockIdx.y, begin = steps * share / SHARES;
  Walk walk = {begin, steps * (share + 1) / SHARES - begin, 0};
  walk.turn = walk.count ? tile * 5 % walk.count : 0;
  const Ring ring = {(shared_address(room) + 1023) & ~1023u, shared_address(barriers),
                     shared_address(barriers) + STAGES * 8};
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(ring.full + s * 8, 1);
      mbarrier_init(ring.empty + s * 8, 4 * GROUPS);  // a lane of each warp that multiplies
    }
    mbarrier_init_fence();
    const float* w_downs = FOLDED ? downs + w.column + w.first : nullptr;
    work = {weight_row(w.at, w.first, K), w_downs, w.left, walk};
    const i64 corner = (i64)token0 * ldy + w.column + w.first;
    end = {FOLDED ? nullptr : work.at.scales, x_scales ? x_scales + token0 : nullptr,
           w.bias ? w.bias + w.first : nullptr,
           residual ? residual + corner : nullptr, y + corner, ldy, w.left, M - token0,
           wide && (w.column & 3) == 0, w_downs};
  }
  __syncthreads();
  if (threadIdx.x >= CONSUMERS) {
    if (MANY) registers_down<24>();
    if (threadIdx.x == CONSUMERS) produce(ring, w, &x_map, token0, walk, early);
    __syncwarp();
    if (SHARES > 1) cluster_sync(), cluster_sync();
    return;
  }
  if (MANY) registers_up<GROUPS == 2 ? 240 : 208>();
  if (FOLDED || !early) pdl_wait();
  consume(ring, work, ring.stages, K);
  pdl_wait();
  if (SHARES > 1) cluster_sync();
  else named_sync(1, CONSUMERS);
  auto read = [&](int token, int row) {
    return sum_shares(ring.stages + (token * LD_TILE + row) * 4);
  };
  constexpr int FOURS = TOKENS * ROWS / 4;
  store_tile<CONSUMERS, MANY ? 8 : 4>(read, end, threadIdx.x, FOURS * blockIdx.y / SHARES,
                                      FOURS * (blockIdx.y + 1) / SHARES);
  if (SHARES > 1) cluster_sync();  // until then the others read this block's memory
}
