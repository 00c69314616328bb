// Attention of few queries per sequence over a paged cache, split over the keys.
// attention_combine.cu joins the splits.
//
//   score(i, p) = scale * q[i].k[p]  (softcap * tanh(. / softcap); - slope * |p - position of i|)
//   partial: m = max score, sum = sum exp(score - m), o = sum exp(score - m) v[p], over some keys
//
// Shapes: q [T, H, HEAD_DIM]; caches [NB * bs rows, K, HEAD_DIM or V_DIM]; cu_seqlens, kv_lens and
// block_table as in ops/attention.py; partial_out f32 [T, H, S, V_DIM], partial_ms [T, H, S, 2].
// A slot of partial_ms that no keys fell to is (-inf, 0), and then partial_out's is undefined.
//
// Mapping of attention_partials: the grid is [K, groups], fixed; lengths are read here. The visible
// keys of all sequences, in units of KEYS, are laid end to end and cut into equal ranges, one for
// each group (K blocks, one for each kv head, side by side in the same rows of the cache). In a
// block warps take units in turn, each through its own ring of STAGES units in shared memory, with
// no barrier among them until their results are merged. The rows of a block are ROWS pairs of
// (query of the sequence, head of the kv head); a sequence with more takes several passes.
// MMA 1: m16n8k16 tensor cores, 16-bit q and caches of one type, sm_80. MMA 0: any types, f32 FMA.
// Limits: dims <= 256; VEC 1 needs 16-byte aligned rows; MMA and VEC 1 need dims in 16-byte pieces.
// Source: Dao et al. 2023, Flash-Decoding; the even cut: FlashInfer, arXiv:2501.01005.
#include "prelude.cuh"
#include "mma.cuh"

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

typedef Q_TYPE QT;
typedef CACHE_TYPE CT;

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }
constexpr int PIECE = 16 / sizeof(CT);  // elements of 16 bytes
constexpr int K_WIDTH = round_up(HEAD_DIM, MMA ? 16 : 8 * PIECE);
constexpr int V_WIDTH = round_up(V_DIM, MMA ? 16 : 32);
constexpr int K_PITCH = K_WIDTH + PIECE;  // 16 bytes more: ldmatrix without bank conflicts
constexpr int V_PITCH = V_WIDTH + PIECE;
constexpr int STAGE = KEYS * (K_PITCH + V_PITCH);  // elements
constexpr int SUM_PITCH = V_WIDTH + 8;             // of a row of merged sums, floats

struct Call {
  const QT* q;
  const CT *k, *v;
  const int *cu, *table, *lens;
  const float* alibi;
  float *out, *ms;
  i64 q_row, q_head, k_row, k_head, v_row, v_head;
  int T, H, G, B, bs, columns, S, grain, left, right, bottom_right;
  float scale, softcap;
};

// What a row of the block sees: keys lo..hi; where its query stands; its slope in log2 units.
struct RowInfo {
  int lo, hi, position;
  float slope;
};

struct Shared {
  CT* ring;        // of this warp: STAGES of K rows, V rows
  float* sums;     // [N_WARPS][ROWS][SUM_PITCH], in the rings' place
  RowInfo* rows;   // [ROWS]
  float2* stats;   // [N_WARPS][ROWS]: m in log2 units, sum
  u32* masks;      // of this warp [STAGES]: which keys of the unit are there
  void* q;         // MMA: CT [ROWS][K_PITCH]; else float [ROWS][K_WIDTH]
  float* p;        // of this warp, MMA 0: [KEYS][ROWS]
};

// -- loading -------------------------------------------------------------------------------------
// Until all but the newest N groups of this warp's lanes have landed.
template <int N> DEVICE void wait_landed() {
  cp_async_wait<N>();
  __syncwarp();
}

