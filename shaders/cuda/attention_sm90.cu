// Attention forward on Hopper: packed sequences, or a paged cache whose blocks hold whole tiles.
//
//   out[i] = sum_j softmax_j(score(q[i], k[j])) v[j],   lse[i] = log sum_j exp(score)
//
// q [Tq, H, D], k and v [Tk, K, D] by tensor maps (box: 64 columns, 1 head, a tile of tokens;
// 128-byte swizzle), out [Tq, H, D] of T, lse float32 [Tq, H]. D 64 or 128, T bf16 or f16.
//
// Block: one warpgroup that loads (one warp of it works) and CONSUMERS warpgroups that compute 64
// query rows each. Blocks stay: each takes work items (segment, 64 * CONSUMERS query rows, head)
// from a counter until none is left; `attention_plan` orders them, the longest first.
// A consumer keeps scores, probabilities and output in registers. It issues q k^T of the next key
// tile, then p v of this one, and does the softmax of the next while the latter runs; named
// barriers let the warpgroups take turns, so that one's softmax runs under another's products.
//
// Macros: DTYPE, HEAD_DIM, TILE_N keys a tile (a size that Wgmma has), CONSUMERS 1 to 3, STAGES of k and v.
//   RIGHT, LEFT: the mask has that side (`right` 0 is causal).   PAGED, SOFTCAP, ALIBI, SINKS.
//   OVERLAP 0: one product at a time.   PINGPONG 0: warpgroups do not take turns.
//   POLY n: every n-th pair of exponentials is a polynomial on the FMA units; 0: none.
//   LAZY 1: the output is rescaled only when a row's maximum grew by more than 2^8.
// Limits: scale > 0; a paged block holds a multiple of TILE_N keys, or max_blocks is 1 and no
// sequence is longer than its block.
// Source: Shah et al. 2024, FlashAttention-3; Milakov and Gimelshein 2018 (online softmax).
#include "hopper.cuh"

typedef DTYPE T;
#define D HEAD_DIM
#define TILE_M (64 * CONSUMERS)
#define THREADS (128 * (CONSUMERS + 1))
#define COLUMN_BLOCKS (D / 64)
#define Q_BYTES (TILE_M * D * 2)
#define KV_BYTES (TILE_N * D * 2)
#define SCORE_CHANGED (SOFTCAP || ALIBI)
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

// plan: int32 [4 + 4 B]: next item, number of items; then a record for each segment, longest first:
// (first item, segment, tiles of rows, heads of a group). Items of a segment go by groups of heads
// whose keys and values fit into L2, in a group by tiles from the last to the first, then by heads.
#define RECORD(plan, i) ((const int4*)(plan) + 1 + (i))

// What consumers must know of an item.
struct Item {
  int row;       // of out, of the tile's first query; -1: no more items
  int rows;      // that the segment has in this tile
  int position;  // of the first query among the keys
  int head, keys, low;  // keys of the segment, the first of them that is not overwritten
  int first, end;       // key tiles: visited from end - 1 down to first
};

struct Options {
  int left, right;
  float scale, softcap;
};

// -- the plan ------------------------------------------------------------------------------------
DEVICE int block_prefix(int x, int* room) {  // inclusive, over 1024 threads
  for (int d = 1; d < 1024; d *= 2) {
    room[threadIdx.x] = x;
    __syncthreads();
    if (threadIdx.x >= d) x += room[threadIdx.x - d];
    __syncthreads();
  }
  return x;
}

DEVICE int keys_of(const int* kv, int b) { return PAGED ? kv[b] : kv[b + 1] - kv[b]; }

