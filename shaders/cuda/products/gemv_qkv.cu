// The attention block's first half for the T = 1..8 tokens of a decode step, in one kernel:
//   h = norm of x (or x);  q, k, v = h w^T (+ bias);  q, k = RMS norm of each head (QK_NORM);
//   q, k = rope(q, k), q times q_factors[rows[t]] if there are any;  q -> [T, H, D], k and v ->
//   slot slots[t] (without slots t) of the caches [NB, bs, KH, D]. Rows of q and of the caches may
//   lie more heads apart, q_pitch and kv_pitch.
// Weights q_w [H D, E], k_w, v_w [KH D, E]. The launch makes some_heads of the H + 2 KH heads of q,
// k and v, from first_head on, whose weights are in one stored form; others are another launch's.
// cos, sin and q_factors f32 [S, R/2] and [S], R <= D even (0: no rope, and no tables), rows int32
// [T] picks their row; D is even; a negative slot is not written.
// A lane has the two rows of a head that rope turns together (PER_LANE is 2): pair p < R/2 is
// (p, p + R/2), or (2p, 2p + 1) when INTERLEAVED; the rest of the head is paired too, but not
// turned.
// Without QK_NORM the pairs of these heads are the units' rows, grid as gemv.cu. With it a head
// belongs to CLUSTER blocks (1 before sm_90), grid [some_heads * CLUSTER]: they keep its values in
// shared memory and add up their squares through each other's.
// Source: Su et al. 2021, RoFormer; Qwen3 for the norms of heads.
#include "prelude.cuh"
#include "weights.cuh"
#include "gemv_rows.cuh"
#include "gemv_input.cuh"
#ifndef BIAS_T
#define BIAS_T float
#endif
#ifndef HEAD_NORM_T
#define HEAD_NORM_T float
#endif
#ifndef QK_NORM
#define QK_NORM 0
#endif
#ifndef CLUSTER
#define CLUSTER 1
#endif
#ifndef INTERLEAVED
#define INTERLEAVED 0
#endif
static_assert(PER_LANE == 2, "a lane has one pair of rows");

struct Projection {
  Planes weight;
  const BIAS_T* bias;
};

struct Heads : Input {
  Projection q, k, v;
  X_T* out;
  X_T* k_cache;
  X_T* v_cache;
  const float* cos;
  const float* sin;
  const float* q_factors;  // null: none
  const int* positions;
  const int* slots;
  const HEAD_NORM_T* q_norm;
  const HEAD_NORM_T* k_norm;
  float* values;  // QK_NORM: shared, [ROWS][2 * pairs of this block]
  int heads, kv_heads, q_pitch, kv_pitch, D, half;  // half = R / 2
  int base, end;  // of all pairs of heads, this block's
  int units, first, stride;
  float factor[2], c, s;
  BIAS_T add[2];  // as stored: who converts it waits for it
  int slot;

  struct Place {
    int head, i;  // of all heads q, k, v; pair in the head
  };
  DEVICE int index(int unit, int lane_row, int = 0) const {
    return base + unit * LANE_ROWS + lane_row;
  }
  DEVICE Place find(int pair) const {
    const int p = min(pair, end - 1), head = p / (D / 2);
    return {head, p - head * (D / 2)};
  }
  // The head's row that is number r of pair i.
  DEVICE int row_of(int i, int r) const {
    if (i < half) return INTERLEAVED ? 2 * i + r : i + r * half;
    return 2 * half + (i - half) + r * (D / 2 - half);
  }
  DEVICE Projection projection(int head) const {
    return head < heads ? q : head < heads + kv_heads ? k : v;
  }
  DEVICE int row_in(int head, int i, int r) const {
    const int own = head < heads ? head : (head - heads) % kv_heads;
    return own * D + row_of(i, r);
  }
  DEVICE Planes at(int unit, int lane_row, int r) const {
    const Place at = find(index(unit, lane_row));
    return weight_row(projection(at.head).weight, row_in(at.head, at.i, r), K);
  }
  DEVICE void fixed(int unit, int lane_row) {
    const Place at = find(index(unit, lane_row));
    const Projection w = projection(at.head);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = row_in(at.head, at.i, r);
      factor[r] = row_scale(w.weight, row);
      add[r] = w.bias ? w.bias[row] : from_float<BIAS_T>(0.f);
    }
  }
  DEVICE void fresh(int unit, int lane_row, int t) {
    if (QK_NORM) return;
    load_turn(find(index(unit, lane_row)), t);
  }
  DEVICE void load_turn(Place at, int t) {
    c = 1.f, s = 0.f;
    if (at.head >= heads) slot = slots ? slots[t] : t;
    if (at.head < heads + kv_heads && at.i < half) {
      const i64 from = (i64)positions[t] * half + at.i;
      c = cos[from], s = sin[from];
    }
    if (q_factors && at.head < heads) {
      const float f = q_factors[positions[t]];
      c *= f, s *= f;
    }
  }
  DEVICE void finish(int unit, int lane_row, int t, const Sum (&total)[2]) {
    const int pair = index(unit, lane_row);
    const float a = (float)total[0] * x_factor * factor[0] + to_float(add[0]);
    const float b = (float)total[1] * x_factor * factor[1] + to_float(add[1]);
    if (pair >= end) return;
    if (QK_NORM) *(float2*)(values + ((i64)t * (end - base) + pair - base) * 2) = make_float2(a, b);
    else write(find(pair), t, a, b);
  }
  DEVICE void write(Place at, int t, float a, float b) const {
    X_T* to;
    if (at.head < heads) {
      to = out + ((i64)t * q_pitch + at.head) * D;
    } else {
      if (slot < 0) return;
      const int own = (at.head - heads) % kv_heads;
      to = (at.head < heads + kv_heads ? k_cache : v_cache) + ((i64)slot * kv_pitch + own) * D;
    }
    to[row_of(at.i, 0)] = from_float<X_T>(a * c - b * s);
    to[row_of(at.i, 1)] = from_float<X_T>(b * c + a * s);
  }

