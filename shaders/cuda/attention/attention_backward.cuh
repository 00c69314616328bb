// What the kernels of the gradient of varlen attention share: segments, masks, probabilities.
//
//   p = exp(score - lse), score = softcap tanh(scale q.k / softcap) - slope |distance|
//   dv = p^T g;  ds = p (g v^T - delta) slack;  dq = scale ds k;  dk = scale ds^T q
//   delta = rowsum(g out) - g_lse, slack = d(score) / d(scale q.k)
//
// Tokens lie end to end; segment b owns cu[b] : cu[b+1], and the host does not know cu. Tiles of W
// tokens never cross segments: segment b has the slots cu[b] / W + b and on, the next begins after
// them, so total / W + B slots are enough and slot -> segment is a binary search. Slots past a
// segment's end are empty.

DEVICE int first_slot(const int* cu, int b, int width) { return cu[b] / width + b; }

DEVICE int segment_of_slot(const int* cu, int B, int slot, int width) {
  int low = 0, high = B - 1;
  while (low < high) {
    int middle = (low + high + 1) >> 1;
    if (first_slot(cu, middle, width) <= slot) low = middle;
    else high = middle - 1;
  }
  return low;
}

// Query i sees key j if lowest <= j - i - shift <= highest.
struct Mask {
  int shift, lowest, highest, keys;

  DEVICE bool sees(int i, int j) const {
    int distance = j - i - shift;
    return distance >= lowest && distance <= highest && j < keys;
  }
  // Whether every query i0 : i0 + m sees every key j0 : j0 + n.
  DEVICE bool all(int i0, int m, int j0, int n) const {
    return j0 + n - 1 - i0 - shift <= highest && j0 - (i0 + m - 1) - shift >= lowest &&
           j0 + n <= keys;
  }
  // The first query that may see one of the keys from j0 on; the last that may see one before j1.
  DEVICE int first_query(int j0) const { return max(0, j0 - highest - shift); }
  DEVICE int last_query(int j1) const { return j1 - 1 - lowest - shift; }
  DEVICE int first_key(int i0) const { return max(0, i0 + shift + lowest); }
  DEVICE int last_key(int i1) const { return min(keys - 1, i1 - 1 + shift + highest); }
};

// What turns scale-free scores into probabilities. `unit` is scale * log2(e), or scale / softcap.
struct Score {
  float unit, cap, slope;  // cap: softcap * log2(e), 0: none; slope: of ALiBi, * log2(e)

  DEVICE Score(float scale, float softcap, float alibi)
      : unit(softcap > 0.f ? scale / softcap : scale * LOG2E),
        cap(softcap * LOG2E), slope(alibi * LOG2E) {}
  // log2 of exp(score); slack is multiplied by the softcap's derivative.
  DEVICE float log2_weight(float s, int distance, float& slack) const {
    float x = s * unit;
    if (cap > 0.f) {
      float t = 1.f - __fdividef(2.f, 1.f + exp2_fast(x * (2.f * LOG2E)));
      slack = 1.f - t * t;
      x = t * cap;
    }
    return x - slope * fabsf((float)distance);
  }
};

// Sums of dq lie tile by tile in the order of fragments (pieces of 16 x 8, 4 numbers a lane), so
// that what a warp adds at once is one contiguous piece: where number x of this lane is.
DEVICE int sum_at(int piece, int x) {
  int lane = threadIdx.x & 31;
#if __CUDA_ARCH__ >= 900
  return piece * 128 + lane * 4 + x;
#else
  return piece * 128 + x * 32 + lane;
#endif
}
#if __CUDA_ARCH__ >= 900
DEVICE void add_four(float* to, const float* c) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1,%2,%3,%4};"
               ::"l"(to), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]) : "memory");
}
#endif
DEVICE void add_sums(float* sum, int piece, const float (&c)[4]) {
#if __CUDA_ARCH__ >= 900
  add_four(sum + sum_at(piece, 0), c);
#else
#pragma unroll
  for (int x = 0; x < 4; x++) atomicAdd(sum + sum_at(piece, x), c[x]);
#endif
}
