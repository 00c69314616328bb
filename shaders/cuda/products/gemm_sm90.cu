// y[M, N] = x[M, K] w[N, K]^T on Hopper's warpgroup products, the weight read in its stored form.
//
// w of x's type (few tokens, or decoded once for many by gemm_decode.cu), codes, or (ROUNDS) bytes
// times bytes; then + bias[n] + residual[m, n], rounded once to OUT. The formulas and the weights
// side by side are those of gemm_mma.cu; `downs` are more scales of rows, if any.
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
// Many tokens by weights of x's type (STAYS) are multiplied by blocks that make one tile after
// another; two of neighbouring rows are a cluster, each of which copies half of x for both.
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
#define STAYS (MANY && SHARES == 1 && IS_FLOAT)
#define PAIR (STAYS ? 2 : 1)
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
struct Tile {
  Piece w;
  int token0;
  Walk walk;
  bool twice;  // another block makes it too
};

DEVICE void load_box(u32 target, const TensorMap* map, u32 barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(target), "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}
// To the same place of both blocks of a pair.
DEVICE void load_box_twice(u32 target, const TensorMap* map, u32 barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(target), "l"(map), "r"(barrier),
      "r"(x), "r"(y), "h"((u16)3)
      : "memory");
}
// first: of the block, whose weights may be on their way before the kernels ahead have ended.
DEVICE void produce(Ring ring, const Tile& tile, const TensorMap* x, bool first, bool early) {
  const Walk walk = tile.walk;
  const int ahead = first ? min(walk.count, STAGES) : 0;
  auto full = [&](int i) { return ring.full + (ring.done + i) % STAGES * 8; };
  auto weights = [&](int i) {
    mbarrier_wait(ring.empty + (ring.done + i) % STAGES * 8, ((ring.done + i) / STAGES & 1) ^ 1);
    mbarrier_expect(full(i), STAGE_BYTES);
    load_box(stage_of(ring, i), tile.w.map, full(i), CODE_AT(walk.k(i)), tile.w.first);
    if (HIGH_ROW)
      load_box(stage_of(ring, i) + HIGH_AT, tile.w.high, full(i), walk.k(i) / 8 * HIGH_BITS,
               tile.w.first);
  };
  auto tokens = [&](int i) {
    const u32 to = stage_of(ring, i) + W_STAGE;
    const int half = blockIdx.x % PAIR;
    if (PAIR == 2)
      load_box_twice(to + half * X_BOX / 2, x, full(i), walk.k(i), tile.token0 + half * TOKENS / 2);
    for (int box = 0; box < (PAIR == 1 ? X_BOXES : 0); ++box)
      load_box(to + box * X_BOX, x, full(i), walk.k(i) + box * 64, tile.token0);
  };
  if (first && !early) pdl_wait();
  for (int i = 0; i < ahead; ++i) weights(i);
  if (first && early) pdl_wait();
  for (int i = 0; i < ahead; ++i) tokens(i);
  for (int i = ahead; i < walk.count; ++i) weights(i), tokens(i);
}

// Which row of the tile the first accumulators of this thread are of.
DEVICE int local_row() {
  return threadIdx.x / 128 * 64 + (threadIdx.x % 128 >> 5) * 16 + ((threadIdx.x & 31) >> 2);
}
// Accumulators FROM .. FROM + COUNT - 1 of the thread to `tile` [tokens][PITCH], at row `row`.
template <int FROM, int COUNT, int PITCH>
DEVICE void put_sums(const acc_t (&acc)[ACC], u32 tile, int row) {
#pragma unroll
  for (int j = 0; j < COUNT; ++j) {
    const int token = j / 4 * 8 + 2 * (threadIdx.x & 3) + (j & 1);
    u32 word;
    memcpy(&word, &acc[FROM + j], 4);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(
                     tile + (token * PITCH + row + (j >> 1 & 1) * 8) * 4), "r"(word) : "memory");
  }
}

#if STAYS
#define PIECE 32  // tokens
#define LD_PIECE 68
// A warpgroup writes its 64 rows, PIECE tokens at a time, while the other may still multiply.
template <int FROM = 0>
DEVICE void write_rows(const acc_t (&acc)[ACC], u32 room, const Writer<64, 128>& writer) {
  const int group = threadIdx.x / 128, first = FROM * 2 * 16;
  put_sums<FROM, PIECE / 2, LD_PIECE>(acc, room, local_row() % 64);
  named_sync(1 + group, 128);
  auto read = [&](int token, int row) {
    const u32 p = room + (token % PIECE * LD_PIECE + row) * 4;
    u32 word[4];
    acc_t v[4];
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3]) : "r"(p));
    memcpy(v, word, sizeof(v));
    return make_float4((float)v[0], (float)v[1], (float)v[2], (float)v[3]);
  };
  writer.store<4>(read, first + threadIdx.x % 128, first + PIECE * 16);
  named_sync(1 + group, 128);
  if constexpr (FROM + PIECE / 2 < ACC) write_rows<FROM + PIECE / 2>(acc, room, writer);
}
#endif

