// Gradient of varlen attention without tensor cores: float32, old GPUs, any widths up to 256,
// values wider or narrower than keys, queries and keys of different dtypes. Deterministic: no
// atomics.
//
// Formula: attention_backward.cuh. q, g, out [Tq, H, D | Dv] of type TQ, k, v [Tk, K, D | Dv] of
// type TK, all dense; sums and exponentials in f32. A block of 256 threads keeps KEPT rows (keys
// and values, or queries and their gradient) in shared memory and walks over tiles of PASSING rows
// of the other kind; 256 / KEPT threads share a kept row and hold its gradient in registers.
//
// Macros: TQ, TK; WIDTH: D and Dv rounded up to 32, 64, 128 or 256.
#include "prelude.cuh"
#include "attention_backward.cuh"

constexpr int KEPT = WIDTH > 128 ? 16 : 32, PASSING = WIDTH > 128 ? 8 : 16;
constexpr int PITCH = WIDTH + 1, SHARE = 256 / KEPT, OWN = WIDTH / SHARE;

// Rows [rows, width] of a head as f32; what is past them becomes 0.
template <typename T>
DEVICE void load_rows(float* to, const T* from, int count, i64 pitch, int rows, int width) {
  for (int i = threadIdx.x; i < count * WIDTH; i += 256) {
    int row = i / WIDTH, column = i % WIDTH;
    bool valid = row < rows && column < width;
    to[row * PITCH + column] = valid ? to_float(from[row * pitch + column]) : 0.f;
  }
}

// (p, ds / scale) of one query and key whose rows lie in shared memory.
DEVICE float2 gradients(const float* q, const float* k, const float* g, const float* v, int D,
                        int Dv, float2 stat, int distance, float scale, float softcap,
                        float slope) {
  float s = 0.f, dp = 0.f, slack = 1.f;
  for (int d = 0; d < D; d++) s = fmaf(q[d], k[d], s);
  for (int d = 0; d < Dv; d++) dp = fmaf(g[d], v[d], dp);
  s *= scale;
  if (softcap > 0.f) {
    float t = tanhf(s / softcap);
    s = t * softcap;
    slack = 1.f - t * t;
  }
  float p = expf(s - slope * fabsf((float)distance) - stat.x);
  return make_float2(p, p * (dp - stat.y) * slack);
}

extern "C" __global__ void __launch_bounds__(256) backward_prepare(
    const TQ* g, const TQ* out, const float* lse, const float* g_lse, float2* stats, TQ* dq, TK* dk,
    TK* dv, const int* cu_q, const int* cu_k, int B, int H, int K, int D, int Dv, int Tq, int Tk) {
  const i64 step = (i64)gridDim.x * 256, start = (i64)blockIdx.x * 256 + threadIdx.x;
  const i64 end_q = cu_q[B], end_k = cu_k[B];  // tokens after these are in no segment
  for (i64 i = end_q * H * D + start; i < (i64)Tq * H * D; i += step) dq[i] = from_float<TQ>(0.f);
  for (i64 i = end_k * K * D + start; i < (i64)Tk * K * D; i += step) dk[i] = from_float<TK>(0.f);
  for (i64 i = end_k * K * Dv + start; i < (i64)Tk * K * Dv; i += step) dv[i] = from_float<TK>(0.f);
  for (i64 row = start / 32; row < (i64)Tq * H; row += step / 32) {
    float sum = 0.f;
    for (int d = threadIdx.x & 31; d < Dv; d += 32)
      sum = fmaf(to_float(g[row * Dv + d]), to_float(out[row * Dv + d]), sum);
    sum = warp_sum(sum);
    if ((threadIdx.x & 31) == 0) {
      bool blind = lse[row] == -INF;  // sees no key: p = exp(-inf) = 0
      float2 made = make_float2(blind ? INF : lse[row], blind ? 0.f : sum - g_lse[row]);
      stats[row % H * Tq + row / H] = made;
    }
  }
}