// KEYS rows of a cache to shared memory; lane r has the row of key r, negative: zeros.
template <int REAL, int WIDTH, int PITCH>
DEVICE void load_rows(CT* to, const CT* from, i64 stride, int row_of_lane) {
  int lane = threadIdx.x & 31;
#if VEC
  constexpr int N = WIDTH / PIECE;
  constexpr int COUNT = (KEYS * N + 31) / 32;
#if __CUDA_ARCH__ < 800
  constexpr int BATCH = 8;  // loads in flight
  for (int first = 0; first < COUNT; first += BATCH) {
    uint4 held[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      int at = (first + i) * 32 + lane, key = at / N, piece = at % N;
      int row = __shfl_sync(FULL_MASK, row_of_lane, key & 31);
      bool there = at < KEYS * N && row >= 0 && piece < REAL / PIECE;
      held[i] = make_uint4(0, 0, 0, 0);
      if (there) held[i] = *(const uint4*)(from + row * stride + piece * PIECE);
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      int at = (first + i) * 32 + lane;
      if (at < KEYS * N) *(uint4*)(to + at / N * PITCH + at % N * PIECE) = held[i];
    }
  }
#else
  u32 base = shared_address(to + lane / N * PITCH + lane % N * PIECE);
  from += lane % N * PIECE;
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    if (32 % N == 0) {  // whole rows at a time
      constexpr int ROWS_OF = 32 % N ? 1 : 32 / N;
      int row = __shfl_sync(FULL_MASK, row_of_lane, i * ROWS_OF + lane / N);
      bool there = row >= 0 && (REAL == WIDTH || lane % N < REAL / PIECE);
      cp_async16(base + i * ROWS_OF * PITCH * (int)sizeof(CT), from + (there ? row * stride : 0),
                 there);
    } else {
      int at = i * 32 + lane, key = at / N, piece = at % N;
      int row = __shfl_sync(FULL_MASK, row_of_lane, key & 31);
      bool there = row >= 0 && (REAL == WIDTH || piece < REAL / PIECE);
      const CT* source = from + (there ? row * stride + (piece - lane % N) * PIECE : 0);
      if (KEYS * N % 32 == 0 || at < KEYS * N)
        cp_async16(shared_address(to + key * PITCH + piece * PIECE), source, there);
    }
  }
#endif
#else
  for (int key = 0; key < KEYS; key++) {
    int row = __shfl_sync(FULL_MASK, row_of_lane, key);
    for (int d = lane; d < WIDTH; d += 32)
      to[key * PITCH + d] = row >= 0 && d < REAL ? from[row * stride + d] : from_float<CT>(0.f);
  }
#endif
}

// One sequence as the block sees it.
struct Sequence {
  int first, queries, length, lo, hi, units;  // units of KEYS that any of its queries sees
  DEVICE int passes(int G) const { return (queries * G + ROWS - 1) / ROWS; }
};

DEVICE Sequence sequence(const Call& a, int b) {
  Sequence s;
  s.first = a.cu[b];
  s.queries = a.cu[b + 1] - s.first;
  s.length = a.lens[b];
  int shift = a.bottom_right ? s.length - s.queries : 0;
  s.lo = max(0, s.length - a.columns * a.bs);  // what the ring has not overwritten
  if (a.left >= 0) s.lo = max(s.lo, shift - a.left);
  s.hi = s.length - 1;
  if (a.right >= 0) s.hi = min(s.hi, shift + s.queries - 1 + a.right);
  s.units = s.queries > 0 && s.hi >= s.lo ? s.hi / KEYS - s.lo / KEYS + 1 : 0;
  return s;
}

// The cache row of this lane's key of unit u, or -1.
DEVICE int lookup(const Call& a, const Sequence& s, int b, int u, int end) {
  int p = u * KEYS + (threadIdx.x & (KEYS - 1));
  if (u >= end || p < s.lo || p > s.hi) return -1;
  int column = p / a.bs, offset = p - column * a.bs;
  if (column >= a.columns) column %= a.columns;
  int block = a.table[(i64)b * a.columns + column];
  return block < 0 ? -1 : block * a.bs + offset;
}

