// What the attention kernels with warpgroup products share: how tiles of queries, keys and values
// get into shared memory, and what a warpgroup that computes does with them (attention_sm90.cu).
//
// Macros: those of attention_sm90.cu, and PACK (1, 2, 4, 8): so many heads of a kv head share a
//   tile, whose row r is then token r / PACK, head r % PACK. ALIBI needs PACK 1.
#include "hopper.cuh"

#ifndef PACK
#define PACK 1
#endif
static_assert(8 % PACK == 0 && (PACK == 1 || !ALIBI), "heads that share a tile");

typedef DTYPE T;
#define D HEAD_DIM
#define TILE_M (64 * CONSUMERS)
#define THREADS (128 * (CONSUMERS + 1))
#define COLUMN_BLOCKS (D / 64)
#define Q_BYTES (TILE_M * D * 2)
#define KV_BYTES (TILE_N * D * 2)
#define SCORE_CHANGED (SOFTCAP || ALIBI)

// What consumers must know of an item.
struct Item {
  int row;       // of out, of the tile's first query; -1: no more items
  int rows;      // that the segment has in this tile, PACK for a query
  int position;  // of the first query among the keys
  int head, keys, low;  // keys of the segment, the first of them that is not overwritten
  int first, end;       // key tiles: visited from end - 1 down to first
};

struct Options {
  int left, right;
  float scale, softcap;
};

DEVICE int keys_of(const int* kv, int b) { return PAGED ? kv[b] : kv[b + 1] - kv[b]; }

// -- the loading warp ----------------------------------------------------------------------------
struct Shared {  // addresses of shared memory
  u32 q, k, v, q_full, q_empty, k_full, k_empty, v_full, v_empty, unused, missing;
};

template <int N> struct Stage {  // of a ring of N buffers
  int index = 0;
  u32 phase = 0;
  DEVICE void next() {
    if (++index == N) index = 0, phase ^= 1;
  }
};
DEVICE void load_tile(u32 target, const TensorMap* map, u32 barrier, int head, int token, int rows,
                      u64 policy) {
#pragma unroll
  for (int c = 0; c < COLUMN_BLOCKS; c++)
    tma_load(target + c * rows * 128, map, barrier, c * 64, head, token, policy);
}

DEVICE void store_shared(u32 to, u32 x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}
DEVICE u32 load_shared(u32 from) {
  u32 x;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
  return x;
}

struct Cache {  // where the keys of a segment are
  const int* table;  // PAGED: its row of block_table
  int start, blocks, size;
  DEVICE int token(int position) const {  // negative where the table has no block
    if (!PAGED) return start + position;
    int block = table[position / size % blocks];
    return block < 0 ? -TILE_N : block * size + position % size;
  }
};

// A tile of keys or values; `token` < 0 fills it with zeros.
DEVICE void load_kv(const Shared& s, u32 tiles, const TensorMap* map, u32 full, u32 empty,
                    Stage<STAGES>& stage, int head, int token, int lane) {
  mbarrier_wait(empty + 8 * stage.index, stage.phase ^ 1);
  if (lane == 0) {
    if (PAGED && tiles == s.k) store_shared(s.missing + 4 * stage.index, token < 0);
    mbarrier_expect(full + 8 * stage.index, KV_BYTES);
    load_tile(tiles + stage.index * KV_BYTES, map, full + 8 * stage.index, head, token, TILE_N,
              L2_EVICT_LAST);
  }
  stage.next();
}
// The queries of an item.
DEVICE void load_queries(const Shared& s, Item* slots, const TensorMap* map, const Item& it,
                         Stage<Q_BUFFERS>& stage, int lane) {
  u32 full = s.q_full + 8 * stage.index;
  mbarrier_wait(s.q_empty + 8 * stage.index, stage.phase ^ 1);
  if (lane == 0) {
    slots[stage.index] = it;
    mbarrier_expect(full, Q_BYTES);
    load_tile(s.q + stage.index * Q_BYTES, map, full, it.head, it.row, TILE_M, L2_EVICT_FIRST);
  }
  stage.next();
}

