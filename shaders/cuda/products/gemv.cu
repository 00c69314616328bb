// y[m, n] = sum_k x[m, k] w[n, k] (+ bias[n]) (+ residual[m, n]) for the 1..8 rows m of a decode
// step, at the speed at which the weights can be read; SCALED: times `scale`, but for the residual.
// w [N, K] is in a stored form (weights.cuh), sums are f32 (int32 under W8A8), y is OUT_T. x comes as
// it is or through a norm (gemv_input.cuh).
// With ACT it is y = ACT(sum (+ bias)) (residual): an MLP's first half, or the second half of a
// gated pair whose weights are not stored alike.
// Grid: as many blocks as fill the device at most; each takes neighbouring rows
// (gemv_rows.cuh). Shared: ring | x | partial sums. Launched dependently.
// Limits: K >= 1, x rows contiguous; not SLOW: rows of w and x start at multiples of 16 bytes.
#include "prelude.cuh"
#include "weights.cuh"
#include "gemv_rows.cuh"
#include "gemv_input.cuh"
#ifndef OUT_T
#define OUT_T X_T
#endif
#ifndef BIAS_T
#define BIAS_T float
#endif
#ifndef REST_T
#define REST_T X_T
#endif
#ifndef SCALED
#define SCALED 0
#endif
#ifdef ACT
#include "gemv_activation.cuh"
#define NO_REST 1.f
#else
#define NO_REST 0.f
#endif

struct Product : Input {
  Planes weight;
  const BIAS_T* bias;
  const REST_T* residual;
  OUT_T* out;
  float scale;
  int N;
  int base, end, units, first, stride;
  float factor[PER_LANE];
  BIAS_T add[PER_LANE];  // as stored: who converts it waits for it
  REST_T rest[PER_LANE];

  DEVICE int index(int unit, int lane_row, int r) const {
    return base + (unit * PER_LANE + r) * LANE_ROWS + lane_row;
  }
  DEVICE Planes at(int unit, int lane_row, int r) const {
    return weight_row(weight, min(index(unit, lane_row, r), end - 1), K);
  }
  DEVICE void fixed(int unit, int lane_row) {
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) {
      const int n = min(index(unit, lane_row, r), end - 1);
      factor[r] = row_scale(weight, n);
      add[r] = bias ? bias[n] : from_float<BIAS_T>(0.f);
    }
  }
  DEVICE void fresh(int unit, int lane_row, int m) {
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) {
      const int n = min(index(unit, lane_row, r), end - 1);
      rest[r] = residual ? residual[(i64)m * N + n] : from_float<REST_T>(NO_REST);
    }
  }
  DEVICE void finish(int unit, int lane_row, int m, const Sum (&total)[PER_LANE]) {
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) {
      const int n = index(unit, lane_row, r);
      float y = (float)total[r] * x_factor * factor[r] + to_float(add[r]);
#ifdef ACT
      y = activated(y) * to_float(rest[r]);
#else
      y = SCALED ? fmaf(scale, y, to_float(rest[r])) : y + to_float(rest[r]);
#endif
      if (n < end) out[(i64)m * N + n] = from_float<OUT_T>(y);
    }
  }
};

// gemv[min(SMs * blocks, units / TEAMS), THREADS]
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
gemv(X_T* x, Planes weight, const BIAS_T* bias, const REST_T* residual, OUT_T* out,
     const NORM_T* norm, const NORM_T* norm_bias, int M, int N, int K, float eps, float offset,
     float scale) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ float room[ROOMS * BLOCK_WARPS], x_scales[ROWS];
  Product job;
  job.x = x, job.norm = norm, job.norm_bias = norm_bias, job.room = room, job.scales = x_scales;
  job.M = M, job.K = K, job.eps = eps, job.offset = offset;
  job.weight = weight, job.bias = bias, job.residual = residual, job.out = out, job.N = N;
  job.scale = scale;
  share_out<UNIT_ROWS>(job, 0, N);
  stream_rows(job, shared, K);
}