// Start loading a unit into a stage of the ring: two groups, keys and values.
DEVICE void issue(const Call& a, const Shared& sh, int kv, int stage, int row) {
  u32 mask = __ballot_sync(FULL_MASK, row >= 0);
  if ((threadIdx.x & 31) == 0) sh.masks[stage] = KEYS == 32 ? mask : mask & ((1u << KEYS) - 1);
  CT* to = sh.ring + stage * STAGE;
  if (mask) load_rows<HEAD_DIM, K_WIDTH, K_PITCH>(to, a.k + kv * a.k_head, a.k_row, row);
  cp_async_commit();
  to += KEYS * K_PITCH;
  if (mask) load_rows<V_DIM, V_WIDTH, V_PITCH>(to, a.v + kv * a.v_head, a.v_row, row);
  cp_async_commit();
}

// -- scores --------------------------------------------------------------------------------------
// In log2 units. `full`: every key of the unit is seen by every row.
DEVICE float score(const Call& a, const Shared& sh, float dot, int row, int p, bool full,
                   bool here) {
#if SOFTCAP
  float x = a.softcap * LOG2E * tanhf(dot * (a.scale / a.softcap));
#else
  float x = dot * (a.scale * LOG2E);
#endif
#if ALIBI
  x -= sh.rows[row].slope * (float)abs(p - sh.rows[row].position);
#endif
  if (!full && !(here && p >= sh.rows[row].lo && p <= sh.rows[row].hi)) x = -INF;
  return x;
}

#if MMA
constexpr int TILES = ROWS / 16;
constexpr bool Q_HELD = TILES == 1 && HEAD_DIM <= 128;

// Sums of one warp. Lane l has rows l/4 and l/4 + 8 of each tile, columns 2 (l%4) + {0, 1} of 8.
struct Sums {
  float o[TILES][V_WIDTH / 8][4], top[TILES][2], sum[TILES][2];
  u32 q[K_WIDTH / 16][4];

  DEVICE u32 q_at(const Shared& sh, int tile, int k) {
    int lane = threadIdx.x & 31;
    return shared_address((const CT*)sh.q + (tile * 16 + (lane & 15)) * K_PITCH + (lane >> 4) * 8) +
           k * 32;
  }

  DEVICE void begin(const Shared& sh) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      top[t][0] = top[t][1] = -INF;
      sum[t][0] = sum[t][1] = 0.f;
#pragma unroll
      for (int n = 0; n < V_WIDTH / 8; n++)
        o[t][n][0] = o[t][n][1] = o[t][n][2] = o[t][n][3] = 0.f;
    }
    if (Q_HELD)
#pragma unroll
      for (int k = 0; k < K_WIDTH / 16; k++) ldmatrix_x4(q[k], q_at(sh, 0, k));
  }

  // p (u's first key) and which keys are there; K rows and V rows of the unit; `values` waits.
  template <typename Wait>
  DEVICE void step(const Call& a, const Shared& sh, int p0, u32 mask, bool full, const CT* keys,
                   Wait values) {
    int lane = threadIdx.x & 31;
    float s[TILES][KEYS / 8][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++) s[t][n][0] = s[t][n][1] = s[t][n][2] = s[t][n][3] = 0.f;
    u32 at = shared_address(keys + ((lane & 7) + (lane >> 4) * 8) * K_PITCH +
                            ((lane >> 3) & 1) * 8);
#pragma unroll
    for (int k = 0; k < K_WIDTH / 16; k++) {
      u32 rows[TILES][4];
#pragma unroll
      for (int t = 0; t < TILES; t++)
        if (!Q_HELD) ldmatrix_x4(rows[t], q_at(sh, t, k));
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++) {
        u32 b[4];
        ldmatrix_x4(b, at + n * 32 * K_PITCH + k * 32);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          mma_16816<CT>(s[t][2 * n], Q_HELD ? q[k] : rows[t], b[0], b[1]);
          mma_16816<CT>(s[t][2 * n + 1], Q_HELD ? q[k] : rows[t], b[2], b[3]);
        }
      }
    }
    u32 weights[TILES][KEYS / 16][4];
