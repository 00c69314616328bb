// The end of the matrix products: a tile of sums [TOKENS][ROWS] goes to y with scales, bias and
// residual, in order of memory. Macros: ROWS, TOKENS, OUT, BIAS, RESIDUAL (see gemm_mma.cu)
// and those of weights.cuh.

struct Epilogue {
  const SCALE_T* scales;    // [rows of the weight] from this tile's first, or null; if ROW_SCALE
  const float* x_scales;    // [M] from this tile's first token, or null
  const BIAS* bias;         // from this tile's first row, or null
  const RESIDUAL* residual; // its tile's corner, or null
  OUT* y;                   // its tile's corner
  i64 ld;                   // of y and residual
  int rows, tokens;         // that exist
  bool wide;                // corners and ld allow accesses of four
  const float* downs;       // more scales of rows, or null
};

// Fours of results begin..end - 1 by COUNT threads, each of which keeps its rows and has AT_ONCE fours
// under way; read(token, row) gives the sums of four rows.
template <int COUNT, int AT_ONCE, typename Read>
DEVICE void store_tile(Read read, Epilogue e, int thread, int begin, int end) {
  static_assert(COUNT % (ROWS / 4) == 0, "a thread's rows");
  const int row = (begin + thread) % (ROWS / 4) * 4, count = min(4, e.rows - row);
  if (count <= 0) return;
  const bool four = e.wide && count == 4;
  float scale[4], bias[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const bool real = i < count;
    scale[i] = ROW_SCALE && real && e.scales ? full_scale(e.scales[row + i], 1.f) : 1.f;
    if (real && e.downs) scale[i] *= e.downs[row + i];
    bias[i] = real && e.bias ? to_float(e.bias[row + i]) : 0.f;
  }
#pragma unroll AT_ONCE
  for (int at = begin + thread; at < end; at += COUNT) {
    const int token = at / (ROWS / 4);
    if (token >= e.tokens) break;
    const i64 to = token * e.ld + row;
    const float4 v4 = read(token, row);
    float v[4] = {v4.x, v4.y, v4.z, v4.w};
    Vec<RESIDUAL, 4> r;
    if (e.residual && four) r = load_vec<RESIDUAL, 4>(e.residual + to);
    const float x_scale = e.x_scales ? e.x_scales[token] : 1.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      v[i] = v[i] * x_scale * scale[i] + bias[i];
      if (e.residual && i < count) v[i] += four ? r[i] : to_float(e.residual[to + i]);
    }
    if (four) {
      Vec<OUT, 4> out;
#pragma unroll
      for (int i = 0; i < 4; ++i) out.at[i] = from_float<OUT>(v[i]);
      store_vec<OUT, 4>(e.y + to, out);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (i < count) e.y[to + i] = from_float<OUT>(v[i]);
    }
  }
}