// Block 0 writes the plan; the others zero the rows of tokens that are in no segment.
// kv: cu_seqlens_k [B + 1], or kv_lens [B] when PAGED. l2_bytes: what a group of heads may fill.
extern "C" __global__ void __launch_bounds__(1024) attention_plan(
    int* plan, const int* cu_seqlens_q, const int* kv, T* out, float* lse, int B, int Tq, int H,
    int K, int l2_bytes) {
  pdl_launch();
  __shared__ int room[1024], starts[1024];
  int t = threadIdx.x;
  if (blockIdx.x > 0) {
    i64 from = (i64)cu_seqlens_q[B] * H, to = (i64)Tq * H;
    i64 stride = (i64)(gridDim.x - 1) * 1024, at = (i64)(blockIdx.x - 1) * 1024 + t;
    for (i64 i = from + at; i < to; i += stride) lse[i] = -INF;
    uint4* rows = (uint4*)out;
    for (i64 i = from * (D / 8) + at; i < to * (D / 8); i += stride)
      rows[i] = make_uint4(0, 0, 0, 0);
    return;
  }
  int4* records = (int4*)plan + 1;
  room[t] = 0;
  __syncthreads();
  for (int b = t; b < B; b += 1024) atomicAdd(&room[1023 - min(keys_of(kv, b) >> 6, 1023)], 1);
  __syncthreads();
  int count = room[t];
  __syncthreads();
  starts[t] = block_prefix(count, room) - count;
  __syncthreads();
  for (int b = t; b < B; b += 1024) {
    int keys = keys_of(kv, b), rows = cu_seqlens_q[b + 1] - cu_seqlens_q[b];
    int heads = min(K, max(1, (int)(l2_bytes / max((i64)keys * (D * 4), (i64)1))));
    int at = atomicAdd(&starts[1023 - min(keys >> 6, 1023)], 1);
    records[at] = make_int4(0, b, (rows + TILE_M - 1) / TILE_M, heads * (H / K));
  }
  __syncthreads();
  int items = 0;
  for (int from = 0; from < B; from += 1024) {
    int mine = from + t < B ? records[from + t].z * H : 0;
    int end = block_prefix(mine, room);
    if (from + t < B) records[from + t].x = items + end - mine;
    if (t == 1023) starts[0] = items + end;
    __syncthreads();
    items = starts[0];
    __syncthreads();
  }
  if (t == 0) plan[0] = 0, plan[1] = items;
}

// -- the loading warp ----------------------------------------------------------------------------
struct Shared {  // addresses of shared memory
  u32 q, k, v, q_full, q_empty, k_full, k_empty, v_full, v_empty, unused;
};

struct Stage {
  int index = 0;
  u32 phase = 0;
  DEVICE void next() {
    if (++index == STAGES) index = 0, phase ^= 1;
  }
};

// The segment record that holds an item: a search by the whole warp, 32 ways at a time.
DEVICE int4 find_record(const int* plan, int item, int B, int lane) {
  int low = 0, n = B;
  while (n > 1) {
    int step = (n + 31) / 32, at = lane * step;
    bool before = at < n && RECORD(plan, low + at)->x <= item;
    int skip = (31 - __clz(__ballot_sync(FULL_MASK, before) | 1)) * step;
    low += skip;
    n = min(step, n - skip);
  }
  return *RECORD(plan, low);
}

DEVICE Item make_item(int4 record, int item, const int* cu_seqlens_q, const int* kv, int H,
                      int capacity, int bottom_right, Options options) {
  int local = item - record.x, b = record.y, full = record.z * record.w;
  int head = local / full * record.w, heads = min(record.w, H - head);
  local %= full;
  int start = cu_seqlens_q[b], queries = cu_seqlens_q[b + 1] - start;
  int row = (record.z - 1 - local / heads) * TILE_M;
  Item made;
  made.head = head + local % heads;
  made.row = start + row;
  made.rows = min(TILE_M, queries - row);
  made.keys = keys_of(kv, b);
  made.low = PAGED ? max(0, made.keys - capacity) : 0;
  made.position = row + (bottom_right ? made.keys - queries : 0);
  int begin = LEFT ? max(made.low, made.position - options.left) : 0;
  int end = RIGHT ? min(made.keys, made.position + made.rows + options.right) : made.keys;
  made.first = begin / TILE_N;
  made.end = end > begin ? (end + TILE_N - 1) / TILE_N : made.first;
  return made;
}