#pragma unroll
    for (int t = 0; t < TILES; t++) softmax(a, sh, t, p0, mask, full, s[t], weights[t]);
    u32 v = shared_address(values() + (lane & 15) * V_PITCH + (lane >> 4) * 8);
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++)
#pragma unroll
      for (int d = 0; d < V_WIDTH / 16; d++) {
        u32 b[4];
        ldmatrix_x4_trans(b, v + n * 32 * V_PITCH + d * 32);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          mma_16816<CT>(o[t][2 * d], weights[t][n], b[0], b[1]);
          mma_16816<CT>(o[t][2 * d + 1], weights[t][n], b[2], b[3]);
        }
      }
  }

  DEVICE void softmax(const Call& a, const Shared& sh, int t, int p0, u32 mask, bool full,
                      float (&s)[KEYS / 8][4], u32 (&weights)[KEYS / 16][4]) {
    int lane = threadIdx.x & 31;
    float high[2] = {top[t][0], top[t][1]};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int key = n * 8 + (lane & 3) * 2 + (e & 1), row = t * 16 + (lane >> 2) + (e >> 1) * 8;
        s[n][e] = score(a, sh, s[n][e], row, p0 + key, full, mask >> key & 1);
        high[e >> 1] = fmaxf(high[e >> 1], s[n][e]);
      }
    float base[2];
    bool higher = false;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      high[i] = fmaxf(high[i], __shfl_xor_sync(FULL_MASK, high[i], 1));
      high[i] = fmaxf(high[i], __shfl_xor_sync(FULL_MASK, high[i], 2));
      base[i] = high[i] == -INF ? 0.f : high[i];
      higher |= high[i] > top[t][i];
    }
    if (__any_sync(FULL_MASK, higher)) {
      float fade[2] = {exp2_fast(top[t][0] - base[0]), exp2_fast(top[t][1] - base[1])};
#pragma unroll
      for (int i = 0; i < 2; i++) sum[t][i] *= fade[i], top[t][i] = high[i];
#pragma unroll
      for (int n = 0; n < V_WIDTH / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[t][n][e] *= fade[e >> 1];
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[n][e] = exp2_fast(s[n][e] - base[e >> 1]);
        sum[t][e >> 1] += s[n][e];
      }
      weights[n / 2][n % 2 * 2] = pack2<CT>(s[n][0], s[n][1]);
      weights[n / 2][n % 2 * 2 + 1] = pack2<CT>(s[n][2], s[n][3]);
    }
  }

  DEVICE void stats(float2* to) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float x = sum[t][i];
        x += __shfl_xor_sync(FULL_MASK, x, 1);
        x += __shfl_xor_sync(FULL_MASK, x, 2);
        if ((lane & 3) == 0) to[t * 16 + i * 8 + lane / 4] = make_float2(top[t][i], x);
      }
  }

  // The rows below `count`, times the factor of each, to shared memory.
  template <typename Factor> DEVICE void store(float* to, int count, Factor factor) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int row = t * 16 + i * 8 + lane / 4;
        if (row >= count) continue;
        float f = factor(row, top[t][i]);
        float* line = to + row * SUM_PITCH + (lane & 3) * 2;
#pragma unroll
        for (int n = 0; n < V_WIDTH / 8; n++)
          *(float2*)(line + n * 8) = make_float2(o[t][n][2 * i] * f, o[t][n][2 * i + 1] * f);
      }
  }
};
#else
constexpr int PER = KEYS / 4;        // keys of a lane in the scores: lane/8 + 4 j
constexpr int NV = V_WIDTH / 32;     // columns of a lane in the sums
constexpr int VW = V_WIDTH % 128 == 0 ? 4 : V_WIDTH % 64 == 0 ? 2 : 1;  // consecutive ones

// Sums of one warp. Scores: 8 lanes share a key, 16-byte pieces l%8, l%8 + 8, ... of its row.
// Values: every lane has NV columns of all rows.
struct Sums {
  float o[ROWS][NV], top[ROWS], sum[ROWS];

