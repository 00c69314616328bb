// Powers of two that bring rows of x and of weights into f16's range. Macros: those of weights.cuh,
// MOST (float: the largest number of a code less ZERO).
#include "prelude.cuh"
#include "weights.cuh"

#define FOLDED (GROUP || TABLE_FLOATS)

// 2^e, e the least with most / 2^e < 2^CEILING; not so small that 1 / 2^e is none. Of zeros 1.
template <int CEILING> DEVICE float power_below(float most) {
  const int exponent = (int)(__float_as_uint(most) >> 23) + 1 - CEILING;
  return most > 0.f ? __uint_as_float((u32)min(max(exponent, 27), 227) << 23) : 1.f;
}

// No weight that thread `lane` of LANES looks at is larger; of a row.
template <int LANES> DEVICE float largest(const Planes& row, int lane, int K) {
  float most = 0.f;
#pragma unroll 4
  for (int g = lane; g < groups_of(K); g += LANES) {
    const int k = GROUP * g;
    const float scale = scale_at(row, k);
    const float floor = FLOORS ? row.floors[k / SUPER_INPUTS] : 1.f;
    const float offset = OFFSETS ? full_offset(row.offsets[g], floor, scale) : 0.f;
    most = fmaxf(most, fabsf(scale) * MOST + fabsf(offset));
  }
  return most;
}

// Row n of three weights one after the other, of n0, n1 and more rows.
DEVICE Planes row_of(const Planes& w0, const Planes& w1, const Planes& w2, int n0, int n1, int n,
                     int K) {
  return n < n0        ? weight_row(w0, n, K)
         : n < n0 + n1 ? weight_row(w1, n - n0, K)
                       : weight_row(w2, n - n0 - n1, K);
}
