// What the two forms of norm_backward share: how a thread's runs enter the sums over a row, what
// the gradient of h is, and how the sums for the weight leave a block.
//
// n = the normalised row before the weight, c = g * (w + offset):
//   RMS    dh = r * (c - n * mean(c * n))
//   layer  dh = r * (c - mean(c) - n * mean(c * n))
//   dw = sum over rows of g * n, db = sum over rows of g
// Macros: X type of x and g, W of weight, VEC, ITEMS, LANES, ROWS, EXACT; ADD, LAYER (0 or 1).
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
