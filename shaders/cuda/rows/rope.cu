// Rotary position embedding of packed heads, alone or with all that is done between the qkv product
// and attention: RMS norms of the heads of q and k, rotation, k and v into the cache.
//
//   (a, b) -> (a cos - b sin, b cos + a sin), cos and sin of row rows[t]; the pairs are
//   (i, i + R/2), or (2i, 2i + 1) with INTERLEAVED; dimensions R.. of a head pass through.
//
// A token t has H + 2 K heads side by side, of D elements, from element t * stride of x: q, then k,
// then v (K = 0: only heads to rotate). q goes to out [T, H, D]. k and v go to rows `slots[t]` of
// k_out, v_out [slots, K, D] (negative: dropped), or to row t where slots is null. turn: 1, or -1
// to rotate back (the gradient). Without rope half is 0 and there are no tables. q_factors [S] or
// null: what q is multiplied by, by row.
// NORM: 1, each head, 2, all heads at once; LAST: after the rotation. Weights q_norm, k_norm f32:
// [D], or with gain_stride D each head's own; offset is added to them.
//
// Threads: LANES of them, a team, a head; a token has `teams` teams side by side, which go over its
// heads together; a block has as many tokens as fit, blockIdx.y is a share of their heads. A lane
// has ITEMS runs of VEC pairs, two runs of VEC elements each: elements p and p + R/2, or 2p and
// 2p + VEC. Dimensions that pass through are runs of the same form. VEC = 1 takes any even R <= D
// and any alignment.
//
// Macros: X type of x and out, C type of k_out and v_out, VEC, ITEMS, LANES, INTERLEAVED, NORM,
// LAST.
// Source: Su et al. 2021, RoFormer; the norm of heads: Qwen3.
#include "rows.cuh"

extern "C" __global__ void
rope(const X* x, X* out, C* k_out, C* v_out, const float* cos_table, const float* sin_table,
     const int* rows, const float* q_factors, const int* slots, const float* q_norm,
     const float* k_norm, int T, int teams, int H, int K, int D, int half, int total_slots,
     i64 stride, float eps, float offset, int gain_stride, float turn) {
  const u32 lane = threadIdx.x % LANES, unit = threadIdx.x / LANES;
  const u32 tokens = blockDim.x / LANES / teams, token = unit / teams;
  const int team = unit % teams;
  const i64 t = (i64)blockIdx.x * tokens + token;
  const bool idle = token >= tokens || t >= T;  // shuffles with the others all the same
  const int pass = (D - 2 * half + 1) / 2, pairs = half + pass, heads = H + 2 * K;
  // first element of each of the two runs of this lane
  int first[ITEMS], second[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int p = (i * LANES + lane) * VEC;
    first[i] = INTERLEAVED ? 2 * p : p < half ? p : p + half;
    second[i] = INTERLEAVED ? 2 * p + VEC : p < half ? p + half : p + half + pass;
    if (p >= pairs) first[i] = second[i] = D;
  }
  pdl_wait();
  pdl_launch();
  const int row = rows && !idle ? rows[t] : 0;
  const float q_factor = q_factors ? q_factors[row] : 1.f;
  const i64 slot = slots && K && !idle ? slots[t] : t;
  const int base = blockIdx.y * teams + team, hop = teams * gridDim.y;
  const int rounds = (heads + hop - 1) / hop;  // the same for all threads: lanes shuffle
  const int end = idle ? 0 : heads;
  // this lane's runs of the next head, on their way while the tables or another head are read
  Pack<X, VEC> next_a[ITEMS], next_b[ITEMS];
  auto fetch = [&](int head) {
    const X* source = x + t * stride + (i64)head * D;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      next_a[i].clear();
      next_b[i].clear();
      if (head < end && first[i] < D) next_a[i] = load_pack<X, VEC>(source + first[i]);
      if (head < end && second[i] < D) next_b[i] = load_pack<X, VEC>(source + second[i]);
    }
  };
  fetch(base);
  float c[ITEMS][VEC], s[ITEMS][VEC];
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const int p = (i * LANES + lane) * VEC;
    Pack<float, VEC> cs, sn;
    cs.clear();
    sn.clear();
    if (p < half) {
      cs = load_pack<float, VEC>(cos_table + (i64)row * half + p);
      sn = load_pack<float, VEC>(sin_table + (i64)row * half + p);
    }
