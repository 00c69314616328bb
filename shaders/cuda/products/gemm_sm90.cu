// y[M, N] = x[M, K] w[N, K]^T on Hopper's warpgroup products, the weight read in its stored form.
//
// w of x's type (few tokens), codes (C8, C4) with a scale for each row or GROUP, or (ROUNDS) bytes
// times bytes; then + bias[n] + residual[m, n], rounded once to OUT. The formulas and the weights side by
// side are those of gemm_mma.cu.
//
// A block makes ROWS = 64 GROUPS rows of w x TOKENS tokens over a share of K. One warp copies tiles
// by TMA into a ring of STAGES (w [ROWS][BK], x [TOKENS][BK], swizzled); GROUPS warpgroups multiply
// 64 rows each: w is the A operand of 64 rows, so that few tokens cost little (TOKENS may be 8).
// CODED: w's codes become bf16/f16 A fragments in registers, exactly, while the products of the stage
// before are under way; under GROUP each group's sums are added to the total by its scale. Else both
// operands come from shared memory.
// The SHARES blocks of K are one cluster: each adds a part of the tile from all their shared
// memories, in order (deterministic), and writes it (gemm_epilogue.cuh).
//
// Macros: those of weights.cuh, X (bf16 | f16 | i8), OUT, BIAS, RESIDUAL, GROUPS (1 | 2), TOKENS (8, 16, 32,
// 64, 128, 256; 128 at most under GROUP), STAGES, SHARES (1..8).
// Source of the idea (A converted in registers): CUTLASS example 55, mixed-input GEMM.
#include "hopper.cuh"
#include "weights.cuh"

#define CODED (!IS_FLOAT && !ROUNDS)
#define ROWS (64 * GROUPS)
#define BK (ROUNDS ? 128 : 64)
#define W_ROW (IS_FLOAT ? 2 * BK : NIBBLES ? BK / 2 : BK)  // bytes of a row in a stage
#define CODE_AT(k) (NIBBLES ? (k) / 2 : (k))                    // element of a row that has input k
#define LD_TILE (ROWS + 4)
#define W_STAGE (ROWS * W_ROW)
#define X_STAGE (TOKENS * 128)
#define STAGE_BYTES (W_STAGE + X_STAGE)
#define ACC (TOKENS / 2)  // accumulators of a thread
#define MANY (TOKENS >= 128)
#define CONSUMERS (128 * GROUPS)
#define THREADS (CONSUMERS + (MANY ? 128 : 32))
#include "gemm_epilogue.cuh"

static_assert(!PAIRS && !OFFSETS && !SUPER, "one plane of codes, one level of scales");

#if ROUNDS
typedef int acc_t;
#else
typedef float acc_t;
#endif

