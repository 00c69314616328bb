// Gradient of varlen attention on Hopper (sm_90a): `backward_keys` of attention_backward.cu with
// warpgroup products. The formula, the arguments and the work of a block are the same: N = 128 keys
// of one kv head stay in shared memory, tiles of M queries of all heads of the group pass by.
//
// Two warpgroups of 64 keys each. A warpgroup has p^T and ds^T in registers, where they are the A
// operand of dv += p^T g and dk += ds^T q; ds also goes to shared memory as [M][N], for dq = ds k,
// of which a warpgroup makes 64 queries (M = 128, DP = 64) or 64 columns (M = 64, DP = 128). All
// tiles lie in 128-byte swizzle, in blocks of 64 columns.
//
// Order of a round: dv is started, ds made under it; dk; then, all of ds being there, dq and the
// next scores. While those run, dq is handed to the copy engine, which adds it to dq_sum; under the
// next dp the next exponentials. Products never run across the loop's edge: ptxas would serialise
// them. One barrier a round: with three places for q and g (one in use, one there, one on its way)
// and two for ds, what is overwritten was last read before the barrier of the round.
//
// Macros: TYPE f16 | bf16; DP 64 | 128, the padded width; DQ 0: no dq; EXTRA 1: softcap and ALiBi.
// Source: Dao 2023, FlashAttention-2, algorithm 2; Shah et al. 2024, FlashAttention-3.
#include "hopper.cuh"
#include "attention_backward.cuh"

constexpr int M = 8192 / DP, N = 128, THREADS = 256;
constexpr int TILE_BYTES = M * DP * 2, KEY_BYTES = N * DP * 2;
constexpr int AT_K = 0, AT_V = AT_K + KEY_BYTES, AT_Q = AT_V + KEY_BYTES;
constexpr int STAGES = 3, DS_BYTES = DQ ? M * N * 2 : 0;
constexpr int AT_G = AT_Q + STAGES * TILE_BYTES, AT_DS = AT_G + STAGES * TILE_BYTES;
constexpr int AT_STATS = AT_DS + 2 * DS_BYTES, AT_SUMS = AT_STATS + STAGES * M * 8;
constexpr bool LATE_DP = EXTRA && M == 128;  // else the registers do not suffice
#include "attention_backward_walk.cuh"
#include "attention_backward_sm90.cuh"

DEVICE void load_stats(u32 to, const float2* from, int rows) {
  int i = threadIdx.x;
  if (i < M) load_stat(to, from, i, rows);
}

// ds^T in registers -> ds [M][N] in shared memory; `to`: the warpgroup's 64 keys.
DEVICE void exchange(u32 to, const u32 (&ds)[M / 4]) {
  const int lane = threadIdx.x & 31, row = (lane & 7) + (lane >> 4) * 8;
  const int chunk = (threadIdx.x >> 5 & 3) * 2 + (lane >> 3 & 1);
  const u32 own = to + row * 128 + ((chunk ^ row) & 7) * 16;
#pragma unroll
  for (int j = 0; j < M / 16; j++)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
                 ::"r"(own + j * 2048), "r"(ds[4 * j]), "r"(ds[4 * j + 1]), "r"(ds[4 * j + 2]),
                 "r"(ds[4 * j + 3]) : "memory");
}