  DEVICE void begin(const Shared& sh) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      top[r] = -INF, sum[r] = 0.f;
#pragma unroll
      for (int i = 0; i < NV; i++) o[r][i] = 0.f;
    }
  }

  template <typename Wait>
  DEVICE void step(const Call& a, const Shared& sh, int p0, u32 mask, bool full, const CT* keys,
                   Wait values) {
    int lane = threadIdx.x & 31, mine = lane >> 3;
    float s[ROWS][PER] = {};
#pragma unroll
    for (int c = 0; c < K_WIDTH / PIECE / 8; c++) {
      int d = (c * 8 + (lane & 7)) * PIECE;
      Vec<CT, PIECE> k[PER];
#pragma unroll
      for (int j = 0; j < PER; j++) k[j] = load_vec<CT, PIECE>(keys + (mine + 4 * j) * K_PITCH + d);
#pragma unroll
      for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int e = 0; e < PIECE; e += 4) {
          float4 x = *(const float4*)((const float*)sh.q + r * K_WIDTH + d + e);
#pragma unroll
          for (int j = 0; j < PER; j++)
            s[r][j] += x.x * k[j][e] + x.y * k[j][e + 1] + x.z * k[j][e + 2] + x.w * k[j][e + 3];
        }
    }
    __syncwarp();  // the weights of the last unit have been read
#pragma unroll
    for (int r = 0; r < ROWS; r++) softmax(a, sh, r, p0, mask, full, s[r]);
    const CT* v = values();
#pragma unroll 4
    for (int key = 0; key < KEYS; key++) {
      float x[NV];
#pragma unroll
      for (int i = 0; i < NV; i += VW) {
        Vec<CT, VW> piece = load_vec<CT, VW>(v + key * V_PITCH + i * 32 + lane * VW);
#pragma unroll
        for (int e = 0; e < VW; e++) x[i + e] = piece[e];
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float w = sh.p[key * ROWS + r];
#pragma unroll
        for (int i = 0; i < NV; i++) o[r][i] += w * x[i];
      }
    }
  }

  DEVICE void softmax(const Call& a, const Shared& sh, int r, int p0, u32 mask, bool full,
                      float (&s)[PER]) {
    int lane = threadIdx.x & 31, mine = lane >> 3;
    float high = top[r];
#pragma unroll
    for (int j = 0; j < PER; j++) {
#pragma unroll
      for (int d = 4; d; d >>= 1) s[j] += __shfl_xor_sync(FULL_MASK, s[j], d);
      int key = mine + 4 * j;
      s[j] = score(a, sh, s[j], r, p0 + key, full, mask >> key & 1);
      high = fmaxf(high, s[j]);
    }
    high = fmaxf(high, __shfl_xor_sync(FULL_MASK, high, 8));
    high = fmaxf(high, __shfl_xor_sync(FULL_MASK, high, 16));
    float base = high == -INF ? 0.f : high;
    if (high > top[r]) {  // all lanes alike
      float fade = exp2_fast(top[r] - base);
      sum[r] *= fade, top[r] = high;
#pragma unroll
      for (int i = 0; i < NV; i++) o[r][i] *= fade;
    }
#pragma unroll
    for (int j = 0; j < PER; j++) {
      s[j] = exp2_fast(s[j] - base);
      sum[r] += s[j];
      if ((lane & 7) == (r & 7)) sh.p[(mine + 4 * j) * ROWS + r] = s[j];
    }
  }

  DEVICE void stats(float2* to) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float x = sum[r];
      x += __shfl_xor_sync(FULL_MASK, x, 8);
      x += __shfl_xor_sync(FULL_MASK, x, 16);
      if ((threadIdx.x & 31) == 0) to[r] = make_float2(top[r], x);
    }
  }

  template <typename Factor> DEVICE void store(float* to, int count, Factor factor) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (r >= count) continue;
      float f = factor(r, top[r]);
#pragma unroll
      for (int i = 0; i < NV; i++)
        to[r * SUM_PITCH + i / VW * VW * 32 + lane * VW + i % VW] = o[r][i] * f;
    }
  }
};
#endif

