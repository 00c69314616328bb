// The small kernels around sampling: penalties before it, notes after it, random bits; see
// boostr/ops/sampling.py.
// Macros: LOGIT float | f16 | bf16.
#include "philox.cuh"

// y = x / r or x r if seen; - presence if counts - counts * frequency. A thread for 4 columns;
// logits [B, V], seen u8, counts int32 -> out float32 [B, V].
extern "C" __global__ __launch_bounds__(256) void penalize(
    const LOGIT* logits, const u8* seen, const int* counts, const float* repetition,
    const float* presence, const float* frequency, float* out, int V) {
  pdl_launch();
  pdl_wait();
  int b = blockIdx.y;
  i64 row = (i64)b * V;
  float r = repetition[b], p = presence[b], f = frequency[b];
  int first = (blockIdx.x * 256 + threadIdx.x) * 4;
  if (first >= V) return;
  float x[4];
  int n[4];
  u8 was[4];
  bool whole = V % 4 == 0;
  int most = min(4, V - first);
  i64 at = row + first;
  if (whole) {
    auto a = load_vec<LOGIT, 4>(logits + at);
    int4 c = *(const int4*)(counts + at);
    uchar4 w = *(const uchar4*)(seen + at);
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = a[i];
    n[0] = c.x, n[1] = c.y, n[2] = c.z, n[3] = c.w;
    was[0] = w.x, was[1] = w.y, was[2] = w.z, was[3] = w.w;
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i >= most) break;
      x[i] = to_float(logits[at + i]);
      n[i] = counts[at + i];
      was[i] = seen[at + i];
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (was[i]) x[i] = x[i] > 0.f ? x[i] / r : x[i] * r;
    x[i] = x[i] - ((n[i] > 0 ? p : 0.f) + (float)n[i] * f);
  }
  if (whole) *(float4*)(out + at) = make_float4(x[0], x[1], x[2], x[3]);
  else
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < most) out[at + i] = x[i];
}

// logits[b, ids[b, n]] += values[b, n], ids distinct in a row; those out of range are skipped.
// logits float32 [B, V], ids int32 [B, N], values float32 [B, N], `size` = B N. A thread each.
extern "C" __global__ __launch_bounds__(128) void add_bias(
    float* logits, const int* ids, const float* values, int size, int N, int V) {
  pdl_launch();
  pdl_wait();
  const int i = blockIdx.x * 128 + threadIdx.x;
  if (i >= size) return;
  const int id = ids[i];
  if (id >= 0 && id < V) logits[(i64)(i / N) * V + id] += values[i];
}

// seen[b, ids[b]] = 1, counts[b, ids[b]] += 1; a negative id is skipped. A thread a row.
extern "C" __global__ void record_tokens(const int* ids, u8* seen, int* counts, int B, int V) {
  pdl_launch();
  pdl_wait();
  int b = blockIdx.x * blockDim.x + threadIdx.x;
  if (b >= B) return;
  int id = ids[b];
  if (id < 0 || id >= V) return;
  seen[(i64)b * V + id] = 1;
  counts[(i64)b * V + id] += 1;
}

// counters [B, 4], keys [B, 2] -> out [B, 4], uint32. A thread a row.
extern "C" __global__ void philox(const u32* counters, const u32* keys, u32* out, int B) {
  int b = blockIdx.x * blockDim.x + threadIdx.x;
  if (b >= B) return;
  const u32* c = counters + 4ll * b;
  uint4 made = philox4x32(make_uint4(c[0], c[1], c[2], c[3]), keys[2 * b], keys[2 * b + 1]);
  u32* to = out + 4ll * b;
  to[0] = made.x, to[1] = made.y, to[2] = made.z, to[3] = made.w;
}
