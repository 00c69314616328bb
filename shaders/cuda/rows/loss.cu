// cross_entropy and its gradient; see boostr/ops/loss.py.
//
//   lse[t]  = log sum_v exp(x[t, v])
//   loss[t] = (1 - s) (lse[t] - x[t, target]) + s (lse[t] - mean_v x[t, v]);  0 where ignored
//   dx      = (exp(x - lse) - (1 - s) [v = target] - s / V) * g[t];           0 where ignored
//
// Shapes: x [T, V] with rows `stride` elements apart, targets [T], losses, lse float32 [T].
// Mapping: a block of THREADS a row; a thread takes 16 bytes at a time, UNROLL loads in flight, and
// keeps a maximum and a sum of its own (online softmax: Milakov & Gimelshein 2018). Elements before
// the first and after the last multiple of 16 bytes are taken one by one, so any V and offset goes.
// Forward and backward read the logits once each; the backward goes from the last row to the first,
// whose logits the forward has just left in L2.
// A target outside of 0..V-1 gives a loss of nan, and reads nothing.
// Macros: LOGIT float | f16 | bf16, OUT that or a narrower one (of dx), TARGET int | i64, THREADS,
// UNROLL.
#include "prelude.cuh"

#define WIDTH (16 / (int)sizeof(LOGIT))
#define WARPS (THREADS / 32)
#define LOWEST (-1.0e38f)  // finite also times LOG2E, so that -inf logits make no inf - inf

typedef Vec<LOGIT, WIDTH> Pack;

DEVICE Pack load_row(const LOGIT* p) {
  Pack v;
  uint4& w = (uint4&)v;
#if __CUDA_ARCH__ >= 800
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w) : "l"(p));
#else
  w = *(const uint4*)p;
#endif
  return v;
}

// How a row of V elements lies to the multiples of WIDTH of them: `head` elements, `packs` times
// WIDTH, the rest.
struct Layout {
  int head, packs, tail;
  template <typename T> DEVICE Layout(const T* row, int V) {
    int skew = (int)((u64)row / sizeof(T) % (u64)WIDTH);
    head = min(skew ? WIDTH - skew : 0, V);
    packs = (V - head) / WIDTH;
    tail = head + packs * WIDTH;
  }
  // The odd element of this thread, or -1: warp 0 has the head, the last warp the tail.
  DEVICE int odd(int V) const {
    int lane = threadIdx.x;
    if (lane < head) return lane;
    lane = THREADS - 1 - lane;
    return lane < V - tail ? tail + lane : -1;
  }
};

struct Softmax {
  float top = LOWEST, sum = 0.f, plain = 0.f;  // max x, sum exp(x - top), sum x
  DEVICE void rescale(float higher) {
    sum *= exp2_fast((top - higher) * LOG2E);
    top = higher;
  }
};

template <bool SMOOTH> DEVICE void add_packs(Softmax& r, const LOGIT* from, const Layout& lay) {
  for (int p = threadIdx.x; p < lay.packs; p += THREADS * UNROLL) {
    Pack v[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      if (p + u * THREADS < lay.packs) v[u] = load_row(from + (i64)(p + u * THREADS) * WIDTH);
      else {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) v[u].at[i] = from_float<LOGIT>(-INF);
      }
    }
    float top = r.top;
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
#pragma unroll
      for (int i = 0; i < WIDTH; i++) top = fmaxf(top, v[u][i]);
    r.rescale(top);
    float shift = top * LOG2E, sum = 0.f;
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
#pragma unroll
      for (int i = 0; i < WIDTH; i++) sum += exp2_fast(v[u][i] * LOG2E - shift);
      if (SMOOTH && p + u * THREADS < lay.packs) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) r.plain += v[u][i];
      }
    }
    r.sum += sum;
  }
}

extern "C" __global__ __launch_bounds__(THREADS) void cross_entropy(
    const LOGIT* x, const TARGET* targets, float* losses, float* lse, i64 stride, int V,
    i64 ignore_index, float smoothing) {
  __shared__ float room[32];
  i64 t = blockIdx.x;
  const LOGIT* row = x + t * stride;
  i64 target = targets[t];
  bool counts = target != ignore_index;
  float chosen = __int_as_float(0x7fffffff);
  if (threadIdx.x == 0 && target >= 0 && target < V) chosen = to_float(row[target]);
  Layout lay(row, V);
  Softmax r;
  int odd = lay.odd(V);
  if (odd >= 0) {
    float value = to_float(row[odd]);
    r.rescale(fmaxf(r.top, value));
    r.sum = exp2_fast((value - r.top) * LOG2E);
    r.plain = value;
  }
  if (smoothing != 0.f) add_packs<true>(r, row + lay.head, lay);
  else add_packs<false>(r, row + lay.head, lay);
  float top = block_max<WARPS>(r.top, room);
  float sum = block_sum<WARPS>(r.sum * exp2_fast((r.top - top) * LOG2E), room);
  float plain = smoothing != 0.f ? block_sum<WARPS>(r.plain, room) : 0.f;
  if (threadIdx.x) return;
  float log_sum = logf(sum);
  lse[t] = top + log_sum;
  float loss = (1.f - smoothing) * (log_sum - (chosen - top));
  if (smoothing != 0.f) loss += smoothing * (log_sum - (plain / (float)V - top));
  losses[t] = counts ? loss : 0.f;
}

