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

// (lse, delta) of M queries; past the end zeros, which with zero rows of q and g give zeros.
DEVICE void load_stats(u32 to, const float2* from, int rows) {
  for (int i = threadIdx.x; i < M; i += THREADS)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 :: "r"(to + i * 8), "l"(i < rows ? from + i : from), "r"(i < rows ? 8 : 0)
                 : "memory");
}

// Scores of a warp -> p packed, and in s what ds is the product of with (dp - delta).
template <bool MASKED>
DEVICE void weigh(float (&s)[SI][SB][4], u32 (&p)[SI][SB][2], const float2* stats, int key,
                  int query, const Mask& mask, const Score& score) {
#pragma unroll
  for (int j = 0; j < SB; j++) {
    float4 two = *(const float4*)(stats + 8 * j);
#pragma unroll
    for (int i = 0; i < SI; i++) {
      float slack[4];
#pragma unroll
      for (int x = 0; x < 4; x++) {
        int row = key + 16 * i + (x >= 2 ? 8 : 0), column = query + 8 * j + (x & 1);
        float lse = x & 1 ? two.z : two.x, w;
        slack[x] = 1.f;
        if (EXTRA) w = score.log2_weight(s[i][j][x], row - column - mask.shift, slack[x]) - lse;
        else w = fmaf(s[i][j][x], score.unit, -lse);
        if (MASKED && !mask.sees(column, row)) w = -INF;
        s[i][j][x] = power2(w);
      }
      p[i][j][0] = pack2<TYPE>(s[i][j][0], s[i][j][1]);
      p[i][j][1] = pack2<TYPE>(s[i][j][2], s[i][j][3]);
#pragma unroll
      for (int x = 0; x < 4; x++)
        if (EXTRA) s[i][j][x] *= slack[x];
    }
  }
}

