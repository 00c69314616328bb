// RMS and layer normalisation of rows, with the residual add before or behind it.
//
//   RMS    y = h * r * (w + offset)            r = 1 / sqrt(mean(h^2) + eps)
//   layer  y = (h - m) * r * w + b             r = 1 / sqrt(mean((h - m)^2) + eps), m = mean(h)
// h = x + residual (ADD; then written too) or x. AFTER: y = residual + factor * (the above).
// Sums and products in f32.
//
// Threads: LANES of them a row, ROWS rows a block (1 where LANES > 32). Thread l has the runs l,
// l + LANES, ... of VEC elements: ITEMS of them, kept in registers, so that memory is read once;
// ITEMS = 0: as many as it takes, read again (rows that are too long or not in runs of 16 bytes).
//
// Macros: X type of x, W of weight and bias, VEC, ITEMS, LANES, ROWS; ADD, AFTER, LAYER, BIAS (0 or
// 1); EXACT: a row is just ITEMS * LANES * VEC elements; EARLY: the weight is loaded with x, which
// costs registers and saves a latency: for few rows.
// Source: Zhang & Sennrich 2019; Ba et al. 2016.
#include "rows.cuh"

#if ITEMS
#define COUNT_STEPS constexpr int steps = ITEMS
#else
#define COUNT_STEPS const int steps = (E + LANES * VEC - 1) / (LANES * VEC)
#endif
typedef Pack<X, VEC> Run;

// Row r of x begins at (r / inner) * stride + (r % inner) * E.
DEVICE i64 row_start(int row, int E, int inner, i64 stride) {
  if (inner == 1) return row * stride;
  return (row / inner) * stride + (i64)(row % inner) * E;
}

// The column of this thread's run i, and whether the row has it.
#define COLUMN(i) ((lane + (i) * LANES) * VEC)
#define INSIDE(i) (EXACT || COLUMN(i) < E)

extern "C" __global__ void __launch_bounds__(LANES* ROWS)
norm_forward(const X* x, const X* residual, const W* weight, const W* bias, X* y, X* h, int rows,
             int E, int inner, i64 stride, float eps, float offset, float factor) {
  __shared__ float room[LANES > 32 ? LANES / 16 : 1];
  int turn = 0;
  const int lane = threadIdx.x % LANES;
  COUNT_STEPS;
  const float inverse = __fdividef(1.f, (float)E);
  pdl_wait();
  pdl_launch();
  for (int base = blockIdx.x * ROWS; base < rows; base += gridDim.x * ROWS) {
    const int row = base + threadIdx.x / LANES;
    const bool live = row < rows;
    const X* source = x + (live ? row_start(row, E, inner, stride) : 0);
    const i64 out = (i64)row * E;
#if ITEMS
    Run kept[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      kept[i].clear();
      if (live && INSIDE(i)) kept[i] = load_pack<X, VEC>(source + COLUMN(i));
    }
#define RUN(i) kept[i]
#if EARLY
    Pack<W, VEC> early[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
      if (INSIDE(i)) early[i] = load_pack<W, VEC>(weight + COLUMN(i));
#endif
#else  // h was written by this very thread
#define RUN(i) load_pack<X, VEC>((ADD ? h + out : source) + COLUMN(i))
#endif
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || !INSIDE(i)) continue;
#if ADD
      Run other = load_pack<X, VEC>(residual + out + COLUMN(i));
#if ITEMS
      Run self = kept[i];
#else
      Run self = load_pack<X, VEC>(source + COLUMN(i));
#endif
      float sum[VEC];
#pragma unroll
      for (int j = 0; j < VEC; j++) sum[j] = self[j] + other[j];
      self.set(sum);
      store_pack<X, VEC>(h + out + COLUMN(i), self);
#if ITEMS
      kept[i] = self;
#endif
#else
      Run self = RUN(i);
#endif
#pragma unroll
      for (int j = 0; j < VEC; j++) total += LAYER ? self[j] : self[j] * self[j];
    }
    total = row_reduce<AddOp, LANES>(total, room, turn);
    float mean = 0.f;
#if LAYER
    mean = total * inverse;
    total = 0.f;
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || !INSIDE(i)) continue;
      Run self = RUN(i);
#pragma unroll
      for (int j = 0; j < VEC; j++) total += (self[j] - mean) * (self[j] - mean);
    }
    total = row_reduce<AddOp, LANES>(total, room, turn);
#endif
    const float r = rsqrtf(total * inverse + eps);
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || !INSIDE(i)) continue;
      Run self = RUN(i);
#if EARLY && ITEMS
      Pack<W, VEC> w = early[i];
#else
      Pack<W, VEC> w = load_pack<W, VEC>(weight + COLUMN(i));
#endif
      float result[VEC];
#pragma unroll
      for (int j = 0; j < VEC; j++) result[j] = (self[j] - mean) * r * (w[j] + offset);
#if BIAS
      Pack<W, VEC> b = load_pack<W, VEC>(bias + COLUMN(i));
#pragma unroll
      for (int j = 0; j < VEC; j++) result[j] += b[j];
#endif
#if AFTER
      Run other = load_pack<X, VEC>(residual + out + COLUMN(i));
#pragma unroll
      for (int j = 0; j < VEC; j++) result[j] = fmaf(factor, result[j], other[j]);
#endif
      store_floats<X, VEC>(y + out + COLUMN(i), result);
    }
  }
}
