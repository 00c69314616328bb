// Sums of rows of x over groups of inputs, as gemm_sm90.cu multiplies them by offsets: every sum as
// the nearest bf16 and the bf16 nearest to what is left, 16 bits in all:
//   sums[m, g, 0] + sums[m, g, 1] = sum of x[m, k] over the k of group g
// sums: bf16 [M, groups, 2], groups a multiple of 8, zero past the last. LANES = GROUP / 16 threads a group, whose
// sums are float32; 16-byte accesses where `wide` (aligned rows, K % 8 == 0).
// Macros: X (c type of x), GROUP (16, 32, ... 256).
#include "prelude.cuh"

#define LANES (GROUP / 16)

extern "C" __global__ void __launch_bounds__(256) group_sums(const X* x, i64 ldx, bf16* sums, int M,
                                                             int K, int groups, int wide) {
  pdl_wait();
  pdl_launch();
  const i64 at = (i64)blockIdx.x * 256 + threadIdx.x, group = at / LANES, m = group / groups;
  const int k = group % groups * GROUP + at % LANES * 16;
  const X* row = x + m * ldx;
  float sum = 0.f;
  if (m < M && k < K) {
#pragma unroll
    for (int j = 0; j < 16; j += 8) {
      if (wide) {
        if (k + j >= K) break;
        const Vec<X, 8> v = load_vec<X, 8>(row + k + j);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum += v[i];
      } else {
        for (int i = j; i < j + 8 && k + i < K; ++i) sum += to_float(row[k + i]);
      }
    }
  }
#pragma unroll
  for (int d = LANES / 2; d; d >>= 1) sum += __shfl_xor_sync(FULL_MASK, sum, d);
  if (m >= M || at % LANES) return;
  const bf16 near = from_float<bf16>(sum);
  sums[2 * group] = near;
  sums[2 * group + 1] = from_float<bf16>(sum - to_float(near));
}
