// Gradient of varlen attention on Hopper (sm_90a): `backward_keys` of attention_backward.cu with
// warpgroup products. The formula, the arguments and the work of a block are the same: N = 128 keys
// of one kv head stay in shared memory, tiles of M queries of all heads of the group pass by.
//
// Two warpgroups of 64 keys each. A warpgroup has p^T and ds^T in registers, where they are the A
// operand of dv += p^T g and dk += ds^T q; ds also goes to shared memory as [M][N], for dq = ds k,
// of which a warpgroup makes 64 queries (M = 128, DP = 64) or 64 columns (M = 64, DP = 128). All
// tiles lie in 128-byte swizzle, in blocks of 64 columns; q and g are double-buffered (cp.async).
// Order of a round: S and dp are started; under dp the exponentials, under dv = .. ds, under dk
// ds is exchanged, then dq, whose sums go out as vector atomics.
//
// Macros: TYPE f16 | bf16; DP 64 | 128, the padded width; DQ 0: no dq; EXTRA 1: softcap and ALiBi.
// Source: Dao 2023, FlashAttention-2, algorithm 2; Shah et al. 2024, FlashAttention-3.
#include "hopper.cuh"
#include "attention_backward.cuh"

constexpr int M = 8192 / DP, N = 128, THREADS = 256;
constexpr int TILE_BYTES = M * DP * 2, KEY_BYTES = N * DP * 2;
constexpr int AT_K = 0, AT_V = AT_K + KEY_BYTES, AT_Q = AT_V + KEY_BYTES;
constexpr int AT_G = AT_Q + 2 * TILE_BYTES, AT_DS = AT_G + 2 * TILE_BYTES;
constexpr int AT_STATS = AT_DS + (DQ ? M * N * 2 : 0);
constexpr bool LATE_DP = EXTRA && M == 128;  // else the registers do not suffice
constexpr int OUT_PITCH = 2 * DP + 16;  // bytes of a row of dk and dv on their way out

DEVICE void cp_async(u32 to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

// ROWS rows of a head; rows from `rows` on and columns from D on become zeros.
template <int ROWS> DEVICE void load_tile(u32 to, const TYPE* from, i64 pitch, int rows, int D) {
  const int column = threadIdx.x % (DP / 8);
#pragma unroll
  for (int x = 0; x < ROWS * (DP / 8) / THREADS; x++) {
    int row = threadIdx.x / (DP / 8) + x * (THREADS / (DP / 8));
    bool valid = row < rows && column * 8 < D;
    cp_async(to + column / 8 * (ROWS * 128) + row * 128 + ((column ^ row) & 7) * 16,
             valid ? from + row * pitch + column * 8 : from, valid);
  }
}

// (lse, delta) of M queries; past the end zeros, which with zero rows of q and g give zeros.
DEVICE void load_stats(u32 to, const float2* from, int rows) {
  int i = threadIdx.x;
  if (i < M)
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
                 ::"r"(to + i * 8), "l"(i < rows ? from + i : from), "r"(i < rows ? 8 : 0)
                 : "memory");
}

// c = a b over DP: 64 rows of a [ROWS] and all M rows of b, both along the 128 bytes.
template <int ROWS> DEVICE void scores(float (&c)[M / 2], u32 a, u32 b) {
#pragma unroll
  for (int k = 0; k < DP / 16; k++)
    Wgmma<TYPE, M>::template ss<0>(
        c, swizzled_descriptor(a + k / 4 * (ROWS * 128) + k % 4 * 32),
        swizzled_descriptor(b + k / 4 * (M * 128) + k % 4 * 32), k > 0);
}

// c += a b: a packed in registers [64, M], b [M, DP] with rows along k.
DEVICE void gradient(float (&c)[DP / 2], const u32 (&a)[M / 4], u32 b) {
#pragma unroll
  for (int k = 0; k < M / 16; k++)
    Wgmma<TYPE, DP>::template rs<1>(c, a + 4 * k, swizzled_descriptor(b + k * 2048, M * 128), 1);
}

