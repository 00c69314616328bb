// What comes before and after the main kernel of attention_backward.cu or
// attention_backward_sm90.cu:
//
//   backward_prepare   stats[h][i] = (lse log2(e), delta); clears dq_sum, and the gradients of
//                      tokens outside of all segments, which no other kernel writes
//   backward_finish    dq = scale dq_sum in q's dtype
//
// Macros: TYPE f16 | bf16; DP, TILE_Q (M), WARP_COUNT, QM: of the main kernel, whose warps make
// M / QM queries and DP QM / WARP_COUNT columns of dq each; TOKENS, of a group of threads of
// backward_prepare: at most 8.
#include "prelude.cuh"
#include "mma.cuh"
#include "attention_backward.cuh"

constexpr int M = TILE_Q, WARPS = WARP_COUNT, THREADS = WARPS * 32, QD = WARPS / QM;
constexpr int QI = M / QM / 16, QB = DP / QD / 8, PITCH = 2 * DP + 16;

DEVICE void fill_zero(TYPE* x, i64 from, i64 to, i64 step, i64 start) {
  for (i64 i = from + start; i < to; i += step) x[i] = from_float<TYPE>(0.f);
}

// Zeros for all heads, in the slots before those of the empty segments at the end, which are many
// where a batch may have many segments.
DEVICE void clear_sums(float4* dq_sum, const int* cu_q, int B, int H, int slots) {
  constexpr int SLOT = M * DP / 4, PIECE = 256 * 4;
  int b = 0;  // the first of them, or B
  for (int i = threadIdx.x; i - (int)threadIdx.x < B; i += 256)
    b += __syncthreads_count(i < B && cu_q[i] < cu_q[B]);
  const i64 used = (i64)min(first_slot(cu_q, b, M), slots) * SLOT;
  const int pieces = (int)((used + PIECE - 1) / PIECE);
  for (int piece = blockIdx.x; piece < H * pieces; piece += gridDim.x) {
    float4* to = dq_sum + (i64)(piece / pieces) * slots * SLOT;
    const i64 from = (i64)(piece % pieces) * PIECE + threadIdx.x;
#pragma unroll
    for (int u = 0; u < 4; u++)
      if (from + u * 256 < used) to[from + u * 256] = make_float4(0.f, 0.f, 0.f, 0.f);
  }
}

// A group of LANES threads makes the stats of TOKENS tokens of one head, so that they are a whole
// sector; groups side by side have heads side by side, whose rows are one piece. All the blocks of
// a grid clear their shares while what they have read is on its way.
extern "C" __global__ void __launch_bounds__(256) backward_prepare(
    const TYPE* g, const TYPE* out, const float* lse, const float* g_lse, float2* stats,
    float4* dq_sum, TYPE* dq, TYPE* dk, TYPE* dv, const int* cu_q, const int* cu_k, int B, int H,
    int K, int D, int Tq, int Tk, int slots) {
  constexpr int LANES = DP <= 64 ? 8 : DP <= 128 ? 16 : 32;
  const int lane = threadIdx.x & (LANES - 1), column = lane * 8;
  const int group = blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
  const int head = group % H, t0 = group / H * TOKENS;
  const bool reads = t0 < Tq && column < D;
  Vec<TYPE, 8> x[TOKENS], y[TOKENS];
  if (reads)
#pragma unroll
    for (int u = 0; u < TOKENS; u++) {  // past the end the last token again, for nothing
      const i64 at = ((i64)min(t0 + u, Tq - 1) * H + head) * D + column;
      x[u] = load_vec<TYPE, 8>(g + at);
      y[u] = load_vec<TYPE, 8>(out + at);
    }
  const bool writes = lane < TOKENS && t0 + lane < Tq;  // the stats of token t0 + lane
  const i64 row = (i64)(t0 + lane) * H + head;
  const float l = writes ? lse[row] : 0.f, outside = writes ? g_lse[row] : 0.f;
  const int end_q = cu_q[B], end_k = cu_k[B];

  if (dq_sum) clear_sums(dq_sum, cu_q, B, H, slots);
  const i64 step = (i64)gridDim.x * 256, start = (i64)blockIdx.x * 256 + threadIdx.x;
  fill_zero(dq, (i64)end_q * H * D, (i64)Tq * H * D, step, start);
  fill_zero(dk, (i64)end_k * K * D, (i64)Tk * K * D, step, start);
  fill_zero(dv, (i64)end_k * K * D, (i64)Tk * K * D, step, start);

  float own = 0.f;
#pragma unroll
  for (int u = 0; u < TOKENS; u++) {
    float sum = 0.f;
    if (reads)
#pragma unroll
      for (int i = 0; i < 8; i++) sum += x[u][i] * y[u][i];
#pragma unroll
    for (int d = LANES / 2; d; d >>= 1) sum += __shfl_xor_sync(FULL_MASK, sum, d);
    if (lane == u) own = sum;
  }
  if (writes) {
    const bool blind = l == -INF;  // sees no key: p = exp(-inf) = 0
    stats[(i64)head * Tq + t0 + lane] =
        make_float2(blind ? INF : l * LOG2E, blind ? 0.f : own - outside);
  }
}

// A block makes M rows of dq of one head.
extern "C" __global__ void __launch_bounds__(THREADS) backward_finish(
    const float* dq_sum, TYPE* dq, const int* cu_q, int B, int H, int D, float scale) {
  __shared__ __align__(16) char rows[M * PITCH];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.y;
  const int b = segment_of_slot(cu_q, B, blockIdx.x, M);
  const int i0 = (blockIdx.x - first_slot(cu_q, b, M)) * M, len = cu_q[b + 1] - cu_q[b];
  if (i0 >= len) return;
  const float* sum = dq_sum + ((i64)head * gridDim.x + blockIdx.x) * (M * DP);
  char* own = rows + (warp / QD * (M / QM) + lane / 4) * PITCH +
              2 * (warp % QD * (DP / QD) + 2 * (lane & 3));
#pragma unroll
  for (int i = 0; i < QI; i++)
#pragma unroll
    for (int j = 0; j < QB; j++) {
      float c[4];
#pragma unroll
      for (int x = 0; x < 4; x++) c[x] = scale * sum[sum_at((warp * QI + i) * QB + j, x)];
      *(u32*)(own + 16 * i * PITCH + 16 * j) = pack2<TYPE>(c[0], c[1]);
      *(u32*)(own + (16 * i + 8) * PITCH + 16 * j) = pack2<TYPE>(c[2], c[3]);
    }
  __syncthreads();
  TYPE* to = dq + ((i64)(cu_q[b] + i0) * H + head) * D;
  for (int piece = threadIdx.x; piece < M * (DP / 8); piece += THREADS) {
    int row = piece / (DP / 8), column = piece % (DP / 8);
    if (row < len - i0 && column * 8 < D)
      *(uint4*)(to + (i64)row * H * D + column * 8) = *(uint4*)(rows + row * PITCH + column * 16);
  }
}
