// Packed weights decoded once to 16 bits, for products of many tokens (gemm_sm90.cu):
//   decoded[n, k] = w[n, k] / factors[n], for rows n of up to three weights one after the other
// FOLDED (weights of groups and of float tables): f16 below 2^15, rounded once; factors are powers
// of two. Else what codes stand for, exact, and factors are the scales of rows.
// Grid: a block of 256 threads for each row. Macros: those of weights.cuh and of gemm_powers.cuh, O
// (f16 | bf16). Rows must allow `eight`.
#include "gemm_powers.cuh"

extern "C" __global__ void __launch_bounds__(256, 6) gemm_decode(
    Planes w0, Planes w1, Planes w2, int n0, int n1, float* factors, O* decoded, int K) {
  __shared__ float room[8];
  pdl_wait();
  pdl_launch();
  const int n = blockIdx.x;
  const Planes row = row_of(w0, w1, w2, n0, n1, n, K);
  float factor;
  if (FOLDED) factor = power_below<15>(block_max<8>(largest<256>(row, threadIdx.x, K), room));
  else factor = row_scale(row, 0);
  if (threadIdx.x == 0) factors[n] = factor;
  const float up = __fdiv_rn(1.f, factor);
  O* out = decoded + (i64)n * K;
#pragma unroll 2
  for (int k = threadIdx.x * 8; k < K; k += 256 * 8) {
    float w[8];
    eight(row, k, w);
    if (FOLDED) affine(row, k, w);
    Vec<O, 8> v;
#pragma unroll
    for (int i = 0; i < 8; ++i) v.at[i] = from_float<O>(FOLDED ? w[i] * up : w[i]);
    store_vec<O, 8>(out + k, v);
  }
}