// ds = p slack (dp - delta), packed.
DEVICE void slope_of(u32 (&ds)[SI][SB][2], const float (&s)[SI][SB][4],
                     const float (&dp)[SI][SB][4], const float2* stats) {
#pragma unroll
  for (int j = 0; j < SB; j++) {
    float4 two = *(const float4*)(stats + 8 * j);
#pragma unroll
    for (int i = 0; i < SI; i++) {
      const float(&x)[4] = s[i][j], (&y)[4] = dp[i][j];
      ds[i][j][0] = pack2<TYPE>(x[0] * (y[0] - two.y), x[1] * (y[1] - two.w));
      ds[i][j][1] = pack2<TYPE>(x[2] * (y[2] - two.y), x[3] * (y[3] - two.w));
    }
  }
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
DEVICE void store_tile(float (&c)[KI][KB][4], char* room, TYPE* to, int rows, int K, int D,
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
  for (int piece = threadIdx.x; piece < N * (DP / 8); piece += THREADS) {
    int row = piece / (DP / 8), column = piece % (DP / 8);
    if (row < rows && column * 8 < D)
      *(uint4*)(to + (i64)row * K * D + column * 8) = *(uint4*)(room + row * PITCH + column * 16);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) backward_keys(
    const TYPE* q, const TYPE* k, const TYPE* v, const TYPE* g, const float2* stats, float* dq_sum,
    TYPE* dk, TYPE* dv, const int* cu_q, const int* cu_k, const float* alibi, int B, int H, int K,
    int D, int Tq, int q_row, int q_head, int k_row, int k_head, int v_row, int v_head, int lowest,
    int highest, int bottom_right, float scale, float softcap) {
  extern __shared__ __align__(1024) char room[];
  const u32 base = shared_address(room);
  const int G = H / K;
  const int kv = blockIdx.y, b = segment_of_slot(cu_k, B, blockIdx.x, N);
  const int k0 = cu_k[b], n0 = (blockIdx.x - first_slot(cu_k, b, N)) * N;
  const int q0 = cu_q[b], len_q = cu_q[b + 1] - q0, len_k = cu_k[b + 1] - k0;
  if (n0 >= len_k) return;
  const Mask mask{bottom_right ? len_k - len_q : 0, lowest, highest, len_k};
  const int rows = min(N, len_k - n0);
  const int first = mask.first_query(n0) / M;
  const int last = min(len_q - 1, mask.last_query(n0 + rows));
  const int tiles = last < first * M ? 0 : last / M + 1 - first;
  const int slots = Tq / M + B, slot = first_slot(cu_q, b, M);

  // Round r: query tile `first + r % tiles` of head `kv * G + r / tiles`.
  auto load_q = [&](int head, int tile, int stage) {
    const int i0 = tile * M;
    load_tile<M>(base + AT_Q + (QS == 2 ? stage : 0) * M * PITCH,
                 q + (i64)(q0 + i0) * q_row + (i64)head * q_head, q_row, len_q - i0, D);
    load_stats(base + AT_STATS + stage * M * 8, stats + (i64)head * Tq + q0 + i0, len_q - i0);
  };
  auto load_g = [&](int head, int tile, int stage) {
    const int i0 = tile * M;
    load_tile<M>(base + AT_G + (OS == 2 ? stage : 0) * M * PITCH,
                 g + ((i64)(q0 + i0) * H + head) * D, (i64)H * D, len_q - i0, D);
  };

  float dk_sum[KI][KB][4], dv_sum[KI][KB][4];
  clear(dk_sum);
  clear(dv_sum);
  int head = kv * G, tile = first, stage = 0;
  if (tiles > 0) {
    load_tile<N>(base + AT_K, k + (i64)(k0 + n0) * k_row + (i64)kv * k_head, k_row, rows, D);
    load_tile<N>(base + AT_V, v + (i64)(k0 + n0) * v_row + (i64)kv * v_head, v_row, rows, D);
    load_q(head, tile, 0);
    load_g(head, tile, 0);
  }
  cp_async_commit();

  for (int round = tiles * G; round > 0; round--) {
    // Where this warp works; worked out anew in each round, since registers are scarce.
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    asm volatile("" : "+r"(lane), "+r"(warp));
    const int s_key = warp / SM * (N / SN), s_query = warp % SM * (M / SM);
    const int k_key = warp / KD * (N / KN), k_d = warp % KD * (DP / KD);
    const int q_query = warp / QD * (M / QM), q_d = warp % QD * (DP / QD);
    cp_async_wait<0>();
    __syncthreads();
    int next_head = head, next_tile = tile + 1;
    if (next_tile == first + tiles) next_tile = first, next_head++;
    const bool more = round > 1;
    if (QS == 2 && more) load_q(next_head, next_tile, stage ^ 1);
    if (OS == 2 && more) load_g(next_head, next_tile, stage ^ 1);
    cp_async_commit();

    const u32 at_q = base + AT_Q + (QS == 2 ? stage : 0) * M * PITCH;
    const u32 at_g = base + AT_G + (OS == 2 ? stage : 0) * M * PITCH;
    const float2* own_stats =
        (const float2*)(room + AT_STATS) + stage * M + s_query + 2 * (lane & 3);
    const Score score(scale, EXTRA ? softcap : 0.f, EXTRA && alibi ? alibi[head] : 0.f);
    const bool masked = !mask.all(tile * M, M, n0, N);
    const int at_p = (s_key + lane / 4) * P_PITCH + 2 * (s_query + 2 * (lane & 3));

#pragma unroll 1
    for (int c = 0; c < (OWN_ROWS ? M / MC : 1); c++) {
      float s[SI][SB][4], dp[SI][SB][4];
      u32 p[SI][SB][2], ds[SI][SB][2];
      const int column = s_query + c * COLUMNS;
      clear(s);
      product<false, false, DP / 16>(s, lane_a(base + AT_K + s_key * PITCH, lane, PITCH), PITCH,
                                     lane_b(at_q + column * PITCH, lane, PITCH), PITCH);
      const int key = n0 + s_key + lane / 4, query = tile * M + column + 2 * (lane & 3);
      if (masked) weigh<true>(s, p, own_stats + c * COLUMNS, key, query, mask, score);
      else weigh<false>(s, p, own_stats + c * COLUMNS, key, query, mask, score);
      if (OWN_ROWS) product(dv_sum, p, lane_a(at_g + column * PITCH, lane, PITCH));
      else keep(room + AT_P + at_p, p);
      clear(dp);
      product<false, false, DP / 16>(dp, lane_a(base + AT_V + s_key * PITCH, lane, PITCH), PITCH,
                                     lane_b(at_g + column * PITCH, lane, PITCH), PITCH);
      slope_of(ds, s, dp, own_stats + c * COLUMNS);
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
      float* sum = dq_sum + ((i64)head * slots + slot + tile) * (M * DP);
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
  const i64 at = ((i64)(k0 + n0) * K + kv) * D;
  store_tile(dk_sum, room + AT_K, dk + at, rows, K, D, scale);
  store_tile(dv_sum, room + AT_V, dv + at, rows, K, D, 1.f);
}
