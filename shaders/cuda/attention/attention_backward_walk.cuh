// What the kernels of attention's gradient on tensor cores share, whether their products are
// mma.sync or wgmma: the tiles that a block walks over, probabilities and slopes, a gradient's way
// out. Included where TYPE, DP, EXTRA, M and N (queries and keys of a tile) and THREADS are known.
constexpr int OUT_PITCH = 2 * DP + 16;  // bytes of a row of a gradient on its way out

// The tile that a block keeps, `rows` tokens from `start` of its segment on, and the tiles of the
// other kind that it meets: `tiles` of them from number `first` on.
struct Walk {
  int q0, k0, len_q, len_k;  // the segment: first tokens, lengths
  int start, rows, first, tiles;
  int slot;  // of the segment's first queries, in `walk_queries`
  Mask mask;
};

// Of a block that keeps N keys; false: there are none.
DEVICE bool walk_queries(Walk& w, const int* cu_q, const int* cu_k, int B, int lowest, int highest,
                         int bottom_right) {
  const int b = segment_of_slot(cu_k, B, blockIdx.x, N);
  w.k0 = cu_k[b], w.start = (blockIdx.x - first_slot(cu_k, b, N)) * N;
  w.q0 = cu_q[b], w.len_q = cu_q[b + 1] - w.q0, w.len_k = cu_k[b + 1] - w.k0;
  if (w.start >= w.len_k) return false;
  w.mask = {bottom_right ? w.len_k - w.len_q : 0, lowest, highest, w.len_k};
  w.rows = min(N, w.len_k - w.start);
  w.first = w.mask.first_query(w.start) / M;
  const int last = min(w.len_q - 1, w.mask.last_query(w.start + w.rows));
  w.tiles = last < w.first * M ? 0 : last / M + 1 - w.first;
  w.slot = first_slot(cu_q, b, M);
  return true;
}

// Of a block that keeps M queries; false: there are none. The last tiles of a segment have the most
// keys under a causal mask: they go first.
DEVICE bool walk_keys(Walk& w, const int* cu_q, const int* cu_k, int B, int lowest, int highest,
                      int bottom_right) {
  const int reversed = gridDim.x - 1 - blockIdx.x, b = segment_of_slot(cu_q, B, reversed, M);
  w.q0 = cu_q[b], w.start = (reversed - first_slot(cu_q, b, M)) * M, w.k0 = cu_k[b];
  w.len_q = cu_q[b + 1] - w.q0, w.len_k = cu_k[b + 1] - w.k0;
  if (w.start >= w.len_q) return false;
  w.mask = {bottom_right ? w.len_k - w.len_q : 0, lowest, highest, w.len_k};
  w.rows = min(M, w.len_q - w.start);
  w.first = w.mask.first_key(w.start) / N;
  const int last = w.mask.last_key(w.start + w.rows);
  w.tiles = last < w.first * N ? 0 : last / N + 1 - w.first;
  return true;
}

// exp(score - lse) of a query and a key whose product is s; lse: times log2(e). slack, 1 before,
// becomes the softcap's derivative.
template <bool MASKED>
DEVICE float probability(float s, float lse, int query, int key, const Mask& mask,
                         const Score& score, float& slack) {
  float w;
  if (EXTRA) w = score.log2_weight(s, key - query - mask.shift, slack) - lse;
  else w = fmaf(s, score.unit, -lse);
  if (MASKED && !mask.sees(query, key)) w = -INF;
  return exp2_fast(w);
}

// (lse, delta) of query i of a tile; past the end zeros, which with zero rows of q and g give zeros.
DEVICE void load_stat(u32 to, const float2* from, int i, int rows) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
               ::"r"(to + i * 8), "l"(i < rows ? from + i : from), "r"(i < rows ? 8 : 0)
               : "memory");
}

// Transposed scores [I][J][4], in the order of accumulators with keys as rows -> p packed, and in s
// what ds is the product of with (dp - delta). key, query: of this lane's first number.
template <bool MASKED, int I, int J>
DEVICE void weigh(float* s, u32* p, const float2* stats, int key, int query, const Mask& mask,
                  const Score& score) {
#pragma unroll
  for (int j = 0; j < J; j++) {
    const float4 two = *(const float4*)(stats + 8 * j);
#pragma unroll
    for (int i = 0; i < I; i++) {
      float *own = s + 4 * (i * J + j), slack[4];
#pragma unroll
      for (int x = 0; x < 4; x++) {
        slack[x] = 1.f;
        own[x] = probability<MASKED>(own[x], x & 1 ? two.z : two.x, query + 8 * j + (x & 1),
                                     key + 16 * i + (x >= 2 ? 8 : 0), mask, score, slack[x]);
      }
      p[2 * (i * J + j)] = pack2<TYPE>(own[0], own[1]);
      p[2 * (i * J + j) + 1] = pack2<TYPE>(own[2], own[3]);
#pragma unroll
      for (int x = 0; x < 4; x++)
        if (EXTRA) own[x] *= slack[x];
    }
  }
}

// ds = p slack (dp - delta), packed, in the same order.
template <int I, int J>
DEVICE void slope_of(u32* ds, const float* s, const float* dp, const float2* stats) {
#pragma unroll
  for (int j = 0; j < J; j++) {
    const float4 two = *(const float4*)(stats + 8 * j);
#pragma unroll
    for (int i = 0; i < I; i++) {
      const float *x = s + 4 * (i * J + j), *y = dp + 4 * (i * J + j);
      ds[2 * (i * J + j)] = pack2<TYPE>(x[0] * (y[0] - two.y), x[1] * (y[1] - two.w));
      ds[2 * (i * J + j) + 1] = pack2<TYPE>(x[2] * (y[2] - two.y), x[3] * (y[3] - two.w));
    }
  }
}

// ROWS rows of a gradient from shared memory to where they belong, `pitch` elements apart.
template <int ROWS>
DEVICE void send(const char* room, TYPE* to, i64 pitch, int rows, int D) {
  for (int piece = threadIdx.x; piece < ROWS * (DP / 8); piece += THREADS) {
    int row = piece / (DP / 8), column = piece % (DP / 8);
    if (row < rows && column * 8 < D)
      *(uint4*)(to + row * pitch + column * 8) =
          *(const uint4*)(room + row * OUT_PITCH + column * 16);
  }
}
