// Attention of few queries per sequence over a paged cache, split over the keys.
// attention_combine.cu joins the splits, or FINISH.
//
//   score(i, p) = scale * q[i].k[p]  (softcap * tanh(. / softcap); - slope * |p - position of i|)
//   partial: m = max score, sum = sum exp(score - m), o = sum exp(score - m) v[p], over some keys
//
// Shapes: q [T, H, HEAD_DIM]; caches [NB * bs rows, K, HEAD_DIM or V_DIM]; cu_seqlens, kv_lens and
// block_table as in ops/attention.py; partial_out f32 [T, H, S, V_DIM], partial_ms [T, H, S, 2].
// A slot of partial_ms that no keys fell to is (-inf, 0), and then partial_out's is undefined.
// FINISH 1: the block that ends last of those that share a row joins its slots (counters [T * H],
// zero between launches, tell it), and out [T, H, V_DIM] and lse f32 [T, H] are the results.
//
// Mapping of attention_partials: the grid is [K, groups], fixed; lengths are read here. The visible
// keys of all sequences, in units of KEYS, are laid end to end and cut into equal ranges, one for
// each group (K blocks, one for each kv head, side by side in the same rows of the cache). In a
// block warps take units in turn, each through its own ring of STAGES units in shared memory, with
// no barrier among them until their results are merged. The rows of a block are ROWS pairs of
// (query of the sequence, head of the kv head); a sequence with more takes several passes.
// EARLY 1: the program writes neither lengths nor tables, and of the cache only the rows of its
// queries' own positions; so all else is read before the kernels ahead have ended.
// MMA 1: m16n8k16 tensor cores, 16-bit q and caches of one type, sm_80. MMA 0: any types, f32 FMA.
// PACKED 1: caches are int8 codes with a scale f32 [rows, K] for each row: scale score = k_scale
// q.codes, and weights of values are multiplied by v_scale; MMA then wants bf16 q and dims % 16 == 0.
// Macros: Q_TYPE, CACHE_TYPE, HEAD_DIM, V_DIM; SOFTCAP, ALIBI 0 | 1; BLOCKS on a multiprocessor, at
// least; those above.
// Limits: dims <= 256; VEC 1 needs 16-byte aligned rows; MMA and VEC 1 need dims in 16-byte pieces.
// Source: Dao et al. 2023, Flash-Decoding; the even cut: FlashInfer, arXiv:2501.01005.
#include "prelude.cuh"
#include "mma.cuh"

typedef Q_TYPE QT;
typedef CACHE_TYPE CT;

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }
constexpr int PIECE = 16 / sizeof(CT);  // elements of 16 bytes
constexpr int K_WIDTH = round_up(HEAD_DIM, MMA ? 16 : 8 * PIECE);
constexpr int V_WIDTH = round_up(V_DIM, MMA ? 16 : 32);
constexpr int K_PITCH = K_WIDTH + PIECE;  // 16 bytes more: ldmatrix without bank conflicts
constexpr int V_PITCH = V_WIDTH + PIECE;
constexpr int ROWS_OF_STAGE = KEYS * (K_PITCH + V_PITCH);
constexpr int STAGE = ROWS_OF_STAGE + (PACKED ? 2 * KEYS * 4 : 0);  // elements; scales: of k, of v
constexpr int Q_PITCH = K_WIDTH + 16 / sizeof(QT);  // MMA
constexpr int SUM_PITCH = V_WIDTH + 8;             // of a row of merged sums, floats

struct Call {
  const QT* q;
  const CT *k, *v;
  const float *k_scales, *v_scales;
  const int *cu, *table, *lens;
  const float* alibi;
  float *partial, *ms;
  const float* sinks;  // these four: FINISH
  QT* out;
  float* lse;
  u32* counters;
  i64 q_row, q_head, k_head, v_head;
  u32 k_row, v_row;  // bytes from one position to the next
  int T, H, G, B, bs, bs_shift, columns, capacity, S, grain_shift;
  int left, right, bottom_right;  // without a limit: 2^29; -1 or 0: a mask
  float scale, softcap;
  DEVICE int shift_of(int length, int queries) const { return length - queries & bottom_right; }
};

// What a row of the block sees: keys lo..hi; where its query stands; its slope in log2 units.
struct RowInfo {
  int lo, hi, position;
  float slope;
  int result, pad[3];  // t * H + h
};

