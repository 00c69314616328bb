// The gradients of RMS and layer normalisation, of rows h of E elements.
//
// n = the normalised row before the weight, c = g * (w + offset):
//   RMS    dh = r * (c - n * mean(c * n))            r = 1 / sqrt(mean(h^2) + eps)
//   layer  dh = r * (c - mean(c) - n * mean(c * n))  r = 1 / sqrt(mean((h - m)^2) + eps)
//   dw = sum over rows of g * n, db = sum over rows of g
//
// Threads as in norm.cu. A grid of few blocks goes over the rows, so that a thread's columns stay
// the same: it adds up dw and db in registers (ITEMS = 0: in `partial`), a block leaves one partial
// sum of them, and norm_weights.cu adds these: deterministic. The next row is loaded before the
// sums of this one, where registers allow.
//
// Macros: X type of x and g, W of weight, VEC, ITEMS, LANES, ROWS; ADD, LAYER (0 or 1);
// EXACT: a row is just ITEMS * LANES * VEC elements.
#include "rows.cuh"

#define COLUMN(i) ((lane + (i) * LANES) * VEC)
#define INSIDE(i) (EXACT || COLUMN(i) < E)
typedef Pack<X, VEC> Run;

// What a row's threads must know of all of it; `sums` are of (x - m)^2, c (x - m) and c.
struct RowScale {
  float mean, r, slope, plain;
  DEVICE RowScale(float m, const float (&sums)[2 + LAYER], float inverse, float eps) {
    mean = m;
    r = rsqrtf(sums[0] * inverse + eps);
    slope = sums[1] * inverse * r * r * r;
    plain = LAYER ? sums[1 + LAYER] * inverse * r : 0.f;
  }
};

DEVICE void add_to_sums(const Run& x, const Run& g, const float (&w)[VEC], float mean,
                        float (&sums)[2 + LAYER]) {
#pragma unroll
  for (int j = 0; j < VEC; j++) {
    const float d = LAYER ? x[j] - mean : x[j];
    sums[0] += d * d;
    if (LAYER) {
      const float c = g[j] * w[j];
      sums[1] += c * d;
      sums[1 + LAYER] += c;
    } else {
      sums[1] += g[j] * d * w[j];
    }
  }
}

// dh of one run; its share of dw and db goes into `dw` and `db`.
DEVICE void finish(const Run& x, const Run& g, const float (&w)[VEC], const RowScale& row,
                   float (&dh)[VEC], float* dw, float* db) {
#pragma unroll
  for (int j = 0; j < VEC; j++) {
    const float d = LAYER ? x[j] - row.mean : x[j];
    dh[j] = g[j] * (w[j] * row.r) - (d * row.slope + row.plain);
    dw[j] += g[j] * d * row.r;
    if (LAYER) db[j] += g[j];
  }
}

#if ITEMS
// The weight of this thread's columns, in f32.
DEVICE void load_gain(const W* weight, int lane, int E, float offset, float (&w)[ITEMS][VEC]) {
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    Pack<W, VEC> v;
    v.clear();
    if (INSIDE(i)) v = load_pack<W, VEC>(weight + COLUMN(i));
#pragma unroll
    for (int j = 0; j < VEC; j++) w[i][j] = v[j] + offset;
  }
}

// partial[blockIdx.x] = the sums of all rows of this block, by way of `room` [ROWS, E] in shared
// memory where a block has several.
DEVICE void store_sums(const float (&sum)[ITEMS][VEC], float* partial, float* room, int lane,
                       int E) {
  float* to = ROWS > 1 ? room + (threadIdx.x / LANES) * E : partial + (i64)blockIdx.x * E;
  if (ROWS > 1) __syncthreads();
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    if (INSIDE(i)) store_floats<float, VEC>(to + COLUMN(i), sum[i]);
  if (ROWS == 1) return;
  __syncthreads();
  for (int e = threadIdx.x; e < E; e += LANES * ROWS) {
    float total = 0.f;
#pragma unroll 4
    for (int t = 0; t < ROWS; t++) total += room[t * E + e];
    partial[(i64)blockIdx.x * E + e] = total;
  }
}
#endif

