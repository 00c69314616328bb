// The ROWS rows of x of a GEMV into shared memory, in every block anew (cheaper than a kernel):
//   INPUT PLAIN     x as it is
//   INPUT RMS_NORM  x / sqrt(mean(x^2) + eps) (weight + offset), rounded to X_T
//   INPUT LAYER_NORM  (x - mean(x)) / sqrt(var(x) + eps) (weight + offset) + bias, rounded to X_T
// Under ROUNDS each row is then rounded to int8 by absmax / 127, half to even (`quantize_rows`).
// Thread mapping: the block's warps are shared out evenly to the rows; a thread takes every
// ROW_THREADS-th group of four values. After gemv_rows.cuh, with macros INPUT, NORM_T and KEEP
// (1, 2, 4: the groups of four values of a thread; 8: if there are more).
#define PLAIN 0
#define RMS_NORM 1
#define LAYER_NORM 2
#ifndef INPUT
#define INPUT PLAIN
#endif
#ifndef NORM_T
#define NORM_T float
#endif
#ifndef KEEP
#define KEEP 8
#endif

static_assert(BLOCK_WARPS % ROWS == 0, "every row of x has the same number of warps");
const int ROW_WARPS = BLOCK_WARPS / ROWS;
const int ROW_THREADS = ROW_WARPS * 32;
const bool MORE = KEEP == 8;  // K may need more groups of a thread than it keeps: read again

const int ROOMS = INPUT == LAYER_NORM ? 3 : 2;  // of sums over the threads of a row

template <typename T> struct IsHalf { static const bool value = false; };
template <> struct IsHalf<f16> { static const bool value = true; };

// The norm's 1 / sqrt(...) is one factor of a row: it waits until the sums are there, so that
// nobody waits for it. (Not under ROUNDS, which rounds normalised values, nor where f16 could
// overflow.)
const bool LATE = INPUT == RMS_NORM && !ROUNDS && !(PACKED && IsHalf<X_T>::value);

struct Input {
  X_T* x;
  const NORM_T* norm;
  const NORM_T* norm_bias;  // of LAYER_NORM, null: none
  float* scales;  // shared memory of ROUNDS: one of each row
  float* room;    // shared memory for ROOMS * BLOCK_WARPS floats
  int M, K;       // M <= ROWS: rows that there are; rows past them read the last one
  float eps, offset;
  float weight[INPUT != PLAIN ? KEEP : 1][4];  // zeros past the end
  float shift[INPUT == LAYER_NORM ? KEEP : 1][4];
  float x_factor;  // of this lane's row of x, once `settle` has found it

  DEVICE int quads() const { return (K + 3) / 4; }

  // Constants, before the kernel before this one has ended.
  DEVICE void ready() {
#if INPUT != PLAIN
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
      const int q = threadIdx.x % ROW_THREADS + i * ROW_THREADS;
#pragma unroll
      for (int e = 0; e < 4; e++) weight[i][e] = 0.f;
      if (q < quads()) load_four(norm, q, weight[i]);
#if INPUT == LAYER_NORM
#pragma unroll
      for (int e = 0; e < 4; e++) shift[i][e] = 0.f;
      if (norm_bias && q < quads()) load_four(norm_bias, q, shift[i]);
#endif
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
    load_four(x + (i64)min(m, M - 1) * K, q, v);
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
    for (int q = t + KEEP * ROW_THREADS; MORE && q - (t & 31) < quads(); q += ROW_THREADS) {
      float v[4] = {0.f, 0.f, 0.f, 0.f};
      if (q < quads()) raw(m, q, v);
      f(v, q, -1);
    }
  }

