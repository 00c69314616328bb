// dq of varlen attention on Hopper without atomics: `backward_queries` of attention_backward_dq.cu
// with warpgroup products. M = 64 WARPGROUPS queries of one head and their gradient stay in shared
// memory, a warpgroup has 64 rows of dq in registers; tiles of N keys pass by in order,
// double-buffered.
// Order of a round: dq += ds k of this tile, then the scores and dp of the next, the exponentials
// under dp. The sums are the same in every run.
//
// Macros: TYPE f16 | bf16; DP 64 | 128, the padded width; TILE_K (N) 64 | 128; WARPGROUPS; BLOCKS
// on one SM; EXTRA 1: softcap and ALiBi.
#include "hopper.cuh"
#include "attention_backward.cuh"

constexpr int M = 64 * WARPGROUPS, N = TILE_K, THREADS = 128 * WARPGROUPS;
constexpr int AT_Q = 0, AT_G = M * DP * 2, AT_K = 2 * AT_G, KEY_BYTES = N * DP * 2;
constexpr int AT_V = AT_K + 2 * KEY_BYTES;
#include "attention_backward_walk.cuh"
#include "attention_backward_sm90.cuh"

// Scores of two rows a lane, 8 apart, -> what ds is the product of with (dp - delta).
template <bool MASKED>
DEVICE void weigh(float (&s)[N / 2], const float2 (&stats)[2], int query, int key, const Mask& mask,
                  const Score& score) {
#pragma unroll
  for (int x = 0; x < N / 2; x++) {
    int row = query + (x & 2 ? 8 : 0), column = key + x / 4 * 8 + (x & 1);
    float slack = 1.f, lse = stats[x >> 1 & 1].x;
    s[x] = probability<MASKED>(s[x], lse, row, column, mask, score, slack) * slack;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) backward_queries(
    const TYPE* q, const TYPE* k, const TYPE* v, const TYPE* g, const float2* stats, TYPE* dq,
    const int* cu_q, const int* cu_k, const float* alibi, int B, int H, int K, int D, int Tq,
    int q_row, int q_head, int k_row, int k_head, int v_row, int v_head, int lowest, int highest,
    int bottom_right, float scale, float softcap) {
  extern __shared__ __align__(1024) char room[];
  const u32 base = shared_address(room);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = uniform(threadIdx.x >> 7);
  const int head = blockIdx.y, kv = head / (H / K);
  Walk w;
  if (!walk_keys(w, cu_q, cu_k, B, lowest, highest, bottom_right)) return;
  const Score score(scale, EXTRA ? softcap : 0.f, EXTRA && alibi ? alibi[head] : 0.f);

  auto load_keys = [&](int tile) {
    const int n0 = (w.first + tile) * N, stage = tile & 1;
    load_tile<N>(base + AT_K + stage * KEY_BYTES, k + (i64)(w.k0 + n0) * k_row + (i64)kv * k_head,
                 k_row, w.len_k - n0, D);
    load_tile<N>(base + AT_V + stage * KEY_BYTES, v + (i64)(w.k0 + n0) * v_row + (i64)kv * v_head,
                 v_row, w.len_k - n0, D);
  };
  load_tile<M>(base + AT_Q, q + (i64)(w.q0 + w.start) * q_row + (i64)head * q_head, q_row, w.rows,
               D);
  load_tile<M>(base + AT_G, g + ((i64)(w.q0 + w.start) * H + head) * D, (i64)H * D, w.rows, D);
  if (w.tiles > 0) load_keys(0);
  cp_async_commit();
  if (w.tiles > 1) load_keys(1);
  cp_async_commit();

  const int own = warp * 16 + lane / 4;  // this lane's first row
  float2 own_stats[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int row = own + 8 * i;
    own_stats[i] =
        row < w.rows ? stats[(i64)head * Tq + w.q0 + w.start + row] : make_float2(INF, 0.f);
  }
  float sum[DP / 2], s[N / 2], dp[N / 2];
  u32 ds[N / 4];
#pragma unroll
  for (int i = 0; i < DP / 2; i++) sum[i] = 0.f;
  const u32 at_q = base + AT_Q + group * 8192, at_g = base + AT_G + group * 8192;

  // Scores and dp are started, then ds is made of them.
  auto start = [&](int tile) {
    wgmma_fence();
    scores<M, N>(s, at_q, base + AT_K + (tile & 1) * KEY_BYTES);
    wgmma_commit();
    scores<M, N>(dp, at_g, base + AT_V + (tile & 1) * KEY_BYTES);
    wgmma_commit();
  };
  auto make_ds = [&](int tile) {
    const int n0 = (w.first + tile) * N, key = n0 + 2 * (lane & 3);
    wgmma_wait<1>();
    pin(s);
    const int query = w.start + own;
    if (EXTRA || !w.mask.all(w.start, M, n0, N))
      weigh<true>(s, own_stats, query, key, w.mask, score);
    else weigh<false>(s, own_stats, query, key, w.mask, score);
    wgmma_wait<0>();
    pin(dp);
#pragma unroll
    for (int x = 0; x < N / 4; x++) {
      float delta = own_stats[x & 1].y;
      int y = 2 * x;
      ds[x] = pack2<TYPE>(s[y] * (dp[y] - delta), s[y + 1] * (dp[y + 1] - delta));
    }
    pin(ds);
  };

  if (w.tiles > 0) {
    cp_async_wait<1>();
    fence_async_proxy();
    __syncthreads();
    start(0);
    make_ds(0);
  }
  for (int t = 0; t < w.tiles; t++) {
    cp_async_wait<0>();
    fence_async_proxy();
    __syncthreads();  // the next tile is there
    wgmma_fence();
    gradient<N>(sum, ds, base + AT_K + (t & 1) * KEY_BYTES);
    wgmma_commit();
    if (t + 1 == w.tiles) {
      wgmma_wait<0>();
      pin(sum);
      pin(ds);
      break;
    }
    start(t + 1);
    wgmma_wait<2>();
    pin(sum);
    pin(ds);
    make_ds(t + 1);
    __syncthreads();  // all are done with this tile
    if (t + 2 < w.tiles) load_keys(t + 2);
    cp_async_commit();
  }
  cp_async_wait<0>();
  __syncthreads();
  stage(room, sum, scale);
  __syncthreads();
  send<M>(room, dq + ((i64)(w.q0 + w.start) * H + head) * D, (i64)H * D, w.rows, D);
}
