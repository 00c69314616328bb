// What comes before and after the main kernel of attention_backward.cu or
// attention_backward_sm90.cu:
//
//   backward_prepare   stats[h][i] = (lse log2(e), delta); clears dq_sum, and the gradients of
//                      tokens outside of all segments, which no other kernel writes
//   backward_finish    dq = scale dq_sum in q's dtype
//
// Macros: TYPE f16 | bf16; DP, TILE_Q (M), WARP_COUNT, QM: of the main kernel, whose warps make
// M / QM queries and DP QM / WARP_COUNT columns of dq each.
#include "prelude.cuh"
#include "mma.cuh"
#include "attention_backward.cuh"

constexpr int M = TILE_Q, WARPS = WARP_COUNT, THREADS = WARPS * 32, QD = WARPS / QM;
constexpr int QI = M / QM / 16, QB = DP / QD / 8, PITCH = 2 * DP + 16;

DEVICE void fill_zero(TYPE* x, i64 from, i64 to, i64 step, i64 start) {
  for (i64 i = from + start; i < to; i += step) x[i] = from_float<TYPE>(0.f);
}

// A group of LANES threads makes the stats of one (token, head).
extern "C" __global__ void __launch_bounds__(256) backward_prepare(
    const TYPE* g, const TYPE* out, const float* lse, const float* g_lse, float2* stats,
    float4* dq_sum, TYPE* dq, TYPE* dk, TYPE* dv, const int* cu_q, const int* cu_k, int B, int H,
    int K, int D, int Tq, int Tk, i64 sums) {
  constexpr int LANES = DP <= 64 ? 8 : DP <= 128 ? 16 : 32;
  const i64 step = (i64)gridDim.x * 256, start = (i64)blockIdx.x * 256 + threadIdx.x;
  for (i64 i = start; i < sums; i += step) dq_sum[i] = make_float4(0.f, 0.f, 0.f, 0.f);
  fill_zero(dq, (i64)cu_q[B] * H * D, (i64)Tq * H * D, step, start);
  fill_zero(dk, (i64)cu_k[B] * K * D, (i64)Tk * K * D, step, start);
  fill_zero(dv, (i64)cu_k[B] * K * D, (i64)Tk * K * D, step, start);
  const i64 total = (i64)Tq * H, padded = (total + 31) / 32 * 32;  // whole warps stay together
  for (i64 row = start / LANES; row < padded; row += step / LANES) {
    float sum = 0.f;
    int column = (threadIdx.x & (LANES - 1)) * 8;
    if (row < total && column < D) {
      auto x = load_vec<TYPE, 8>(g + row * D + column);
      auto y = load_vec<TYPE, 8>(out + row * D + column);
#pragma unroll
      for (int i = 0; i < 8; i++) sum += x[i] * y[i];
    }
#pragma unroll
    for (int d = LANES / 2; d; d >>= 1) sum += __shfl_xor_sync(FULL_MASK, sum, d);
    if (row < total && column == 0) {
      float l = lse[row];
      bool blind = l == -INF;  // sees no key: p = exp(-inf) = 0
      float2 made = make_float2(blind ? INF : l * LOG2E, blind ? 0.f : sum - g_lse[row]);
      stats[row % H * Tq + row / H] = made;
    }
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