// partial: f32 [1 + LAYER, blocks, E], of dw and then of db (ITEMS = 0: blocks * ROWS of them);
// null: not wanted. With ADD, `passed` is the gradient of h itself, which dh takes too. All dense.
extern "C" __global__ void __launch_bounds__(LANES* ROWS)
norm_backward(const X* g, const X* passed, const X* x, const W* weight, X* dh, float* partial,
              int rows, int E, float eps, float offset) {
  __shared__ float room[LANES > 32 ? (2 + LAYER) * LANES / 16 : 1];
  int turn = 0;
  const int lane = threadIdx.x % LANES;
  const float inverse = __fdividef(1.f, (float)E);
  const int group = blockIdx.x * ROWS + threadIdx.x / LANES, groups = gridDim.x * ROWS;
  pdl_wait();
  pdl_launch();
#if ITEMS
  constexpr int steps = ITEMS;
  constexpr int words = VEC * (int)sizeof(X) / 4;
  constexpr int wanted = 40 + 24 * ADD + ITEMS * ((4 + 2 * ADD) * words + VEC * (2 + LAYER));
  constexpr bool ahead = wanted <= 255 && wanted * LANES * ROWS <= 65536;
  float sum_w[ITEMS][VEC] = {}, sum_b[ITEMS][VEC] = {}, kept_w[ITEMS][VEC];
  constexpr int added = ADD ? ITEMS : 1;
  Run row_g[ITEMS], row_x[ITEMS], row_p[added], next_g[ITEMS], next_x[ITEMS], next_p[added];
  auto fetch = [&](Run(&to_g)[ITEMS], Run(&to_x)[ITEMS], Run(&to_p)[added], int row) {
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      to_g[i].clear();
      to_x[i].clear();
      if (row < rows && INSIDE(i)) {
        to_g[i] = load_pack<X, VEC>(g + (i64)row * E + COLUMN(i));
        to_x[i] = load_pack<X, VEC>(x + (i64)row * E + COLUMN(i));
        if (ADD) to_p[i] = load_pack<X, VEC>(passed + (i64)row * E + COLUMN(i));
      }
    }
  };
  if (ahead) fetch(next_g, next_x, next_p, group);
  load_gain(weight, lane, E, offset, kept_w);
#else
  const int steps = (E + LANES * VEC - 1) / (LANES * VEC);
  float* dw = partial + (i64)group * E;
  float* db = partial + ((i64)groups + group) * E;
  if (partial)
    for (int i = 0; i < steps; i++)
      for (int j = 0; j < VEC && INSIDE(i); j++) {
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
        if (ADD) row_p[i] = next_p[i];
      }
      fetch(next_g, next_x, next_p, row + groups);
    } else {
      fetch(row_g, row_x, row_p, row);
    }
#define RUN_X(i) row_x[i]
#define RUN_P(i) row_p[i]
#define GET_RUNS(i)               \
  Run a = row_x[i], b = row_g[i]; \
  float(&w)[VEC] = kept_w[i]
#else
#define RUN_X(i) load_pack<X, VEC>(x + at + COLUMN(i))
#define RUN_P(i) load_pack<X, VEC>(passed + at + COLUMN(i))
#define GET_RUNS(i)                                            \
  Run a = RUN_X(i), b = load_pack<X, VEC>(g + at + COLUMN(i)); \
  Pack<W, VEC> v = load_pack<W, VEC>(weight + COLUMN(i));      \
  float w[VEC];                                                \
  for (int j = 0; j < VEC; j++) w[j] = v[j] + offset
#endif
    float mean = 0.f, sums[2 + LAYER] = {};
#if LAYER
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || !INSIDE(i)) continue;
      Run a = RUN_X(i);
#pragma unroll
      for (int j = 0; j < VEC; j++) mean += a[j];
    }
    mean = row_reduce<AddOp, LANES>(mean, room, turn) * inverse;
#endif
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || !INSIDE(i)) continue;
      GET_RUNS(i);
      add_to_sums(a, b, w, mean, sums);
    }
    row_reduce_all<AddOp, LANES, 2 + LAYER>(sums, room, turn);
    const RowScale scale(mean, sums, inverse, eps);
#pragma unroll
    for (int i = 0; i < steps; i++) {
      if (!live || !INSIDE(i)) continue;
      GET_RUNS(i);
      float result[VEC];
#if ITEMS
      finish(a, b, w, scale, result, sum_w[i], sum_b[i]);
#else
      float part_w[VEC] = {}, part_b[VEC] = {};
      finish(a, b, w, scale, result, part_w, part_b);
      for (int j = 0; j < VEC && partial; j++) {
        dw[COLUMN(i) + j] += part_w[j];
        if (LAYER) db[COLUMN(i) + j] += part_b[j];
      }
#endif
#if ADD
      Run p = RUN_P(i);
#pragma unroll
      for (int j = 0; j < VEC; j++) result[j] += p[j];
#endif
      store_floats<X, VEC>(dh + at + COLUMN(i), result);
    }
  }
#if ITEMS
  __shared__ float sums_room[ROWS > 1 ? ROWS * LANES * ITEMS * VEC : 1];
  if (partial) {
    store_sums(sum_w, partial, sums_room, lane, E);
    if (LAYER) store_sums(sum_b, partial + (i64)gridDim.x * E, sums_room, lane, E);
  }
#endif
}