DEVICE void load_tile(u32 target, const TensorMap* map, u32 barrier, int head, int token, int rows,
                      u64 policy) {
#pragma unroll
  for (int c = 0; c < COLUMN_BLOCKS; c++)
    tma_load(target + c * rows * 128, map, barrier, c * 64, head, token, policy);
}

struct Cache {  // where the keys of a segment are
  const int* table;  // PAGED: its row of block_table
  int start, blocks, size;
  DEVICE int token(int position) const {
    if (!PAGED) return start + position;
    return max(table[position / size % blocks], 0) * size + position % size;
  }
};

DEVICE void load_kv(const Shared& s, u32 tiles, const TensorMap* map, u32 full, u32 empty,
                    Stage& stage, int head, int token, int lane) {
  mbarrier_wait(empty + 8 * stage.index, stage.phase ^ 1);
  if (lane == 0) {
    mbarrier_expect(full + 8 * stage.index, KV_BYTES);
    load_tile(tiles + stage.index * KV_BYTES, map, full + 8 * stage.index, head, token, TILE_N,
              L2_EVICT_LAST);
  }
  stage.next();
}

DEVICE void produce(const Shared& s, Item* slot, const TensorMap* q_map, const TensorMap* k_map,
                    const TensorMap* v_map, int* plan, const int* cu_seqlens_q, const int* kv,
                    const int* block_table, int B, int H, int K, int max_blocks, int block_size,
                    int bottom_right, Options options) {
  int lane = threadIdx.x & 31, items = plan[1], item = blockIdx.x;
  u32 q_phase = 1;
  Stage k_stage, v_stage;
  while (item < items) {
    int next = 0;
    if (lane == 0) next = atomicAdd(plan, 1) + gridDim.x;
    int4 record = find_record(plan, item, B, lane);
    Item it = make_item(record, item, cu_seqlens_q, kv, H, max_blocks * block_size, bottom_right,
                        options);
    int kv_head = it.head / (H / K);
    Cache cache = {PAGED ? block_table + (i64)record.y * max_blocks : nullptr,
                   PAGED ? 0 : kv[record.y], max_blocks, block_size};
    mbarrier_wait(s.q_empty, q_phase);
    q_phase ^= 1;
    if (lane == 0) {
      *slot = it;
      mbarrier_expect(s.q_full, Q_BYTES);
      load_tile(s.q, q_map, s.q_full, it.head, it.row, TILE_M, L2_EVICT_FIRST);
    }
    for (int n = it.end - 1; n >= it.first; n--) {
      load_kv(s, s.k, k_map, s.k_full, s.k_empty, k_stage, kv_head, cache.token(n * TILE_N), lane);
      if (n < it.end - 1)
        load_kv(s, s.v, v_map, s.v_full, s.v_empty, v_stage, kv_head,
                cache.token((n + 1) * TILE_N), lane);
    }
    if (it.end > it.first)
      load_kv(s, s.v, v_map, s.v_full, s.v_empty, v_stage, kv_head,
              cache.token(it.first * TILE_N), lane);
    item = __shfl_sync(FULL_MASK, next, 0);
  }
  mbarrier_wait(s.q_empty, q_phase);
  if (lane == 0) {
    slot->row = -1;
    mbarrier_arrive(s.q_full);
  }
}

// -- the computing warpgroups --------------------------------------------------------------------
typedef float Scores[TILE_N / 2];
typedef u32 Weights[TILE_N / 4];
typedef float Output[D / 2];

// s = q k^T, started. q: this warpgroup's 64 rows.
DEVICE void start_scores(Scores& s, u32 q, u32 k) {
  u64 a = swizzled_descriptor(q), b = swizzled_descriptor(k);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < D / 16; i++)
    Wgmma<T, TILE_N>::template ss<0>(s, descriptor_plus(a, i / 4 * TILE_M * 128 + i % 4 * 32),
                                     descriptor_plus(b, i / 4 * TILE_N * 128 + i % 4 * 32), i > 0);
  wgmma_commit();
}

