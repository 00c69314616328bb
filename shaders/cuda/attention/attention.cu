// Attention forward with mma.sync: out = softmax(scale q kᵀ, masked) v over packed segments.
//
//   q [Tq, H, D], k [Tk, K, D], v [Tk, K, Dv], out [Tq, H, Dv], lse [Tq, H]; f16 or bf16, f32 sums.
//   PAGED: k, v are caches [NB, bs, K, D]; position p of segment b is row p % bs of block
//   table[b, (p / bs) % columns]; cu_k is kv_lens.
// A block of BLOCK_WARPS warps takes BLOCK_M = 16 TILES_M BLOCK_WARPS queries of one head and walks
// over tiles of BLOCK_N keys, last first. Warp w owns the row tiles w, w + BLOCK_WARPS, ... of 16
// rows, so that all warps have the same share of a causal corner: q kᵀ, the running softmax and p v
// stay in its registers. K and V tiles come through cp.async, two stages, one barrier a tile.
// The row maximum moves only when it grew by more than 2^8 (then out is rescaled): probabilities
// stay below 256, and the sum and lse refer to the same maximum.
// Macros: DTYPE, HEAD_DIM (D and Dv up to it, a multiple of 16), BLOCK_N, BLOCK_WARPS, TILES_M (1
//   or 2), BLOCKS (least blocks per SM), PAGED, GENERAL (softcap, ALiBi, D or Dv below HEAD_DIM),
//   SPLIT (gridDim.z blocks share the keys of a tile; out and lse are then the partial sums that
//   attention_combine.cu puts together; the `pack` heads of a kv head share the tile: row r is
//   token r / pack, head r % pack).
// Limits: rows of 16-byte pieces at 16-byte addresses, D % 8 == Dv % 8 == 0, scale > 0.
// Source: Dao 2023, FlashAttention-2; the lazy maximum: FlashAttention-4 (Tri Dao et al. 2025).
#include "prelude.cuh"
#include "mma.cuh"
#include "attention.cuh"

#define THREADS (32 * BLOCK_WARPS)
#define BLOCK_M (16 * TILES_M * BLOCK_WARPS)
#define CHUNKS (HEAD_DIM / 8)
#define LOWEST -1e30f  // finite, so that exp2(-inf - LOWEST) is 0 and not NaN
#define GROWTH 8.f

typedef DTYPE T;
typedef Tile<CHUNKS> Rows;
typedef float Scores[TILES_M][BLOCK_N / 8][4];
typedef float Sums[TILES_M][HEAD_DIM / 8][4];
typedef float PerRow[TILES_M][2];

// Which of a warp's row tiles take part: those from FROM to TO.
template <int FROM_, int TO_> struct Part { static constexpr int FROM = FROM_, TO = TO_; };
typedef Part<0, TILES_M> All;

// First row, in the block's tile, of row tile i of this warp.
DEVICE int row_of(int i) { return 16 * (i * BLOCK_WARPS + threadIdx.x / 32); }

// What is wanted now and then, kept in shared memory while the registers are full.
struct Kept {
  const T *k, *v;    // the kv head's row 0 of the segment, or (PAGED) of the cache
  const int* table;  // the segment's row
  int token, rows;   // the tile's first token, and how many it has
  int len_k, floor, first, pack;  // first: tile of keys
  int first_position;             // of row 0
  float sink;                     // as a power of 2; -inf: none
  DEVICE int position(int r) const { return first_position + (SPLIT ? r / pack : r); }
  DEVICE int begin(int r, int left) const { return max(floor, position(r) - left); }
  DEVICE int end(int r, int right) const { return min(len_k, position(r) + right + 1); }
};

// Strides in elements, widths, and the shape of the block table: arguments of the kernel.
struct Layout {
  i64 k_row, v_row, k_block, v_block;
  int D, Dv, block_size, columns;
};