// Scores -> p packed, and in s what ds is the product of with (dp - delta).
template <bool MASKED>
DEVICE void weigh(float (&s)[M / 2], u32 (&p)[M / 4], const float2* stats, int key, int query,
                  const Mask& mask, const Score& score) {
#pragma unroll
  for (int j = 0; j < M / 8; j++) {
    float4 two = *(const float4*)(stats + 8 * j);
    float slack[4];
#pragma unroll
    for (int x = 0; x < 4; x++) {
      int row = key + (x >= 2 ? 8 : 0), column = query + 8 * j + (x & 1);
      float lse = x & 1 ? two.z : two.x, w;
      slack[x] = 1.f;
      if (EXTRA) w = score.log2_weight(s[4 * j + x], row - column - mask.shift, slack[x]) - lse;
      else w = fmaf(s[4 * j + x], score.unit, -lse);
      if (MASKED && !mask.sees(column, row)) w = -INF;
      s[4 * j + x] = power2(w);
    }
    p[2 * j] = pack_pair<TYPE>(s[4 * j], s[4 * j + 1]);
    p[2 * j + 1] = pack_pair<TYPE>(s[4 * j + 2], s[4 * j + 3]);
#pragma unroll
    for (int x = 0; x < 4; x++)
      if (EXTRA) s[4 * j + x] *= slack[x];
  }
}

// ds = p slack (dp - delta), packed.
DEVICE void slope_of(u32 (&ds)[M / 4], const float (&s)[M / 2], const float (&dp)[M / 2],
                     const float2* stats) {
#pragma unroll
  for (int j = 0; j < M / 8; j++) {
    float4 two = *(const float4*)(stats + 8 * j);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int x = 4 * j + 2 * h;
      ds[2 * j + h] = pack_pair<TYPE>(s[x] * (dp[x] - two.y), s[x + 1] * (dp[x + 1] - two.w));
    }
  }
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