// o += p v, started.
DEVICE void start_output(Output& o, const Weights& p, u32 v) {
  u64 b = swizzled_descriptor(v, TILE_N * 128);
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < TILE_N / 16; i++)
    Wgmma<T, D>::template rs<1>(o, p + 4 * i, descriptor_plus(b, i * 2048), 1);
  wgmma_commit();
}

DEVICE float exp2_unit(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 2^x for x <= 100 without the exponential unit: 2^round(x) by its bits, times a polynomial in the
// rest, |rest| <= 1/2, relative error 4e-6.
DEVICE float exp2_poly(float x) {
  x = fmaxf(x, -126.f);
  float shifted = x + 12582912.f, f = x - (shifted - 12582912.f);
  float y = 0.00956032798f;
  y = fmaf(y, f, 0.0558718183f);
  y = fmaf(y, f, 0.240231977f);
  y = fmaf(y, f, 0.693135774f);
  y = fmaf(y, f, 0.999999642f);
  return __int_as_float(__float_as_int(y) + (__float_as_int(shifted) << 23));
}

// The state of a thread's two rows (8 apart): scores are in units of `unit` = log2 e * scale.
struct Rows {
  float top[2], sum[2];  // sum: of this thread's columns only
  float unit, slope;
  int position;          // of the first row
  int column;            // of the thread's first score in a tile
};

// Softcap and ALiBi: scores become logits in units of 1 / log2 e.
DEVICE void change_scores(Scores& s, const Rows& r, int n, const Options& options) {
  float twice = 2.f * LOG2E * options.scale / options.softcap, cap = options.softcap * LOG2E;
  float scale = options.scale * LOG2E;
  float away[2];
  away[0] = (float)(r.position - n * TILE_N - r.column), away[1] = away[0] + 8.f;
#pragma unroll
  for (int j = 0; j < TILE_N / 2; j++) {
    float x = SOFTCAP ? cap - 2.f * cap * reciprocal(1.f + exp2_unit(s[j] * twice)) : s[j] * scale;
    s[j] = ALIBI ? x - r.slope * fabsf(away[j / 2 % 2] - (float)(j / 4 * 8 + j % 2)) : x;
  }
}

DEVICE void mask_scores(Scores& s, const Rows& r, int n, const Item& it, const Options& options) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int position = r.position + 8 * i, base = n * TILE_N + r.column;
    int end = (RIGHT ? min(it.keys, position + options.right + 1) : it.keys) - base;
    int begin = LEFT ? max(it.low, position - options.left) - base : 0;
#pragma unroll
    for (int j = 0; j < TILE_N / 4; j++) {
      int column = j / 2 * 8 + j % 2, at = j / 2 * 4 + 2 * i + j % 2;
      if (column >= end || (LEFT && column < begin)) s[at] = -INF;
    }
  }
}

// Scores become probabilities relative to the rows' new maxima; factor: old to new.
template <bool MASKED> DEVICE void softmax(Scores& s, Rows& r, float (&factor)[2]) {
  float unit = SCORE_CHANGED ? 1.f : r.unit;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float top = r.top[i];
#pragma unroll
    for (int j = 0; j < TILE_N / 4; j++) top = fmaxf(top, s[j / 2 * 4 + 2 * i + j % 2]);
    top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 2));
    if (LAZY) top = (top - r.top[i]) * unit > 8.f ? top : r.top[i];
    float base = MASKED && top == -INF ? 0.f : top * unit;
    factor[i] = exp2_unit(r.top[i] * unit - base);
    r.top[i] = top;
    float sum = r.sum[i] * factor[i];
#pragma unroll
    for (int j = 0; j < TILE_N / 4; j++) {
      int at = j / 2 * 4 + 2 * i + j % 2;
      float x = fmaf(s[at], unit, -base);
      s[at] = POLY && j / 2 % (POLY ? POLY : 1) == 0 ? exp2_poly(x) : exp2_unit(x);
      sum += s[at];
    }
    r.sum[i] = sum;
  }
}

DEVICE void pack_weights(Weights& p, const Scores& s) {
#pragma unroll
  for (int j = 0; j < TILE_N / 4; j++) p[j] = pack_pair<T>(s[2 * j], s[2 * j + 1]);
}