struct Shared {
  CT* ring;        // of this warp: STAGES of K rows, V rows
  float* sums;     // [N_WARPS][ROWS][SUM_PITCH], in the rings' place
  RowInfo* rows;   // [ROWS]
  float2* stats;   // [N_WARPS][ROWS]: m in log2 units, sum
  u32* masks;      // of this warp [STAGES]: which keys of the unit are there
  void* q;         // MMA: QT [ROWS][Q_PITCH]; else float [ROWS][K_WIDTH]
  float* p;        // of this warp, MMA 0: [KEYS][ROWS]
  float* scale;    // [ROWS], FINISH: of the merged sums
};

// Where the results of one range of keys go: slot `split` of `used`.
struct Place {
  int split, used;
};

DEVICE int warp_add(int x) {
#pragma unroll
  for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(FULL_MASK, x, d);
  return x;
}

// -- loading -------------------------------------------------------------------------------------
// Until all but the newest N groups of this warp's lanes have landed.
template <int N> DEVICE void wait_landed() {
  cp_async_wait<N>();
  __syncwarp();
}

// KEYS rows of a cache to shared memory; lane r has the row of key r, negative: zeros. `stride`:
// bytes from row to row.
template <int REAL, int WIDTH, int PITCH>
DEVICE void load_rows(CT* to, const CT* from, u32 stride, int row_of_lane) {
  int lane = threadIdx.x & 31;
#if VEC
  constexpr int N = WIDTH / PIECE;
  constexpr int COUNT = (KEYS * N + 31) / 32;
  constexpr int ROWS_AT_ONCE = 32 % N ? 0 : 32 / N;
  auto place = [&](int i, int& key, int& piece) {
    key = ROWS_AT_ONCE ? i * ROWS_AT_ONCE + lane / N : (i * 32 + lane) / N;
    piece = ROWS_AT_ONCE ? lane % N : (i * 32 + lane) % N;
    int row = __shfl_sync(FULL_MASK, row_of_lane, key & 31);
    return REAL == WIDTH || piece < REAL / PIECE ? row : -1;
  };
  auto source = [&](int row, int piece) {
    return (const char*)(from + piece * PIECE) + (u64)(u32)row * stride;
  };
#if __CUDA_ARCH__ < 800
  constexpr int BATCH = 8;  // loads in flight
  for (int first = 0; first < COUNT; first += BATCH) {
    uint4 held[BATCH];
    int key[BATCH], piece[BATCH];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
      int row = place(first + i, key[i], piece[i]);
      held[i] = make_uint4(0, 0, 0, 0);
      if (row >= 0 && key[i] < KEYS) held[i] = *(const uint4*)source(row, piece[i]);
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++)
      if (key[i] < KEYS) *(uint4*)(to + key[i] * PITCH + piece[i] * PIECE) = held[i];
  }
#else
  u32 base = shared_address(to + lane / N * PITCH + lane % N * PIECE);
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    int key, piece, row = place(i, key, piece);
    u32 at = ROWS_AT_ONCE ? base + i * ROWS_AT_ONCE * PITCH * (int)sizeof(CT)
                          : shared_address(to + key * PITCH + piece * PIECE);
    if (KEYS * N % 32 == 0 || key < KEYS) cp_async16(at, source(row, piece), row >= 0);
  }
#endif
#else
  for (int key = 0; key < KEYS; key++) {
    int row = __shfl_sync(FULL_MASK, row_of_lane, key);
    const CT* source = (const CT*)((const char*)from + (u64)(u32)row * stride);
    for (int d = lane; d < WIDTH; d += 32)
      to[key * PITCH + d] = row >= 0 && d < REAL ? source[d] : from_float<CT>(0.f);
  }
#endif
}

// One sequence as the block sees it.
struct Sequence {
  int first, queries, length, lo, hi, units;  // units of KEYS that any of its queries sees
  int block;  // its first: read early, often the only one
  DEVICE int passes(int G) const { return (u32)(queries * G + ROWS - 1) / ROWS; }
};

DEVICE Sequence sequence(const Call& a, int b) {
  Sequence s;
  s.first = a.cu[b];
  s.queries = a.cu[b + 1] - s.first;
  s.length = a.lens[b];
  s.block = a.table[(i64)b * a.columns];
  int shift = a.shift_of(s.length, s.queries);
  s.lo = max(0, s.length - a.capacity);  // what the ring has not overwritten
  s.lo = max(s.lo, shift - a.left);
  s.hi = min(s.length - 1, shift + s.queries - 1 + a.right);
  s.units = s.queries > 0 && s.hi >= s.lo ? (u32)s.hi / KEYS - (u32)s.lo / KEYS + 1 : 0;
  return s;
}

