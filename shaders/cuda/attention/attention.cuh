// What the attention kernels share: which segment a tile of query rows belongs to, and which keys
// its rows see. The values of cu_seqlens are on the device only, so grids are sized for the worst
// case and every block finds its own place.

// Segment b owns the tiles cu[b] / rows + b and following: always enough, at most one in excess.
// Segment B holds the tokens after cu[B], which see nothing. tiles = tokens / rows + B + 1.
// Returns the last b in 0..B with cu[b] / rows + b <= tile. The whole warp must call it.
DEVICE int find_segment(const int* cu, int B, int tile, int rows) {
  int low = 0, count = B + 1, lane = threadIdx.x & 31;
  while (count > 1) {
    int step = (count + 31) / 32, b = low + lane * step;
    bool before = lane * step < count && cu[b] / rows + b <= tile;
    low += (__popc(__ballot_sync(FULL_MASK, before)) - 1) * step;
    count = min(step, B + 1 - low);
  }
  return low;
}

// One tile's rows and keys. A row's position is its index in the segment plus `shift`; it sees the
// key positions max(floor, position - left) <= j < min(len_k, position + right + 1).
struct Place {
  int segment, q_first, k_first;  // first token of the segment's queries and keys
  int row, rows;                  // first row of the tile in the segment, rows of it that exist
  int len_k, floor, shift;

  DEVICE int position(int r) const { return row + r + shift; }
  DEVICE int key_begin(int r, int left) const { return max(floor, position(r) - left); }
  DEVICE int key_end(int r, int right) const { return min(len_k, position(r) + right + 1); }
};

// cu_k: int32 [B+1]; with `paged` it is kv_lens [B] and `capacity` the keys that a table holds: a
// ring forgets older ones. rows <= 0 in the result: nothing to do.
DEVICE Place find_place(const int* cu_q, const int* cu_k, int Tq, int B, int tile, int tile_rows,
                        bool paged, int capacity, bool bottom_right) {
  Place p;
  int b = find_segment(cu_q, B, tile, tile_rows);
  p.segment = b;
  p.q_first = cu_q[b];
  int len_q = (b < B ? cu_q[b + 1] : Tq) - p.q_first;
  p.row = (tile - (p.q_first / tile_rows + b)) * tile_rows;
  p.rows = min(tile_rows, len_q - p.row);
  p.k_first = p.len_k = p.floor = 0;
  if (b < B) {
    p.k_first = paged ? 0 : cu_k[b];
    p.len_k = paged ? cu_k[b] : cu_k[b + 1] - p.k_first;
    if (paged) p.floor = max(0, p.len_k - capacity);
  }
  p.shift = bottom_right ? p.len_k - len_q : 0;
  return p;
}

// tanh through one exponential: absolute error 2^-22, which the softcap multiplies.
DEVICE float tanh_fast(float x) {
  float e = exp2f(2.f * LOG2E * fabsf(x));
  return copysignf(1.f - __fdividef(2.f, 1.f + e), x);
}
