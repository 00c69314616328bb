// y[M, N] = x[M, K] w[N, K]^T + bias[n] + residual[m, n] in float32 on ordinary arithmetic units:
// for float32 x, for GPUs and shapes that the tensor-core kernels do not take. Any K and alignment.
//
// w in any stored form (weights.cuh), decoded exactly; a scale of a whole row multiplies its sum.
// ROUNDS: x is int8 as well, the sum in int32, then xscale[m] scale[n].
//
// A block of 16 x 16 threads makes (16 TM) x 128 results, TM x 8 a thread. Each thread decodes 8
// consecutive k of a row of w and x at a time into shared memory ([k][row]), double-buffered.
// Macros: those of weights.cuh, X, OUT, BIAS, RESIDUAL (c types), TM (8 or 2).
#include "prelude.cuh"
#include "weights.cuh"

#if ROUNDS
typedef i8 x_t;
typedef int value_t;
#else
typedef X x_t;
typedef float value_t;
#endif
#define BM (16 * TM)
#define BN 128
#define BK 16
#define PAD 4

// 8 elements from p + k on, zero past K; `wide`: p is aligned to 16 bytes (int8: 8) and K % 8 == 0
DEVICE void load8(const float* p, int k, int K, bool wide, float* v) {
  if (wide && k < K) {
    Vec<float, 4> a = load_vec<float, 4>(p + k), b = load_vec<float, 4>(p + k + 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = a[i], v[i + 4] = b[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = k + i < K ? p[k + i] : 0.f;
}
template <typename T> DEVICE void load8(const T* p, int k, int K, bool wide, float* v) {
  if (wide && k < K) {
    Vec<T, 8> a = load_vec<T, 8>(p + k);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = a[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = k + i < K ? to_float(p[k + i]) : 0.f;
}
DEVICE void load8(const i8* p, int k, int K, bool wide, int* v) {
  if (wide && k < K) {
    const uint2 bytes = *(const uint2*)(p + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = (i8)(bytes.x >> (8 * i));
      v[i + 4] = (i8)(bytes.y >> (8 * i));
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = k + i < K ? p[k + i] : 0;
}

// 8 weights of row n, k..k+7; all zero for a row that is not there.
DEVICE void load_w(const Planes& w, int n, int N, int k, int K, bool wide, value_t (&v)[8]) {
  if (n >= N || k >= K) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = 0;
    return;
  }
#if IS_FLOAT || ROUNDS
  load8((const Code*)w.codes + (i64)n * K, k, K, wide, v);
#else
  const Planes row = weight_row(w, n, K);
  if (wide) {
    eight(row, k, v);
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = k + i < K ? one(row, k + i) : 0.f;
  }
  if (GROUP) affine(row, k, v);
#endif
}

// Grid: (column tiles, row tiles). wide_x: see load8; wide_w: rows begin as `eight` wants, and
// K % 8 == 0.
extern "C" __global__ void __launch_bounds__(256) gemm_simt(
    const x_t* x, i64 ldx, const float* x_scales, Planes w, const BIAS* bias,
    const RESIDUAL* residual, OUT* y, i64 ldy, int M, int N, int K, int wide_x, int wide_w) {
  __shared__ __align__(16) value_t xs[2][BK][BM + PAD];
  __shared__ __align__(16) value_t ws[2][BK][BN + PAD];
  const int n0 = blockIdx.x * BN, m0 = blockIdx.y * BM;
  const int tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
  const int row = threadIdx.x >> 1, piece = (threadIdx.x & 1) * 8;  // what it loads
  const bool loads_x = row < BM;
  value_t next_x[8], next_w[8];
  auto load = [&](int k) {
    if (loads_x) {
      if (m0 + row < M) {
        load8(x + (m0 + row) * ldx, k + piece, K, wide_x, next_x);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) next_x[i] = 0;
      }
    }
    load_w(w, n0 + row, N, k + piece, K, wide_w, next_w);
  };
  auto put = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (loads_x) xs[buffer][piece + i][row] = next_x[i];
      ws[buffer][piece + i][row] = next_w[i];
    }
  };
  value_t acc[TM][8] = {};
  load(0);
  put(0);
  __syncthreads();
  const int steps = (K + BK - 1) / BK;
  for (int s = 0; s < steps; ++s) {
    if (s + 1 < steps) load((s + 1) * BK);
    const int now = s & 1;
#pragma unroll
    for (int k = 0; k < BK; ++k) {
      value_t a[TM], b[8];
#pragma unroll
      for (int i = 0; i < TM; ++i)
        a[i] = xs[now][k][TM == 8 ? i / 4 * 64 + ty * 4 + i % 4 : ty * TM + i];
#pragma unroll
      for (int j = 0; j < 8; ++j) b[j] = ws[now][k][j / 4 * 64 + tx * 4 + j % 4];
#pragma unroll
      for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) acc[i][j] += a[i] * b[j];
    }
    if (s + 1 < steps) {
      put(now ^ 1);
      __syncthreads();
    }
  }
#pragma unroll
  for (int i = 0; i < TM; ++i) {
    const int m = m0 + (TM == 8 ? i / 4 * 64 + ty * 4 + i % 4 : ty * TM + i);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int n = n0 + j / 4 * 64 + tx * 4 + j % 4;
      if (m >= M || n >= N) continue;
      float v = (float)acc[i][j];
      if (ROUNDS) v *= x_scales[m];
      if (ROW_SCALE) v *= row_scale(w, n);
      if (bias) v += to_float(bias[n]);
      const i64 at = m * ldy + n;
      if (residual) v += to_float(residual[at]);
      y[at] = from_float<OUT>(v);
    }
  }
}