// The cache row of this lane's key of unit u, or -1.
DEVICE int lookup(const Call& a, const Sequence& s, int b, int u, int end) {
  int p = u * KEYS + (threadIdx.x & (KEYS - 1));
  if (u >= end || p < s.lo || p > s.hi) return -1;
  int column = 0, offset = p;
  if (p >= a.bs) {
    column = a.bs_shift >= 0 ? p >> a.bs_shift : (int)((u32)p / (u32)a.bs);
    offset -= column * a.bs;
    if (column >= a.columns) column = (u32)column % (u32)a.columns;
  }
  int block = s.block;
  if (column) block = a.table[(i64)b * a.columns + column];
  return block < 0 ? -1 : block * a.bs + offset;
}

// The scales of a unit, zeros where there is no row.
DEVICE void load_scales(CT* to, const float* from, const Call& a, int kv, int row) {
#if PACKED
  const int lane = threadIdx.x & 31;
  if (lane >= KEYS) return;
  const float* source = from + (i64)max(row, 0) * (a.H / a.G) + kv;
  float* target = (float*)to + lane;
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :: "r"(shared_address(target)), "l"(source), "r"(row >= 0 ? 4 : 0) : "memory");
#else
  *target = row >= 0 ? *source : 0.f;
#endif
#endif
}

