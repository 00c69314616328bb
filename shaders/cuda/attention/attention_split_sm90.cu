// Attention of few queries over many keys of a paged cache on Hopper: a cluster shares the keys.
//
// The formula, tensors and options of attention_sm90.cu, which computes with few work items on few
// multiprocessors. Here SPLIT blocks, a cluster, take one item (segment, TILE_M / PACK queries, the
// PACK heads of a kv head that share the tile), each a part of its key tiles. Then each joins a
// part of the rows from the shared memories of all: with m_s (a power of 2), sum_s and o_s of
// block s, M the largest of them and of the sink,
//
//   total = sum_s 2^(m_s - M) sum_s + 2^(sink - M),   out = sum_s 2^(m_s - M) o_s / total
//
// A block: the first warp loads, three more clear the rows of tokens that are in no segment,
// CONSUMERS warpgroups compute 64 rows each. One launch, nothing but the result is written.
// Macros: those of attention_sm90.cuh, PAGED 1, Q_BUFFERS 1; SPLIT 2, 3, 4, 6 or 8.
// Limits: those of attention_sm90.cu. Queries by a tensor map with boxes of PACK heads.
#include "attention_sm90.cuh"
#include "attention.cuh"

#define TOKENS (TILE_M / PACK)
#define LOADERS 128  // threads of the warpgroup that does not compute
#define ALL_CONSUMERS (1 + 2 * CONSUMERS)  // a named barrier
#define PITCH (D + 8)  // floats of a row of sums: the rows that a warp writes lie in other banks

static_assert(PAGED && Q_BUFFERS == 1, "one item a block");
static_assert(TILE_M * (PITCH + 2) * 4 <= 2 * STAGES * KV_BYTES, "sums lie where the tiles lay");

// -- the loading warpgroup -----------------------------------------------------------------------
// What the whole warp finds this block's cluster to do; row -1: nothing. `share` of its keys may be
// no tile at all.
DEVICE Item find_item(int tile, int group_of_heads, int share, const int* cu_seqlens_q,
                      const int* kv_lens, int B, int capacity, int bottom_right, Options options,
                      int& segment) {
  Item it = {};
  it.row = -1;
  int b = segment = find_segment(cu_seqlens_q, B, tile, TOKENS);
  if (b >= B) return it;
  int start = cu_seqlens_q[b], queries = cu_seqlens_q[b + 1] - start;
  int token = (tile - (start / TOKENS + b)) * TOKENS, tokens = min(TOKENS, queries - token);
  if (tokens <= 0) return it;
  it.row = start + token;
  it.rows = tokens * PACK;
  it.head = group_of_heads * PACK;
  it.keys = kv_lens[b];
  it.low = max(0, it.keys - capacity);
  it.position = token + (bottom_right ? it.keys - queries : 0);
  int begin = LEFT ? max(it.low, it.position - options.left) : 0;
  int end = RIGHT ? min(it.keys, it.position + tokens + options.right) : it.keys;
  int first = begin / TILE_N, tiles = max((end + TILE_N - 1) / TILE_N - first, 0);
  it.first = first + tiles * share / SPLIT;
  it.end = first + tiles * (share + 1) / SPLIT;
  return it;
}

DEVICE void produce(const Shared& s, Item* slots, const TensorMap* q_map, const TensorMap* k_map,
                    const TensorMap* v_map, const int* cu_seqlens_q, const int* kv_lens,
                    const int* block_table, int B, int H, int K, int max_blocks, int block_size,
                    int bottom_right, Options options) {
  int lane = threadIdx.x & 31, groups = H / PACK, segment;
  Item it = find_item(blockIdx.y / groups, blockIdx.y % groups, blockIdx.x, cu_seqlens_q, kv_lens,
                      B, max_blocks * block_size, bottom_right, options, segment);
  if (it.end <= it.first) {  // the consumers must know of it all the same
    if (lane == 0) {
      slots[0] = it;
      mbarrier_arrive(s.q_full);
    }
    return;
  }
  Stage<Q_BUFFERS> q_stage;
  Stage<STAGES> k_stage, v_stage;
  Cache cache = {block_table + (i64)segment * max_blocks, 0, max_blocks, block_size};
  load_queries(s, slots, q_map, it, q_stage, lane);
  load_tiles(s, k_map, v_map, it, cache, it.head / (H / K), k_stage, v_stage, lane);
}

