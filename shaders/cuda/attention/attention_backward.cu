// Gradient of varlen attention with tensor cores (mma.sync, sm_80 and later): a block keeps N keys
// of one kv head in shared memory and walks over all tiles of M queries of all heads of its group,
// dk and dv in registers, the tile's part of dq added to dq_sum (f32) by atomics. Before it runs
// `backward_prepare`, which makes the stats (lse log2(e), delta) [H, Tq] and clears dq_sum, after
// it `backward_finish` (attention_backward_ends.cu).
//
// q [Tq, H, D], k, v [Tk, K, D] (rows and heads strided, D contiguous), out, g [Tq, H, D]. D is a
// multiple of 8 up to DP, the padded width. Scores are computed transposed, keys as rows: with
// SN == WARPS a warp holds whole rows of p^T and ds^T, which are then the A operand of dv and dk as
// they lie in its registers; else both go through shared memory. dq_sum is kept in the order of
// the fragments, tile by tile, so that every atomic of a warp is one contiguous piece.
//
// Macros: TYPE f16 | bf16; DP; TILE_Q (M), TILE_K (N), WARP_COUNT; SN, KN, QM: warps along keys in
// the scores, along keys in dk and dv, along queries in dq; MC queries at a time (SN == WARPS); QS,
// OS buffers of q and g; BLOCKS on one SM; DQ 0: no dq (attention_backward_dq.cu makes it, in a
// fixed order); EXTRA 1: softcap and ALiBi.
// Source: Dao 2023, FlashAttention-2, algorithm 2.
#include "prelude.cuh"
#include "mma.cuh"
#include "attention_backward.cuh"

constexpr int M = TILE_Q, N = TILE_K, WARPS = WARP_COUNT, THREADS = WARPS * 32;
constexpr int SM = WARPS / SN, KD = WARPS / KN, QD = WARPS / QM;  // warps along the other axis
constexpr bool OWN_ROWS = SM == 1;
constexpr int COLUMNS = OWN_ROWS ? MC : M / SM;  // queries of one round of a warp's scores
constexpr int PITCH = 2 * DP + 16, P_PITCH = 2 * M + 16;  // bytes; odd multiples of 16
#include "attention_backward_tiles.cuh"
#include "attention_backward_walk.cuh"
static_assert(PITCH == OUT_PITCH, "`send` reads rows as they lie here");
constexpr int SI = N / SN / 16, SB = COLUMNS / 8;         // m16 and n8 tiles of scores
constexpr int KI = N / KN / 16, KB = DP / KD / 8;         // of dk and dv
constexpr int QI = M / QM / 16, QB = DP / QD / 8;         // of dq
constexpr int DQ_PARTS = QI * QB > 8 && QB % 4 == 0 ? 2 : 1;  // made one after the other
static_assert(!OWN_ROWS || KN == SN, "rows of p stay with their warp");
static_assert(SB % 2 == 0 && KB % 2 == 0 && QB % 2 == 0 && SI > 0 && KI > 0 && QI > 0, "tiles");

// Shared memory, in bytes from its start.
constexpr int AT_K = 0, AT_V = AT_K + N * PITCH, AT_Q = AT_V + N * PITCH;
constexpr int AT_G = AT_Q + QS * M * PITCH, AT_STATS = AT_G + OS * M * PITCH;
constexpr int AT_DS = AT_STATS + 2 * M * 8;
constexpr int AT_P = AT_DS + (DQ || !OWN_ROWS ? N * P_PITCH : 0);

DEVICE void load_stats(u32 to, const float2* from, int rows) {
  for (int i = threadIdx.x; i < M; i += THREADS) load_stat(to, from, i, rows);
}

// Packed fragments to shared memory [N][M]; `to`: of this lane's first number.
DEVICE void keep(char* to, const u32 (&p)[SI][SB][2]) {
#pragma unroll
  for (int i = 0; i < SI; i++)
#pragma unroll
    for (int j = 0; j < SB; j++) {
      *(u32*)(to + 16 * i * P_PITCH + 16 * j) = p[i][j][0];
      *(u32*)(to + (16 * i + 8) * P_PITCH + 16 * j) = p[i][j][1];
    }
}