#if QK_NORM
  // The block's values are in shared memory: norm, rope, store.
  DEVICE void finish_head(float head_eps, float head_offset) {
    __shared__ float squares[ROWS];
    const int pairs = end - base;
    const int head = find(base).head, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const bool normed = head < heads + kv_heads;
    __syncthreads();
    for (int t = warp; t < M; t += BLOCK_WARPS) {
      float sum = 0.f;
      for (int i = lane; i < 2 * pairs; i += 32) {
        const float x = values[t * 2 * pairs + i];
        sum = fmaf(x, x, sum);
      }
      sum = warp_sum(sum);
      if (lane == 0) squares[t] = sum;
    }
    cluster_sync();
    const HEAD_NORM_T* norm_weight = head < heads ? q_norm : k_norm;
    for (int i = threadIdx.x; i < M * pairs; i += THREADS) {
      const int t = i / pairs;
      const Place at = find(base + i - t * pairs);
      load_turn(at, t);
      float a = values[2 * i], b = values[2 * i + 1];
      if (normed) {
        const float scale = rsqrtf(cluster_total(squares + t) / D + head_eps);
        a *= scale * (to_float(norm_weight[row_of(at.i, 0)]) + head_offset);
        b *= scale * (to_float(norm_weight[row_of(at.i, 1)]) + head_offset);
      }
      write(at, t, a, b);
    }
    cluster_sync();  // a block's memory must outlive the others' reads
  }
  DEVICE static void cluster_sync() {
#if CLUSTER > 1
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
    __syncthreads();
#endif
  }
  DEVICE static float cluster_total(const float* own) {
#if CLUSTER > 1
    float sum = 0.f;
#pragma unroll
    for (int rank = 0; rank < CLUSTER; rank++) {
      float part;
      asm volatile("{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %1, %2;\n"
                   "ld.shared::cluster.f32 %0, [there];\n}"
                   : "=f"(part) : "r"(shared_address(own)), "r"(rank) : "memory");
      sum += part;
    }
    return sum;
#else
    return *own;
#endif
  }
#endif
};

// gemv_qkv[min(SMs * blocks, units / TEAMS) or some_heads * CLUSTER, THREADS]
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
#if QK_NORM && CLUSTER > 1
__cluster_dims__(CLUSTER, 1, 1)
#endif
gemv_qkv(X_T* x, Planes q, const BIAS_T* q_bias, Planes k, const BIAS_T* k_bias, Planes v,
         const BIAS_T* v_bias, X_T* out, X_T* k_cache, X_T* v_cache, const NORM_T* norm,
         const NORM_T* norm_bias, const HEAD_NORM_T* q_norm, const HEAD_NORM_T* k_norm,
         const float* cos, const float* sin, const float* q_factors, const int* positions,
         const int* slots, int first_head, int some_heads, int heads, int kv_heads, int q_pitch,
         int kv_pitch, int D, int half, int M, int K, float eps, float offset, float head_eps,
         float head_offset) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ float room[ROOMS * BLOCK_WARPS], x_scales[ROWS];
  Heads job;
  job.x = x, job.norm = norm, job.norm_bias = norm_bias, job.room = room, job.scales = x_scales;
  job.M = M, job.K = K, job.eps = eps, job.offset = offset;
  job.q = {q, q_bias}, job.k = {k, k_bias}, job.v = {v, v_bias};
  job.out = out, job.k_cache = k_cache, job.v_cache = v_cache;
  job.cos = cos, job.sin = sin, job.q_factors = q_factors;
  job.positions = positions, job.slots = slots;
  job.q_norm = q_norm, job.k_norm = k_norm;
  job.heads = heads, job.kv_heads = kv_heads, job.D = D, job.half = half;
  job.q_pitch = q_pitch, job.kv_pitch = kv_pitch;
  job.values = (float*)behind(shared, K);
  // with QK_NORM a block has D / 2 / CLUSTER pairs of one head
  share_out<LANE_ROWS>(job, first_head * (D / 2), some_heads * (D / 2));
  stream_rows(job, shared, K);
#if QK_NORM
  job.finish_head(head_eps, head_offset);
#endif
}
