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
#include "attention_backward_walk.cuh"
static_assert(PITCH == OUT_PITCH, "`send` reads rows as they lie here");
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
        float slack = 1.f;
        float p = probability<MASKED>(s[i][j][x], stat.x, row, column, mask, score, slack);
        s[i][j][x] = p * slack * (dp[i][j][x] - stat.y);
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
  Walk w;
  if (!walk_keys(w, cu_q, cu_k, B, lowest, highest, bottom_right)) return;
  const Score score(scale, EXTRA ? softcap : 0.f, EXTRA && alibi ? alibi[head] : 0.f);

  auto load_keys = [&](int tile, int stage) {
    const int n0 = tile * N;
    load_tile<N>(base + AT_K + stage * N * PITCH,
                 k + (i64)(w.k0 + n0) * k_row + (i64)kv * k_head, k_row, w.len_k - n0, D);
    load_tile<N>(base + AT_V + stage * N * PITCH,
                 v + (i64)(w.k0 + n0) * v_row + (i64)kv * v_head, v_row, w.len_k - n0, D);
  };
  load_tile<M>(base + AT_Q, q + (i64)(w.q0 + w.start) * q_row + (i64)head * q_head, q_row, w.rows,
               D);
  load_tile<M>(base + AT_G, g + ((i64)(w.q0 + w.start) * H + head) * D, (i64)H * D, w.rows, D);
  if (w.tiles > 0) load_keys(w.first, 0);
  cp_async_commit();

  const int own = warp * 16 * RI + lane / 4;  // this lane's first row
  float2 own_stats[RI][2];
#pragma unroll
  for (int i = 0; i < 2 * RI; i++) {
    int row = own + 8 * i;
    own_stats[i / 2][i & 1] =
        row < w.rows ? stats[(i64)head * Tq + w.q0 + w.start + row] : make_float2(INF, 0.f);
  }
  float sum[RI][DP / 8][4];
  clear(sum);
  const u32 at_q = lane_a(base + AT_Q + warp * 16 * RI * PITCH, lane, PITCH);
  const u32 at_g = lane_a(base + AT_G + warp * 16 * RI * PITCH, lane, PITCH);
  for (int t = 0; t < w.tiles; t++) {
    cp_async_wait<0>();
    __syncthreads();
    if (t + 1 < w.tiles) load_keys(w.first + t + 1, (t + 1) & 1);
    cp_async_commit();
    const int n0 = (w.first + t) * N;
    const u32 at_k = base + AT_K + (t & 1) * N * PITCH, at_v = base + AT_V + (t & 1) * N * PITCH;
    const bool masked = !w.mask.all(w.start, M, n0, N);
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
      if (masked) slope_of<true>(ds, s, dp, own_stats, w.start + own, key, w.mask, score);
      else slope_of<false>(ds, s, dp, own_stats, w.start + own, key, w.mask, score);
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
  send<M>(room + AT_Q, dq + ((i64)(w.q0 + w.start) * H + head) * D, (i64)H * D, w.rows, D);
}