// The keys and values of an item, in the order in which they are wanted.
DEVICE void load_tiles(const Shared& s, const TensorMap* k_map, const TensorMap* v_map,
                       const Item& it, const Cache& cache, int kv_head, Stage<STAGES>& k_stage,
                       Stage<STAGES>& v_stage, int lane) {
  for (int n = it.end - 1; n >= it.first; n--) {
    load_kv(s, s.k, k_map, s.k_full, s.k_empty, k_stage, kv_head, cache.token(n * TILE_N), lane);
    if (n < it.end - 1)
      load_kv(s, s.v, v_map, s.v_full, s.v_empty, v_stage, kv_head,
              cache.token((n + 1) * TILE_N), lane);
  }
  load_kv(s, s.v, v_map, s.v_full, s.v_empty, v_stage, kv_head, cache.token(it.first * TILE_N),
          lane);
}

// Say that there are no more items.
DEVICE void load_nothing(const Shared& s, Item* slots, const Stage<Q_BUFFERS>& stage, int lane) {
  mbarrier_wait(s.q_empty + 8 * stage.index, stage.phase ^ 1);
  if (lane == 0) {
    slots[stage.index].row = -1;
    mbarrier_arrive(s.q_full + 8 * stage.index);
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

DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
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
    float x = SOFTCAP ? cap - 2.f * cap * reciprocal(1.f + exp2_fast(s[j] * twice)) : s[j] * scale;
    s[j] = ALIBI ? x - r.slope * fabsf(away[j / 2 % 2] - (float)(j / 4 * 8 + j % 2)) : x;
  }
}

DEVICE void mask_scores(Scores& s, const Rows& r, int n, const Item& it, const Options& options) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    int position = r.position + 8 / PACK * i, base = n * TILE_N + r.column;
    int end = (RIGHT ? min(it.keys, position + options.right + 1) : it.keys) - base;
    int begin = LEFT ? max(it.low, position - options.left) - base : 0;
#pragma unroll
    for (int j = 0; j < TILE_N / 4; j++) {
      int column = j / 2 * 8 + j % 2, at = j / 2 * 4 + 2 * i + j % 2;
      if (column >= end || (LEFT && column < begin)) s[at] = -INF;
    }
  }
}

DEVICE void mask_all(Scores& s) {
#pragma unroll
  for (int j = 0; j < TILE_N / 2; j++) s[j] = -INF;
}

// Scores become probabilities relative to the rows' new maxima; factor: old to new.
template <bool MASKED> DEVICE void softmax(Scores& s, Rows& r, float (&factor)[2]) {
  float unit = SCORE_CHANGED ? 1.f : r.unit, base[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float most[4] = {r.top[i], r.top[i], r.top[i], r.top[i]};  // four chains, to hide latency
#pragma unroll
    for (int j = 0; j < TILE_N / 4; j++)
      most[j % 4] = fmaxf(most[j % 4], s[j / 2 * 4 + 2 * i + j % 2]);
    float top = fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
    top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL_MASK, top, 2));
    top = (top - r.top[i]) * unit > 8.f ? top : r.top[i];  // no growth to speak of: no rescaling
    base[i] = MASKED && top == -INF ? 0.f : top * unit;
    factor[i] = exp2_fast(r.top[i] * unit - base[i]);
    r.top[i] = top;
  }
  float sum[2][2] = {{r.sum[0] * factor[0], 0.f}, {r.sum[1] * factor[1], 0.f}};
#pragma unroll
  for (int j = 0; j < TILE_N / 2; j++) {
    int i = j / 2 % 2;
    s[j] = exp2_fast(fmaf(s[j], unit, -base[i]));
    sum[i][j % 2] += s[j];
  }
  r.sum[0] = sum[0][0] + sum[0][1];
  r.sum[1] = sum[1][0] + sum[1][1];
}

DEVICE void pack_weights(Weights& p, const Scores& s) {
#pragma unroll
  for (int j = 0; j < TILE_N / 4; j++) p[j] = pack2<T>(s[2 * j], s[2 * j + 1]);
}