// -- global to shared ----------------------------------------------------------------------------
// COUNT rows of CHUNKS pieces, `stride` elements apart; rows from `exist` on become zeros.
template <int COUNT>
DEVICE void load_rows(u32 to, const T* from, i64 stride, int exist, int width) {
  constexpr bool EVEN = THREADS % CHUNKS == 0;  // a thread stays in its column
  int first = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS;
  if (EVEN) from += first * stride + column * 8;
#pragma unroll
  for (int i = 0; i < (COUNT * CHUNKS + THREADS - 1) / THREADS; i++) {
    int piece = i * THREADS + threadIdx.x;
    int row = EVEN ? first + i * (THREADS / CHUNKS) : piece / CHUNKS;
    int chunk = EVEN ? column : piece % CHUNKS;
    if (COUNT * CHUNKS % THREADS && piece >= COUNT * CHUNKS) break;
    const T* address = EVEN ? from : from + row * stride + chunk * 8;
    cp_async16(to + Rows::offset(row, chunk), address,
               row < exist && (!GENERAL || chunk * 8 < width));
    if (EVEN) from += THREADS / CHUNKS * stride;
  }
}

// The rows of a tile of queries that several heads share.
DEVICE void load_packed(u32 to, const T* from, i64 row, i64 head, int exist, int pack, int width) {
#pragma unroll 4
  for (int piece = threadIdx.x; piece < BLOCK_M * CHUNKS; piece += THREADS) {
    int r = piece / CHUNKS, chunk = piece % CHUNKS;
    cp_async16(to + Rows::offset(r, chunk), from + r / pack * row + r % pack * head + chunk * 8,
               r < exist && (!GENERAL || chunk * 8 < width));
  }
}

// Keys of a tile that lies in several blocks.
DEVICE void load_scattered(u32 to, const T* cache, i64 stride, i64 block_stride, const int* table,
                           const Layout& at, int start, int exist, int width) {
#pragma unroll 2
  for (int i = 0; i < (BLOCK_N * CHUNKS + THREADS - 1) / THREADS; i++) {
    int piece = i * THREADS + threadIdx.x, row = piece / CHUNKS, chunk = piece % CHUNKS;
    if (BLOCK_N * CHUNKS % THREADS && piece >= BLOCK_N * CHUNKS) break;
    int p = start + row, block = row < exist ? table[p / at.block_size % at.columns] : -1;
    const T* from = cache + block * block_stride + p % at.block_size * stride;
    cp_async16(to + Rows::offset(row, chunk), from + chunk * 8,
               block >= 0 && (!GENERAL || chunk * 8 < width));
  }
}

// Starts the loads of the keys and values from position `start` on.
DEVICE void load_keys(u32 k_to, u32 v_to, const Kept& kept, const Layout& at, int start) {
  int exist = kept.len_k - start, row = PAGED ? start % at.block_size : start;
  if (PAGED && row + min(BLOCK_N, exist) > at.block_size) {
    load_scattered(k_to, kept.k, at.k_row, at.k_block, kept.table, at, start, exist, at.D);
    load_scattered(v_to, kept.v, at.v_row, at.v_block, kept.table, at, start, exist, at.Dv);
  } else {
    const T *k = kept.k, *v = kept.v;
    if (PAGED) {
      int block = kept.table[start / at.block_size % at.columns];
      k += block * at.k_block, v += block * at.v_block;
      if (block < 0) exist = 0;
    }
    load_rows<BLOCK_N>(k_to, k + row * at.k_row, at.k_row, exist, at.D);
    load_rows<BLOCK_N>(v_to, v + row * at.v_row, at.v_row, exist, at.Dv);
  }
  cp_async_commit();
}

// -- products ------------------------------------------------------------------------------------
// s = q kᵀ of this warp's rows; `q_at`, `k_at` are this lane's ldmatrix addresses.
template <typename P>
DEVICE void multiply_keys(Scores& s, u32 q_at, u32 k_at) {
#pragma unroll
  for (int i = P::FROM; i < P::TO; i++)
#pragma unroll
    for (int n = 0; n < BLOCK_N / 8; n++) s[i][n][0] = s[i][n][1] = s[i][n][2] = s[i][n][3] = 0.f;
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; step++) {
    u32 q[TILES_M][4], from = Rows::along(k_at, 2 * step);
#pragma unroll
    for (int i = P::FROM; i < P::TO; i++)
      ldmatrix_x4(q[i], Rows::along(q_at, 2 * step) + i * BLOCK_WARPS * 16 * Rows::PITCH);
#pragma unroll
    for (int n = 0; n < BLOCK_N / 16; n++) {
      u32 k[4];
      ldmatrix_x4(k, from + n * 16 * Rows::PITCH);
#pragma unroll
      for (int i = P::FROM; i < P::TO; i++) {
        mma_16816<T>(s[i][2 * n], q[i], k[0], k[1]);
        mma_16816<T>(s[i][2 * n + 1], q[i], k[2], k[3]);
      }
    }
  }
}

