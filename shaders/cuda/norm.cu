// RMS and layer normalisation of rows, with the residual add before it, and their gradients.
//
//   RMS    y = h * r * (w + offset)            r = 1 / sqrt(mean(h^2) + eps)
//   layer  y = (h - m) * r * w + b             r = 1 / sqrt(mean((h - m)^2) + eps), m = mean(h)
// h = x + residual (ADD; then written too) or x. Sums and products in f32.
//
// Gradients, n = the normalised row before the weight, c = g * (w + offset) or g * w:
//   RMS    dh = r * (c - n * mean(c * n))
//   layer  dh = r * (c - mean(c) - n * mean(c * n))
//   dw = sum over rows of g * n, db = sum over rows of g
//
// Threads: LANES of them a row, ROWS rows a block (1 where LANES > 32). Thread l has the runs l,
// l + LANES, ... of VEC elements: ITEMS of them, kept in registers, so that memory is read once;
// ITEMS = 0: as many as it takes, read again (rows that are too long or not in runs of 16 bytes).
// The gradient goes over rows with a grid of few blocks: a thread's columns stay the same, so it
// adds up dw and db in registers, and `norm_weights` adds the blocks' partial sums: deterministic.
//
// Macros: X type of x, W of weight and bias, VEC, ITEMS, LANES, ROWS; ADD, LAYER, BIAS (0 or 1).
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

// The column of this thread's run i.
#define COLUMN(i) ((lane + (i) * LANES) * VEC)

extern "C" __global__ void __launch_bounds__(LANES* ROWS)
norm_forward(const X* x, const X* residual, const W* weight, const W* bias, X* y, X* h, int rows,
             int E, int inner, i64 stride, float eps, float offset) {
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
      if (live && COLUMN(i) < E) kept[i] = load_pack<X, VEC>(source + COLUMN(i));
    }
#define RUN(i) kept[i]
#else  // h was written by this very thread
#define RUN(i) load_pack<X, VEC>((ADD ? h + out : source) + COLUMN(i))
#endif
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || COLUMN(i) >= E) continue;
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
      if (!live || COLUMN(i) >= E) continue;
      Run self = RUN(i);
#pragma unroll
      for (int j = 0; j < VEC; j++) total += (self[j] - mean) * (self[j] - mean);
    }
    total = row_reduce<AddOp, LANES>(total, room, turn);
#endif
    const float r = rsqrtf(total * inverse + eps);
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || COLUMN(i) >= E) continue;
      Run self = RUN(i);
      Pack<W, VEC> w = load_pack<W, VEC>(weight + COLUMN(i));
      float result[VEC];
#pragma unroll
      for (int j = 0; j < VEC; j++) result[j] = (self[j] - mean) * r * (w[j] + offset);
#if BIAS
      Pack<W, VEC> b = load_pack<W, VEC>(bias + COLUMN(i));
#pragma unroll
      for (int j = 0; j < VEC; j++) result[j] += b[j];
#endif
      store_floats<X, VEC>(y + out + COLUMN(i), result);
    }
  }
}

// partial: f32 [1 + LAYER, gridDim.x * ROWS, E], of dw and then of db; null: not wanted. With ADD,
// `passed` is the gradient of h itself, which dh takes too. g, x, passed and dh are dense.
extern "C" __global__ void __launch_bounds__(LANES* ROWS)
norm_backward(const X* g, const X* passed, const X* x, const W* weight, X* dh, float* partial,
              int rows, int E, float eps, float offset) {
  __shared__ float room[LANES > 32 ? (2 + LAYER) * LANES / 16 : 1];
  int turn = 0;
  const int lane = threadIdx.x % LANES;
  COUNT_STEPS;
  const float inverse = __fdividef(1.f, (float)E);
  const int group = blockIdx.x * ROWS + threadIdx.x / LANES, groups = gridDim.x * ROWS;
  float* dw = partial + (i64)group * E;
  float* db = partial + ((i64)groups + group) * E;
  pdl_wait();
  pdl_launch();
#if ITEMS
  float sum_w[ITEMS * VEC] = {}, sum_b[LAYER ? ITEMS * VEC : 1] = {};
  // Where registers allow, the weight stays in them and the next row is on its way.
  constexpr int words = VEC * (int)sizeof(X) / 4;
  constexpr int wanted = 40 + ITEMS * (4 * words + VEC * (int)sizeof(W) / 4 + VEC * (1 + LAYER));
  constexpr bool ahead = wanted <= 255 && wanted * LANES * ROWS <= 65536;
  Run row_g[ITEMS], row_x[ITEMS], next_g[ITEMS], next_x[ITEMS];
  Pack<W, VEC> kept_w[ITEMS];
  auto fetch = [&](Run(&to_g)[ITEMS], Run(&to_x)[ITEMS], int row) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      to_g[i].clear();
      to_x[i].clear();
      if (row < rows && COLUMN(i) < E) {
        to_g[i] = load_pack<X, VEC>(g + (i64)row * E + COLUMN(i));
        to_x[i] = load_pack<X, VEC>(x + (i64)row * E + COLUMN(i));
      }
    }
  };
  if (ahead) {
    fetch(next_g, next_x, group);
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
      if (COLUMN(i) < E) kept_w[i] = load_pack<W, VEC>(weight + COLUMN(i));
  }
  auto gain = [&](int i) { return ahead ? kept_w[i] : load_pack<W, VEC>(weight + COLUMN(i)); };