// Start loading a unit into a stage of the ring: two groups, keys and values.
DEVICE void issue(const Call& a, const Shared& sh, int kv, int stage, int row) {
  u32 mask = __ballot_sync(FULL_MASK, row >= 0);
  if ((threadIdx.x & 31) == 0) sh.masks[stage] = KEYS == 32 ? mask : mask & ((1u << KEYS) - 1);
  CT* to = sh.ring + stage * STAGE;
  if (mask) {
    load_rows<HEAD_DIM, K_WIDTH, K_PITCH>(to, a.k + kv * a.k_head, a.k_row, row);
    load_scales(to + ROWS_OF_STAGE, a.k_scales, a, kv, row);
  }
  cp_async_commit();
  to += KEYS * K_PITCH;
  if (mask) {
    load_rows<V_DIM, V_WIDTH, V_PITCH>(to, a.v + kv * a.v_head, a.v_row, row);
    load_scales(to + KEYS * V_PITCH + KEYS * 4, a.v_scales, a, kv, row);
  }
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
#include "attention_decode_mma.cuh"
#else
#include "attention_decode_fma.cuh"
#endif

// -- one range of keys of one sequence ------------------------------------------------------------
// The queries' rows R = pass * ROWS + r, (query R / G, head R % G), to shared memory.
DEVICE void load_queries(const Call& a, const Shared& sh, const Sequence& s, int kv, int pass) {
  if (EARLY) pdl_wait();
  u32 count = s.queries * a.G, G = a.G;
  if (threadIdx.x < ROWS) {
    u32 R = min((u32)(pass * ROWS + threadIdx.x), count - 1), query = R / G, head = R - query * G;
    int position = a.shift_of(s.length, s.queries) + (int)query;
    RowInfo info = {max(s.lo, position - a.left), min(s.hi, position + a.right), position};
#if ALIBI
    info.slope = a.alibi[kv * a.G + head] * LOG2E;
#endif
    info.result = (s.first + query) * a.H + kv * a.G + head;
    sh.rows[threadIdx.x] = info;
  }
  constexpr int STEP = VEC ? 16 / sizeof(QT) : 1;
#pragma unroll 1
  for (u32 i = threadIdx.x; i < ROWS * (K_WIDTH / STEP); i += N_WARPS * 32) {
    u32 r = i / (K_WIDTH / STEP), d = i % (K_WIDTH / STEP) * STEP, R = pass * ROWS + r;
    Vec<QT, STEP> x = {};
    if (R < count && d < HEAD_DIM) {
      u32 query = R / G;
      x = load_vec<QT, STEP>(a.q + (s.first + query) * a.q_row +
                             (kv * G + R - query * G) * a.q_head + d);
    }
#if MMA && PACKED
    // of 16 numbers lane t of a fragment has 4t .. 4t + 3, a word of codes: first 0 and 2 of these
    QT* to = (QT*)sh.q + r * Q_PITCH + d / 16 * 16 + d % 16 / 2;
#pragma unroll
    for (int e = 0; e < STEP; e++) to[e / 4 * 2 + e % 4 / 2 + e % 2 * 8] = x.at[e];
#elif MMA
    store_vec<QT, STEP>((QT*)sh.q + r * Q_PITCH + d, x);
#else
#pragma unroll
    for (int e = 0; e < STEP; e++) ((float*)sh.q)[r * K_WIDTH + d + e] = x[e];
#endif
  }
}

#include "attention_decode_write.cuh"

// Units begin..end of sequence b against the rows of one pass. `place()`: where results go.
template <typename Where>
DEVICE void attend(const Call& a, const Shared& sh, const Sequence& s, int b, int kv, int pass,
                   int begin, int end, Where place) {
  int warp = threadIdx.x >> 5, u = begin + warp - (STAGES - 1) * N_WARPS;
  const int written = (s.length - s.queries) / KEYS - (STAGES - 1) * N_WARPS;  // now, from here on
  int next = lookup(a, s, b, begin + warp, end), low = 0, high = 0, filled = 0, stage = 0;
  int rows = min(ROWS, s.queries * a.G - pass * ROWS);
  Sums sums;
  sums.begin();
#pragma unroll 1
  for (int i = 1 - STAGES; i <= 0 || u < end; i++, u += N_WARPS) {
    __syncwarp();  // the stage that is filled now has been read
    if (EARLY && u >= written) pdl_wait();
    issue(a, sh, kv, filled, next);
    filled = filled + 1 == STAGES ? 0 : filled + 1;
    next = lookup(a, s, b, u + STAGES * N_WARPS, end);
    if (i < 0) continue;
    if (i == 0) {
      load_queries(a, sh, s, kv, pass);
      __syncthreads();
      sums.hold(sh);
      low = sh.rows[rows - 1].lo, high = sh.rows[0].hi;  // what all rows see
    }
    wait_landed<2 * STAGES - 1>();
    const CT* keys = sh.ring + stage * STAGE;
    u32 mask = sh.masks[stage];
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    if (mask == 0) continue;  // nothing was loaded
    bool full = mask == (KEYS == 32 ? ~0u : (1u << KEYS) - 1) && u * KEYS >= low &&
                u * KEYS + KEYS - 1 <= high;
    sums.step(a, sh, u * KEYS, mask, full, keys, [&] {
      wait_landed<2 * STAGES - 2>();
      return keys + KEYS * K_PITCH;
    });
  }
  wait_landed<0>();
  write_merged(a, sh, sums, rows, place());
}

// -- the cut of all work into groups --------------------------------------------------------------
// `total` units over `groups`, the first `rest` of which take one more than `share`.
struct Cut {
  u32 groups, share, rest;
  // At least 1 << grain_shift units in each; one group if `alone` hold all.
  DEVICE Cut(u32 total, u32 most, int grain_shift, u32 alone) {
    groups = total <= alone ? 1 : min(most, max(1u, total >> grain_shift));
    share = groups > 1 ? total / groups : total;
    rest = total - share * groups;
  }
  DEVICE int start(u32 g) const { return min(g, groups) * share + min(g, rest); }
  DEVICE int group_of(u32 unit) const {
    u32 larger = rest * (share + 1);
    return unit < larger ? unit / (share + 1) : rest + (unit - larger) / share;
  }
};

// Whether group g has slot g of the one sequence, so that every group can mark its own.
DEVICE bool own_slots(const Call& a, const Sequence& s) {
  return a.B == 1 && s.units > 0 && s.queries * a.G <= ROWS;
}

// What this block does of sequence b, whose units are at `start` of all.
DEVICE void run(const Call& a, const Shared& sh, const Sequence& s, int b, int start, Cut cut) {
  int g = blockIdx.y, kv = blockIdx.x, rows = s.queries * a.G;
  if (s.units == 0) return write_empty(a, s, kv, 0, rows, 0, a.S, true);
  int from = max(cut.start(g) - start, 0);
  int to = min(cut.start(g + 1) - start, s.units * s.passes(a.G));
  int pass = from < s.units ? 0 : (u32)from / (u32)s.units;
#pragma unroll 1
  for (int first = pass * s.units; first < to; pass++, first += s.units) {
    int begin = max(from - first, 0), end = min(to - first, s.units), unit = (u32)s.lo / KEYS;
    attend(a, sh, s, b, kv, pass, unit + begin, unit + end, [&] {
      int owner = begin == 0 ? g : cut.group_of(start + first);
      int last = end == s.units ? g : cut.group_of(start + first + s.units - 1);
      return Place{g - owner, last - owner + 1};
    });
    if (!FINISH && begin == 0 && !own_slots(a, s)) {
      int used = end == s.units ? 1 : cut.group_of(start + first + s.units - 1) - g + 1;
      write_empty(a, s, kv, pass * ROWS, min(pass * ROWS + ROWS, rows), used, a.S, true);
    }
  }
}

extern "C" __global__ void __launch_bounds__(N_WARPS * 32, BLOCKS) attention_partials(
    const QT* q, const CT* k, const CT* v, const float* k_scales, const float* v_scales,
    const int* cu_seqlens_q, const int* block_table, const int* kv_lens, const float* alibi,
    float* partial_out, float* partial_ms, const float* sinks, QT* out, float* lse, u32* counters, i64 q_row, i64 q_head, i64 k_head,
    i64 v_head, u32 k_row, u32 v_row, int T, int H, int G, int B, int bs, int bs_shift,
    int columns, int capacity, int S, int grain_shift, int alone, int left, int right,
    int bottom_right, float scale, float softcap) {
  extern __shared__ __align__(128) u8 memory[];
  __shared__ RowInfo rows[ROWS];
  __shared__ float2 stats[N_WARPS * ROWS];
  __shared__ float scales[ROWS];
  __shared__ u32 masks[N_WARPS * STAGES];
  __shared__ __align__(16) QT query[MMA ? ROWS * Q_PITCH : 1];
  __shared__ __align__(16) float wide_query[MMA ? 1 : ROWS * K_WIDTH];
  __shared__ __align__(16) float weights[MMA ? 1 : N_WARPS * KEYS * ROWS];
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  Call a = {q, k, v, k_scales, v_scales, cu_seqlens_q, block_table, kv_lens, alibi, partial_out, partial_ms,
            sinks, out, lse, counters, q_row, q_head, k_head, v_head, k_row, v_row, T, H, G, B,
            bs, bs_shift, columns, capacity, S, grain_shift, left, right, bottom_right, scale,
            softcap};
  Shared sh = {(CT*)memory + warp * STAGES * STAGE, (float*)memory, rows, stats,
               masks + warp * STAGES, MMA ? (void*)query : (void*)wide_query,
               weights + (MMA ? 0 : warp * KEYS * ROWS), scales};
  pdl_launch();
  if (!EARLY) pdl_wait();
  auto work_of = [&](int b, Sequence& s) {
    s = Sequence();
    if (b < B) s = sequence(a, b);
    return s.units * s.passes(G);
  };
  Sequence s;
  int work = 0, total = 0;
  if (B == 1) {  // the shortest way for the call where latency is all
    total = work = work_of(0, s);
  } else {
#pragma unroll 1
    for (int b = lane; b < round_up(B, 32); b += 32) total += work = work_of(b, s);
    total = warp_add(total);
  }
  Cut cut(total, gridDim.y, grain_shift, B == 1 ? alone : 0);
  int g = blockIdx.y, from = cut.start(g), to = cut.start(g + 1), before = 0;
#pragma unroll 1
  for (int base = 0; base < B; base += 32) {
    int b = B == 1 ? 0 : base + lane, until = work;  // the sum of the work of lanes 0..lane
    if (B > 32) until = work = work_of(b, s);
    if (B > 1) {
#pragma unroll
      for (int d = 1; d < 32; d <<= 1) {
        int x = __shfl_up_sync(FULL_MASK, until, d);
        if (lane >= d) until += x;
      }
    }
    int start = before + until - work;
    before += __shfl_sync(FULL_MASK, until, 31);
    bool mine = work ? start < to && start + work > from : s.queries > 0 && (u32)b % gridDim.y == g;
    u32 left_over = B == 1 ? mine : __ballot_sync(FULL_MASK, mine);
#pragma unroll 1
    for (; left_over; left_over &= left_over - 1) {
      int l = __ffs(left_over) - 1;
      Sequence one = s;
      int at = start;
      if (B > 1) {
        one.first = __shfl_sync(FULL_MASK, s.first, l);
        one.queries = __shfl_sync(FULL_MASK, s.queries, l);
        one.length = __shfl_sync(FULL_MASK, s.length, l);
        one.lo = __shfl_sync(FULL_MASK, s.lo, l);
        one.hi = __shfl_sync(FULL_MASK, s.hi, l);
        one.units = __shfl_sync(FULL_MASK, s.units, l);
        one.block = __shfl_sync(FULL_MASK, s.block, l);
        at = __shfl_sync(FULL_MASK, start, l);
      }
      run(a, sh, one, base + l, at, cut);
    }
  }
  // Of a sequence alone in one pass, a group without work marks its own slot (see `run`).
  if (!FINISH && own_slots(a, s) && g >= cut.groups && g < S)
    write_empty(a, s, blockIdx.x, 0, s.queries * G, g, g + 1, true);
  if (g == gridDim.y - 1 && a.cu[B] < T) {  // rows of q that belong to no sequence
    Sequence none = {a.cu[B], T - a.cu[B], 0, 0, -1, 0, -1};
    write_empty(a, none, blockIdx.x, 0, none.queries * G, 0, S, false);
  }
  if (EARLY) pdl_wait();  // the kernel ends after those ahead of it, whatever it had to do
}