// -- one range of keys of one sequence ------------------------------------------------------------
// The queries' rows R = pass * ROWS + r, (query R / G, head R % G), to shared memory.
DEVICE void load_queries(const Call& a, const Shared& sh, const Sequence& s, int kv, int pass) {
  int shift = a.bottom_right ? s.length - s.queries : 0;
  for (int r = threadIdx.x; r < ROWS; r += N_WARPS * 32) {
    int R = min(pass * ROWS + r, s.queries * a.G - 1), query = R / a.G;
    RowInfo info = {s.lo, s.hi, shift + query, 0.f};
    if (a.left >= 0) info.lo = max(info.lo, info.position - a.left);
    if (a.right >= 0) info.hi = min(info.hi, info.position + a.right);
#if ALIBI
    info.slope = a.alibi[kv * a.G + R % a.G] * LOG2E;
#endif
    sh.rows[r] = info;
  }
  constexpr int STEP = VEC ? 16 / sizeof(QT) : 1;
  for (int i = threadIdx.x; i < ROWS * (K_WIDTH / STEP); i += N_WARPS * 32) {
    int r = i / (K_WIDTH / STEP), d = i % (K_WIDTH / STEP) * STEP, R = pass * ROWS + r;
    Vec<QT, STEP> x = {};
    if (R < s.queries * a.G && d < HEAD_DIM) {
      i64 at = (s.first + R / a.G) * a.q_row + (kv * a.G + R % a.G) * a.q_head + d;
      x = load_vec<QT, STEP>(a.q + at);
    }
#if MMA
    store_vec<QT, STEP>((QT*)sh.q + r * K_PITCH + d, x);
#else
#pragma unroll
    for (int e = 0; e < STEP; e++) ((float*)sh.q)[r * K_WIDTH + d + e] = x[e];
#endif
  }
}

// Where the results of row R of this sequence and kv head go: row (t * H + h) of the partials.
DEVICE i64 result_row(const Call& a, const Sequence& s, int kv, int R) {
  return (i64)(s.first + R / a.G) * a.H + kv * a.G + R % a.G;
}

DEVICE void write_merged(const Call& a, const Shared& sh, const Sequence& s, Sums& sums, int kv,
                         int pass, int split) {
  int warp = threadIdx.x >> 5, rows = min(ROWS, s.queries * a.G - pass * ROWS);
  sums.stats(sh.stats + warp * ROWS);
  __syncthreads();  // all rings are idle now
  auto highest = [&](int r) {
    float m = sh.stats[r].x;
#pragma unroll
    for (int w = 1; w < N_WARPS; w++) m = fmaxf(m, sh.stats[w * ROWS + r].x);
    return m;
  };
  sums.store(sh.sums + warp * ROWS * SUM_PITCH, rows, [&](int r, float own) {
    return own == -INF ? 0.f : exp2_fast(own - highest(r));
  });
  if (threadIdx.x < rows) {
    int r = threadIdx.x;
    float m = highest(r), total = 0.f;
#pragma unroll
    for (int w = 0; w < N_WARPS; w++) {
      float2 x = sh.stats[w * ROWS + r];
      if (x.x != -INF) total += x.y * exp2_fast(x.x - m);
    }
    i64 at = result_row(a, s, kv, pass * ROWS + r) * a.S + split;
    *(float2*)(a.ms + at * 2) = make_float2(m * LN2, total);
  }
  __syncthreads();
  constexpr int STEP = V_DIM % 4 == 0 ? 4 : 1;
  for (int i = threadIdx.x; i < rows * (V_DIM / STEP); i += N_WARPS * 32) {
    int r = i / (V_DIM / STEP), d = i % (V_DIM / STEP) * STEP;
    Vec<float, STEP> x = load_vec<float, STEP>(sh.sums + r * SUM_PITCH + d);
#pragma unroll
    for (int w = 1; w < N_WARPS; w++) {
      Vec<float, STEP> y = load_vec<float, STEP>(sh.sums + (w * ROWS + r) * SUM_PITCH + d);
#pragma unroll
      for (int e = 0; e < STEP; e++) x.at[e] += y.at[e];
    }
    i64 at = result_row(a, s, kv, pass * ROWS + r) * a.S + split;
    store_vec<float, STEP>(a.out + at * V_DIM + d, x);
  }
  __syncthreads();
}