DEVICE void rescale(Output& o, const float (&factor)[2]) {
  if (LAZY && !__any_sync(FULL_MASK, factor[0] != 1.f || factor[1] != 1.f)) return;
#pragma unroll
  for (int j = 0; j < D / 2; j++) o[j] *= factor[j / 2 % 2];
}

// Warpgroups take turns to start their products; the barrier of a turn is 1 + warpgroup.
DEVICE void await_turn(int group) {
  if (PINGPONG && CONSUMERS > 1) named_sync(1 + group, 256);
}
DEVICE void pass_turn(int group) {
  if (PINGPONG && CONSUMERS > 1) named_arrive(1 + (group + 1) % CONSUMERS, 256);
}

// A store that never happens (a sum of probabilities is not negative), before which ptxas must have
// done the softmax: it would else move the wait for the product up, and nothing would overlap.
DEVICE void hold(u32 unused, float sum) {
  asm volatile("{\n.reg .pred p;\nsetp.lt.f32 p, %1, 0f00000000;\n@p st.shared.f32 [%0], %1;\n}"
               ::"r"(unused), "f"(sum) : "memory");
}

DEVICE void release(u32 barrier) {
  __syncwarp();
  if ((threadIdx.x & 31) == 0) mbarrier_arrive(barrier);
}

struct Consumer {
  const Shared& at;
  const Options& options;
  int group;
  u32 q;
  Stage k_stage, v_stage;
};

// One key tile: its scores and softmax, and the product of the tile before it with its values.
template <bool MASKED>
DEVICE void step(Consumer& c, Scores& s, Weights& p, Output& o, Rows& r, const Item& it, int n) {
  float factor[2];
  u32 k_at = 8 * c.k_stage.index, v_at = 8 * c.v_stage.index;
  u32 k = c.at.k + c.k_stage.index * KV_BYTES, v = c.at.v + c.v_stage.index * KV_BYTES;
  if (!OVERLAP) {
    mbarrier_wait(c.at.v_full + v_at, c.v_stage.phase);
    start_output(o, p, v);
    wgmma_wait<0>();
    pin(o);
  }
  mbarrier_wait(c.at.k_full + k_at, c.k_stage.phase);
  await_turn(c.group);
  start_scores(s, c.q, k);
  if (OVERLAP) {
    mbarrier_wait(c.at.v_full + v_at, c.v_stage.phase);
    start_output(o, p, v);
  }
  pass_turn(c.group);
  wgmma_wait<OVERLAP ? 1 : 0>();
  pin(s);
  release(c.at.k_empty + k_at);
  if (SCORE_CHANGED) change_scores(s, r, n, c.options);
  if (MASKED) mask_scores(s, r, n, it, c.options);
  softmax<MASKED>(s, r, factor);
  hold(c.at.unused, r.sum[0] + r.sum[1]);
  wgmma_wait<0>();
  pin(o);
  pin(p);
  release(c.at.v_empty + v_at);
  pack_weights(p, s);
  rescale(o, factor);
  c.k_stage.next();
  c.v_stage.next();
}

// Rows of v past the segment's end belong to others and may hold anything: 0 * inf is not 0.
DEVICE void clear_values(Consumer& c, u8* shared, const Item& it) {
  int rows = it.keys - (it.end - 1) * TILE_N;
  if (rows >= TILE_N) return;
  mbarrier_wait(c.at.v_full + 8 * c.v_stage.index, c.v_stage.phase);
  u8* tile = shared + (c.at.v - c.at.q) + c.v_stage.index * KV_BYTES;
  for (int i = rows * 8 + (threadIdx.x & 127); i < TILE_N * 8; i += 128) {
#pragma unroll
    for (int b = 0; b < COLUMN_BLOCKS; b++)
      *(uint4*)(tile + b * TILE_N * 128 + i * 16) = make_uint4(0, 0, 0, 0);
  }
  fence_async_proxy();
  named_sync(1 + CONSUMERS + c.group, 128);
}

