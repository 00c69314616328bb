// What tapes do most between kernels, on dense arrays of n elements: sums of two arrays, and one in
// another type, perhaps times a scalar.
//
//   combine: out = a OPERATION b, rounded once.
//   convert: out = x * factor; 1 where factor is null.
//
// Threads: UNROLL runs each, in accesses of 16 bytes; the last elements one by one. A run is 16
// bytes, of convert 8 elements.
// Bytes: each element of each array once.
// Macros: of combine X, OPERATION 0 add | 1 subtract | 2 multiply; of convert X, O; UNROLL.
#include "rows.cuh"

#define THREADS 256

#ifdef OPERATION
#define RUN (16 / (int)sizeof(X))
DEVICE float combined(float a, float b) {
  return OPERATION == 0 ? a + b : OPERATION == 1 ? a - b : a * b;
}

extern "C" __global__ void __launch_bounds__(THREADS)
combine(const X* a, const X* b, X* out, i64 n) {
  const i64 begin = ((i64)blockIdx.x * (THREADS * UNROLL) + threadIdx.x) * RUN;
  Pack<X, RUN> left[UNROLL], right[UNROLL];
  pdl_wait();
  pdl_launch();
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const i64 at = begin + u * THREADS * RUN;
    if (at + RUN > n) continue;
    left[u] = load_pack<X, RUN>(a + at);
    right[u] = load_pack<X, RUN>(b + at);
  }
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const i64 at = begin + u * THREADS * RUN;
    if (at + RUN <= n) {
      float y[RUN];
#pragma unroll
      for (int j = 0; j < RUN; j++) y[j] = combined(left[u][j], right[u][j]);
      store_floats<X, RUN>(out + at, y);
    } else {
      for (i64 i = at; i < n; i++)
        out[i] = from_float<X>(combined(to_float(a[i]), to_float(b[i])));
    }
  }
}
#endif

#ifdef O
#define RUN 8
extern "C" __global__ void __launch_bounds__(THREADS)
convert(const X* x, const float* factor, O* out, i64 n) {
  const i64 begin = ((i64)blockIdx.x * (THREADS * UNROLL) + threadIdx.x) * RUN;
  Pack<X, RUN> runs[UNROLL];
  pdl_wait();
  pdl_launch();
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const i64 at = begin + u * THREADS * RUN;
    if (at + RUN <= n) runs[u] = load_pack<X, RUN>(x + at);
  }
  const float scale = factor ? *factor : 1.f;
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const i64 at = begin + u * THREADS * RUN;
    if (at + RUN <= n) {
      float y[RUN];
#pragma unroll
      for (int j = 0; j < RUN; j++) y[j] = runs[u][j] * scale;
      store_floats<O, RUN>(out + at, y);
    } else {
      for (i64 i = at; i < n; i++) out[i] = from_float<O>(to_float(x[i]) * scale);
    }
  }
}
#endif
