// The end of attention that was split over its keys (attention_decode.cu, attention.cu):
//
//   out = sum_s exp(m_s - M) o_s / total,  total = sum_s exp(m_s - M) sum_s + exp(sink - M)
//   lse = log(total) + M,                  M = max(m_s, sink)
//
// Shapes: partial_out f32 [T, H, S, V_DIM], partial_ms f32 [T, H, S, 2] = (m, sum); sinks f32 [H]
// or null; out [T, H, V_DIM] of Q_TYPE, lse f32 [T, H]. Slots with sum 0 are not read. A token at or past
// cu_seqlens_q[B] belongs to no sequence and sees no sink.
// Mapping: one block of 8 warps for each (t, h); warps take splits in turn, lanes columns.
#include "prelude.cuh"
#include "mma.cuh"

typedef Q_TYPE QT;

constexpr int WARP_COUNT = 8, BATCH = 4;  // splits of a warp at a time
constexpr int WIDE = V_DIM % 4 == 0 ? 4 : 1, COLUMNS = (V_DIM + 32 * WIDE - 1) / (32 * WIDE);

extern "C" __global__ void __launch_bounds__(WARP_COUNT * 32) attention_combine(
    const float* partial_out, const float* partial_ms, const float* sinks,
    const int* cu_seqlens_q, QT* out, float* lse, int H, int S, int B) {
  __shared__ __align__(16) float room[WARP_COUNT][V_DIM];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  int row = blockIdx.x;  // t * H + h
  pdl_launch();
  pdl_wait();
  float sink = -INF;
  if (sinks && row / H < cu_seqlens_q[B]) sink = sinks[row % H];
  const float2* ms = (const float2*)partial_ms + (i64)row * S;
  partial_out += (i64)row * S * V_DIM;
  float top = sink, total = 0.f;
  for (int s = lane; s < S; s += 32) top = fmaxf(top, ms[s].x);
  top = warp_max(top);
  float base = top == -INF ? 0.f : top;
  Vec<float, WIDE> acc[COLUMNS] = {};
  for (int first = 0; first < S; first += 32) {
    float2 x = first + lane < S ? ms[first + lane] : make_float2(-INF, 0.f);
    float weight = x.y > 0.f ? exp2_fast((x.x - base) * LOG2E) : 0.f;
    total += weight * x.y;
#pragma unroll 1
    for (int i = warp; i < min(32, S - first); i += WARP_COUNT * BATCH) {
      Vec<float, WIDE> y[BATCH][COLUMNS] = {};
      float w[BATCH];
#pragma unroll
      for (int j = 0; j < BATCH; j++) {
        int at = i + j * WARP_COUNT;
        w[j] = at < 32 ? __shfl_sync(FULL_MASK, weight, at & 31) : 0.f;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
          int d = (c * 32 + lane) * WIDE;
          if (w[j] != 0.f && d < V_DIM)
            y[j][c] = load_vec<float, WIDE>(partial_out + (i64)(first + at) * V_DIM + d);
        }
      }
#pragma unroll
      for (int j = 0; j < BATCH; j++)
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
          for (int e = 0; e < WIDE; e++) acc[c].at[e] += w[j] * y[j][c].at[e];
    }
  }
  total = warp_sum(total) + exp2_fast((sink - base) * LOG2E);
#pragma unroll
  for (int c = 0; c < COLUMNS; c++)
    if ((c * 32 + lane) * WIDE < V_DIM)
      store_vec<float, WIDE>(&room[warp][(c * 32 + lane) * WIDE], acc[c]);
  __syncthreads();
  float scale = total > 0.f ? 1.f / total : 0.f;
  for (int d = threadIdx.x; d < V_DIM; d += WARP_COUNT * 32) {
    float x = 0.f;
#pragma unroll
    for (int w = 0; w < WARP_COUNT; w++) x += room[w][d];
    out[(i64)row * V_DIM + d] = from_float<QT>(x * scale);
  }
  if (threadIdx.x == 0) lse[row] = total > 0.f ? logf(total) + base : -INF;
}