// total = sum of losses, or their mean over the rows that count; rows = how many count.
// One block of 1024; T up to 2^31 - 1.
extern "C" __global__ __launch_bounds__(1024) void reduce_losses(
    const float* losses, const TARGET* targets, float* total, float* rows, int T,
    i64 ignore_index, int mean) {
  __shared__ float room[32];
  pdl_wait();
  float sum = 0.f;
  int count = 0;
#pragma unroll 4
  for (int t = threadIdx.x; t < T; t += 1024) {
    sum += losses[t];
    count += (i64)targets[t] != ignore_index;
  }
  sum = block_sum<32>(sum, room);
  // in two halves, as a float32 is exact only up to 2^24
  float low = block_sum<32>((float)(count & 0xfff), room);
  float high = block_sum<32>((float)(count >> 12), room);
  if (threadIdx.x) return;
  float n = high * 4096.f + low;
  *total = mean ? sum / n : sum;
  *rows = n;
}

// Past the caches, as nothing reads it soon.
DEVICE void store_once(OUT* to, const Vec<OUT, WIDTH>& v) {
  if constexpr (sizeof(v) == 16) __stcs((uint4*)to, (const uint4&)v);
  else __stcs((uint2*)to, (const uint2&)v);
}

// g is a value for each row (`g_step` 1) or one for all (0); `rows`, where it is given, divides it.
// WIDTH elements at a time if dx lies to the multiples of them as x does, else one by one.
extern "C" __global__ __launch_bounds__(THREADS) void cross_entropy_backward(
    const float* g, const float* lse, const float* rows, const LOGIT* x, const TARGET* targets,
    OUT* dx, i64 stride, int V, i64 ignore_index, float smoothing, int g_step) {
  i64 t = (i64)gridDim.x - 1 - blockIdx.x;
  const LOGIT* row = x + t * stride;
  OUT* out = dx + t * V;
  i64 target = targets[t];
  Layout lay(out, V);
  int odd = lay.odd(V);
  if (target == ignore_index) {
    Vec<OUT, WIDTH> zero;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) zero.at[i] = from_float<OUT>(0.f);
    if (odd >= 0) out[odd] = zero.at[0];
    for (int p = threadIdx.x; p < lay.packs; p += THREADS)
      store_vec(out + lay.head + (i64)p * WIDTH, zero);
    return;
  }
  float scale = g[t * g_step];
  if (rows) scale /= *rows;
  float shift = lse[t] * LOG2E, less = smoothing / (float)V * scale;
  // exp(x - lse) * scale - less
#define SLOPE(value) (exp2_fast((value)*LOG2E - shift) * scale - less)
  float chosen = 0.f;
  if (threadIdx.x == 0 && target >= 0 && target < V) chosen = to_float(row[target]);
  if (((u64)(row + lay.head) & 15) == 0) {
    if (odd >= 0) out[odd] = from_float<OUT>(SLOPE(to_float(row[odd])));
    const LOGIT* from = row + lay.head;
    OUT* to = out + lay.head;
    for (int p = threadIdx.x; p < lay.packs; p += THREADS * UNROLL) {
      Pack v[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++)
        if (p + u * THREADS < lay.packs) v[u] = load_row(from + (i64)(p + u * THREADS) * WIDTH);
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        if (p + u * THREADS >= lay.packs) break;
        Vec<OUT, WIDTH> d;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) d.at[i] = from_float<OUT>(SLOPE(v[u][i]));
        store_once(to + (i64)(p + u * THREADS) * WIDTH, d);
      }
    }
  } else {
    for (int i = threadIdx.x; i < V; i += THREADS)
      out[i] = from_float<OUT>(SLOPE(to_float(row[i])));
  }
  if (target < 0 || target >= V) return;
  __syncthreads();  // the target's element is written again, after the others
  if (threadIdx.x == 0)
    out[target] = from_float<OUT>(SLOPE(chosen) - (1.f - smoothing) * scale);
}
