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
// tile, then p v of this one, and does the softmax of the next while the latter runs; the next
// item's first scores run under the last product of this item. Named barriers let the warpgroups
// take turns, so that one's softmax runs under another's products.
//
// Macros: DTYPE, HEAD_DIM, TILE_N keys a tile (a size that Wgmma has), CONSUMERS 1 to 4, STAGES of
//   k and v, Q_BUFFERS of q.   RIGHT, LEFT: the mask has that side (`right` 0 is causal).
//   PAGED, SOFTCAP, ALIBI, SINKS: 0 or 1.   PINGPONG 0: warpgroups do not take turns.
// Limits: scale > 0; a paged block holds a multiple of TILE_N keys, or max_blocks is 1 and no
// sequence is longer than its block.
// Source: Shah et al. 2024, FlashAttention-3; Milakov and Gimelshein 2018 (online softmax).
#include "attention_sm90.cuh"
#include "attention_sm90_plan.cuh"

// -- the loading warp ----------------------------------------------------------------------------
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
  made.end = max((end + TILE_N - 1) / TILE_N, made.first + 1);
  return made;
}

DEVICE void produce(const Shared& s, Item* slots, const TensorMap* q_map, const TensorMap* k_map,
                    const TensorMap* v_map, int* plan, const int* cu_seqlens_q, const int* kv,
                    const int* block_table, int B, int H, int K, int max_blocks, int block_size,
                    int bottom_right, Options options) {
  int lane = threadIdx.x & 31, items = plan[1], item = blockIdx.x;
  Stage<STAGES> k_stage, v_stage;
  Stage<Q_BUFFERS> q_stage;
  while (item < items) {
    int next = 0;
    if (lane == 0) next = atomicAdd(plan, 1) + gridDim.x;
    int4 record = find_record(plan, item, B, lane);
    Item it = make_item(record, item, cu_seqlens_q, kv, H, max_blocks * block_size, bottom_right,
                        options);
    int kv_head = it.head / (H / K);
    Cache cache = {PAGED ? block_table + (i64)record.y * max_blocks : nullptr,
                   PAGED ? 0 : kv[record.y], max_blocks, block_size};
    load_queries(s, slots, q_map, it, q_stage, lane);
    load_tiles(s, k_map, v_map, it, cache, kv_head, k_stage, v_stage, lane);
    item = __shfl_sync(FULL_MASK, next, 0);
  }
  load_nothing(s, slots, q_stage, lane);
}

// -- the computing warpgroups --------------------------------------------------------------------
// End the last product of an item, with the next item's first scores under it. They stay running;
// without a next item (row -1) they are of whatever is there, so that every path runs the same.
DEVICE void change_item(Consumer& c, Scores& s, Weights& p, Output& o, const Item& next) {
  int skipped = next.row < 0 ? 0 : next.end - own_end(c, next);
  if (skipped > 0) {
    wgmma_wait<0>();
    pin(o);
    c.release_v();
    skip(c, skipped);
    c.await_k();
    start_scores(s, c.q(), c.k());
  } else {
    if (next.row >= 0) c.await_k();
    start_scores(s, c.q(), c.k());
    wgmma_wait<1>();
    pin(o);
    c.release_v();
  }
  pin(p);
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
      factor = exp2_fast(top - most);
      sum = sum * factor + exp2_fast(sink - most);
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
        pair[b] = pack2<T>(o[j] * factor, o[j + 1] * factor);
      }
      uint4 block = gather_block(pair[0], pair[1], pair[2], pair[3], lane);
      if (valid) *(uint4*)(out + at * D + (4 * g + lane % 4) * 8) = block;
    }
  }
}

DEVICE void consume(const Shared& at, u8* shared, const Item* slots, T* out, float* lse,
                    const float* alibi_slopes, const float* sinks, int H, Options options) {
  int group = __shfl_sync(FULL_MASK, threadIdx.x / 128 - 1, 0);
  Consumer c = {at, options, group};
  if (PINGPONG && CONSUMERS > 1 && group == 0) named_arrive(1, 256);
  Item it = await_item(c, slots);
  if (it.row < 0) return;
  Scores s;
  Weights p;
  Output o;
  skip(c, it.end - own_end(c, it));
  c.await_k();
  start_scores(s, c.q(), c.k());
  do {
#pragma unroll
    for (int j = 0; j < D / 2; j++) o[j] = 0.f;
    Rows r = fresh_rows(it, group, alibi_slopes, options);
    attend(c, shared, s, p, o, r, it);
    Item next = await_item(c, slots);
    change_item(c, s, p, o, next);
    store(o, r, it, group, out, lse, sinks, H);
    it = next;
  } while (it.row >= 0);
  wgmma_wait<0>();
  pin(s);
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
  Shared s = arrange(shared_address(shared));
  Item* slots = item_slots(shared);
  Options options = {left, right, scale, softcap};
  if (threadIdx.x == 0) prepare(s, &q_map, &k_map, &v_map);
  pdl_wait();
  __syncthreads();
  if (threadIdx.x < 128) {
    if (CONSUMERS > 1) registers_down<CONSUMERS == 3 ? 32 : 24>();
    if (threadIdx.x < 32)
      produce(s, slots, &q_map, &k_map, &v_map, plan, cu_seqlens_q, kv, block_table, B, H, K,
              max_blocks, block_size, bottom_right, options);
  } else {
    if (CONSUMERS > 1) registers_up<CONSUMERS == 2 ? 240 : CONSUMERS == 3 ? 160 : 112>();
    consume(s, shared, slots, out, lse, alibi_slopes, sinks, H, options);
  }
}
