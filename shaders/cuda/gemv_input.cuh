// The ROWS rows of x of a GEMV into shared memory, in every block anew (cheaper than a kernel):
//   INPUT PLAIN     x as it is
//   INPUT RMS_NORM  x / sqrt(mean(x^2) + eps) (weight + offset), rounded to X_T
//   INPUT COMBINE   split attention: partial [T, H, S, D] f32 sums of exp(score - m) v, ms [T, H, S, 2]
//                   f32 (m, sum of exp(score - m)); an empty split is (-inf, 0). A sink of the head is
//                   one more logit without a value. out = sum_s exp(m_s - M) partial_s / total.
// Under W8A8 each row is then rounded to int8 by absmax / 127, half to even (`quantize_rows`).
// Thread mapping: the block's warps are shared out evenly to the rows; a thread takes every
// ROW_THREADS-th group of four values. After gemv_rows.cuh, with macros INPUT and NORM_T.
#define PLAIN 0
#define RMS_NORM 1
#define COMBINE 2
#ifndef INPUT
#define INPUT PLAIN
#endif
#ifndef NORM_T
#define NORM_T float
#endif

static_assert(BLOCK_WARPS % ROWS == 0, "every row of x has the same number of warps");
const int ROW_WARPS = BLOCK_WARPS / ROWS;
const int ROW_THREADS = ROW_WARPS * 32;
const int KEEP = INPUT == COMBINE ? 1 : 8;  // groups of four kept in registers; others are read again

struct Input {
  X_T* x;  // or the partial sums (f32) of COMBINE
  const NORM_T* norm;
  float* ms;
  const float* sinks;
  float* mix;    // shared memory of COMBINE: the factor of each (row, head, split)
  float* scales;  // shared memory of W8A8: one of each row
  float* room;   // shared memory for 2 * BLOCK_WARPS floats
  int M, K, H, S;  // M <= ROWS: rows that there are; rows past them read the last one
  float eps, offset;
  float weight[INPUT == RMS_NORM ? KEEP : 1][4];  // zeros past the end

  DEVICE int quads() const { return (K + 3) / 4; }

  // Constants, before the kernel before this one has ended.
  DEVICE void ready() {
#if INPUT == RMS_NORM
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
      const int q = threadIdx.x % ROW_THREADS + i * ROW_THREADS;
#pragma unroll
      for (int e = 0; e < 4; e++) weight[i][e] = 0.f;
      if (q < quads()) load_four(norm, q, weight[i]);
    }
#endif
  }

  template <typename T> DEVICE void load_four(const T* row, int q, float (&v)[4]) const {
    if (!SLOW) {
      const Vec<T, 4> four = load_vec<T, 4>(row + 4 * q);
#pragma unroll
      for (int e = 0; e < 4; e++) v[e] = four[e];
    } else {
#pragma unroll
      for (int e = 0; e < 4; e++) v[e] = 4 * q + e < K ? to_float(row[4 * q + e]) : 0.f;
    }
  }

  DEVICE void raw(int m, int q, float (&v)[4]) const {
    if (INPUT != COMBINE) {
      load_four(x + (i64)min(m, M - 1) * K, q, v);
      return;
    }
    const int D = K / H, head = 4 * q / D, first = min(m, M - 1) * H + head;
    const float* from = (const float*)x + (i64)first * S * D + (4 * q - head * D);
#pragma unroll
    for (int e = 0; e < 4; e++) v[e] = 0.f;
#pragma unroll 4
    for (int s = 0; s < S; s++) {
      const float factor = mix[first * S + s];
      if (factor == 0.f) continue;
      const Vec<float, 4> part = load_vec<float, 4>(from + (i64)s * D);
#pragma unroll
      for (int e = 0; e < 4; e++) v[e] = fmaf(factor, part[e], v[e]);
    }
#pragma unroll
    for (int e = 0; e < 4; e++) v[e] = to_float(from_float<X_T>(v[e]));
  }

  // f(values, group, i) for all groups of this thread; i < 0 where nothing of the group was kept.
  // All lanes of a warp call it together; past the end with zeros.
  template <class F> DEVICE void each(int m, float (&kept)[KEEP][4], F f) const {
    const int t = threadIdx.x % ROW_THREADS;
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
      const int q = t + i * ROW_THREADS;
      if (q - (t & 31) < quads()) f(kept[i], q, i);
    }
    for (int q = t + KEEP * ROW_THREADS; q - (t & 31) < quads(); q += ROW_THREADS) {
      float v[4] = {0.f, 0.f, 0.f, 0.f};
      if (q < quads()) raw(m, q, v);
      f(v, q, -1);
    }
  }

  // Of all threads of a row of x, known to them; `of` picks the room.
  template <bool MAX> DEVICE float over_row(float value) const {
    value = MAX ? warp_max(value) : warp_sum(value);
    if (ROW_WARPS == 1) return value;
    float* own = room + (MAX ? BLOCK_WARPS : 0);
    if ((threadIdx.x & 31) == 0) own[threadIdx.x >> 5] = value;
    __syncthreads();
    const float* row = own + threadIdx.x / ROW_THREADS * ROW_WARPS;
    value = row[0];
#pragma unroll
    for (int w = 1; w < ROW_WARPS; w++) value = MAX ? fmaxf(value, row[w]) : value + row[w];
    return value;
  }

  DEVICE void find_mix() const {  // a warp for each (row, head), a lane for each split
    const int lane = threadIdx.x & 31;
    for (int head = threadIdx.x >> 5; head < M * H; head += BLOCK_WARPS) {
      const float* own = ms + (i64)head * S * 2;
      const float sink = sinks ? sinks[head % H] : -INF;
      float top = sink, total = 0.f;
      for (int s = lane; s < S; s += 32) top = fmaxf(top, own[2 * s]);
      top = warp_max(top);
      if (top == -INF) top = 0.f;
      for (int s = lane; s < S; s += 32) total += __expf(own[2 * s] - top) * own[2 * s + 1];
      total = warp_sum(total) + __expf(sink - top);
      const float factor = total > 0.f ? __fdividef(1.f, total) : 0.f;
      for (int s = lane; s < S; s += 32) mix[head * S + s] = __expf(own[2 * s] - top) * factor;
    }
    __syncthreads();
  }

  template <typename T> DEVICE static void put(T* to, const float (&v)[4]) {
    Vec<T, 4> four;
#pragma unroll
    for (int e = 0; e < 4; e++) four.at[e] = from_float<T>(v[e]);
    store_vec<T, 4>(to, four);
  }
  DEVICE static void put(i8* to, const float (&v)[4]) {
    u32 word = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) word |= ((u32)(int)v[e] & 255u) << (8 * e);
    *(u32*)to = word;
  }

