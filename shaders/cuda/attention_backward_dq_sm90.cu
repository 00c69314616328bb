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
#include "attention_backward_sm90.cuh"

// Scores of two rows a lane, 8 apart, -> what ds is the product of with (dp - delta).
template <bool MASKED>
DEVICE void weigh(float (&s)[N / 2], const float2 (&stats)[2], int query, int key, const Mask& mask,
                  const Score& score) {
#pragma unroll
  for (int x = 0; x < N / 2; x++) {
    int row = query + (x & 2 ? 8 : 0), column = key + x / 4 * 8 + (x & 1);
    float w, slack = 1.f, lse = stats[x >> 1 & 1].x;
    if (EXTRA) w = score.log2_weight(s[x], column - row - mask.shift, slack) - lse;
    else w = fmaf(s[x], score.unit, -lse);
    if (MASKED && !mask.sees(row, column)) w = -INF;
    s[x] = power2(w) * slack;
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

  auto load_keys = [&](int tile) {
    const int n0 = (first + tile) * N, stage = tile & 1;
    load_tile<N>(base + AT_K + stage * KEY_BYTES, k + (i64)(k0 + n0) * k_row + (i64)kv * k_head,
                 k_row, len_k - n0, D);
    load_tile<N>(base + AT_V + stage * KEY_BYTES, v + (i64)(k0 + n0) * v_row + (i64)kv * v_head,
                 v_row, len_k - n0, D);
  };
  load_tile<M>(base + AT_Q, q + (i64)(q0 + i0) * q_row + (i64)head * q_head, q_row, rows, D);
  load_tile<M>(base + AT_G, g + ((i64)(q0 + i0) * H + head) * D, (i64)H * D, rows, D);
  if (tiles > 0) load_keys(0);
  cp_async_commit();
  if (tiles > 1) load_keys(1);
  cp_async_commit();

  const int own = warp * 16 + lane / 4;  // this lane's first row
  float2 own_stats[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int row = own + 8 * i;
    own_stats[i] = row < rows ? stats[(i64)head * Tq + q0 + i0 + row] : make_float2(INF, 0.f);
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
    const int n0 = (first + tile) * N, key = n0 + 2 * (lane & 3);
    wgmma_wait<1>();
    pin(s);
    if (EXTRA || !mask.all(i0, M, n0, N)) weigh<true>(s, own_stats, i0 + own, key, mask, score);
    else weigh<false>(s, own_stats, i0 + own, key, mask, score);
    wgmma_wait<0>();
    pin(dp);
#pragma unroll
    for (int x = 0; x < N / 4; x++) {
      float delta = own_stats[x & 1].y;
      int y = 2 * x;
      ds[x] = pack_pair<TYPE>(s[y] * (dp[y] - delta), s[y + 1] * (dp[y + 1] - delta));
    }
    pin(ds);
  };

  if (tiles > 0) {
    cp_async_wait<1>();
    fence_async_proxy();
    __syncthreads();
    start(0);
    make_ds(0);
  }
  for (int t = 0; t < tiles; t++) {
    cp_async_wait<0>();
    fence_async_proxy();
    __syncthreads();  // the next tile is there
    wgmma_fence();
    gradient<N>(sum, ds, base + AT_K + (t & 1) * KEY_BYTES);
    wgmma_commit();
    if (t + 1 == tiles) {
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
    if (t + 2 < tiles) load_keys(t + 2);
    cp_async_commit();
  }
  cp_async_wait<0>();
  __syncthreads();
  stage(room, sum, scale);
  __syncthreads();
  send<M>(room, dq + ((i64)(q0 + i0) * H + head) * D, (i64)H * D, rows, D);
}