// Tokens in no segment see nothing: out 0, lse -inf. By three warps of every block.
DEVICE void clear_unowned(T* out, float* lse, const int* cu_seqlens_q, int B, int Tq, int H) {
  i64 from = (i64)cu_seqlens_q[B] * H, to = (i64)Tq * H;
  i64 block = blockIdx.x + (i64)blockIdx.y * gridDim.x;
  i64 at = block * (LOADERS - 32) + threadIdx.x - 32;
  i64 stride = (i64)gridDim.x * gridDim.y * (LOADERS - 32);
  for (i64 i = from + at; i < to; i += stride) lse[i] = -INF;
  for (i64 i = from * (D / 8) + at; i < to * (D / 8); i += stride)
    ((uint4*)out)[i] = make_uint4(0, 0, 0, 0);
}

// -- joining -------------------------------------------------------------------------------------
DEVICE float2 load_two(u32 p) {
  float2 x;
  asm volatile("ld.shared::cluster.v2.f32 {%0,%1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(p)
               : "memory");
  return x;
}
DEVICE float4 load_four(u32 p) {
  float4 x;
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(p) : "memory");
  return x;
}

// This warpgroup's sums of all keys that the block took: [TILE_M][PITCH], then (m, sum) [TILE_M].
DEVICE void keep_sums(const Output& o, const Rows& r, int group, u8* room) {
  int lane = threadIdx.x & 31, first = 64 * group + (threadIdx.x >> 5 & 3) * 16 + lane / 4;
  float2* stats = (float2*)(room + TILE_M * PITCH * 4);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float sum = r.sum[i] + __shfl_xor_sync(FULL_MASK, r.sum[i], 1);
    sum += __shfl_xor_sync(FULL_MASK, sum, 2);
    float* to = (float*)room + (first + 8 * i) * PITCH + 2 * (lane % 4);
    if (lane % 4 == 0)
      stats[first + 8 * i] = make_float2(r.top[i] * (SCORE_CHANGED ? 1.f : r.unit), sum);
#pragma unroll
    for (int j = 0; j < D / 8; j++)
      *(float2*)(to + 8 * j) = make_float2(o[4 * j + 2 * i], o[4 * j + 2 * i + 1]);
  }
}

// Four columns a thread of the rows that are this block's to write.
DEVICE void join(const Item& it, u32 room, T* out, float* lse, const float* sinks, int H) {
  constexpr int PIECES = D / 4, SHARE = (TILE_M + SPLIT - 1) / SPLIT;
  int thread = threadIdx.x - LOADERS;
#pragma unroll 1
  for (int i = thread; i < SHARE * PIECES; i += 128 * CONSUMERS) {
    int row = blockIdx.x * SHARE + i / PIECES, piece = i % PIECES;
    if (row >= it.rows) return;  // so are the rows after it
    int head = it.head + row % PACK;
    float2 stats[SPLIT];
    float4 part[SPLIT];
#pragma unroll
    for (int s = 0; s < SPLIT; s++) {
      stats[s] = load_two(peer(room + TILE_M * PITCH * 4 + row * 8, s));
      part[s] = load_four(peer(room + (row * PITCH + piece * 4) * 4, s));
    }
    float sink = SINKS ? sinks[head] * LOG2E : -INF, top = sink;
#pragma unroll
    for (int s = 0; s < SPLIT; s++) top = fmaxf(top, stats[s].x);
    float base = top == -INF ? 0.f : top, total = exp2_fast(sink - base);
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
    for (int s = 0; s < SPLIT; s++) {
      if (stats[s].y == 0.f) continue;  // it saw no key: its sums mean nothing
      float weight = exp2_fast(stats[s].x - base);
      total += weight * stats[s].y;
      sum.x += weight * part[s].x, sum.y += weight * part[s].y;
      sum.z += weight * part[s].z, sum.w += weight * part[s].w;
    }
    float scale = total > 0.f ? 1.f / total : 0.f;
    i64 at = (i64)(it.row + row / PACK) * H + head;
    *(uint2*)(out + at * D + piece * 4) = make_uint2(pack2<T>(sum.x * scale, sum.y * scale),
                                                     pack2<T>(sum.z * scale, sum.w * scale));
    if (piece == 0) lse[at] = total > 0.f ? (base + log2f(total)) * LN2 : -INF;
  }
}