#else
  if (partial)
    for (int i = 0; i < steps; i++)
      for (int j = 0; j < VEC && COLUMN(i) < E; j++) {
        dw[COLUMN(i) + j] = 0.f;
        if (LAYER) db[COLUMN(i) + j] = 0.f;
      }
#endif
  for (int base = blockIdx.x * ROWS; base < rows; base += groups) {
    const int row = base + threadIdx.x / LANES;
    const bool live = row < rows;
    const i64 at = (i64)row * E;
#if ITEMS
    if (ahead) {
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        row_g[i] = next_g[i];
        row_x[i] = next_x[i];
      }
      fetch(next_g, next_x, row + groups);
    } else {
      fetch(row_g, row_x, row);
    }
#define RUN_G(i) row_g[i]
#define RUN_X(i) row_x[i]
#define RUN_W(i) gain(i)
#else
#define RUN_G(i) load_pack<X, VEC>(g + at + COLUMN(i))
#define RUN_X(i) load_pack<X, VEC>(x + at + COLUMN(i))
#define RUN_W(i) load_pack<W, VEC>(weight + COLUMN(i))
#endif
    float mean = 0.f;
#if LAYER
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || COLUMN(i) >= E) continue;
      Run a = RUN_X(i);
#pragma unroll
      for (int j = 0; j < VEC; j++) mean += a[j];
    }
    mean = row_reduce<AddOp, LANES>(mean, room, turn) * inverse;
#endif
    float sums[2 + LAYER] = {};  // of (x - m)^2, c (x - m) and c
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || COLUMN(i) >= E) continue;
      Run a = RUN_X(i), b = RUN_G(i);
      Pack<W, VEC> w = RUN_W(i);
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        const float d = a[j] - mean, c = b[j] * (w[j] + offset);
        sums[0] += d * d;
        sums[1] += c * d;
        if (LAYER) sums[1 + LAYER] += c;
      }
    }
    row_reduce_all<AddOp, LANES, 2 + LAYER>(sums, room, turn);
    const float r = rsqrtf(sums[0] * inverse + eps);
    const float slope = sums[1] * inverse * r * r * r;
    const float plain = LAYER ? sums[1 + LAYER] * inverse : 0.f;
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || COLUMN(i) >= E) continue;
      Run a = RUN_X(i), b = RUN_G(i);
      Pack<W, VEC> w = RUN_W(i);
      float result[VEC];
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        const float d = a[j] - mean;
        result[j] = r * (b[j] * (w[j] + offset) - plain) - d * slope;
#if ITEMS
        sum_w[i * VEC + j] += b[j] * (d * r);
        if (LAYER) sum_b[LAYER ? i * VEC + j : 0] += b[j];
#else
        if (partial) dw[COLUMN(i) + j] += b[j] * (d * r);
        if (partial && LAYER) db[COLUMN(i) + j] += b[j];
#endif
      }
#if ADD
      Run p = load_pack<X, VEC>(passed + at + COLUMN(i));
#pragma unroll
      for (int j = 0; j < VEC; j++) result[j] += p[j];
#endif
      store_floats<X, VEC>(dh + at + COLUMN(i), result);
    }
  }
#if ITEMS
  if (partial) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      if (COLUMN(i) >= E) continue;
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        dw[COLUMN(i) + j] = sum_w[i * VEC + j];
        if (LAYER) db[COLUMN(i) + j] = sum_b[LAYER ? i * VEC + j : 0];
      }
    }
  }
#endif
}

// out[part][e] = sum over p of partial[part][p][e]. Block: 32 columns by 32 shares of the P rows;
// grid (E / 32, parts). `dw` and `db` are [E] of W.
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