// All key tiles of an item, from the last to the first.
DEVICE void attend(Consumer& c, u8* shared, Output& o, Rows& r, const Item& it) {
  Scores s;
  Weights p;
  float factor[2];
  int n = it.end - 1, row = it.position + 64 * c.group;
  mbarrier_wait(c.at.k_full + 8 * c.k_stage.index, c.k_stage.phase);
  start_scores(s, c.q, c.at.k + c.k_stage.index * KV_BYTES);
  wgmma_wait<0>();
  pin(s);
  release(c.at.k_empty + 8 * c.k_stage.index);
  c.k_stage.next();
  if (SCORE_CHANGED) change_scores(s, r, n, c.options);
  mask_scores(s, r, n, it, c.options);
  softmax<true>(s, r, factor);
  pack_weights(p, s);
  clear_values(c, shared, it);
  // tiles below `high` and from `low` on need no mask
  int high = (RIGHT ? max(0, min(it.keys, row + c.options.right + 1)) : it.keys) / TILE_N;
  int low = LEFT ? (max(it.low, row + 63 - c.options.left) + TILE_N - 1) / TILE_N : it.first;
  n--;
  if (RIGHT)
    for (; n >= max(high, it.first); n--) step<true>(c, s, p, o, r, it, n);
  for (; n >= max(low, it.first); n--) step<false>(c, s, p, o, r, it, n);
  if (LEFT)
    for (; n >= it.first; n--) step<true>(c, s, p, o, r, it, n);
  release(c.at.q_empty);
  mbarrier_wait(c.at.v_full + 8 * c.v_stage.index, c.v_stage.phase);
  start_output(o, p, c.at.v + c.v_stage.index * KV_BYTES);
  wgmma_wait<0>();
  pin(o);
  release(c.at.v_empty + 8 * c.v_stage.index);
  c.v_stage.next();
}

// The four lanes of a row hold two columns each of four blocks of eight; after it, lane i holds
// block i: a 4 x 4 transpose.
DEVICE uint4 gather_block(u32 a, u32 b, u32 c, u32 d, int lane) {
  bool odd = lane & 1, upper = lane & 2;
  u32 x = __shfl_xor_sync(FULL_MASK, odd ? a : b, 1);
  u32 y = __shfl_xor_sync(FULL_MASK, odd ? c : d, 1);
  if (odd) a = x, c = y;
  else b = x, d = y;
  x = __shfl_xor_sync(FULL_MASK, upper ? a : c, 2);
  y = __shfl_xor_sync(FULL_MASK, upper ? b : d, 2);
  if (upper) a = x, b = y;
  else c = x, d = y;
  return make_uint4(a, b, c, d);
}

DEVICE void store(const Output& o, Rows& r, const Item& it, int group, T* out, float* lse,
                  const float* sinks, int H) {
  int lane = threadIdx.x & 31, in_tile = 64 * group + (threadIdx.x >> 5 & 3) * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float sum = r.sum[i] + __shfl_xor_sync(FULL_MASK, r.sum[i], 1);
    sum += __shfl_xor_sync(FULL_MASK, sum, 2);
    float top = r.top[i] * (SCORE_CHANGED ? 1.f : r.unit), factor = 1.f;
    if (SINKS) {
      float sink = sinks[it.head] * LOG2E, most = fmaxf(top, sink);
      factor = exp2_unit(top - most);
      sum = sum * factor + exp2_unit(sink - most);
      top = most;
    }
    factor = sum > 0.f ? factor * reciprocal(sum) : 0.f;
    int row = in_tile + 8 * i;
    bool valid = row < it.rows;
    i64 at = (i64)(it.row + row) * H + it.head;
    if (valid && lane % 4 == 0) lse[at] = sum > 0.f ? (top + log2f(sum)) * LN2 : -INF;
#pragma unroll
    for (int g = 0; g < D / 32; g++) {
      u32 pair[4];
#pragma unroll
      for (int b = 0; b < 4; b++) {
        int j = (4 * g + b) * 4 + 2 * i;
        pair[b] = pack_pair<T>(o[j] * factor, o[j + 1] * factor);
      }
      uint4 block = gather_block(pair[0], pair[1], pair[2], pair[3], lane);
      if (valid) *(uint4*)(out + at * D + (4 * g + lane % 4) * 8) = block;
    }
  }
}

