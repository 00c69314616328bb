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

// Writes a tile of HEIGHT rows in order of memory by COUNT threads, each of which keeps its rows;
// fours of results are counted along rows, then tokens, and a thread's first is `first`.
template <int HEIGHT, int COUNT> struct Writer {
  static_assert(COUNT % (HEIGHT / 4) == 0, "a thread's rows");
  Epilogue e;
  int row, count;
  bool four;
  float scale[4], bias[4];

  DEVICE Writer(const Epilogue& end, int first)
      : e(end), row(first % (HEIGHT / 4) * 4), count(min(4, end.rows - row)),
        four(end.wide && count == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool real = i < count;
      scale[i] = ROW_SCALE && real && e.scales ? full_scale(e.scales[row + i], 1.f) : 1.f;
      if (real && e.downs) scale[i] *= e.downs[row + i];
      bias[i] = real && e.bias ? to_float(e.bias[row + i]) : 0.f;
    }
  }
  // Fours from `at` on, before `end`, AT_ONCE under way; read(token, row) gives four sums.
  template <int AT_ONCE, typename Read> DEVICE void store(Read read, int at, int end) const {
    if (count <= 0) return;
#pragma unroll AT_ONCE
    for (; at < end; at += COUNT) {
      const int token = at / (HEIGHT / 4);
      if (token >= e.tokens) break;
      const i64 to = token * e.ld + row;
      const float4 sums = read(token, row);
      float v[4] = {sums.x, sums.y, sums.z, sums.w};
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
};
