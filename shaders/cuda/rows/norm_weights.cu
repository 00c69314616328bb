// The last step of a norm's gradient for its weight and bias: partial sums of blocks added up.
//
// out[part][e] = sum over p of partial[part][p][e]. Block: 32 columns by 32 shares of the P rows;
// grid (E / 32, parts). `dw` and `db` are [E] of W.
// Macros: W type of the weight.
#include "prelude.cuh"

extern "C" __global__ void __launch_bounds__(1024)
norm_weights(const float* partial, W* dw, W* db, int P, int E) {
  __shared__ float room[32][33];
  const int lane = threadIdx.x & 31, share = threadIdx.x >> 5;
  const int e = blockIdx.x * 32 + lane;
  const float* source = partial + (i64)blockIdx.y * P * E;
  pdl_wait();
  pdl_launch();
  float sum = 0.f;
  if (e < E) {
#pragma unroll 8
    for (int p = share; p < P; p += 32) sum += source[(i64)p * E + e];
  }
  room[lane][share] = sum;
  __syncthreads();
  sum = warp_sum(room[share][lane]);
  const int column = blockIdx.x * 32 + share;
  if (lane == 0 && column < E) (blockIdx.y ? db : dw)[column] = from_float<W>(sum);
}
