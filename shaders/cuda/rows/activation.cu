// Activations, the gated ones of MLPs, their gradients, and softmax over rows.
//
//   out = f(x) or f(x) * up (GATED); f: FORM 0 silu x / (1 + exp(-x)), 1 gelu x * Phi(x),
//   2 gelu by tanh(sqrt(2/pi) (x + 0.044715 x^3)).
//   gradient: dx = g * up * f'(x), dup = g * f(x); with AGAIN also out, as it was rounded before.
//   softmax exp(x - max) / sum, a row of -inf gives zeros; log_softmax x - max - log(sum) (LOG).
//
// f32 arithmetic; 16-bit types take the fast exp and division (their error is below the rounding).
//
// Threads, elementwise: a block has THREADS * UNROLL runs of VEC elements of one row; blocks are
// numbered row by row, `chunks` to a row. Rows may lie apart (strides in elements), as the halves
// of one matrix [T, 2F] do; what is dense comes as one long row.
// Threads, softmax: as norm.cu, LANES threads a row, ROWS rows a block, ITEMS runs in registers.
//
// Macros: X type, VEC, and of the first THREADS, UNROLL, FORM, GATED, AGAIN; of softmax ITEMS,
// LANES,
// ROWS, LOG (and EXACT, which is not read).
// Source: Elfwing et al. 2017; Hendrycks & Gimpel 2016; Shazeer 2020.
#include "rows.cuh"

#ifdef FORM
DEVICE float exp_of(float x) { return sizeof(X) == 4 ? expf(x) : __expf(x); }
DEVICE float over(float a, float b) { return sizeof(X) == 4 ? a / b : __fdividef(a, b); }
DEVICE float logistic(float x) { return over(1.f, 1.f + exp_of(-x)); }
DEVICE float tanh_of(float x) {  // 1 - 2 / (exp(2x) + 1) loses what is small; f32 needs it
  return sizeof(X) == 4 ? tanhf(x) : 2.f * logistic(2.f * x) - 1.f;
}
#define TANH_SCALE 0.7978845608028654f  // sqrt(2 / pi)
#define TANH_CUBE 0.044715f

DEVICE float value_of(float x) {
  if (FORM == 0) return over(x, 1.f + exp_of(-x));
  if (FORM == 1) return 0.5f * x * (1.f + erff(x * 0.7071067811865476f));
  return 0.5f * x * (1.f + tanh_of(TANH_SCALE * (x + TANH_CUBE * x * x * x)));
}

// f(x), and f'(x) in `slope`
DEVICE float value_and_slope(float x, float& slope) {
  if (FORM == 0) {
    const float s = logistic(x);
    slope = s * (1.f + x * (1.f - s));
    return x * s;
  }
  if (FORM == 1) {
    const float phi = 0.5f * (1.f + erff(x * 0.7071067811865476f));
    slope = phi + x * 0.3989422804014327f * exp_of(-0.5f * x * x);
    return x * phi;
  }
  const float t = tanh_of(TANH_SCALE * (x + TANH_CUBE * x * x * x));
  const float inner = TANH_SCALE * (1.f + 3.f * TANH_CUBE * x * x);
  slope = 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * inner;
  return 0.5f * x * (1.f + t);
}

extern "C" __global__ void __launch_bounds__(THREADS)
elementwise(const X* x, const X* up, X* out, i64 columns, int chunks, i64 x_stride, i64 up_stride,
            i64 out_stride) {
  const i64 row = blockIdx.x / chunks;
  const i64 begin = ((i64)(blockIdx.x % chunks) * (THREADS * UNROLL) + threadIdx.x) * VEC;
  Pack<X, VEC> a[UNROLL], b[UNROLL];
  pdl_wait();
  pdl_launch();
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const i64 column = begin + u * THREADS * VEC;
    if (column >= columns) continue;
    a[u] = load_pack<X, VEC>(x + row * x_stride + column);
    if (GATED) b[u] = load_pack<X, VEC>(up + row * up_stride + column);
  }
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const i64 column = begin + u * THREADS * VEC;
    if (column >= columns) continue;
    float y[VEC];
#pragma unroll
    for (int j = 0; j < VEC; j++) y[j] = value_of(a[u][j]) * (GATED ? b[u][j] : 1.f);
    store_floats<X, VEC>(out + row * out_stride + column, y);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