DEVICE void consume(const Shared& s, u8* shared, const Item* slot, T* out, float* lse,
                    const float* alibi_slopes, const float* sinks, int H, Options options) {
  int group = __shfl_sync(FULL_MASK, threadIdx.x / 128 - 1, 0), lane = threadIdx.x & 31;
  Consumer c = {s, options, group, s.q + group * 64 * 128};
  u32 q_phase = 0;
  if (PINGPONG && CONSUMERS > 1 && group == 0) named_arrive(1, 256);
  while (true) {
    mbarrier_wait(s.q_full, q_phase);
    q_phase ^= 1;
    Item it = *slot;
    if (it.row < 0) break;
    Output o;
    Rows r;
#pragma unroll
    for (int j = 0; j < D / 2; j++) o[j] = 0.f;
    r.top[0] = r.top[1] = -INF;
    r.sum[0] = r.sum[1] = 0.f;
    r.unit = options.scale * LOG2E;
    r.slope = ALIBI ? alibi_slopes[it.head] * LOG2E : 0.f;
    r.position = it.position + 64 * group + (threadIdx.x >> 5 & 3) * 16 + lane / 4;
    r.column = 2 * (lane % 4);
    if (it.end > it.first)
      attend(c, shared, o, r, it);
    else
      release(s.q_empty);
    store(o, r, it, group, out, lse, sinks, H);
  }
}

// Grid: one block for each multiprocessor. Shared memory: the tiles, 1024 bytes to align them and
// 256 for barriers and the item.
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_sm90(
    const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
    const __grid_constant__ TensorMap v_map, T* out, float* lse, int* plan,
    const int* cu_seqlens_q, const int* kv, const int* block_table, const float* alibi_slopes,
    const float* sinks, int B, int H, int K, int max_blocks, int block_size, int left, int right,
    int bottom_right, float scale, float softcap) {
  extern __shared__ u8 memory[];
  u8* shared = memory + (-shared_address(memory) & 1023);
  Shared s;
  s.q = shared_address(shared);
  s.k = s.q + Q_BYTES;
  s.v = s.k + STAGES * KV_BYTES;
  s.q_full = s.v + STAGES * KV_BYTES;
  s.q_empty = s.q_full + 8;
  s.k_full = s.q_empty + 8;
  s.k_empty = s.k_full + 8 * STAGES;
  s.v_full = s.k_empty + 8 * STAGES;
  s.v_empty = s.v_full + 8 * STAGES;
  s.unused = s.v_empty + 8 * STAGES;
  Item* slot = (Item*)(shared + Q_BYTES + 2 * STAGES * KV_BYTES + 192);
  Options options = {left, right, scale, softcap};
  if (threadIdx.x == 0) {
    prefetch_map(&q_map);
    prefetch_map(&k_map);
    prefetch_map(&v_map);
    mbarrier_init(s.q_full, 1);
    mbarrier_init(s.q_empty, 4 * CONSUMERS);
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(s.k_full + 8 * i, 1);
      mbarrier_init(s.k_empty + 8 * i, 4 * CONSUMERS);
      mbarrier_init(s.v_full + 8 * i, 1);
      mbarrier_init(s.v_empty + 8 * i, 4 * CONSUMERS);
    }
    mbarrier_init_fence();
  }
  pdl_wait();
  __syncthreads();
  if (threadIdx.x < 128) {
    if (CONSUMERS > 1) registers_down<CONSUMERS == 2 ? 24 : 32>();
    if (threadIdx.x < 32)
      produce(s, slot, &q_map, &k_map, &v_map, plan, cu_seqlens_q, kv, block_table, B, H, K,
              max_blocks, block_size, bottom_right, options);
  } else {
    if (CONSUMERS > 1) registers_up<CONSUMERS == 2 ? 240 : 160>();
    consume(s, shared, slot, out, lse, alibi_slopes, sinks, H, options);
  }
}
