// What gemm_sm90.cu needs to multiply in f16: x as f16, and the powers of two that bring rows of x and
// of weights into its range.
//   halves[m, k] = x[m, k] / x_downs[m], whose largest is in [2^13, 2^14)
//   |w[n, k]| / downs[n] < 2^15, for rows n of up to three weights one after the other
// Rows of zeros have 1. halves: [M, ldh], zero from K to ldh; M may be 0, and so may all rows of w.
// Grid: M blocks, then one for each 8 rows of weights; 256 threads. x: 16-byte accesses where `wide`.
// Macros: those of gemm_powers.cuh, X (c type of x).
#include "gemm_powers.cuh"

// A thread keeps so many pieces of 8 values in registers; longer rows are read twice.
#define HELD 2
#define STRIDE (8 * 256)

DEVICE void halve_row(const X* x, f16* halves, int ldh, float* down, int K, bool wide) {
  __shared__ float room[8];
  auto eight = [&](int k) {
    Vec<X, 8> v;
#pragma unroll
    for (int i = 0; i < 8; ++i) v.at[i] = from_float<X>(0.f);
    if (wide) {
      if (k < K) v = load_vec<X, 8>(x + k);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (k + i < K) v.at[i] = x[k + i];
    }
    return v;
  };
  float most = 0.f;
  auto look = [&](const Vec<X, 8>& v) {
#pragma unroll
    for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(v[i]));
  };
  const int first = threadIdx.x * 8, rest = first + HELD * STRIDE;
  Vec<X, 8> held[HELD];
#pragma unroll
  for (int i = 0; i < HELD; ++i) held[i] = eight(first + i * STRIDE);
#pragma unroll
  for (int i = 0; i < HELD; ++i) look(held[i]);
  for (int k = rest; k < K; k += STRIDE) look(eight(k));
  const float power = power_below<14>(block_max<8>(most, room)), up = __fdiv_rn(1.f, power);
  if (threadIdx.x == 0) *down = power;
  auto put = [&](int k, const Vec<X, 8>& v) {
    Vec<f16, 8> out;
#pragma unroll
    for (int i = 0; i < 8; ++i) out.at[i] = from_float<f16>(v[i] * up);
    if (k < ldh) store_vec<f16, 8>(halves + k, out);
  };
#pragma unroll
  for (int i = 0; i < HELD; ++i) put(first + i * STRIDE, held[i]);
  for (int k = rest; k < ldh; k += STRIDE) put(k, eight(k));
}

extern "C" __global__ void __launch_bounds__(256) gemm_halves(
    const X* x, i64 ldx, f16* halves, i64 ldh, float* x_downs, Planes w0, Planes w1, Planes w2,
    int n0, int n1, int n2, float* downs, int M, int K, int wide) {
  pdl_wait();
  pdl_launch();
  const int m = blockIdx.x;
  if (m < M) {
    halve_row(x + m * ldx, halves + m * ldh, ldh, x_downs + m, K, wide);
    return;
  }
  const int n = (m - M) * 8 + threadIdx.x / 32;
  if (n >= n0 + n1 + n2) return;
  const float most = warp_max(largest<32>(row_of(w0, w1, w2, n0, n1, n, K), threadIdx.x % 32, K));
  if (threadIdx.x % 32 == 0) downs[n] = power_below<15>(most);
}