#if DIGITS
  // Four lanes have the 16 values that share a scale (K is a multiple of 16).
  DEVICE void put_digits(i8* row, int q, int stride, const float (&v)[4]) const {
    float top = fmaxf(fmaxf(fabsf(v[0]), fabsf(v[1])), fmaxf(fabsf(v[2]), fabsf(v[3])));
    top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 2));
    if (q >= quads()) return;
    const float inverse = top > 0.f ? __fdividef(32512.f, top) : 0.f;
    u32 high = 0, low = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int digits = __float2int_rn(fminf(fmaxf(v[e] * inverse, -32512.f), 32512.f));
      const int first = (digits + 128) >> 8;
      high |= ((u32)first & 255u) << (8 * e);
      low |= ((u32)(digits - (first << 8)) & 255u) << (8 * e);
    }
    const int at = place(4 * q);
    *(u32*)(row + at) = high;
    *(u32*)(row + stride + at) = low;
    if ((q & 3) == 0) *(float*)(row + 2 * stride + at / 4) = top / 32512.f;
  }
#endif

  // The caller synchronises after it.
  DEVICE void fill(Xs* shared, int stride) {
    if (INPUT == COMBINE) find_mix();
    const int m = threadIdx.x / ROW_THREADS, t = threadIdx.x % ROW_THREADS;
    float kept[KEEP][4];
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
      const int q = t + i * ROW_THREADS;
#pragma unroll
      for (int e = 0; e < 4; e++) kept[i][e] = 0.f;
      if (q < quads()) raw(m, q, kept[i]);
    }
    float scale = 0.f, top = 0.f;
    if (INPUT == RMS_NORM) {
      float squares = 0.f;
      each(m, kept, [&](const float (&v)[4], int, int) {
        squares += v[0] * v[0] + v[1] * v[1] + (v[2] * v[2] + v[3] * v[3]);
      });
      scale = rsqrtf(over_row<false>(squares) / K + eps);
    }
    auto value = [&](const float (&v)[4], int q, int i, float (&out)[4]) {
      float w[4] = {0.f, 0.f, 0.f, 0.f};
      if (INPUT == RMS_NORM && i < 0 && q < quads()) load_four(norm, q, w);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        out[e] = v[e];
        if (INPUT == RMS_NORM) {
          const float factor = (i < 0 ? w[e] : weight[i < 0 ? 0 : i % KEEP][e]) + offset;
          out[e] = to_float(from_float<X_T>(v[e] * scale * factor));
        }
      }
    };
    if (FORM == W8A8) {
      each(m, kept, [&](const float (&v)[4], int q, int i) {
        float out[4];
        value(v, q, i, out);
#pragma unroll
        for (int e = 0; e < 4; e++) top = fmaxf(top, fabsf(out[e]));
      });
      top = over_row<true>(top) / 127.f;
      if (t == 0) scales[m] = top;
      if (top == 0.f) top = 1.f;
    }
    Xs* row = shared + m * x_pitch(stride);
    each(m, kept, [&](const float (&v)[4], int q, int i) {
      float out[4];
      value(v, q, i, out);
      if (FORM == W8A8) {
#pragma unroll
        for (int e = 0; e < 4; e++) out[e] = fminf(fmaxf(rintf(out[e] / top), -127.f), 127.f);
      }
#if DIGITS
      put_digits(row, q, stride, out);
#else
      if (q < quads()) put(row + place(4 * q), out);
#endif
    });
  }
};