DEVICE void rescale(Output& o, const float (&factor)[2]) {
  if (!__any_sync(FULL_MASK, factor[0] != 1.f || factor[1] != 1.f)) return;
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
  Stage<STAGES> k_stage, v_stage;
  Stage<Q_BUFFERS> q_stage;
  DEVICE u32 q() const { return at.q + q_stage.index * Q_BYTES + group * 64 * 128; }
  DEVICE u32 k() const { return at.k + k_stage.index * KV_BYTES; }
  DEVICE u32 v() const { return at.v + v_stage.index * KV_BYTES; }
  DEVICE void await_k() const { mbarrier_wait(at.k_full + 8 * k_stage.index, k_stage.phase); }
  DEVICE void await_v() const { mbarrier_wait(at.v_full + 8 * v_stage.index, v_stage.phase); }
  DEVICE bool keys_missing() const {  // after await_k
    return PAGED && load_shared(at.missing + 4 * k_stage.index) != 0;
  }
  DEVICE void release_q() { release(at.q_empty + 8 * q_stage.index), q_stage.next(); }
  DEVICE void release_k() { release(at.k_empty + 8 * k_stage.index), k_stage.next(); }
  DEVICE void release_v() { release(at.v_empty + 8 * v_stage.index), v_stage.next(); }
};

// One key tile: its scores and softmax, and the product of the tile before it with its values.
template <bool MASKED>
DEVICE void step(Consumer& c, Scores& s, Weights& p, Output& o, Rows& r, const Item& it, int n) {
  float factor[2];
  c.await_k();
  await_turn(c.group);
  start_scores(s, c.q(), c.k());
  c.await_v();
  start_output(o, p, c.v());
  pass_turn(c.group);
  wgmma_wait<1>();
  pin(s);
  const bool missing = c.keys_missing();
  c.release_k();
  if (SCORE_CHANGED) change_scores(s, r, n, c.options);
  if (MASKED) mask_scores(s, r, n, it, c.options);
  if (PAGED && missing) mask_all(s);
  softmax<MASKED || PAGED>(s, r, factor);
  hold(c.at.unused, r.sum[0] + r.sum[1]);
  wgmma_wait<0>();
  pin(o);
  pin(p);
  c.release_v();
  pack_weights(p, s);
  rescale(o, factor);
}

// Rows of v past the segment's end belong to others and may hold anything: 0 * inf is not 0.
DEVICE void clear_values(Consumer& c, u8* shared, const Item& it, int n) {
  int rows = max(it.keys - n * TILE_N, 0);
  if (rows >= TILE_N) return;
  c.await_v();
  u8* tile = shared + (c.v() - c.at.q);
  for (int i = rows * 8 + (threadIdx.x & 127); i < TILE_N * 8; i += 128) {
#pragma unroll
    for (int b = 0; b < COLUMN_BLOCKS; b++)
      *(uint4*)(tile + b * TILE_N * 128 + i * 16) = make_uint4(0, 0, 0, 0);
  }
  fence_async_proxy();
  named_sync(1 + CONSUMERS + c.group, 128);
}

// The end of the key tiles that this warpgroup's rows see any of; at least one is left.
DEVICE int own_end(const Consumer& c, const Item& it) {
  int end = it.end, rows = it.rows - 64 * c.group;
  if (RIGHT) {
    int last = it.position + (64 * c.group + min(rows, 64) + PACK - 1) / PACK + c.options.right;
    end = min(end, (last + TILE_N - 1) / TILE_N);
  }
  return rows <= 0 ? it.first + 1 : max(end, it.first + 1);
}

