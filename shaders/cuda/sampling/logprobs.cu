// Log probabilities of a chosen token and of the k likeliest of each row; see
// boostr/ops/logprobs.py.
//
// logits [B, V] contiguous, ids int32 [B] -> chosen float32 [B], best int32 [B, k], logs float32
// [B, k]. k <= MOST; V below 2^31.
// Mapping: CLUSTER blocks of THREADS a row. Every thread knows the first of its elements that has
// not been taken; k times a block takes the first of all, whose thread looks for its next one. Block
// 0 puts the blocks' lists together: a key's place is the number of smaller ones.
// Macros: LOGIT float | f16 | bf16, CLUSTER, THREADS.
#include "row_cluster.cuh"

#define MOST 20
#define NO_KEY (~0ull)

struct Shared {
  u64 slots[WARPS + CLUSTER];
  u64 firsts[2][WARPS];  // of the warps, in turn, so that one barrier does
  u64 taken[MOST];       // the block's first k, NO_KEY where it has fewer
  u64 all[CLUSTER * MOST];
  float sums[WARPS];
  float sum;
};

// The first of this thread's elements behind `last`.
DEVICE u64 next_of_own(const LOGIT* x, int V, u64 last) {
  u64 next = NO_KEY;
  for_row(x, V, [&](float v, int id) {
    const u64 key = key_of(v, id);
    if (key > last && key < next) next = key;
  });
  return next;
}

// s.taken, from the first element of each thread.
DEVICE void take(Shared& s, const LOGIT* x, int V, int k, u64 own) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
#pragma unroll 1
  for (int i = 0; i < k; i++) {
    u64* firsts = s.firsts[i & 1];
    u64 key = warp_least(own);
    if (lane == 0) firsts[warp] = key;
    __syncthreads();
    key = warp_least(lane < WARPS ? firsts[lane] : NO_KEY);
    if (threadIdx.x == 0) s.taken[i] = key;
    if (own == key && key != NO_KEY) own = next_of_own(x, V, key);
  }
}

extern "C" __global__ IN_CLUSTERS __launch_bounds__(THREADS) void top_logprobs(
    const LOGIT* logits, const int* ids, float* chosen, int* best, float* logs, int V, int k) {
  __shared__ Shared s;
  pdl_launch();
  cluster_arrive();
  pdl_wait();
  const i64 b = blockIdx.x / CLUSTER;
  const LOGIT* x = logits + b * V;
  const bool leads = cluster_rank() == 0;
  best += b * k, logs += b * k;
  u64 own;
  const u64 first = first_candidate(x, V, s.slots, own);
  if (!is_finite(first)) {
    const float nan = __int_as_float(0x7fc00000);
    if (leads && threadIdx.x == 0) chosen[b] = nan;
    if (leads && threadIdx.x < k) best[threadIdx.x] = -1, logs[threadIdx.x] = nan;
    return;
  }
  const float top = logit_of((u32)(first >> 32));
  float sum = 0.f;
  for_row(x, V, [&](float v, int) { sum += exp2_fast((v - top) * LOG2E); });
  sum = block_sum<WARPS>(sum, s.sums);
  if (threadIdx.x == 0) s.sum = sum;
  if (k > 0 && own == NO_KEY) own = next_of_own(x, V, 0);  // none above -inf
  take(s, x, V, k, own);
  cluster_sync();
  if (leads) {
    float total = 0.f;
#pragma unroll
    for (int r = 0; r < CLUSTER; r++) total += peer(&s, r)->sum;
    const float away = logf(total);
    const int t = threadIdx.x, n = CLUSTER * k, id = ids[b];
    if (t == 0)
      chosen[b] = id >= 0 && id < V ? to_float(x[id]) - top - away : __int_as_float(0x7fc00000);
    for (int i = t; i < n; i += THREADS) s.all[i] = peer(&s, i / k)->taken[i % k];
    __syncthreads();
    for (int i = t; i < n; i += THREADS) {
      const u64 key = s.all[i];
      int place = 0;
      for (int j = 0; j < n; j++) place += s.all[j] < key;
      if (place >= k || key == NO_KEY) continue;
      best[place] = (int)(u32)key;
      logs[place] = logit_of((u32)(key >> 32)) - top - away;
    }
  }
  cluster_sync();  // the leader has read what the others hold
}