// o += p v; p is packed from the probabilities as it is needed
template <typename P>
DEVICE void multiply_values(Sums& o, const Scores& p, u32 v_at) {
#pragma unroll
  for (int step = 0; step < BLOCK_N / 16; step++) {
    u32 a[TILES_M][4];
#pragma unroll
    for (int i = P::FROM; i < P::TO; i++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        a[i][j] = pack2<T>(p[i][2 * step + j / 2][j % 2 * 2],
                           p[i][2 * step + j / 2][j % 2 * 2 + 1]);
    u32 from = v_at + step * 16 * Rows::PITCH;
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 16; n++) {
      u32 v[4];
      ldmatrix_x4_trans(v, Rows::along(from, 2 * n));
#pragma unroll
      for (int i = P::FROM; i < P::TO; i++) {
        mma_16816<T>(o[i][2 * n], a[i], v[0], v[1]);
        mma_16816<T>(o[i][2 * n + 1], a[i], v[2], v[3]);
      }
    }
  }
}

// -- scores --------------------------------------------------------------------------------------
// Calls f(score, r, key) for each score of this lane: r its row in the tile.
template <typename P, typename F> DEVICE void each_score(Scores& s, int start, F f) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = P::FROM; i < P::TO; i++)
#pragma unroll
    for (int n = 0; n < BLOCK_N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        f(s[i][n][e], row_of(i) + lane / 4 + e / 2 * 8, start + 8 * n + lane % 4 * 2 + e % 2);
}

// The running softmax of one tile: s becomes exp2(s · unit - top), rows are rescaled when needed.
template <typename P>
DEVICE void softmax_step(Scores& s, PerRow& top, PerRow& sum, Sums& o, float unit) {
  float best[TILES_M][2];
  bool grown = false;
#pragma unroll
  for (int i = P::FROM; i < P::TO; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float m = fmaxf(s[i][0][2 * h], s[i][0][2 * h + 1]);
#pragma unroll
      for (int n = 1; n < BLOCK_N / 8; n++)
        m = fmaxf(m, fmaxf(s[i][n][2 * h], s[i][n][2 * h + 1]));
      m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, 1));
      m = fmaxf(m, __shfl_xor_sync(FULL_MASK, m, 2));
      best[i][h] = m * unit;
      grown |= best[i][h] > top[i][h] + GROWTH;
    }
  if (__any_sync(FULL_MASK, grown)) {
#pragma unroll
    for (int i = P::FROM; i < P::TO; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float now = fmaxf(top[i][h], best[i][h]), fade = exp2_fast(top[i][h] - now);
        top[i][h] = now;
        sum[i][h] *= fade;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
          o[i][n][2 * h] *= fade;
          o[i][n][2 * h + 1] *= fade;
        }
      }
  }
#pragma unroll
  for (int i = P::FROM; i < P::TO; i++)
#pragma unroll
    for (int n = 0; n < BLOCK_N / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        float p = exp2_fast(fmaf(s[i][n][e], unit, -top[i][e / 2]));
        s[i][n][e] = p;
        sum[i][e / 2] += p;
      }
}

// -- result --------------------------------------------------------------------------------------
// Divides, writes lse, and sends the rows through the warp's part of the q tile in shared memory.
DEVICE void finish(Sums& o, PerRow& top, PerRow& sum, u32 room, i64 token, int rows, float sink,
                   T* out, float* lse, int H, int head, int Dv) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < TILES_M; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float total = sum[i][h];
      total += __shfl_xor_sync(FULL_MASK, total, 1);
      total += __shfl_xor_sync(FULL_MASK, total, 2);
      float base = fmaxf(top[i][h], sink), share = exp2_fast(top[i][h] - base);
      if (sink > -INF) total = total * share + exp2_fast(sink - base);
      float inverse = total > 0.f ? __fdividef(share, total) : 0.f;
      int r = row_of(i) + lane / 4 + 8 * h;
      if (lane % 4 == 0 && r < rows)
        lse[(token + r) * H + head] = total > 0.f ? (base + log2f(total)) * LN2 : -INF;
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++) {
        u32 two = pack2<T>(o[i][n][2 * h] * inverse, o[i][n][2 * h + 1] * inverse);
        asm volatile("st.shared.u32 [%0], %1;"
                     :: "r"(room + Rows::offset(r, n) + lane % 4 * 4), "r"(two) : "memory");
      }
    }
  __syncwarp();