// Units begin..end of sequence b against the rows of one pass.
DEVICE void attend(const Call& a, const Shared& sh, const Sequence& s, int b, int kv, int pass,
                   int begin, int end, int split) {
  int warp = threadIdx.x >> 5, u = begin + warp;
  int rows[STAGES];
#pragma unroll
  for (int i = 0; i < STAGES; i++) rows[i] = lookup(a, s, b, u + i * N_WARPS, end);
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) issue(a, sh, kv, i, rows[i]);
  int next = rows[STAGES - 1];
  load_queries(a, sh, s, kv, pass);
  __syncthreads();
  Sums sums;
  sums.begin(sh);
  int last = min(ROWS, s.queries * a.G - pass * ROWS) - 1;
  int low = sh.rows[last].lo, high = sh.rows[0].hi;  // what all rows see
#pragma unroll 1
  for (int stage = 0; u < end; u += N_WARPS) {
    __syncwarp();  // the stage that is filled now has been read
    issue(a, sh, kv, (stage + STAGES - 1) % STAGES, next);
    next = lookup(a, s, b, u + STAGES * N_WARPS, end);
    wait_landed<2 * STAGES - 1>();
    const CT* keys = sh.ring + stage * STAGE;
    u32 mask = sh.masks[stage];
    if (mask == 0) {  // nothing was loaded
      stage = stage + 1 == STAGES ? 0 : stage + 1;
      continue;
    }
    bool full = mask == (KEYS == 32 ? ~0u : (1u << KEYS) - 1) && u * KEYS >= low &&
                u * KEYS + KEYS - 1 <= high;
    sums.step(a, sh, u * KEYS, mask, full, keys, [&] {
      wait_landed<2 * STAGES - 2>();
      return keys + KEYS * K_PITCH;
    });
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  wait_landed<0>();
  write_merged(a, sh, s, sums, kv, pass, split);
}

// -- the cut of all work into groups --------------------------------------------------------------
// `total` units over `groups`, the first `rest` of which take one more than `share`.
struct Cut {
  int groups, share, rest;
  DEVICE Cut(int total, int most, int grain) {
    groups = min(most, max(1, total / grain));
    share = total / groups;
    rest = total - share * groups;
  }
  DEVICE int start(int g) const { return min(g, groups) * share + min(g, rest); }
  DEVICE int group_of(int unit) const {
    int larger = rest * (share + 1);
    return unit < larger ? unit / (share + 1) : rest + (unit - larger) / share;
  }
};

// (-inf, 0) in slots from..S of rows R0..R1 of a sequence.
DEVICE void write_empty(const Call& a, const Sequence& s, int kv, int R0, int R1, int from) {
  int slots = a.S - from;
  for (int i = threadIdx.x; i < (R1 - R0) * slots; i += N_WARPS * 32) {
    i64 at = result_row(a, s, kv, R0 + i / slots) * a.S + from + i % slots;
    *(float2*)(a.ms + at * 2) = make_float2(-INF, 0.f);
  }
}

DEVICE void run(const Call& a, const Shared& sh, const Sequence& s, int b, int start, Cut cut) {
  int g = blockIdx.y, kv = blockIdx.x, rows = s.queries * a.G;
  if (s.units == 0) return write_empty(a, s, kv, 0, rows, 0);
  int from = max(cut.start(g), start) - start;
  int to = min(cut.start(g + 1) - start, s.units * s.passes(a.G));
#pragma unroll 1
  for (int pass = from / s.units; pass * s.units < to; pass++) {
    int first = pass * s.units, begin = max(from - first, 0), end = min(to - first, s.units);
    int owner = cut.group_of(start + first);
    if (begin == 0) {
      int used = cut.group_of(start + first + s.units - 1) - owner + 1;
      write_empty(a, s, kv, pass * ROWS, min(pass * ROWS + ROWS, rows), used);
    }
    attend(a, sh, s, b, kv, pass, s.lo / KEYS + begin, s.lo / KEYS + end, g - owner);
  }
}