// -- instructions that hopper.cuh does not have ---------------------------------------------------
#define WG_R64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define WG_R72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define WG_R80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define WG_R88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define WG_R96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WG_R104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WG_R112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WG_R120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WG_T96 WG_T64 ", " WG_R64 ", " WG_R72 ", " WG_R80 ", " WG_R88
#define WG_T128 WG_T96 ", " WG_R96 ", " WG_R104 ", " WG_R112 ", " WG_R120
#define WG_O96 WG_O64, WG_O8(64), WG_O8(72), WG_O8(80), WG_O8(88)
#define WG_O128 WG_O96, WG_O8(96), WG_O8(104), WG_O8(112), WG_O8(120)
#define WG_T4 "%0, %1, %2, %3"
#define WG_T010 WG_R0  // 010 is 8: WG_O8 is taken
#define WG_T16 WG_R0 ", " WG_R8
#define WG_O4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define WG_O010 WG_O8(0)
#define WG_O16 WG_O8(0), WG_O8(8)
WGMMA_BOTH(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
WGMMA_BOTH(16, 010, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
WGMMA_BOTH(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
WGMMA_BOTH(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#define WG_I4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define WG_I8(i) WG_I4(i), WG_I4(i + 4)
#define WG_I16(i) WG_I8(i), WG_I8(i + 8)
#define WG_I32(i) WG_I16(i), WG_I16(i + 16)
#define WG_I64(i) WG_I32(i), WG_I32(i + 32)
#define WGMMA_INT8(N, A, TEXT, I0, I1, ...)                                                     \
  DEVICE void wgmma_int8(int (&d)[A], u64 a, u64 b) {                                           \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" TEXT "}, " I0 ", " I1 \
                 ", 1;" : __VA_ARGS__ : "l"(a), "l"(b));                                        \
  }
WGMMA_INT8(8, 4, WG_T4, "%4", "%5", WG_I4(0))
WGMMA_INT8(16, 8, WG_R0, "%8", "%9", WG_I8(0))
WGMMA_INT8(32, 16, WG_T16, "%16", "%17", WG_I16(0))
WGMMA_INT8(64, 32, WG_T32, "%32", "%33", WG_I32(0))
WGMMA_INT8(128, 64, WG_T64, "%64", "%65", WG_I64(0))
WGMMA_INT8(256, 128, WG_T128, "%128", "%129", WG_I64(0), WG_I64(64))
DEVICE void tma_load_2d(u32 target, const TensorMap* map, u32 barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(target), "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
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

// A fragments of STEPS steps of 16 k from step `first` of a stage on, rows `row` and row + 8; of
// NIBBLES two steps share their bytes, and `first` is even. Chunks of 16 bytes are swizzled as the
// copy engine does it for rows of 64 or 32 bytes.
#if CODED
template <int STEPS> DEVICE void load_a(u32 stage, int row, int first, u32 (&a)[STEPS][4]) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int s = 0; s < STEPS; s += NIBBLES ? 2 : 1) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + half * 8;
      const int chunk = NIBBLES ? (first + s) / 2 ^ (r >> 2 & 1) : (first + s) ^ (r >> 1 & 3);
      const u32 p = stage + r * W_ROW + (chunk << 4) + t * 2;
      const u32 left = shared_u16(p), right = shared_u16(p + 8);
#pragma unroll
      for (int i = 0; i < (NIBBLES ? 2 : 1); ++i) {
        a[s + i][half] = two_halves<0>(four_codes(left, 0, 4 * i), X());
        a[s + i][half + 2] = two_halves<0>(four_codes(right, 0, 4 * i), X());
      }
    }
  }
}
#endif

struct Ring {
  u32 stages, full, empty;  // shared addresses; barriers 8 bytes apart
};

#if !CODED
DEVICE void one_step(acc_t (&acc)[ACC], u64 a, u64 b) {
#if ROUNDS
  wgmma_int8(acc, a, b);
#else
  Wgmma<X, TOKENS>::template ss<0>(acc, a, b, 1);
#endif
}
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int steps, int group, const SCALE_T*,
                     const SCALE_T*, int) {
  for (int i = 0; i < steps; ++i) {
    const int s = i % STAGES;
    const u32 stage = ring.stages + s * STAGE_BYTES;
    mbarrier_wait(ring.full + s * 8, i / STAGES & 1);
    const u64 a = swizzled_descriptor(stage + group * 64 * 128);
    const u64 b = swizzled_descriptor(stage + W_STAGE);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      one_step(acc, descriptor_plus(a, k * 32), descriptor_plus(b, k * 32));
    wgmma_commit();
    wgmma_wait<1>();
    if (i && threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + (i - 1) % STAGES * 8);
  }
  wgmma_wait<0>();
  pin(acc);
}
#elif GROUP == 0
// The bytes of a stage become fragments during the products of the stage before.
DEVICE void one_stage(acc_t (&acc)[ACC], Ring ring, int i, int row, u32 (&a)[4][4]) {
  const int s = i % STAGES;
  const u32 stage = ring.stages + s * STAGE_BYTES;
  mbarrier_wait(ring.full + s * 8, i / STAGES & 1);
  load_a<4>(stage, row, 0, a);
  const u64 b = swizzled_descriptor(stage + W_STAGE);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k)
    Wgmma<X, TOKENS>::template rs<0>(acc, a[k], descriptor_plus(b, k * 32), 1);
  wgmma_commit();
  wgmma_wait<1>();
  if (i && threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + (i - 1) % STAGES * 8);
}
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int steps, int group, const SCALE_T*,
                     const SCALE_T*, int) {
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
DEVICE void add_scaled(acc_t (&acc)[ACC], float (&sum)[ACC], float low, float high) {
  pin(sum);
#pragma unroll
  for (int j = 0; j < ACC; j += 4) {
    acc[j] += low * sum[j];
    acc[j + 1] += low * sum[j + 1];
    acc[j + 2] += high * sum[j + 2];
    acc[j + 3] += high * sum[j + 3];
  }
}
#if GROUP == 32 || TOKENS < 128
// Units of PART steps of 16 k: half a stage for GROUP 32, else a stage.
#define PART (GROUP == 32 ? 2 : 4)
DEVICE void unit(float (&sum)[ACC], u32 stage, int k0, u32 (&a)[4][4]) {
  const u64 b = swizzled_descriptor(stage + W_STAGE);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < PART; ++k)
    Wgmma<X, TOKENS>::template rs<0>(sum, a[k0 + k], descriptor_plus(b, (k0 + k) * 32), k != 0);
  wgmma_commit();
}
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int steps, int group, const SCALE_T* low,
                     const SCALE_T* high, int groups) {
  const int row = group * 64 + (threadIdx.x % 128 >> 5) * 16 + ((threadIdx.x & 31) >> 2);
  u32 a[4][4];
  float sum[2][ACC], scale_low[2], scale_high[2];
  for (int i = 0; i < steps; ++i) {
    const int s = i % STAGES;
    const u32 stage = ring.stages + s * STAGE_BYTES;
#if GROUP == 32  // the second half's sums of the stage before wait to be added
    const float before_low = scale_low[1], before_high = scale_high[1];
#endif
#pragma unroll
    for (int h = 0; h < 4 / PART; ++h) {
      const int at = (i * BK + h * 32) / GROUP;
      scale_low[h] = low && at < groups ? to_float(low[at]) : 0.f;
      scale_high[h] = high && at < groups ? to_float(high[at]) : 0.f;
    }
    mbarrier_wait(ring.full + s * 8, i / STAGES & 1);
    load_a<4>(stage, row, 0, a);
    unit(sum[0], stage, 0, a);
#if GROUP == 32
    if (i) {
      wgmma_wait<1>();
      add_scaled(acc, sum[1], before_low, before_high);
    }
    unit(sum[1], stage, 2, a);
    wgmma_wait<1>();
    add_scaled(acc, sum[0], scale_low[0], scale_high[0]);
    wgmma_wait<0>();
    pin(sum[1]);
#else
    wgmma_wait<0>();
    pin(sum[0]);
#endif
    if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + s * 8);
#if GROUP != 32
    add_scaled(acc, sum[0], scale_low[0], scale_high[0]);
#endif
  }