// A gradient [N, D] from registers through shared memory to its rows.
DEVICE void store_tile(float (&c)[KI][KB][4], char* room, TYPE* to, i64 pitch, int rows, int D,
                       float factor) {
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  char* own = room + (warp / KD * (N / KN) + lane / 4) * PITCH +
              2 * (warp % KD * (DP / KD) + 2 * (lane & 3));
#pragma unroll
  for (int i = 0; i < KI; i++)
#pragma unroll
    for (int j = 0; j < KB; j++) {
      float(&x)[4] = c[i][j];
      *(u32*)(own + 16 * i * PITCH + 16 * j) = pack2<TYPE>(x[0] * factor, x[1] * factor);
      *(u32*)(own + (16 * i + 8) * PITCH + 16 * j) = pack2<TYPE>(x[2] * factor, x[3] * factor);
    }
  __syncthreads();
  send<N>(room, to, pitch, rows, D);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) backward_keys(
    const TYPE* q, const TYPE* k, const TYPE* v, const TYPE* g, const float2* stats, float* dq_sum,
    TYPE* dk, TYPE* dv, const int* cu_q, const int* cu_k, const float* alibi, int B, int H, int K,
    int D, int Tq, int q_row, int q_head, int k_row, int k_head, int v_row, int v_head, int lowest,
    int highest, int bottom_right, float scale, float softcap) {
  extern __shared__ __align__(1024) char room[];
  const u32 base = shared_address(room);
  const int G = H / K;
  const int kv = blockIdx.y, slots = Tq / M + B;
  Walk w;
  if (!walk_queries(w, cu_q, cu_k, B, lowest, highest, bottom_right)) return;

  // Round r: query tile `w.first + r % w.tiles` of head `kv * G + r / w.tiles`.
  auto load_q = [&](int head, int tile, int stage) {
    const int i0 = tile * M;
    load_tile<M>(base + AT_Q + (QS == 2 ? stage : 0) * M * PITCH,
                 q + (i64)(w.q0 + i0) * q_row + (i64)head * q_head, q_row, w.len_q - i0, D);
    load_stats(base + AT_STATS + stage * M * 8, stats + (i64)head * Tq + w.q0 + i0,
               w.len_q - i0);
  };
  auto load_g = [&](int head, int tile, int stage) {
    const int i0 = tile * M;
    load_tile<M>(base + AT_G + (OS == 2 ? stage : 0) * M * PITCH,
                 g + ((i64)(w.q0 + i0) * H + head) * D, (i64)H * D, w.len_q - i0, D);
  };

  float dk_sum[KI][KB][4], dv_sum[KI][KB][4];
  clear(dk_sum);
  clear(dv_sum);
  int head = kv * G, tile = w.first, stage = 0;
  if (w.tiles > 0) {
    const i64 row = w.k0 + w.start;
    load_tile<N>(base + AT_K, k + row * k_row + (i64)kv * k_head, k_row, w.rows, D);
    load_tile<N>(base + AT_V, v + row * v_row + (i64)kv * v_head, v_row, w.rows, D);
    load_q(head, tile, 0);
    load_g(head, tile, 0);
  }
  cp_async_commit();

  for (int round = w.tiles * G; round > 0; round--) {
    // Where this warp works; worked out anew in each round, since registers are scarce.
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    asm volatile("" : "+r"(lane), "+r"(warp));
    const int s_key = warp / SM * (N / SN), s_query = warp % SM * (M / SM);
    const int k_key = warp / KD * (N / KN), k_d = warp % KD * (DP / KD);
    const int q_query = warp / QD * (M / QM), q_d = warp % QD * (DP / QD);
    cp_async_wait<0>();
    __syncthreads();
    int next_head = head, next_tile = tile + 1;
    if (next_tile == w.first + w.tiles) next_tile = w.first, next_head++;
    const bool more = round > 1;
    if (QS == 2 && more) load_q(next_head, next_tile, stage ^ 1);
    if (OS == 2 && more) load_g(next_head, next_tile, stage ^ 1);
    cp_async_commit();

    const u32 at_q = base + AT_Q + (QS == 2 ? stage : 0) * M * PITCH;
    const u32 at_g = base + AT_G + (OS == 2 ? stage : 0) * M * PITCH;
    const float2* own_stats =
        (const float2*)(room + AT_STATS) + stage * M + s_query + 2 * (lane & 3);
    const Score score(scale, EXTRA ? softcap : 0.f, EXTRA && alibi ? alibi[head] : 0.f);
    const bool masked = !w.mask.all(tile * M, M, w.start, N);
    const int at_p = (s_key + lane / 4) * P_PITCH + 2 * (s_query + 2 * (lane & 3));

#pragma unroll 1
    for (int c = 0; c < (OWN_ROWS ? M / MC : 1); c++) {
      float s[SI][SB][4], dp[SI][SB][4];
      u32 p[SI][SB][2], ds[SI][SB][2];
      const int column = s_query + c * COLUMNS;
      clear(s);
      product<false, false, DP / 16>(s, lane_a(base + AT_K + s_key * PITCH, lane, PITCH), PITCH,
                                     lane_b(at_q + column * PITCH, lane, PITCH), PITCH);
      const int key = w.start + s_key + lane / 4, query = tile * M + column + 2 * (lane & 3);
      if (masked) weigh<true, SI, SB>(**s, **p, own_stats + c * COLUMNS, key, query, w.mask, score);
      else weigh<false, SI, SB>(**s, **p, own_stats + c * COLUMNS, key, query, w.mask, score);
      if (OWN_ROWS) product(dv_sum, p, lane_a(at_g + column * PITCH, lane, PITCH));
      else keep(room + AT_P + at_p, p);
      clear(dp);
      product<false, false, DP / 16>(dp, lane_a(base + AT_V + s_key * PITCH, lane, PITCH), PITCH,
                                     lane_b(at_g + column * PITCH, lane, PITCH), PITCH);
      slope_of<SI, SB>(**ds, **s, **dp, own_stats + c * COLUMNS);
      if (DQ || !OWN_ROWS) keep(room + AT_DS + at_p + 2 * c * COLUMNS, ds);
      if (OWN_ROWS) product(dk_sum, ds, lane_a(at_q + column * PITCH, lane, PITCH));
    }
    if (DQ || !OWN_ROWS || OS == 1) __syncthreads();

    if constexpr (!OWN_ROWS)
      product<false, true, M / 16>(dv_sum, lane_a(base + AT_P + k_key * P_PITCH, lane, P_PITCH),
                                   P_PITCH, lane_a(at_g + 2 * k_d, lane, PITCH), PITCH);
    if (OS == 1) {
      if (!OWN_ROWS) __syncthreads();
      if (more) load_g(next_head, next_tile, stage ^ 1);
      cp_async_commit();
    }
    if constexpr (DQ) {
      float* sum = dq_sum + ((i64)head * slots + w.slot + tile) * (M * DP);
#pragma unroll 1
      for (int part = 0; part < DQ_PARTS; part++) {
        float dq[QI][QB / DQ_PARTS][4];
        clear(dq);
        product<true, true, N / 16>(
            dq, lane_b(base + AT_DS + 2 * q_query, lane, P_PITCH), P_PITCH,
            lane_a(base + AT_K + 2 * (q_d + part * (DP / QD / DQ_PARTS)), lane, PITCH), PITCH);
#pragma unroll
        for (int i = 0; i < QI; i++)
#pragma unroll
          for (int j = 0; j < QB / DQ_PARTS; j++)
            add_sums(sum, (warp * QI + i) * QB + part * (QB / DQ_PARTS) + j, dq[i][j]);
      }
    }
    if constexpr (!OWN_ROWS)
      product<false, true, M / 16>(dk_sum, lane_a(base + AT_DS + k_key * P_PITCH, lane, P_PITCH),
                                   P_PITCH, lane_a(at_q + 2 * k_d, lane, PITCH), PITCH);
    if (QS == 1) {
      __syncthreads();
      if (more) load_q(next_head, next_tile, stage ^ 1);
      cp_async_commit();
    }
    head = next_head, tile = next_tile, stage ^= 1;
  }
  cp_async_wait<0>();
  __syncthreads();
  const i64 at = ((i64)(w.k0 + w.start) * K + kv) * D;
  store_tile(dk_sum, room + AT_K, dk + at, (i64)K * D, w.rows, D, scale);
  store_tile(dv_sum, room + AT_V, dv + at, (i64)K * D, w.rows, D, 1.f);
}