  // Of all threads of a row of x, known to them; each call has a room of its own, a maximum 1.
  template <bool MAX, int ROOM = MAX> DEVICE float over_row(float value) const {
    value = MAX ? warp_max(value) : warp_sum(value);
    if (ROW_WARPS == 1) return value;
    float* own = room + ROOM * BLOCK_WARPS;
    if ((threadIdx.x & 31) == 0) own[threadIdx.x >> 5] = value;
    __syncthreads();
    const float* row = own + threadIdx.x / ROW_THREADS * ROW_WARPS;
    value = row[0];
#pragma unroll
    for (int w = 1; w < ROW_WARPS; w++) value = MAX ? fmaxf(value, row[w]) : value + row[w];
    return value;
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
    u32 most = 0;  // of non-negative floats as integers, so that a NaN is the largest and stays
#pragma unroll
    for (int e = 0; e < 4; e++) most = max(most, __float_as_uint(v[e]) & 0x7fffffffu);
    most = max(most, __shfl_xor_sync(FULL_MASK, most, 1));
    most = max(most, __shfl_xor_sync(FULL_MASK, most, 2));
    const float top = __uint_as_float(most);
    if (q >= quads()) return;
    // v * inverse + 128 as the low 16 bits of a float near 1.5 * 2^23: the high byte is the first
    // digit, the low byte - 128 the second
    const float inverse = top > 0.f ? __fdividef(32512.f, top) : 0.f;
    u32 bits[4];
#pragma unroll
    for (int e = 0; e < 4; e++) bits[e] = __float_as_uint(fmaf(v[e], inverse, 12582912.f + 128.f));
    const u32 left = __byte_perm(bits[0], bits[1], 0x5140);  // low, low, high, high
    const u32 right = __byte_perm(bits[2], bits[3], 0x5140);
    const u32 high = __byte_perm(left, right, 0x7632);
    const u32 low = __byte_perm(left, right, 0x5410) ^ 0x80808080u;
    const int at = place(4 * q);
    *(u32*)(row + at) = high;
    *(u32*)(row + at + LANES * V) = low;
    float* block = (float*)(row + 2 * stride) + q / 4 * BLOCK_FLOATS;
    const float scale = top * (1.f / 32512.f);
    if ((q & 3) == 0) block[0] = Chunk::RAISED && q & 4 ? scale * (1.f / 16) : scale;
    if (SUMMED) {  // of what the digits say, so that zero and offset meet the same values
      int sum = 256 * __dp4a((int)high, 0x01010101, 0);
      sum = __dp4a((int)low, 0x01010101, sum);
      const u32 four = 15u << (threadIdx.x & 28);
      sum += __shfl_xor_sync(four, sum, 1);
      sum += __shfl_xor_sync(four, sum, 2);
      if ((q & 3) == 0) block[1] = scale * (float)sum;
    }
  }
#endif

  // What the sums of row m must be multiplied with; after fill and a barrier.
  DEVICE void settle(int m) {
    x_factor = ROUNDS ? scales[m] : 1.f;
    if (LATE) {
      float squares = 0.f;
#pragma unroll
      for (int w = 0; w < ROW_WARPS; w++) squares += room[m * ROW_WARPS + w];
      x_factor = rsqrtf(__fdividef(squares, (float)K) + eps);
    }
  }

  // The caller synchronises after it.
  DEVICE void fill(Xs* shared, int stride) {
    const int m = threadIdx.x / ROW_THREADS, t = threadIdx.x % ROW_THREADS;
    float kept[KEEP][4];
#pragma unroll
    for (int i = 0; i < KEEP; i++) {
      const int q = t + i * ROW_THREADS;
#pragma unroll
      for (int e = 0; e < 4; e++) kept[i][e] = 0.f;
      if (q < quads()) raw(m, q, kept[i]);
    }
    float scale = 0.f, top = 0.f, mean = 0.f;
    if (INPUT == LAYER_NORM) {
      float sum = 0.f;
      each(m, kept, [&](const float (&v)[4], int, int) { sum += (v[0] + v[1]) + (v[2] + v[3]); });
      mean = __fdividef(over_row<false>(sum), (float)K);
      float squares = 0.f;
      each(m, kept, [&](const float (&v)[4], int q, int) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
          const float d = 4 * q + e < K ? v[e] - mean : 0.f;
          squares = fmaf(d, d, squares);
        }
      });
      scale = rsqrtf(__fdividef(over_row<false, ROOMS - 1>(squares), (float)K) + eps);
    }
    if (INPUT == RMS_NORM) {
      float squares = 0.f;
      each(m, kept, [&](const float (&v)[4], int, int) {
        squares += v[0] * v[0] + v[1] * v[1] + (v[2] * v[2] + v[3] * v[3]);
      });
      if (LATE) {
        squares = warp_sum(squares);
        if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = squares;
        scale = 1.f;
      } else {
        scale = rsqrtf(__fdividef(over_row<false>(squares), (float)K) + eps);
      }
    }
    auto value = [&](const float (&v)[4], int q, int i, float (&out)[4]) {
      float w[4] = {0.f, 0.f, 0.f, 0.f}, b[4] = {0.f, 0.f, 0.f, 0.f};
      if (INPUT != PLAIN && i < 0 && q < quads()) load_four(norm, q, w);
      if (INPUT == LAYER_NORM && i < 0 && norm_bias && q < quads()) load_four(norm_bias, q, b);
#pragma unroll
      for (int e = 0; e < 4; e++) {
        out[e] = v[e];
        if (INPUT == LAYER_NORM) {
          const float factor = (i < 0 ? w[e] : weight[i < 0 ? 0 : i % KEEP][e]) + offset;
          const float more = i < 0 ? b[e] : shift[i < 0 ? 0 : i % KEEP][e];
          const float y = to_float(from_float<X_T>(fmaf((v[e] - mean) * scale, factor, more)));
          out[e] = 4 * q + e < K ? y : 0.f;
        }
        if (INPUT == RMS_NORM) {
          const float factor = (i < 0 ? w[e] : weight[i < 0 ? 0 : i % KEEP][e]) + offset;
          out[e] = LATE ? v[e] * factor : to_float(from_float<X_T>(v[e] * scale * factor));
        }
      }
    };
    if (ROUNDS) {
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
      if (ROUNDS) {
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