// dk or dv [N, D] from registers to shared memory.
DEVICE void stage(char* room, const float (&c)[DP / 2], float factor) {
  const int lane = threadIdx.x & 31;
  char* own = room + (threadIdx.x / 32 * 16 + lane / 4) * OUT_PITCH + 4 * (lane & 3);
#pragma unroll
  for (int j = 0; j < DP / 8; j++) {
    *(u32*)(own + 16 * j) = pack_pair<TYPE>(c[4 * j] * factor, c[4 * j + 1] * factor);
    *(u32*)(own + 8 * OUT_PITCH + 16 * j) =
        pack_pair<TYPE>(c[4 * j + 2] * factor, c[4 * j + 3] * factor);
  }
}
DEVICE void send(const char* room, TYPE* to, int rows, int K, int D) {
  for (int piece = threadIdx.x; piece < N * (DP / 8); piece += THREADS) {
    int row = piece / (DP / 8), column = piece % (DP / 8);
    if (row < rows && column * 8 < D)
      *(uint4*)(to + (i64)row * K * D + column * 8) =
          *(const uint4*)(room + row * OUT_PITCH + column * 16);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) backward_keys(
    const TYPE* q, const TYPE* k, const TYPE* v, const TYPE* g, const float2* stats, float* dq_sum,
    TYPE* dk, TYPE* dv, const int* cu_q, const int* cu_k, const float* alibi, int B, int H, int K,
    int D, int Tq, int q_row, int q_head, int k_row, int k_head, int v_row, int v_head, int lowest,
    int highest, int bottom_right, float scale, float softcap) {
  extern __shared__ __align__(1024) char room[];
  const u32 base = shared_address(room);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, group = threadIdx.x >> 7, G = H / K;
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

  auto load = [&](int head, int tile, int stage) {
    const int i0 = tile * M;
    load_tile<M>(base + AT_Q + stage * TILE_BYTES,
                 q + (i64)(q0 + i0) * q_row + (i64)head * q_head, q_row, len_q - i0, D);
    load_tile<M>(base + AT_G + stage * TILE_BYTES, g + ((i64)(q0 + i0) * H + head) * D, (i64)H * D,
                 len_q - i0, D);
    load_stats(base + AT_STATS + stage * M * 8, stats + (i64)head * Tq + q0 + i0, len_q - i0);
  };

  float dk_sum[DP / 2], dv_sum[DP / 2];
#pragma unroll
  for (int i = 0; i < DP / 2; i++) dk_sum[i] = dv_sum[i] = 0.f;
  int head = kv * G, tile = first, stage_now = 0;
  if (tiles > 0) {
    load_tile<N>(base + AT_K, k + (i64)(k0 + n0) * k_row + (i64)kv * k_head, k_row, rows, D);
    load_tile<N>(base + AT_V, v + (i64)(k0 + n0) * v_row + (i64)kv * v_head, v_row, rows, D);
    load(head, tile, 0);
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
  const u32 own_k = base + AT_K + group * 8192, own_v = base + AT_V + group * 8192;
  const int key = n0 + warp * 16 + lane / 4;

  for (int round = tiles * G; round > 0; round--) {
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    fence_async_proxy();
    __syncthreads();
    int next_head = head, next_tile = tile + 1;
    if (next_tile == first + tiles) next_tile = first, next_head++;
    if (round > 1) load(next_head, next_tile, stage_now ^ 1);
    asm volatile("cp.async.commit_group;" ::: "memory");

    const u32 at_q = base + AT_Q + stage_now * TILE_BYTES;
    const u32 at_g = base + AT_G + stage_now * TILE_BYTES;
    float s[M / 2], dp[M / 2];
    u32 p[M / 4], ds[M / 4];
    wgmma_fence();
    scores<N>(s, own_k, at_q);
    wgmma_commit();
    if (!LATE_DP) {
      scores<N>(dp, own_v, at_g);
      wgmma_commit();
    }
    const float2* own_stats = (const float2*)(room + AT_STATS) + stage_now * M + 2 * (lane & 3);
    const Score score(scale, EXTRA ? softcap : 0.f, EXTRA && alibi ? alibi[head] : 0.f);
    const int query = tile * M + 2 * (lane & 3);
    const bool masked = !mask.all(tile * M, M, n0, N);
    wgmma_wait<LATE_DP ? 0 : 1>();
    pin(s);
    if (masked) weigh<true>(s, p, own_stats, key, query, mask, score);
    else weigh<false>(s, p, own_stats, key, query, mask, score);
    pin(p);
    wgmma_fence();
    if (LATE_DP) {
      scores<N>(dp, own_v, at_g);
      wgmma_commit();
    }
    gradient(dv_sum, p, at_g);
    wgmma_commit();
    wgmma_wait<1>();
    pin(dp);
    slope_of(ds, s, dp, own_stats);
    pin(ds);
    if (DQ) {
      exchange(base + AT_DS + group * (M * 128), ds);
      fence_async_proxy();
    }
    wgmma_fence();
    gradient(dk_sum, ds, at_q);
    wgmma_commit();
    if (DQ) {
      __syncthreads();
      float dq[32];
      const u32 at_ds = base + AT_DS + (M == 128 ? group * 8192 : 0);
      const u32 at_k = base + AT_K + (DP == 128 ? group * (N * 128) : 0);
      wgmma_fence();
#pragma unroll
      for (int x = 0; x < N / 16; x++)
        Wgmma<TYPE, 64>::template ss<1>(
            dq, swizzled_descriptor(at_ds + x / 4 * (M * 128) + x % 4 * 32),
            swizzled_descriptor(at_k + x * 2048), x > 0);
      wgmma_commit();
      wgmma_wait<0>();
      pin(dq);
      // Fragment order of backward_finish: 16 queries a warp, then 64 columns.
      const int place = DP == 128 ? (warp & 3) * 2 + group : warp;
      float* sum = dq_sum + ((i64)head * slots + slot + tile) * (M * DP) + place * 1024 + lane * 4;
#pragma unroll
      for (int j = 0; j < 8; j++) add_four(sum + j * 128, dq + 4 * j);
    } else {
      wgmma_wait<0>();
    }
    pin(dv_sum);
    pin(dk_sum);
    pin(p);
    pin(ds);
    head = next_head, tile = next_tile, stage_now ^= 1;
  }
  asm volatile("cp.async.wait_group 0;" ::: "memory");
  __syncthreads();
  stage(room, dk_sum, scale);
  stage(room + N * OUT_PITCH, dv_sum, 1.f);
  __syncthreads();
  const i64 at = ((i64)(k0 + n0) * K + kv) * D;
  send(room, dk + at, rows, K, D);
  send(room + N * OUT_PITCH, dv + at, rows, K, D);
}