#if GROUP == 32
  if (steps) add_scaled(acc, sum[1], scale_low[1], scale_high[1]);
#endif
}
#else
// Units of 32 k, RUN of them in a group, whose products go to one of two sums. During a unit's
// products the bytes of the next one become fragments and the group before is added to acc.
#define RUN (GROUP / 32)
DEVICE void fragments(Ring ring, int u, int row, u32 (&a)[2][4]) {
  const int i = u / 2, s = i % STAGES, part = u % 2;
  if (part == 0) mbarrier_wait(ring.full + s * 8, i / STAGES & 1);
  load_a<2>(ring.stages + s * STAGE_BYTES, row, part * 2, a);
}
DEVICE void issue(float (&sum)[ACC], Ring ring, int u, u32 (&a)[2][4], bool first) {
  const int part = u % 2;
  const u32 stage = ring.stages + u / 2 % STAGES * STAGE_BYTES;
  const u64 b = swizzled_descriptor(stage + W_STAGE);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 2; ++k)
    Wgmma<X, TOKENS>::template rs<0>(sum, a[k], descriptor_plus(b, (part * 2 + k) * 32),
                                     k != 0 || !first);
  wgmma_commit();
}
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int steps, int group, const SCALE_T* low,
                     const SCALE_T* high, int groups) {
  const int row = group * 64 + (threadIdx.x % 128 >> 5) * 16 + ((threadIdx.x & 31) >> 2);
  constexpr int BODY = 8;  // units that overlap; ptxas serialises sums that are read a round later
  const int units = steps * 2, whole = units / BODY * BODY;
  u32 a[2][2][4];
  float sum[2][ACC], scale[2][2];
  auto scale_of = [&](int u, float(&pair)[2]) {
    const int at = u / RUN;
    pair[0] = low && at < groups ? to_float(low[at]) : 0.f;
    pair[1] = high && at < groups ? to_float(high[at]) : 0.f;
  };
  auto release = [&](int u) {  // the stage whose last unit is u
    if ((u + 1) % 2 == 0 && threadIdx.x % 32 == 0)
      mbarrier_arrive(ring.empty + u / 2 % STAGES * 8);
  };
  if (units) fragments(ring, 0, row, a[0]);
  for (int from = 0; from < whole; from += BODY) {
#pragma unroll
    for (int j = 0; j < BODY; ++j) {
      const int u = from + j, now = j / RUN & 1;
      issue(sum[now], ring, u, a[j & 1], j % RUN == 0);
      wgmma_wait<1>();
      if (j) release(u - 1);
      if (j && j % RUN == 0) add_scaled(acc, sum[now ^ 1], scale[now ^ 1][0], scale[now ^ 1][1]);
      if (j % RUN == 0) scale_of(u, scale[now]);
      if (u + 1 < units) fragments(ring, u + 1, row, a[(j & 1) ^ 1]);
    }
    wgmma_wait<0>();
    release(from + BODY - 1);
    constexpr int END = (BODY - 1) / RUN & 1;
    add_scaled(acc, sum[END], scale[END][0], scale[END][1]);
  }
  for (int u = whole; u < units; ++u) {  // what is left of K, one unit after the other
    issue(sum[0], ring, u, a[0], u % RUN == 0);
    wgmma_wait<0>();
    pin(sum[0]);
    release(u);
    scale_of(u, scale[0]);
    if (u % RUN == RUN - 1 || u == units - 1) add_scaled(acc, sum[0], scale[0][0], scale[0][1]);
    if (u + 1 < units) fragments(ring, u + 1, row, a[0]);
  }
}
#endif
#endif

