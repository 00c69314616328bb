// The ROWS rows of x of a GEMV into shared memory, in every block anew (cheaper than a kernel):
//   INPUT PLAIN     x as it is
//   INPUT RMS_NORM  x / sqrt(mean(x^2) + eps) (weight + offset), rounded to X_T
//   INPUT LAYER_NORM  (x - mean(x)) / sqrt(var(x) + eps) (weight + offset) + bias, rounded to X_T
// Under ROUNDS each row is then rounded to int8 by absmax / 127, half to even (`quantize_rows`).
// Thread mapping: the block's warps are shared out evenly to the rows; a thread takes every
// ROW_THREADS-th group of four values, or of the 16 that share a scale under DIGITS. After
// gemv_rows.cuh, with macros INPUT, NORM_T and KEEP (1, 2, 4: the groups of a thread; 8: if there
// are more).
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
const int KEPT = MORE && DIGITS ? 2 : KEEP;
const int Q = DIGITS ? 16 : 4;  // values of a group
// Two chained kernels of few rows fit an SM's registers.
const int RESIDENT = DIGITS && ROWS <= 2 && BLOCK_WARPS <= 8 && !MORE ? 2 : 1;

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
  // A group as it is stored.
  template <typename T> struct Stored {
    static const int WIDE = Q * sizeof(T) % 16 ? 4 : 16 / sizeof(T);
    Vec<T, WIDE> part[Q / WIDE];
    DEVICE float operator[](int e) const { return part[e / WIDE][e % WIDE]; }
  };
  Stored<X_T> kept[KEPT];
  Stored<NORM_T> weight[INPUT != PLAIN ? KEPT : 1];  // zeros past the end
  Stored<NORM_T> shift[INPUT == LAYER_NORM ? KEPT : 1];
  float x_factor;  // of this lane's row of x, once `settle` has found it

  DEVICE int groups() const { return (K + Q - 1) / Q; }

  // Constants, before the kernel before this one has ended.
  DEVICE void ready() {
#if INPUT != PLAIN
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
      weight[i] = load(norm, group(i));
#if INPUT == LAYER_NORM
      shift[i] = load(norm_bias, norm_bias ? group(i) : groups());
#endif
    }