// Grid: (blocks, SHARES): of each tile one, or, if they stay, as many as fit; row tiles of all
// weights x token tiles, of which eight go together through the rows (see gemm_mma.cu).
extern "C" __global__ void
#if STAYS
__cluster_dims__(2, 1, 1)
#elif SHARES > 1
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
  __shared__ Work works[STAYS ? GROUPS : 1];
  __shared__ Epilogue ends[STAYS ? GROUPS : 1];
  pdl_launch();
  const int tiles0 = (n0 + ROWS - 1) / ROWS, tiles1 = (n1 + ROWS - 1) / ROWS;
  const int row_tiles = tiles0 + tiles1 + (n2 + ROWS - 1) / ROWS;
  const int token_tiles = (M + TOKENS - 1) / TOKENS, pairs = (row_tiles + PAIR - 1) / PAIR;
  // of the `at`-th pair
  auto tile_of = [&](int at) {
    const int band = at / (8 * pairs), in_band = at % (8 * pairs);
    const int band_tokens = min(8, token_tiles - band * 8), pair = in_band / band_tokens;
    const int own = pair * PAIR + blockIdx.x % PAIR, tile = min(own, row_tiles - 1);
    Piece w = {&map0, &high0, w0, b0, tile * ROWS, n0, 0};
    if (tile >= tiles0) {
      const int last = tile - tiles0 - tiles1;
      w = {&map1, &high1, w1, b1, (tile - tiles0) * ROWS, n1, n0};
      if (last >= 0) w = {&map2, &high2, w2, b2, last * ROWS, n2, n0 + n1};
    }
    w.left -= w.first;
    const int steps = (K + BK - 1) / BK, share = blockIdx.y, begin = steps * share / SHARES;
    Walk walk = {begin, steps * (share + 1) / SHARES - begin, 0};
    walk.turn = walk.count ? pair * 5 % walk.count : 0;
    return Tile{w, (band * 8 + in_band % band_tokens) * TOKENS, walk, own > tile};
  };
  // What a warpgroup, or the block, works on; rows from `skipped` on are written.
  auto begin = [&](const Tile& tile, Work& work, Epilogue& end, int skipped) {
    const Piece& w = tile.w;
    const float* w_downs = downs ? downs + w.column + w.first : nullptr;
    work = {weight_row(w.at, w.first, K), w_downs, w.left, tile.walk};
    const int first = w.first + skipped;
    const i64 corner = (i64)tile.token0 * ldy + w.column + first;
    end = {FOLDED ? nullptr : work.at.scales + skipped,
           x_scales ? x_scales + tile.token0 : nullptr, w.bias ? w.bias + first : nullptr,
           residual ? residual + corner : nullptr, y + corner, ldy,
           tile.twice ? 0 : w.left - skipped, M - tile.token0, wide && (w.column & 3) == 0,
           w_downs ? w_downs + skipped : nullptr};
  };
  Ring ring = {(shared_address(room) + 1023) & ~1023u, shared_address(barriers),
               shared_address(barriers) + STAGES * 8, 0};
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(ring.full + s * 8, 1);
      mbarrier_init(ring.empty + s * 8, 4 * GROUPS * PAIR);  // a lane of each warp that multiplies
    }
    mbarrier_init_fence();
    if (!STAYS) begin(tile_of(blockIdx.x), works[0], ends[0], 0);
  }
  if (STAYS) cluster_sync();
  else __syncthreads();
  const int first = blockIdx.x / PAIR;
  const int last = STAYS ? pairs * token_tiles : first + 1, turn = gridDim.x / PAIR;
  if (threadIdx.x >= CONSUMERS) {
    if (MANY) registers_down<40>();
    if (threadIdx.x == CONSUMERS) {
      for (int at = first; at < last; at += turn) {
        const Tile tile = tile_of(at);
        produce(ring, tile, &x_map, at == first, early);
        ring.done += tile.walk.count;
      }
    }
    __syncwarp();
    if (SHARES > 1) cluster_sync(), cluster_sync();
    if (STAYS) cluster_sync();
    return;
  }
  if (MANY) registers_up<GROUPS == 2 ? 232 : 208>();
  if (FOLDED || !early) pdl_wait();
  const int group = threadIdx.x / 128;
#if STAYS
  const u32 own_room = ring.stages + STAGES * STAGE_BYTES + group * PIECE * LD_PIECE * 4;
  for (int at = first; at < last; at += turn) {
    if (threadIdx.x % 128 == 0) begin(tile_of(at), works[group], ends[group], group * 64);
    named_sync(1 + group, 128);
    acc_t acc[ACC] = {};
    multiply(acc, ring, group, works[group], K);
    release(ring, works[group].walk.count - 1);
    ring.done += works[group].walk.count;
    if (at == first) pdl_wait();
    write_rows(acc, own_room, Writer<64, 128>(ends[group], threadIdx.x % 128));
  }
  cluster_sync();  // until then the other block says here what it has read
#else
  acc_t acc[ACC] = {};
  multiply(acc, ring, group, works[0], K);
  named_sync(1, CONSUMERS);  // the ring becomes the tile of results
  put_sums<0, ACC, LD_TILE>(acc, ring.stages, local_row());
  pdl_wait();
  if (SHARES > 1) cluster_sync();
  else named_sync(1, CONSUMERS);
  auto read = [&](int token, int row) {
    return sum_shares(ring.stages + (token * LD_TILE + row) * 4);
  };
  constexpr int FOURS = TOKENS * ROWS / 4;
  const int four = FOURS * blockIdx.y / SHARES + threadIdx.x;
  Writer<ROWS, CONSUMERS>(ends[0], four)
      .store<MANY ? 8 : 4>(read, four, FOURS * (blockIdx.y + 1) / SHARES);
  if (SHARES > 1) cluster_sync();  // until then the others read this block's memory
#endif
}
