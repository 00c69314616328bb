// The order in which the blocks of attention_sm90.cu take their work: a list of segments, longest
// first, made on the device, because cu_seqlens is known only there.

// plan: int32 [4 + 4 B]: next item, number of items; then a record for each segment, longest first:
// (first item, segment, tiles of rows, heads of a group). Items of a segment go by groups of heads
// whose keys and values fit into L2, in a group by tiles from the last to the first, then by heads.
#define RECORD(plan, i) ((const int4*)(plan) + 1 + (i))

DEVICE int block_prefix(int x, int* room) {  // inclusive, over 1024 threads
  int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  for (int d = 1; d < 32; d *= 2) {
    int below = __shfl_up_sync(FULL_MASK, x, d);
    if (lane >= d) x += below;
  }
  if (lane == 31) room[warp] = x;
  __syncthreads();
  int before = lane < warp ? room[lane] : 0;
  for (int d = 16; d; d /= 2) before += __shfl_xor_sync(FULL_MASK, before, d);
  __syncthreads();
  return x + before;
}

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
