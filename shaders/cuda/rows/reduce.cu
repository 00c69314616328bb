// argmax of rows: the index of the first maximum; see boostr/ops/reduce.py. nan is the largest.
//
// Shapes: x [B, V] contiguous -> out int32 [B]; V below 2^31. finite: rows with a nan, or whose
// maximum is infinite, give -1.
// Mapping: CLUSTER blocks of THREADS a row, which compare their bests through distributed shared
// memory: one launch, no scratch memory, nothing to reset.
// Macros: LOGIT float | f16 | bf16, CLUSTER, THREADS.
#include "row_cluster.cuh"

extern "C" __global__ IN_CLUSTERS __launch_bounds__(THREADS) void argmax(
    const LOGIT* x, int* out, int V, int finite) {
  __shared__ u64 slots[WARPS + CLUSTER];
  pdl_launch();
  cluster_arrive();
  pdl_wait();
  i64 b = blockIdx.x / CLUSTER;
  u64 own, key = first_candidate(x + b * V, V, slots, own);
  if (cluster_rank() == 0 && threadIdx.x == 0) {
    out[b] = finite && !is_finite(key) ? -1 : (int)(u32)key;
  }
}
