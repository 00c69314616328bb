// out[m, f] = act(gate) * up, gate = sum_k x[m, k] gate_w[f, k] (+ gate_bias[f]), up likewise: the
// gated MLP's first half for the 1..8 rows m of a decode step. x comes through a norm or as it
// is; weights [F, K] in a stored form, f32 sums. ACT: gemv_activation.cuh.
// Thread mapping, grid and shared memory as gemv.cu; a lane has the gate row and the up row of an f
// (rows 2j and 2j + 1 of its PER_LANE, which is even). Source: Shazeer 2020, GLU Variants.
#include "prelude.cuh"
#include "weights.cuh"
#include "gemv_rows.cuh"
#include "gemv_input.cuh"
#include "gemv_activation.cuh"
#ifndef BIAS_T
#define BIAS_T float
#endif
static_assert(PER_LANE % 2 == 0, "gate and up rows come in pairs");

struct Gated : Input {
  Planes gate, up;
  const BIAS_T* gate_bias;
  const BIAS_T* up_bias;
  X_T* out;
  int F;
  int base, end, units, first, stride;
  float factor[PER_LANE];
  BIAS_T add[PER_LANE];  // as stored: who converts it waits for it

  DEVICE int index(int unit, int lane_row, int r) const {
    return base + (unit * (PER_LANE / 2) + r / 2) * LANE_ROWS + lane_row;
  }
  DEVICE Planes at(int unit, int lane_row, int r) const {
    return weight_row(r & 1 ? up : gate, min(index(unit, lane_row, r), end - 1), K);
  }
  DEVICE void fixed(int unit, int lane_row) {
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) {
      const int f = min(index(unit, lane_row, r), end - 1);
      const BIAS_T* bias = r & 1 ? up_bias : gate_bias;
      factor[r] = row_scale(r & 1 ? up : gate, f);
      add[r] = bias ? bias[f] : from_float<BIAS_T>(0.f);
    }
  }
  DEVICE void fresh(int, int, int) {}
  DEVICE void finish(int unit, int lane_row, int m, const Sum (&total)[PER_LANE]) {
#pragma unroll
    for (int r = 0; r < PER_LANE; r += 2) {
      const int f = index(unit, lane_row, r);
      const float g = (float)total[r] * x_factor * factor[r] + to_float(add[r]);
      const float u = (float)total[r + 1] * x_factor * factor[r + 1] + to_float(add[r + 1]);
      if (f < end) out[(i64)m * F + f] = from_float<X_T>(activated(g) * u);
    }
  }
};

// gemv_gated[min(SMs * blocks, units / TEAMS), THREADS]
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
gemv_gated(X_T* x, Planes gate, const BIAS_T* gate_bias, Planes up, const BIAS_T* up_bias,
           X_T* out, const NORM_T* norm, const NORM_T* norm_bias, int M, int F, int K, float eps,
           float offset) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ float room[ROOMS * BLOCK_WARPS], x_scales[ROWS];
  Gated job;
  job.x = x, job.norm = norm, job.norm_bias = norm_bias, job.room = room, job.scales = x_scales;
  job.M = M, job.K = K, job.eps = eps, job.offset = offset;
  job.gate = gate, job.gate_bias = gate_bias, job.up = up, job.up_bias = up_bias;
  job.out = out, job.F = F;
  share_out<UNIT_ROWS / 2>(job, 0, F);
  stream_rows(job, shared, K);
}