extern "C" __global__ void __launch_bounds__(256, 2) backward_keys(
    const TQ* q, const TK* k, const TK* v, const TQ* g, const float2* stats, TK* dk, TK* dv,
    const int* cu_q, const int* cu_k, const float* alibi, int B, int H, int K, int D, int Dv,
    int Tq, int lowest, int highest, int bottom_right, float scale, float softcap) {
  extern __shared__ float room[];
  float *ks = room, *vs = ks + KEPT * PITCH, *qs = vs + KEPT * PITCH, *gs = qs + PASSING * PITCH;
  float2* weights = (float2*)(gs + PASSING * PITCH);  // [PASSING][KEPT]
  const int kv = blockIdx.y, G = H / K, b = segment_of_slot(cu_k, B, blockIdx.x, KEPT);
  const int q0 = cu_q[b], k0 = cu_k[b], len_q = cu_q[b + 1] - q0, len_k = cu_k[b + 1] - k0;
  const int j0 = (blockIdx.x - first_slot(cu_k, b, KEPT)) * KEPT;
  if (j0 >= len_k) return;
  const Mask mask{bottom_right ? len_k - len_q : 0, lowest, highest, len_k};
  const int rows = min(KEPT, len_k - j0);
  const i64 at = (i64)(k0 + j0) * K + kv;
  load_rows(ks, k + at * D, KEPT, (i64)K * D, rows, D);
  load_rows(vs, v + at * Dv, KEPT, (i64)K * Dv, rows, Dv);
  const int own_row = threadIdx.x / SHARE, own_column = threadIdx.x % SHARE;
  float dk_sum[OWN], dv_sum[OWN];
#pragma unroll
  for (int i = 0; i < OWN; i++) dk_sum[i] = dv_sum[i] = 0.f;
  const int end = min(len_q, mask.last_query(j0 + rows) + 1);
  for (int head = kv * G; head < kv * G + G; head++)
    for (int i0 = mask.first_query(j0); i0 < end; i0 += PASSING) {
      const i64 from = (i64)(q0 + i0) * H + head;
      __syncthreads();
      load_rows(qs, q + from * D, PASSING, (i64)H * D, end - i0, D);
      load_rows(gs, g + from * Dv, PASSING, (i64)H * Dv, end - i0, Dv);
      __syncthreads();
      for (int pair = threadIdx.x; pair < PASSING * KEPT; pair += 256) {
        int i = pair / KEPT, j = pair % KEPT;
        float2 made = make_float2(0.f, 0.f);
        if (i0 + i < end && mask.sees(i0 + i, j0 + j))
          made = gradients(qs + i * PITCH, ks + j * PITCH, gs + i * PITCH, vs + j * PITCH, D, Dv,
                           stats[(i64)head * Tq + q0 + i0 + i], j0 + j - i0 - i - mask.shift, scale,
                           softcap, alibi ? alibi[head] : 0.f);
        weights[pair] = made;
      }
      __syncthreads();
      for (int i = 0; i < PASSING; i++) {
        float2 w = weights[i * KEPT + own_row];
#pragma unroll
        for (int x = 0; x < OWN; x++) {
          dk_sum[x] = fmaf(w.y, qs[i * PITCH + own_column + x * SHARE], dk_sum[x]);
          dv_sum[x] = fmaf(w.x, gs[i * PITCH + own_column + x * SHARE], dv_sum[x]);
        }
      }
    }
  if (own_row >= rows) return;
#pragma unroll
  for (int x = 0; x < OWN; x++) {
    int column = own_column + x * SHARE;
    i64 row = at + (i64)own_row * K;
    if (column < D) dk[row * D + column] = from_float<TK>(dk_sum[x] * scale);
    if (column < Dv) dv[row * Dv + column] = from_float<TK>(dv_sum[x]);
  }
}

extern "C" __global__ void __launch_bounds__(256, 2) backward_queries(
    const TQ* q, const TK* k, const TK* v, const TQ* g, const float2* stats, TQ* dq,
    const int* cu_q, const int* cu_k, const float* alibi, int B, int H, int K, int D, int Dv,
    int Tq, int lowest, int highest, int bottom_right, float scale, float softcap) {
  extern __shared__ float room[];
  float *qs = room, *gs = qs + KEPT * PITCH, *ks = gs + KEPT * PITCH, *vs = ks + PASSING * PITCH;
  float* weights = vs + PASSING * PITCH;  // [PASSING][KEPT]
  const int head = blockIdx.y, kv = head / (H / K), b = segment_of_slot(cu_q, B, blockIdx.x, KEPT);
  const int q0 = cu_q[b], k0 = cu_k[b], len_q = cu_q[b + 1] - q0, len_k = cu_k[b + 1] - k0;
  const int i0 = (blockIdx.x - first_slot(cu_q, b, KEPT)) * KEPT;
  if (i0 >= len_q) return;
  const Mask mask{bottom_right ? len_k - len_q : 0, lowest, highest, len_k};
  const int rows = min(KEPT, len_q - i0);
  const i64 at = (i64)(q0 + i0) * H + head;
  load_rows(qs, q + at * D, KEPT, (i64)H * D, rows, D);
  load_rows(gs, g + at * Dv, KEPT, (i64)H * Dv, rows, Dv);
  const int own_row = threadIdx.x / SHARE, own_column = threadIdx.x % SHARE;
  float sum[OWN];
#pragma unroll
  for (int i = 0; i < OWN; i++) sum[i] = 0.f;
  const int end = mask.last_key(i0 + rows) + 1;
  for (int j0 = mask.first_key(i0); j0 < end; j0 += PASSING) {
    const i64 from = (i64)(k0 + j0) * K + kv;
    __syncthreads();
    load_rows(ks, k + from * D, PASSING, (i64)K * D, end - j0, D);
    load_rows(vs, v + from * Dv, PASSING, (i64)K * Dv, end - j0, Dv);
    __syncthreads();
    for (int pair = threadIdx.x; pair < PASSING * KEPT; pair += 256) {
      int j = pair / KEPT, i = pair % KEPT;
      float made = 0.f;
      if (i < rows && j0 + j < end && mask.sees(i0 + i, j0 + j))
        made = gradients(qs + i * PITCH, ks + j * PITCH, gs + i * PITCH, vs + j * PITCH, D, Dv,
                         stats[(i64)head * Tq + q0 + i0 + i], j0 + j - i0 - i - mask.shift, scale,
                         softcap, alibi ? alibi[head] : 0.f).y;
      weights[pair] = made;
    }
    __syncthreads();
    for (int j = 0; j < PASSING; j++) {
      float w = weights[j * KEPT + own_row];
#pragma unroll
      for (int x = 0; x < OWN; x++)
        sum[x] = fmaf(w, ks[j * PITCH + own_column + x * SHARE], sum[x]);
    }
  }
  if (own_row >= rows) return;
#pragma unroll
  for (int x = 0; x < OWN; x++) {
    int column = own_column + x * SHARE;
    if (column < D) dq[(at + (i64)own_row * H) * D + column] = from_float<TQ>(sum[x] * scale);
  }
}