#endif
  }
  // What of x is kept, after it; what is loaded waits for nobody.
  DEVICE void fetch() {
#pragma unroll
    for (int i = 0; i < KEPT; i++) kept[i] = load(x_row(threadIdx.x / ROW_THREADS), group(i));
  }

  DEVICE static int group(int i) { return threadIdx.x % ROW_THREADS + i * ROW_THREADS; }
  DEVICE const X_T* x_row(int m) const { return x + (i64)min(m, M - 1) * K; }
  // Zeros past the end.
  template <typename T> DEVICE Stored<T> load(const T* row, int q) const {
    Stored<T> found;
    const int wide = Stored<T>::WIDE;
#pragma unroll
    for (int i = 0; i < Q / wide; i++) {
      if (!SLOW && q < groups()) {
        found.part[i] = load_vec<T, wide>(row + Q * q + i * wide);
        continue;
      }
#pragma unroll
      for (int e = 0; e < wide; e++) {
        const int k = Q * q + i * wide + e;
        found.part[i].at[e] = SLOW && k < K && q < groups() ? row[k] : from_float<T>(0.f);
      }
    }
    return found;
  }

  // f(values, group, i) for all groups of this thread; i < 0 where nothing of the group was kept.
  template <class F> DEVICE void each(int m, F f) const {
#pragma unroll
    for (int i = 0; i < KEPT; i++)
      if (group(i) < groups()) f(kept[i], group(i), i);
    for (int first = KEPT; MORE && group(first) < groups(); first += KEPT) {
      Stored<X_T> more[KEPT];  // whose loads are on their way together
#pragma unroll
      for (int i = 0; i < KEPT; i++) more[i] = load(x_row(m), group(first + i));
#pragma unroll
      for (int i = 0; i < KEPT; i++)
        if (group(first + i) < groups()) f(more[i], group(first + i), -1);
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

  template <typename T> DEVICE static void put(T* to, const float (&v)[Q]) {
    Vec<T, 4> four;
#pragma unroll
    for (int e = 0; e < 4; e++) four.at[e] = from_float<T>(v[e]);
    store_vec<T, 4>(to, four);
  }
  DEVICE static void put(i8* to, const float (&v)[Q]) {
    u32 word = 0;
#pragma unroll
    for (int e = 0; e < 4; e++) word |= ((u32)(int)v[e] & 255u) << (8 * e);
    *(u32*)to = word;
  }

#if DIGITS
  DEVICE void put_digits(i8* row, int q, int stride, const float (&v)[Q]) const {
    u32 most = 0;  // of non-negative floats as integers, so that a NaN is the largest and stays
#pragma unroll
    for (int e = 0; e < Q; e++) most = max(most, __float_as_uint(v[e]) & 0x7fffffffu);
    const float top = __uint_as_float(most);
    // v * inverse + 128 as the low 16 bits of a float near 1.5 * 2^23: the high byte is the first
    // digit, the low byte - 128 the second
    const float inverse = top > 0.f ? __fdividef(32512.f, top) : 0.f;
    u32 high[4], low[4];
    int sums[2] = {0, 0};  // of what the digits say, so that zero and offset meet the same values
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 bits[4];
#pragma unroll
      for (int e = 0; e < 4; e++)
        bits[e] = __float_as_uint(fmaf(v[4 * i + e], inverse, 12582912.f + 128.f));
      const u32 left = __byte_perm(bits[0], bits[1], 0x5140);  // low, low, high, high
      const u32 right = __byte_perm(bits[2], bits[3], 0x5140);
      high[i] = __byte_perm(left, right, 0x7632);
      low[i] = __byte_perm(left, right, 0x5410) ^ 0x80808080u;
      sums[0] = __dp4a((int)high[i], 0x01010101, sums[0]);
      sums[1] = __dp4a((int)low[i], 0x01010101, sums[1]);
    }
    i8* to = row + place(Q * q);
    *(uint4*)to = make_uint4(high[0], high[1], high[2], high[3]);
    *(uint4*)(to + LANES * V) = make_uint4(low[0], low[1], low[2], low[3]);
    float* block = (float*)(row + 2 * stride) + q * BLOCK_FLOATS;
    const float scale = top * (1.f / 32512.f);
    block[0] = Chunk::RAISED && q & 1 ? scale * (1.f / 16) : scale;
    if (SUMMED) block[1] = scale * (float)(256 * sums[0] + sums[1]);
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

  // After `fetch`; the caller synchronises after it.
  DEVICE void fill(Xs* shared, int stride) {
    const int m = threadIdx.x / ROW_THREADS;
    float scale = 0.f, top = 0.f, mean = 0.f;
    if (INPUT == LAYER_NORM) {
      float sum = 0.f;
      each(m, [&](const Stored<X_T>& v, int, int) {
#pragma unroll
        for (int e = 0; e < Q; e += 4) sum += (v[e] + v[e + 1]) + (v[e + 2] + v[e + 3]);
      });
      mean = __fdividef(over_row<false>(sum), (float)K);
      float squares = 0.f;
      each(m, [&](const Stored<X_T>& v, int q, int) {
#pragma unroll
        for (int e = 0; e < Q; e++) {
          const float d = Q * q + e < K ? v[e] - mean : 0.f;
          squares = fmaf(d, d, squares);
        }
      });
      scale = rsqrtf(__fdividef(over_row<false, ROOMS - 1>(squares), (float)K) + eps);
    }
    if (INPUT == RMS_NORM) {
      float squares = 0.f;
      each(m, [&](const Stored<X_T>& v, int, int) {
#pragma unroll
        for (int e = 0; e < Q; e += 2) squares += fmaf(v[e], v[e], v[e + 1] * v[e + 1]);
      });
      if (LATE) {
        squares = warp_sum(squares);
        if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = squares;
      } else {
        scale = rsqrtf(__fdividef(over_row<false>(squares), (float)K) + eps);
      }
    }
    auto value = [&](const Stored<X_T>& v, int q, int i, float (&out)[Q]) {
      Stored<NORM_T> w, b;
      if (INPUT != PLAIN) w = i < 0 ? load(norm, q) : weight[i < 0 ? 0 : i];
      if (INPUT == LAYER_NORM)
        b = i < 0 ? load(norm_bias, norm_bias ? q : groups()) : shift[i < 0 ? 0 : i];
#pragma unroll
      for (int e = 0; e < Q; e++) {
        out[e] = v[e];
        if (INPUT == LAYER_NORM) {
          const float y = fmaf((v[e] - mean) * scale, w[e] + offset, b[e]);
          out[e] = Q * q + e < K ? to_float(from_float<X_T>(y)) : 0.f;
        }
        if (INPUT == RMS_NORM) {
          const float factor = w[e] + offset;
          out[e] = LATE ? v[e] * factor : to_float(from_float<X_T>(v[e] * scale * factor));
        }
      }
    };
    if (ROUNDS) {
      each(m, [&](const Stored<X_T>& v, int q, int i) {
        float out[Q];
        value(v, q, i, out);
#pragma unroll
        for (int e = 0; e < Q; e++) top = fmaxf(top, fabsf(out[e]));
      });
      top = over_row<true>(top) / 127.f;
      if (threadIdx.x % ROW_THREADS == 0) scales[m] = top;
      if (top == 0.f) top = 1.f;
    }
    Xs* row = shared + m * x_pitch(stride);
    each(m, [&](const Stored<X_T>& v, int q, int i) {
      float out[Q];
      value(v, q, i, out);
      if (ROUNDS) {
#pragma unroll
        for (int e = 0; e < Q; e++) out[e] = fminf(fmaxf(rintf(out[e] / top), -127.f), 127.f);
      }
#if DIGITS
      put_digits(row, q, stride, out);
#else
      put(row + place(Q * q), out);
#endif
    });
  }
};