#pragma unroll
    for (int j = 0; j < VEC; j++) {
      c[i][j] = p < half ? cs[j] : 1.f;
      s[i][j] = sn[j] * turn;
    }
  }
  // runs u, v of item i, turned
  auto turned = [&](int i, const float (&u)[VEC], const float (&v)[VEC], float (&y)[VEC],
                    float (&z)[VEC]) {
#pragma unroll
    for (int j = 0; j < VEC; j++) {
#if INTERLEAVED && VEC > 1
      // pair m of this lane is (w[2m], w[2m + 1]) of its 2 VEC elements w; j is one of the first
      const int m = j / 2, n2 = VEC / 2 + j / 2;
      const float e0 = u[j & ~1], o0 = u[j | 1], e1 = v[j & ~1], o1 = v[j | 1];
      y[j] = j & 1 ? o0 * c[i][m] + e0 * s[i][m] : e0 * c[i][m] - o0 * s[i][m];
      z[j] = j & 1 ? o1 * c[i][n2] + e1 * s[i][n2] : e1 * c[i][n2] - o1 * s[i][n2];
#else
      y[j] = u[j] * c[i][j] - v[j] * s[i][j];
      z[j] = v[j] * c[i][j] + u[j] * s[i][j];
#endif
    }
  };
#if NORM
  // what this lane's runs of a head add to its sum of squares
  auto squares = [&](const Pack<X, VEC>(&a)[ITEMS], const Pack<X, VEC>(&b)[ITEMS]) {
    float total = 0.f;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
#if LAST
      float u[VEC], v[VEC], y[VEC], z[VEC];
#pragma unroll
      for (int j = 0; j < VEC; j++) u[j] = a[i][j], v[j] = b[i][j];
      turned(i, u, v, y, z);
#pragma unroll
      for (int j = 0; j < VEC; j++) total += y[j] * y[j] + z[j] * z[j];
#else
#pragma unroll
      for (int j = 0; j < VEC; j++) total += a[i][j] * a[i][j] + b[i][j] * b[i][j];
#endif
    }
    return total;
  };
#endif
#if NORM == 2
  float of_q = 0.f, of_k = 0.f;
  for (int head = 0; head < H + K; head++) {
    fetch(head);
    const float total = squares(next_a, next_b);
    of_q += head < H ? total : 0.f, of_k += head < H ? 0.f : total;
  }
  int shared_turn = 0;
  of_q = row_reduce<AddOp, LANES>(of_q, nullptr, shared_turn);
  of_k = row_reduce<AddOp, LANES>(of_k, nullptr, shared_turn);
  fetch(base);
#endif
#pragma unroll 2
  for (int n = 0; n < rounds; n++) {
    const int head = base + n * hop;
    const bool live = head < end;
    Pack<X, VEC> a[ITEMS], b[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      a[i] = next_a[i];
      b[i] = next_b[i];
    }
    fetch(head + hop);
    const bool is_q = head < H, is_v = head >= H + K;
    float r = 1.f;
    const float* gain = nullptr;
    const int kv = head - H - (is_v ? K : 0);
#if NORM
#if NORM == 2
    const float total = is_q ? of_q : of_k;
    const int count = (is_q ? H : K) * D;
#else
    int turn = 0;
    const float total = row_reduce<AddOp, LANES>(squares(a, b), nullptr, turn);
    const int count = D;
#endif
    gain = is_v ? nullptr : is_q ? q_norm + head * gain_stride : k_norm + kv * gain_stride;
    if (gain) r = rsqrtf(__fdividef(total, (float)count) + eps);
#endif
    if (!live || (!is_q && (slot < 0 || slot >= total_slots))) continue;
    const i64 kv_at = (slot * K + kv) * D;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      if (first[i] >= D) continue;
      float u[VEC], v[VEC], y[VEC], z[VEC];
      Pack<float, VEC> gu, gv;
      if (gain) {
        gu = load_pack<float, VEC>(gain + first[i]);
        gv.clear();
        if (second[i] < D) gv = load_pack<float, VEC>(gain + second[i]);
      }
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        u[j] = a[i][j];
        v[j] = b[i][j];
        if (gain && !LAST) {
          u[j] *= r * (gu[j] + offset);
          v[j] *= r * (gv[j] + offset);
        }
      }
      turned(i, u, v, y, z);
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        if (gain && LAST) {
          y[j] *= r * (gu[j] + offset);
          z[j] *= r * (gv[j] + offset);
        }
        if (is_q) {
          y[j] *= q_factor;
          z[j] *= q_factor;
        }
        if (is_v) {
          y[j] = u[j];
          z[j] = v[j];
        }
      }
      if (is_q) {
        X* to = out + (t * H + head) * D;
        store_floats<X, VEC>(to + first[i], y);
        if (second[i] < D) store_floats<X, VEC>(to + second[i], z);
      } else {
        C* to = (is_v ? v_out : k_out) + kv_at;
        store_floats<C, VEC>(to + first[i], y);
        if (second[i] < D) store_floats<C, VEC>(to + second[i], z);
      }
    }
  }
}