#pragma unroll 4
  for (int piece = lane; piece < 16 * TILES_M * CHUNKS; piece += 32) {
    int r = row_of(piece / CHUNKS / 16) + piece / CHUNKS % 16, chunk = piece % CHUNKS;
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(room + Rows::offset(r, chunk)));
    if (r < rows && (!GENERAL || chunk * 8 < Dv))
      *(uint4*)(out + ((token + r) * H + head) * (GENERAL ? Dv : HEAD_DIM) + chunk * 8) = x;
  }
}

#if SPLIT
// Of this split: sums of exp(score - m) v, f32 [T, H, splits, Dv], and (m, sum) [T, H, splits].
DEVICE void store_partial(const Sums& o, const PerRow& top, const PerRow& sum, const Kept& kept,
                          float* out, float2* ms, int H, int head, int Dv) {
  int lane = threadIdx.x & 31;
#pragma unroll
  for (int i = 0; i < TILES_M; i++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float total = sum[i][h];
      total += __shfl_xor_sync(FULL_MASK, total, 1);
      total += __shfl_xor_sync(FULL_MASK, total, 2);
      int r = row_of(i) + lane / 4 + 8 * h;
      if (r >= kept.rows) continue;
      i64 row = (i64)(kept.token + r / kept.pack) * H + head + r % kept.pack;
      i64 slot = row * gridDim.z + blockIdx.z;
      if (lane % 4 == 0)
        ms[slot] = make_float2(total > 0.f ? top[i][h] * LN2 : -INF, total);
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++)
        if (total > 0.f && (!GENERAL || n * 8 < Dv))
          *(float2*)(out + slot * (GENERAL ? Dv : HEAD_DIM) + n * 8 + lane % 4 * 2) =
              make_float2(o[i][n][2 * h], o[i][n][2 * h + 1]);
    }
}
#endif