elementwise_backward(const X* g, const X* x, const X* up, X* dx, X* dup, X* out, i64 columns,
                     int chunks, i64 g_stride, i64 x_stride, i64 up_stride, i64 out_stride) {
  const i64 row = blockIdx.x / chunks;
  const i64 begin = ((i64)(blockIdx.x % chunks) * (THREADS * UNROLL) + threadIdx.x) * VEC;
  Pack<X, VEC> a[UNROLL], b[UNROLL], c[UNROLL];
  pdl_wait();
  pdl_launch();
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const i64 column = begin + u * THREADS * VEC;
    if (column >= columns) continue;
    a[u] = load_pack<X, VEC>(x + row * x_stride + column);
    c[u] = load_pack<X, VEC>(g + row * g_stride + column);
    if (GATED) b[u] = load_pack<X, VEC>(up + row * up_stride + column);
  }
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const i64 column = begin + u * THREADS * VEC;
    if (column >= columns) continue;
    float y[VEC], z[VEC], o[VEC];
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      float slope;
      const float value = value_and_slope(a[u][j], slope);
      y[j] = c[u][j] * slope * (GATED ? b[u][j] : 1.f);
      z[j] = c[u][j] * value;
      if (AGAIN) o[j] = value_of(a[u][j]) * b[u][j];
    }
    store_floats<X, VEC>(dx + row * out_stride + column, y);
    if (GATED) store_floats<X, VEC>(dup + row * out_stride + column, z);
    if (AGAIN) store_floats<X, VEC>(out + row * out_stride + column, o);
  }
}
#endif

#ifdef LOG
#if ITEMS
#define COUNT_STEPS constexpr int steps = ITEMS
#else
#define COUNT_STEPS const int steps = (N + LANES * VEC - 1) / (LANES * VEC)
#endif
#define COLUMN(i) ((lane + (i) * LANES) * VEC)

// x: `rows` rows of N elements, row r from (r / inner) * stride + (r % inner) * N; out is dense.
extern "C" __global__ void __launch_bounds__(LANES* ROWS)
softmax(const X* x, X* out, int rows, int N, int inner, i64 stride) {
  __shared__ float room[LANES > 32 ? LANES / 16 : 1];
  int turn = 0;
  const int lane = threadIdx.x % LANES;
  COUNT_STEPS;
  const int row = blockIdx.x * ROWS + threadIdx.x / LANES;
  const bool live = row < rows;
  const X* source = x;
  if (live) source += (row / inner) * stride + (i64)(row % inner) * N;
  X* to = out + (i64)row * N;
  pdl_wait();
  pdl_launch();
  float top = -INF, total = 0.f;
#if ITEMS
  Pack<X, VEC> kept[ITEMS];
#define RUN(i) kept[i]
#pragma unroll
  for (int i = 0; i < steps; i++)
    if (live && COLUMN(i) < N) kept[i] = load_pack<X, VEC>(source + COLUMN(i));
#else
#define RUN(i) load_pack<X, VEC>(source + COLUMN(i))
#endif
#pragma unroll 4
  for (int i = 0; i < steps; i++) {
    if (!live || COLUMN(i) >= N) continue;
    Pack<X, VEC> a = RUN(i);
#pragma unroll
    for (int j = 0; j < VEC; j++) top = fmaxf(top, a[j]);
  }
  top = row_reduce<MaxOp, LANES>(top, room, turn);
  const float shift = LOG || top > -INF ? top : 0.f;
#pragma unroll 4
  for (int i = 0; i < steps; i++) {
    if (!live || COLUMN(i) >= N) continue;
    Pack<X, VEC> a = RUN(i);
#pragma unroll
    for (int j = 0; j < VEC; j++) total += expf(a[j] - shift);
  }
  total = row_reduce<AddOp, LANES>(total, room, turn);
  const float last = LOG ? logf(total) : total > 0.f || total != total ? 1.f / total : 0.f;
#pragma unroll 4
  for (int i = 0; i < steps; i++) {
    if (!live || COLUMN(i) >= N) continue;
    Pack<X, VEC> a = RUN(i);
    float y[VEC];
#pragma unroll
    for (int j = 0; j < VEC; j++)
      y[j] = LOG ? (a[j] - shift) - last : expf(a[j] - shift) * last;
    store_floats<X, VEC>(to + COLUMN(i), y);
  }
}

// Along an axis that is not the last: x and out dense [outer, N, inner]; a thread has one column.
extern "C" __global__ void __launch_bounds__(128)
softmax_columns(const X* x, X* out, i64 columns, int N, int inner) {
  const i64 column = (i64)blockIdx.x * 128 + threadIdx.x;
  pdl_wait();
  pdl_launch();
  if (column >= columns) return;
  const i64 at = column / inner * N * inner + column % inner;
  float top = -INF, total = 0.f;
  for (int n = 0; n < N; n++) top = fmaxf(top, to_float(x[at + (i64)n * inner]));
  const float shift = LOG || top > -INF ? top : 0.f;
  for (int n = 0; n < N; n++) total += expf(to_float(x[at + (i64)n * inner]) - shift);
  const float last = LOG ? logf(total) : total > 0.f || total != total ? 1.f / total : 0.f;
  for (int n = 0; n < N; n++) {
    const float a = to_float(x[at + (i64)n * inner]) - shift;
    out[at + (i64)n * inner] = from_float<X>(LOG ? a - last : expf(a) * last);
  }
}
#endif