// -- clusters -------------------------------------------------------------------------------------
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Four words of another block's shared memory, at this block's address `p`.
DEVICE uint4 shared_of(u32 p, int block) {
  u32 there;
  uint4 v;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(p), "r"(block));
  asm volatile("ld.shared::cluster.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(there));
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

struct Piece {  // of one weight: what a block works on
  const TensorMap* map;
  const SCALE_T* scales;
  const BIAS* bias;
  int first, rows, column;  // first row in the weight, rows from there to its end, column in y
};

// Stage i holds step begin + (i + turn) % count of K: blocks start at different places, so that
// they do not all read the same lines of x at once.
DEVICE void produce(Ring ring, Piece w, const TensorMap* x, int token0, int begin, int count,
                    int turn, bool early) {
  auto k_of = [&](int i) {
    const int at = i + turn;
    return (begin + (at < count ? at : at - count)) * BK;
  };
  const int ahead = min(count, STAGES);
  if (!early) pdl_wait();
  for (int i = 0; i < ahead; ++i) {
    mbarrier_expect(ring.full + i * 8, STAGE_BYTES);
    tma_load_2d(ring.stages + i * STAGE_BYTES, w.map, ring.full + i * 8, CODE_AT(k_of(i)), w.first);
  }
  if (early) pdl_wait();
  for (int i = 0; i < ahead; ++i)
    tma_load_2d(ring.stages + i * STAGE_BYTES + W_STAGE, x, ring.full + i * 8, k_of(i), token0);
  for (int i = ahead; i < count; ++i) {
    const int s = i % STAGES;
    const u32 stage = ring.stages + s * STAGE_BYTES, full = ring.full + s * 8;
    mbarrier_wait(ring.empty + s * 8, (i / STAGES & 1) ^ 1);
    mbarrier_expect(full, STAGE_BYTES);
    tma_load_2d(stage, w.map, full, CODE_AT(k_of(i)), w.first);
    tma_load_2d(stage + W_STAGE, x, full, k_of(i), token0);
  }
}

DEVICE void consume(Ring ring, Piece w, u32 tile, int begin, int count, int groups) {
  const int thread = threadIdx.x, group = thread >> 7, t = thread & 3;
  const int local = group * 64 + (thread % 128 >> 5) * 16 + ((thread & 31) >> 2);
  const SCALE_T* low = nullptr;
  const SCALE_T* high = nullptr;
  if (GROUP) {
    const i64 from = (i64)(w.first + local) * groups + begin * BK / GROUP_INPUTS;
    if (local < w.rows) low = w.scales + from;
    if (local + 8 < w.rows) high = w.scales + from + 8 * groups;
  }
  acc_t acc[ACC] = {};
  multiply(acc, ring, count, group, low, high, groups - begin * BK / GROUP_INPUTS);
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
__launch_bounds__(THREADS, 1) gemm_sm90(
    const __grid_constant__ TensorMap map0, const __grid_constant__ TensorMap map1,
    const __grid_constant__ TensorMap map2, const __grid_constant__ TensorMap x_map,
    const float* x_scales, const SCALE_T* s0, const SCALE_T* s1, const SCALE_T* s2, const BIAS* b0,
    const BIAS* b1, const BIAS* b2, int n0, int n1, int n2, const RESIDUAL* residual, OUT* y,
    i64 ldy, int M, int K, int wide, int early) {
  extern __shared__ __align__(1024) char room[];
  __shared__ __align__(8) u64 barriers[2 * STAGES];
  pdl_launch();
  const int tiles0 = (n0 + ROWS - 1) / ROWS, tiles1 = (n1 + ROWS - 1) / ROWS;
  const int row_tiles = tiles0 + tiles1 + (n2 + ROWS - 1) / ROWS;
  const int token_tiles = (M + TOKENS - 1) / TOKENS;
  const int band = blockIdx.x / (8 * row_tiles), in_band = blockIdx.x % (8 * row_tiles);
  const int band_tokens = min(8, token_tiles - band * 8);
  const int token0 = (band * 8 + in_band % band_tokens) * TOKENS;
  const int tile = in_band / band_tokens;
  Piece w = {&map0, s0, b0, tile * ROWS, n0 - tile * ROWS, 0};
  if (tile >= tiles0) {
    w = {&map1, s1, b1, (tile - tiles0) * ROWS, n1 - (tile - tiles0) * ROWS, n0};
    const int last = tile - tiles0 - tiles1;
    if (last >= 0) w = {&map2, s2, b2, last * ROWS, n2 - last * ROWS, n0 + n1};
  }
  constexpr int ALIGN = GROUP > BK ? GROUP / BK : 1;  // shares do not cut groups
  const int steps = (K + BK - 1) / BK, spans = (steps + ALIGN - 1) / ALIGN;
  const int begin = spans * blockIdx.y / SHARES * ALIGN;
  const int count = min(steps, (int)(spans * (blockIdx.y + 1) / SHARES * ALIGN)) - begin;
  const int turn = GROUP || count < 1 ? 0 : tile * 5 % count;
  const Ring ring = {(shared_address(room) + 1023) & ~1023u, shared_address(barriers),
                     shared_address(barriers) + STAGES * 8};
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(ring.full + s * 8, 1);
      mbarrier_init(ring.empty + s * 8, 4 * GROUPS);  // a lane of each warp that multiplies
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= CONSUMERS) {
    if (MANY) registers_down<40>();
    if (threadIdx.x == CONSUMERS) produce(ring, w, &x_map, token0, begin, count, turn, early);
    __syncwarp();
    if (SHARES > 1) cluster_sync();
    if (SHARES > 1) cluster_sync();
    return;
  }
  if (MANY) registers_up<GROUPS == 2 ? 232 : 208>();
  pdl_wait();
  consume(ring, w, ring.stages, begin, count, groups_of(K));
  if (SHARES > 1) cluster_sync();
  else named_sync(1, CONSUMERS);
  const i64 corner = (i64)token0 * ldy + w.column + w.first;
  const Epilogue e = {ROW_SCALE ? w.scales + w.first : nullptr,
                      ROUNDS ? x_scales + token0 : nullptr, w.bias ? w.bias + w.first : nullptr,
                      residual ? residual + corner : nullptr, y + corner, ldy, w.rows, M - token0,
                      (wide && (w.column & 3) == 0)};
  auto read = [&](int token, int row) {
    return sum_shares(ring.stages + (token * LD_TILE + row) * 4);
  };
  constexpr int FOURS = TOKENS * ROWS / 4;
  store_tile<CONSUMERS>(read, e, threadIdx.x, FOURS * blockIdx.y / SHARES,
                        FOURS * (blockIdx.y + 1) / SHARES);
  if (SHARES > 1) cluster_sync();  // until then the others read this block's memory
}