// A warp's part of dq, 4 KB in the order of backward_finish, is added to dq_sum by the copy engine.
// `room`: the warp's 4 KB of shared memory.
DEVICE void add_part(float* sum, char* room, const float (&dq)[32]) {
  const int lane = threadIdx.x & 31;
  if (lane == 0) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  __syncwarp();
#pragma unroll
  for (int j = 0; j < 8; j++)
    *(float4*)(room + j * 512 + lane * 16) =
        make_float4(dq[4 * j], dq[4 * j + 1], dq[4 * j + 2], dq[4 * j + 3]);
  fence_async_proxy();
  __syncwarp();
  if (lane == 0) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], 4096;"
                 ::"l"(sum), "r"(shared_address(room)) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) backward_keys(
    const TYPE* q, const TYPE* k, const TYPE* v, const TYPE* g, const float2* stats, float* dq_sum,
    TYPE* dk, TYPE* dv, const int* cu_q, const int* cu_k, const float* alibi, int B, int H, int K,
    int D, int Tq, int q_row, int q_head, int k_row, int k_head, int v_row, int v_head, int lowest,
    int highest, int bottom_right, float scale, float softcap) {
  extern __shared__ __align__(1024) char room[];
  const u32 base = shared_address(room);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = uniform(threadIdx.x >> 7);
  const int G = H / K, kv = blockIdx.y, slots = Tq / M + B;
  Walk w;
  if (!walk_queries(w, cu_q, cu_k, B, lowest, highest, bottom_right)) return;

  auto load = [&](int head, int tile, int stage) {
    const int i0 = tile * M;
    load_tile<M>(base + AT_Q + stage * TILE_BYTES,
                 q + (i64)(w.q0 + i0) * q_row + (i64)head * q_head, q_row, w.len_q - i0, D);
    load_tile<M>(base + AT_G + stage * TILE_BYTES, g + ((i64)(w.q0 + i0) * H + head) * D,
                 (i64)H * D, w.len_q - i0, D);
    load_stats(base + AT_STATS + stage * M * 8, stats + (i64)head * Tq + w.q0 + i0,
               w.len_q - i0);
  };

  float dk_sum[DP / 2], dv_sum[DP / 2];
#pragma unroll
  for (int i = 0; i < DP / 2; i++) dk_sum[i] = dv_sum[i] = 0.f;
  // Where the walk is, and where the loads are: round r is query tile `w.first + r % w.tiles` of
  // head `kv * G + r / w.tiles`.
  int head = kv * G, tile = w.first, load_head = head, load_at = w.first, now = 0;
  const int rounds = w.tiles * G;
  auto load_next = [&](int stage) {
    load(load_head, load_at, stage);
    if (++load_at == w.first + w.tiles) load_at = w.first, load_head++;
  };
  if (rounds > 0) {
    const i64 row = w.k0 + w.start;
    load_tile<N>(base + AT_K, k + row * k_row + (i64)kv * k_head, k_row, w.rows, D);
    load_tile<N>(base + AT_V, v + row * v_row + (i64)kv * v_head, v_row, w.rows, D);
    load_next(0);
  }
  cp_async_commit();
  if (rounds > 1) load_next(1);
  cp_async_commit();
  const u32 own_k = base + AT_K + group * 8192, own_v = base + AT_V + group * 8192;
  const int key = w.start + warp * 16 + lane / 4;
  float s[M / 2], dp[M / 2], dq[32];
  u32 p[M / 4], ds[M / 4];

  auto start_scores = [&](int stage) {
    wgmma_fence();
    scores<N, M>(s, own_k, base + AT_Q + stage * TILE_BYTES);
    wgmma_commit();
  };
  auto start_dp = [&](int stage) {
    wgmma_fence();
    scores<N, M>(dp, own_v, base + AT_G + stage * TILE_BYTES);
    wgmma_commit();
  };
  auto stats_of = [&](int stage) {
    return (const float2*)(room + AT_STATS) + stage * M + 2 * (lane & 3);
  };
  // Scores under way -> p, s and dp ready.
  auto weigh_tile = [&](int stage) {
    const Score score(scale, EXTRA ? softcap : 0.f, EXTRA && alibi ? alibi[head] : 0.f);
    const int query = tile * M + 2 * (lane & 3);
    const bool masked = !w.mask.all(tile * M, M, w.start, N);
    if (!LATE_DP) start_dp(stage);
    wgmma_wait<LATE_DP ? 0 : 1>();
    pin(s);
    if (EXTRA || masked) weigh<true, 1, M / 8>(s, p, stats_of(stage), key, query, w.mask, score);
    else weigh<false, 1, M / 8>(s, p, stats_of(stage), key, query, w.mask, score);
    if (LATE_DP) start_dp(stage);
    wgmma_wait<0>();
    pin(dp);
  };

  if (rounds > 0) {
    cp_async_wait<1>();
    fence_async_proxy();
    __syncthreads();
    start_scores(0);
    weigh_tile(0);
  }
  int flip = 0;  // which of the two places for ds
  for (int round = rounds; round > 0; round--) {
    const u32 at_q = base + AT_Q + now * TILE_BYTES, at_g = base + AT_G + now * TILE_BYTES;
    const u32 at_ds = base + AT_DS + flip * DS_BYTES;
    pin(p);
    wgmma_fence();
    gradient<M>(dv_sum, p, at_g);
    wgmma_commit();
    pin(s);  // what follows stays behind the start of dv
    pin(dp);
    slope_of<1, M / 8>(ds, s, dp, stats_of(now));
    pin(ds);
    if (DQ) exchange(at_ds + group * (M * 128), ds);
    wgmma_fence();
    gradient<M>(dk_sum, ds, at_q);
    wgmma_commit();
    cp_async_wait<0>();
    fence_async_proxy();
    __syncthreads();  // ds is whole, the next tile is there, the one before this is done with
    if (DQ) {
      const u32 own_ds = at_ds + (M == 128 ? group * 8192 : 0);
      const u32 at_k = base + AT_K + (DP == 128 ? group * (N * 128) : 0);
      wgmma_fence();
#pragma unroll
      for (int x = 0; x < N / 16; x++)
        Wgmma<TYPE, 64>::template ss<1>(
            dq, descriptor(low_word(own_ds) + x / 4 * (M * 8) + x % 4 * 2),
            descriptor(low_word(at_k) + x * 128), x > 0);
      wgmma_commit();
    }
    const int next = now == STAGES - 1 ? 0 : now + 1;
    start_scores(next);  // after the last round of no use
    wgmma_wait<1>();
    pin(dq);
    pin(dv_sum);
    pin(dk_sum);
    pin(p);
    pin(ds);
    if (DQ) {
      const int place = DP == 128 ? (warp & 3) * 2 + group : warp;  // in backward_finish's order
      float* sum = dq_sum + ((i64)head * slots + w.slot + tile) * (M * DP) + place * 1024;
      add_part(sum, room + AT_SUMS + warp * 4096, dq);
    }
    if (round == 1) {
      wgmma_wait<0>();
      pin(s);
      pin(dp);
      break;
    }
    if (round > 2) load_next(next == STAGES - 1 ? 0 : next + 1);
    cp_async_commit();
    if (++tile == w.first + w.tiles) tile = w.first, head++;
    now = next, flip ^= 1;
    weigh_tile(now);
  }
  wgmma_wait<0>();
  cp_async_wait<0>();
  if (DQ) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  __syncthreads();
  stage(room, dk_sum, scale);
  stage(room + N * OUT_PITCH, dv_sum, 1.f);
  __syncthreads();
  const i64 at = ((i64)(w.k0 + w.start) * K + kv) * D;
  send<N>(room, dk + at, (i64)K * D, w.rows, D);
  send<N>(room + N * OUT_PITCH, dv + at, (i64)K * D, w.rows, D);
}