// Let the key tiles pass by that only later rows of the item see.
DEVICE void skip(Consumer& c, int tiles) {
  for (int i = 0; i < tiles; i++) {
    c.await_k();
    c.release_k();
    c.await_v();
    c.release_v();
    await_turn(c.group);
    pass_turn(c.group);
  }
}
// All key tiles of an item, from the last to the first; the last product is left running.
DEVICE void attend(Consumer& c, u8* shared, Scores& s, Weights& p, Output& o, Rows& r,
                   const Item& it) {
  float factor[2];
  int n = own_end(c, it) - 1, row = it.position + 64 / PACK * c.group;
  wgmma_wait<0>();
  pin(s);
  const bool missing = c.keys_missing();
  c.release_k();
  if (SCORE_CHANGED) change_scores(s, r, n, c.options);
  mask_scores(s, r, n, it, c.options);
  if (PAGED && missing) mask_all(s);
  softmax<true>(s, r, factor);
  pack_weights(p, s);
  clear_values(c, shared, it, n);
  // tiles below `high` and from `low` on need no mask
  int high = (RIGHT ? max(0, min(it.keys, row + c.options.right + 1)) : it.keys) / TILE_N;
  int low = LEFT ? (max(it.low, row + 63 / PACK - c.options.left) + TILE_N - 1) / TILE_N : it.first;
  n--;
  if (RIGHT)
    for (; n >= max(high, it.first); n--) step<true>(c, s, p, o, r, it, n);
  for (; n >= max(low, it.first); n--) step<false>(c, s, p, o, r, it, n);
  if (LEFT)
    for (; n >= it.first; n--) step<true>(c, s, p, o, r, it, n);
  c.release_q();
  c.await_v();
  start_output(o, p, c.v());
}
// The state of this thread's rows before the first key.
DEVICE Rows fresh_rows(const Item& it, int group, const float* alibi_slopes,
                       const Options& options) {
  int lane = threadIdx.x & 31;
  Rows r;
  r.top[0] = r.top[1] = -INF;
  r.sum[0] = r.sum[1] = 0.f;
  r.unit = options.scale * LOG2E;
  r.slope = ALIBI ? alibi_slopes[it.head] * LOG2E : 0.f;
  r.position = it.position + (64 * group + (threadIdx.x >> 5 & 3) * 16 + lane / 4) / PACK;
  r.column = 2 * (lane % 4);
  return r;
}

DEVICE Item await_item(const Consumer& c, const Item* slots) {
  mbarrier_wait(c.at.q_full + 8 * c.q_stage.index, c.q_stage.phase);
  return slots[c.q_stage.index];
}
// -- shared memory -------------------------------------------------------------------------------
// The tiles from `q` on, which is at a multiple of 1024, then 256 bytes for barriers and items.
DEVICE Shared arrange(u32 q) {
  Shared s;
  s.q = q;
  s.k = s.q + Q_BUFFERS * Q_BYTES;
  s.v = s.k + STAGES * KV_BYTES;
  s.q_full = s.v + STAGES * KV_BYTES;
  s.q_empty = s.q_full + 8 * Q_BUFFERS;
  s.k_full = s.q_empty + 8 * Q_BUFFERS;
  s.k_empty = s.k_full + 8 * STAGES;
  s.v_full = s.k_empty + 8 * STAGES;
  s.v_empty = s.v_full + 8 * STAGES;
  s.unused = s.v_empty + 8 * STAGES;
  s.missing = s.unused + 4;
  return s;
}
DEVICE Item* item_slots(u8* shared) {
  return (Item*)(shared + Q_BUFFERS * Q_BYTES + 2 * STAGES * KV_BYTES + 192);
}

// By one thread, before a __syncthreads.
DEVICE void prepare(const Shared& s, const TensorMap* q_map, const TensorMap* k_map,
                    const TensorMap* v_map) {
  prefetch_map(q_map);
  prefetch_map(k_map);
  prefetch_map(v_map);
  for (int i = 0; i < Q_BUFFERS; i++) {
    mbarrier_init(s.q_full + 8 * i, 1);
    mbarrier_init(s.q_empty + 8 * i, 4 * CONSUMERS);
  }
  for (int i = 0; i < STAGES; i++) {
    mbarrier_init(s.k_full + 8 * i, 1);
    mbarrier_init(s.k_empty + 8 * i, 4 * CONSUMERS);
    mbarrier_init(s.v_full + 8 * i, 1);
    mbarrier_init(s.v_empty + 8 * i, 4 * CONSUMERS);
  }
  mbarrier_init_fence();
}
