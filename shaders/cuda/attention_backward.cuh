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
#define LOG2E 1.4426950408889634f

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