extern "C" __global__ void __launch_bounds__(N_WARPS * 32, BLOCKS) attention_partials(
    const QT* q, const CT* k, const CT* v, const int* cu_seqlens_q, const int* block_table,
    const int* kv_lens, const float* alibi, float* partial_out, float* partial_ms, i64 q_row,
    i64 q_head, i64 k_row, i64 k_head, i64 v_row, i64 v_head, int T, int H, int G, int B, int bs,
    int columns, int S, int grain, int left, int right, int bottom_right, float scale,
    float softcap) {
  extern __shared__ __align__(128) u8 memory[];
  __shared__ RowInfo rows[ROWS];
  __shared__ float2 stats[N_WARPS * ROWS];
  __shared__ u32 masks[N_WARPS * STAGES];
  __shared__ __align__(16) QT query[MMA ? ROWS * K_PITCH : 1];
  __shared__ __align__(16) float wide_query[MMA ? 1 : ROWS * K_WIDTH];
  __shared__ __align__(16) float weights[MMA ? 1 : N_WARPS * KEYS * ROWS];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  Call a = {q, k, v, cu_seqlens_q, block_table, kv_lens, alibi, partial_out, partial_ms,
            q_row, q_head, k_row, k_head, v_row, v_head, T, H, G, B, bs, columns, S, grain,
            left, right, bottom_right, scale, softcap};
  Shared sh = {(CT*)memory + warp * STAGES * STAGE, (float*)memory, rows, stats,
               masks + warp * STAGES, MMA ? (void*)query : (void*)wide_query,
               weights + (MMA ? 0 : warp * KEYS * ROWS)};
  pdl_launch();
  pdl_wait();
  auto work_of = [&](int b, Sequence& s) {
    s = Sequence();
    if (b < B) s = sequence(a, b);
    return s.units * s.passes(G);
  };
  Sequence s;
  int work = 0, total = 0;
  for (int b = lane; b < round_up(B, 32); b += 32) total += work = work_of(b, s);
#pragma unroll
  for (int d = 16; d; d >>= 1) total += __shfl_xor_sync(FULL_MASK, total, d);
  Cut cut(total, gridDim.y, grain);
  int g = blockIdx.y, from = cut.start(g), to = cut.start(g + 1), before = 0;
#pragma unroll 1
  for (int base = 0; base < B; base += 32) {
    int b = base + lane;
    if (B > 32) work = work_of(b, s);
    int until = work;  // the sum of the work of lanes 0..lane
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      int x = __shfl_up_sync(FULL_MASK, until, d);
      if (lane >= d) until += x;
    }
    int start = before + until - work;
    before += __shfl_sync(FULL_MASK, until, 31);
    bool mine = work ? start < to && start + work > from : s.queries > 0 && b % gridDim.y == g;
#pragma unroll 1
    for (u32 left_over = __ballot_sync(FULL_MASK, mine); left_over; left_over &= left_over - 1) {
      int l = __ffs(left_over) - 1;
      Sequence one = {__shfl_sync(FULL_MASK, s.first, l), __shfl_sync(FULL_MASK, s.queries, l),
                      __shfl_sync(FULL_MASK, s.length, l), __shfl_sync(FULL_MASK, s.lo, l),
                      __shfl_sync(FULL_MASK, s.hi, l), __shfl_sync(FULL_MASK, s.units, l)};
      run(a, sh, one, base + l, __shfl_sync(FULL_MASK, start, l), cut);
    }
  }
  int outside = a.cu[B];  // rows of q that belong to no sequence
  if (outside < T && g == gridDim.y - 1) {
    Sequence none = {outside, T - outside, 0, 0, -1, 0};
    write_empty(a, none, blockIdx.x, 0, none.queries * G, 0);
  }
}