// -- the computing warpgroups --------------------------------------------------------------------
DEVICE Item consume(const Shared& at, u8* shared, const Item* slots, const float* alibi_slopes,
                    Options options) {
  int group = __shfl_sync(FULL_MASK, threadIdx.x / 128 - 1, 0);
  Consumer c = {at, options, group};
  if (PINGPONG && CONSUMERS > 1 && group == 0) named_arrive(1, 256);
  Item it = await_item(c, slots);
  if (it.row < 0) return it;
  Output o;
#pragma unroll
  for (int j = 0; j < D / 2; j++) o[j] = 0.f;
  Rows r = fresh_rows(it, group, alibi_slopes, options);
  if (it.end > it.first) {
    Scores s;
    Weights p;
    skip(c, it.end - own_end(c, it));
    c.await_k();
    start_scores(s, c.q(), c.k());
    attend(c, shared, s, p, o, r, it);
    wgmma_wait<0>();
    pin(o);
    pin(p);
  }
  named_sync(ALL_CONSUMERS, 128 * CONSUMERS);  // all are done with the tiles
  keep_sums(o, r, group, shared + Q_BYTES);
  return it;
}

// Grid (SPLIT, tiles * H / PACK): (Tq + TOKENS - 1) / TOKENS + B - 1 tiles are enough for any
// cu_seqlens, and those that are not needed end at once. Shared memory as in attention_sm90.cu.
extern "C" __global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__(THREADS, 1)
attention_split(
    const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
    const __grid_constant__ TensorMap v_map, T* out, float* lse, const int* cu_seqlens_q,
    const int* kv_lens, const int* block_table, const float* alibi_slopes, const float* sinks,
    int Tq, int B, int H, int K, int max_blocks, int block_size, int left, int right,
    int bottom_right, float scale, float softcap) {
  extern __shared__ u8 memory[];
  u8* shared = memory + (-shared_address(memory) & 1023);
  Shared s = arrange(shared_address(shared));
  Item* slots = item_slots(shared);
  Options options = {left, right, scale, softcap};
  if (threadIdx.x == 0) prepare(s, &q_map, &k_map, &v_map);
  pdl_launch();
  pdl_wait();
  __syncthreads();
  if (threadIdx.x < LOADERS) {
    registers_down<40>();
    if (threadIdx.x < 32)
      produce(s, slots, &q_map, &k_map, &v_map, cu_seqlens_q, kv_lens, block_table, B, H, K,
              max_blocks, block_size, bottom_right, options);
    else
      clear_unowned(out, lse, cu_seqlens_q, B, Tq, H);
    __syncwarp();
    cluster_sync();
    cluster_sync();
    return;
  }
  registers_up<232>();
  Item it = consume(s, shared, slots, alibi_slopes, options);
  cluster_sync();
  if (it.row >= 0) join(it, s.k, out, lse, sinks, H);
  cluster_sync();  // until then the others read this block's memory
}