// grid (tiles * together, H / together, splits): heads of one group side by side, last rows first.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) attention(
    T* out, float* lse, const T* q, const T* k, const T* v, const int* cu_q, const int* cu_k,
    const int* table, const float* slopes, const float* sinks, i64 q_row, i64 q_head, i64 k_row,
    i64 k_head, i64 v_row, i64 v_head, i64 k_block, i64 v_block, int Tq, int B, int H, int group,
    int D, int Dv, int left, int right, int bottom_right, float scale, float softcap,
    int block_size, int columns, int together, int packed) {
  const int pack = SPLIT ? packed : 1;
  extern __shared__ __align__(1024) char shared[];
  constexpr int KV_BYTES = Rows::bytes(BLOCK_N);
  Kept& kept = *(Kept*)(shared + Rows::bytes(BLOCK_M) + 4 * KV_BYTES);  // 128 bytes at the end
  u32 q_to = shared_address(shared), k_to = q_to + Rows::bytes(BLOCK_M), v_to = k_to + 2 * KV_BYTES;
  Layout at = {k_row, v_row, k_block, v_block, D, Dv, block_size, columns};
  int t;  // tile of keys, from the last one down
  bool gaps = false;
  {
    int head = (blockIdx.y * together + blockIdx.x % together) * pack;
    Place place = find_place(cu_q, cu_k, Tq, B, (gridDim.x - 1 - blockIdx.x) / together,
                             BLOCK_M / pack, PAGED, block_size * columns, bottom_right);
    if (place.rows <= 0) return;
    int begin = place.key_begin(0, left), end = place.key_end(place.rows - 1, right);
    int first = begin / BLOCK_N;
    t = end > begin ? (end - 1) / BLOCK_N : first - 1;
#if SPLIT
    int share = (t - first + gridDim.z) / gridDim.z;
    first += blockIdx.z * share;
    t = min(t, first + share - 1);
#endif
    table += PAGED ? (i64)place.segment * columns : 0;
    if (threadIdx.x == 0) {
      float sink = sinks != nullptr && place.segment < B ? sinks[head] * LOG2E : -INF;
      kept = {k + head / group * k_head + place.k_first * k_row,
              v + head / group * v_head + place.k_first * v_row, table,
              place.q_first + place.row, place.rows * pack, place.len_k, place.floor, first, pack,
              place.position(0), sink};
    }
    if (t >= first) {
      const T* from = q + (i64)(place.q_first + place.row) * q_row + head * q_head;
      if (SPLIT)
        load_packed(q_to, from, q_row, q_head, place.rows * pack, pack, D);
      else
        load_rows<BLOCK_M>(q_to, from, q_row, place.rows, D);
    }
    if (PAGED) {
      bool gap = false;  // a block in sight that is not there
      if (end > begin)
        for (int b = begin / block_size + threadIdx.x; b <= (end - 1) / block_size; b += THREADS)
          gap |= table[b % columns] < 0;
      gaps = __syncthreads_or(gap);
    } else {
      __syncthreads();
    }
    u32 stage = (t & 1) * KV_BYTES;
    if (t >= first) load_keys(k_to + stage, v_to + stage, kept, at, t * BLOCK_N);
  }
  PerRow top, sum;
  Sums o;
#pragma unroll
  for (int i = 0; i < TILES_M; i++) {
    top[i][0] = top[i][1] = LOWEST, sum[i][0] = sum[i][1] = 0.f;
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) o[i][n][0] = o[i][n][1] = o[i][n][2] = o[i][n][3] = 0.f;
  }
  float unit = GENERAL ? 1.f : scale * LOG2E;
  // One tile of keys against the row tiles of a Part.
  auto attend = [&](auto part, int start, u32 stage) {
    typedef decltype(part) P;
    Scores s;
    multiply_keys<P>(s, Rows::a_lane(q_to) + row_of(0) * Rows::PITCH, Rows::b_lane(k_to) + stage);
#if GENERAL
    const float* slope = slopes == nullptr
        ? nullptr : slopes + (blockIdx.y * together + blockIdx.x % together) * pack;
    float inner = softcap > 0.f ? scale / softcap : 0.f;
    each_score<P>(s, start, [&](float& x, int r, int key) {
      x = softcap > 0.f ? softcap * LOG2E * tanh_fast(x * inner) : x * (scale * LOG2E);
      if (slope != nullptr)
        x -= slope[SPLIT ? r % pack : 0] * LOG2E * (float)abs(key - kept.position(r));
    });
#endif
    if (start < kept.begin(row_of(P::TO - 1) + 15, left) ||
        start + BLOCK_N > kept.end(row_of(P::FROM), right)) {
      Kept seen = kept;
      each_score<P>(s, start, [&](float& x, int r, int key) {
        if (key < seen.begin(r, left) || key >= seen.end(r, right)) x = -INF;
      });
    }
    if (PAGED && gaps) {
      int len_k = kept.len_k;
      const int* blocks = kept.table;
      each_score<P>(s, start, [&](float& x, int r, int key) {
        if (key < len_k && blocks[key / block_size % columns] < 0) x = -INF;
      });
    }
    softmax_step<P>(s, top, sum, o, unit);
    multiply_values<P>(o, s, Rows::a_lane(v_to) + stage);
  };
  for (; t >= kept.first; t--) {
    int start = t * BLOCK_N;
    cp_async_wait<0>();
    __syncthreads();  // all have tile t, and all are done with tile t + 1
    u32 stage = (t & 1) * KV_BYTES, other = KV_BYTES - stage;
    if (t > kept.first) load_keys(k_to + other, v_to + other, kept, at, start - BLOCK_N);
    // Row tile i has rows that exist, and one of them sees a key of this tile.
    auto sees = [&](int i) {
      int r = row_of(i), last = min(r + 16, kept.rows) - 1;
      return r <= last && start < kept.end(last, right) &&
             start + BLOCK_N > kept.begin(r, left);
    };
    bool low = sees(0), high = TILES_M > 1 && sees(TILES_M - 1);
    if (low && (high || TILES_M == 1))
      attend(All(), start, stage);
    else if (high)
      attend(Part<TILES_M - 1, TILES_M>(), start, stage);
    else if (low)
      attend(Part<0, 1>(), start, stage);
  }
  int head = (blockIdx.y * together + blockIdx.x % together) * pack;
#if SPLIT
  store_partial(o, top, sum, kept, (float*)out, (float2*)lse, H, head, Dv);
#else
  finish(o, top, sum, q_to, kept.token, kept.rows, kept.sink, out, lse, H, head, Dv);
#endif
}
