// Rows of x rounded to int8 by their own scale, for products on int8 tensor cores (gemm_mma.cu):
//   scale[m] = max |x[m, :]| / 127,  values[m, k] = rint(x[m, k] / scale) in -127..127, half even
// values: int8 [M, ldv], zero from K to ldv; scales: float32 [M]. A row of zeros gives zeros.
// One block of 256 threads a row; x: 16-byte accesses where `wide` (aligned rows, K % 8 == 0).
// Macro: X (c type of x).
#include "prelude.cuh"

DEVICE void row8(const X* x, int k, int K, bool wide, float* v) {
  if (wide) {
    constexpr int N = 16 / sizeof(X);
#pragma unroll
    for (int i = 0; i < 8; i += N) {
      Vec<X, N> a = load_vec<X, N>(x + k + i);
#pragma unroll
      for (int j = 0; j < N; ++j) v[i + j] = a[j];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = k + i < K ? to_float(x[k + i]) : 0.f;
}

extern "C" __global__ void __launch_bounds__(256) quantize_rows(
    const X* x, i64 ldx, i8* values, i64 ldv, float* scales, int K, int wide) {
  __shared__ float room[8];
  x += blockIdx.x * ldx;
  values += blockIdx.x * ldv;
  float most = 0.f, v[8];
  for (int k = threadIdx.x * 8; k < K; k += 256 * 8) {
    row8(x, k, K, wide, v);
#pragma unroll
    for (int i = 0; i < 8; ++i) most = fmaxf(most, fabsf(v[i]));
  }
  const float scale = __fdiv_rn(block_max<8>(most, room), 127.f);
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
  const float divisor = scale > 0.f ? scale : 1.f;
  for (int k = threadIdx.x * 8; k < ldv; k += 256 * 8) {
    row8(x, k, K, wide && k < K, v);
    Vec<i8, 8> out;
#pragma unroll
    for (int i = 0; i < 8; ++i)
      out.at[i] = (i8)fminf(fmaxf(rintf(__fdiv_rn(v[i], divisor)), -127.f), 127.f);
    *(uint2*)(values + k) = *(uint2*)&out;
  }
}
