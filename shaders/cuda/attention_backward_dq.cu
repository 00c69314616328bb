// dq of varlen attention without atomics, tensor cores (mma.sync, sm_80 and later): a block keeps
// M = 16 RI WARP_COUNT queries of one head and their gradient in shared memory, a warp 16 RI rows
// of dq in registers, and walks over the tiles of N keys in order, so that the sums are the same in
// every run. See attention_backward.cu for the formula, the arguments and the stats.
//
// Macros: TYPE f16 | bf16; DP; TILE_K (N); RI; WARP_COUNT; MC keys at a time; BLOCKS on one SM;
// EXTRA 1: softcap and ALiBi.
#include "prelude.cuh"
#include "mma.cuh"
#include "attention_backward.cuh"

constexpr int WARPS = WARP_COUNT, THREADS = WARPS * 32, M = 16 * RI * WARPS, N = TILE_K;
constexpr int PITCH = 2 * DP + 16;  // bytes; an odd multiple of 16
#include "attention_backward_tiles.cuh"
constexpr int CB = MC / 8;  // n8 tiles of scores

constexpr int AT_Q = 0, AT_G = M * PITCH, AT_K = 2 * M * PITCH, AT_V = AT_K + 2 * N * PITCH;

// ds = p slack (dp - delta) of 16 RI queries and MC keys, packed.
template <bool MASKED>
DEVICE void slope_of(u32 (&ds)[RI][CB][2], float (&s)[RI][CB][4], const float (&dp)[RI][CB][4],
                     const float2 (&stats)[RI][2], int query, int key, const Mask& mask,
                     const Score& score) {
#pragma unroll
  for (int i = 0; i < RI; i++)
#pragma unroll
    for (int j = 0; j < CB; j++) {
#pragma unroll
      for (int x = 0; x < 4; x++) {
        int row = query + 16 * i + (x >= 2 ? 8 : 0), column = key + 8 * j + (x & 1);
        float2 stat = stats[i][x >> 1];
        float w, slack = 1.f;
        if (EXTRA) w = score.log2_weight(s[i][j][x], column - row - mask.shift, slack) - stat.x;
        else w = fmaf(s[i][j][x], score.unit, -stat.x);
        if (MASKED && !mask.sees(row, column)) w = -INF;
        s[i][j][x] = power2(w) * slack * (dp[i][j][x] - stat.y);
      }
      ds[i][j][0] = pack2<TYPE>(s[i][j][0], s[i][j][1]);
      ds[i][j][1] = pack2<TYPE>(s[i][j][2], s[i][j][3]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) backward_queries(
    const TYPE* q, const TYPE* k, const TYPE* v, const TYPE* g, const float2* stats, TYPE* dq,
    const int* cu_q, const int* cu_k, const float* alibi, int B, int H, int K, int D, int Tq,
    int q_row, int q_head, int k_row, int k_head, int v_row, int v_head, int lowest, int highest,
    int bottom_right, float scale, float softcap) {
  extern __shared__ __align__(1024) char room[];
  const u32 base = shared_address(room);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int head = blockIdx.y, kv = head / (H / K);
  // The last tiles of a segment have the most keys under a causal mask: they go first.
  const int reversed = gridDim.x - 1 - blockIdx.x, b = segment_of_slot(cu_q, B, reversed, M);
  const int q0 = cu_q[b], i0 = (reversed - first_slot(cu_q, b, M)) * M, k0 = cu_k[b];
  const int len_q = cu_q[b + 1] - q0, len_k = cu_k[b + 1] - k0;
  if (i0 >= len_q) return;
  const Mask mask{bottom_right ? len_k - len_q : 0, lowest, highest, len_k};
  const int rows = min(M, len_q - i0);
  const int first = mask.first_key(i0) / N, last = mask.last_key(i0 + rows);
  const int tiles = last < first * N ? 0 : last / N + 1 - first;
  const Score score(scale, EXTRA ? softcap : 0.f, EXTRA && alibi ? alibi[head] : 0.f);

  auto load_keys = [&](int tile, int stage) {
    const int n0 = tile * N;
    load_tile<N>(base + AT_K + stage * N * PITCH,
                 k + (i64)(k0 + n0) * k_row + (i64)kv * k_head, k_row, len_k - n0, D);
    load_tile<N>(base + AT_V + stage * N * PITCH,
                 v + (i64)(k0 + n0) * v_row + (i64)kv * v_head, v_row, len_k - n0, D);
  };
  load_tile<M>(base + AT_Q, q + (i64)(q0 + i0) * q_row + (i64)head * q_head, q_row, rows, D);
  load_tile<M>(base + AT_G, g + ((i64)(q0 + i0) * H + head) * D, (i64)H * D, rows, D);
  if (tiles > 0) load_keys(first, 0);
  cp_async_commit();

  const int own = warp * 16 * RI + lane / 4;  // this lane's first row
  float2 own_stats[RI][2];
#pragma unroll
  for (int i = 0; i < 2 * RI; i++) {
    int row = own + 8 * i;
    own_stats[i / 2][i & 1] =
        row < rows ? stats[(i64)head * Tq + q0 + i0 + row] : make_float2(INF, 0.f);
  }
  float sum[RI][DP / 8][4];
  clear(sum);
  const u32 at_q = lane_a(base + AT_Q + warp * 16 * RI * PITCH, lane, PITCH);
  const u32 at_g = lane_a(base + AT_G + warp * 16 * RI * PITCH, lane, PITCH);
  for (int t = 0; t < tiles; t++) {
    cp_async_wait<0>();
    __syncthreads();
    if (t + 1 < tiles) load_keys(first + t + 1, (t + 1) & 1);
    cp_async_commit();
    const int n0 = (first + t) * N;
    const u32 at_k = base + AT_K + (t & 1) * N * PITCH, at_v = base + AT_V + (t & 1) * N * PITCH;
    const bool masked = !mask.all(i0, M, n0, N);
#pragma unroll
    for (int c = 0; c < N / MC; c++) {
      float s[RI][CB][4], dp[RI][CB][4];
      u32 ds[RI][CB][2];
      clear(s);
      clear(dp);
      const u32 rows_of_k = lane_b(at_k + c * MC * PITCH, lane, PITCH);
      const u32 rows_of_v = lane_b(at_v + c * MC * PITCH, lane, PITCH);
      product<false, false, DP / 16>(s, at_q, PITCH, rows_of_k, PITCH);
      product<false, false, DP / 16>(dp, at_g, PITCH, rows_of_v, PITCH);
      const int key = n0 + c * MC + 2 * (lane & 3);
      if (masked) slope_of<true>(ds, s, dp, own_stats, i0 + own, key, mask, score);
      else slope_of<false>(ds, s, dp, own_stats, i0 + own, key, mask, score);
      product(sum, ds, lane_a(at_k + c * MC * PITCH, lane, PITCH));
    }
  }
  cp_async_wait<0>();
  __syncthreads();
  char* to = room + AT_Q + own * PITCH + 4 * (lane & 3);
#pragma unroll
  for (int i = 0; i < RI; i++)
#pragma unroll
    for (int j = 0; j < DP / 8; j++) {
      float(&x)[4] = sum[i][j];
      *(u32*)(to + 16 * i * PITCH + 16 * j) = pack2<TYPE>(x[0] * scale, x[1] * scale);
      *(u32*)(to + (16 * i + 8) * PITCH + 16 * j) = pack2<TYPE>(x[2] * scale, x[3] * scale);
    }
  __syncthreads();
  TYPE* rows_to = dq + ((i64)(q0 + i0) * H + head) * D;
  for (int piece = threadIdx.x; piece < M * (DP / 8); piece += THREADS) {
    int row = piece / (DP / 8), column = piece % (DP / 8);
    if (row < rows && column * 8 < D)
      *(uint4*)(rows_to + (i64)row * H * D + column * 8) =
          *(uint4*)(room + AT_Q + row * PITCH + column * 16);
  }
}
