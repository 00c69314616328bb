// A cluster of CLUSTER blocks works on one row of logits: candidate order, barriers, each other's
// shared memory. CLUSTER 1 is a plain block (any GPU); more need sm_90.
// Macros: LOGIT float | f16 | bf16, CLUSTER 1..8, THREADS.
#include "prelude.cuh"

#define WIDTH (16 / (int)sizeof(LOGIT))
#ifndef LOADS
#define LOADS (sizeof(LOGIT) == 4 ? 4 : 2)  // of 16 bytes, in flight in a thread
#endif
#define WARPS (THREADS / 32)

#if CLUSTER > 1
#define IN_CLUSTERS __cluster_dims__(CLUSTER, 1, 1)
#else
#define IN_CLUSTERS
#endif

DEVICE int cluster_rank() {
#if CLUSTER > 1
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}
DEVICE void cluster_arrive() {
#if CLUSTER > 1
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_wait() {
#if CLUSTER > 1
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
DEVICE void cluster_sync() {
#if CLUSTER > 1
  cluster_arrive();
  cluster_wait();
#else
  __syncthreads();
#endif
}
// The same variable in the shared memory of block `rank` of the cluster.
template <typename T> DEVICE T* peer(T* p, int rank) {
#if CLUSTER > 1
  u64 there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"((u64)p), "r"(rank));
  return (T*)there;
#else
  return p;
#endif
}

// Smaller keys come first among the candidates: falling logits, ties by rising id. nan comes first,
// as in numpy's argmax; -0 ties with 0.
DEVICE u32 order_of(float x) {
  u32 bits = __float_as_uint(x + 0.f);
  u32 falling = bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
  return x == x ? falling : 0u;
}
DEVICE float logit_of(u32 order) {
  return __uint_as_float(order & 0x80000000u ? order : ~order & 0x7fffffffu);
}
DEVICE bool is_finite(u64 key) {  // inf has the order 0x7fffff, -inf 0xff800000
  const u32 order = (u32)(key >> 32);
  return order > 0x7fffffu && order < 0xff800000u;
}
DEVICE u64 key_of(float x, int id) { return (u64)order_of(x) << 32 | (u32)id; }

DEVICE u64 warp_least(u64 x) {
#pragma unroll
  for (int d = 16; d; d >>= 1) x = min(x, __shfl_xor_sync(FULL_MASK, x, d));
  return x;
}

// f(logit, id) for this block's elements of a row of V, ids rising within a thread, the same ones
// in every call.
template <typename F> DEVICE void for_row(const LOGIT* row, int V, F f) {
  int skew = (int)((u64)row & 15) / (int)sizeof(LOGIT), rank = cluster_rank();
  int head = min(skew ? WIDTH - skew : 0, V);
  int packs = (V - head) / WIDTH, tail = head + packs * WIDTH;
  if (rank == 0 && threadIdx.x < head) f(to_float(row[threadIdx.x]), (int)threadIdx.x);
  const LOGIT* from = row + head;
  for (int p = rank * THREADS + threadIdx.x; p < packs; p += LOADS * CLUSTER * THREADS) {
    Vec<LOGIT, WIDTH> v[LOADS];
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      int at = p + u * CLUSTER * THREADS;
      if (at < packs) v[u] = load_vec<LOGIT, WIDTH>(from + at * WIDTH);
    }
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      int at = p + u * CLUSTER * THREADS;
      if (at >= packs) break;
#pragma unroll
      for (int i = 0; i < WIDTH; i++) f(v[u][i], head + at * WIDTH + i);
    }
  }
  int last = tail + (int)threadIdx.x;
  if (rank == CLUSTER - 1 && last < V) f(to_float(row[last]), last);
}

// The key of the row's first candidate, known to every thread of the cluster; `own` becomes that of
// this thread's elements, ~0 if it has none above -inf. `slots` holds WARPS + CLUSTER keys of
// shared memory. The caller has called cluster_arrive() and not yet waited.
DEVICE u64 first_candidate(const LOGIT* row, int V, u64* slots, u64& own) {
  float best = -INF;
  int id = -1;
  for_row(row, V, [&](float x, int i) {
    if (!(x <= best) && best == best) {  // larger, or the first nan
      best = x;
      id = i;
    }
  });
  own = id < 0 ? ~0ull : key_of(best, id);
  u64 key = warp_least(own);
  if ((threadIdx.x & 31) == 0) slots[threadIdx.x >> 5] = key;
  __syncthreads();
  key = warp_least((threadIdx.x & 31) < WARPS ? slots[threadIdx.x & 31] : ~0ull);
#if CLUSTER > 1
  cluster_wait();  // all blocks of the cluster have started
  if (threadIdx.x < CLUSTER) *peer(slots + WARPS + cluster_rank(), threadIdx.x) = key;
  cluster_sync();
  key = slots[WARPS];
#pragma unroll
  for (int r = 1; r < CLUSTER; r++) key = min(key, slots[WARPS + r]);
#endif
  return min(key, key_of(-INF, 0));  // where all are -inf
}
