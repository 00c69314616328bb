// Rows of a table by token id, decoded from their stored form; and the gradient of the table.
//
//   out[t] = table[ids[t]]            dtable[v] = sum of g[t] over the t with ids[t] = v
//
// Ids out of range read the nearest row and give no gradient.
//
// Forward: 256 threads a block, a thread decodes RUN elements; `chunks` blocks a token.
// Macros: those of weights.cuh, RUN 8 or 1, O type of out, ID type of ids.
//
// Backward, deterministic: `count` numbers the tokens of each id (in any order), `place` gives each
// id that occurs a stretch of `list` (in any order), `fill` writes the tokens there; `gather_few`
// (ids of up to FEW tokens, a block each) and `gather` (the others, a block for 32 RUN columns)
// sort the stretch and add its rows up in the order of tokens. An id that more than CAP tokens
// have, of which there are fewer than T / CAP, searches all ids in order instead.
// Table rows that do not occur are zeroed by `zero`.
// Macros: ID, X type of g, O type of dtable, RUN; no CODES.
#include "rows.cuh"

#ifdef CODES
#include "weights.cuh"

extern "C" __global__ void __launch_bounds__(256)
embedding(const ID* ids, Planes table, O* out, int V, int E, int chunks) {
  const i64 t = blockIdx.x / chunks;
  const int column = ((blockIdx.x % chunks) * 256 + threadIdx.x) * RUN;
  pdl_wait();
  pdl_launch();
  if (column >= E) return;
  const i64 id = (i64)ids[t];
  float y[RUN];
  decode<RUN>(weight_row(table, id < 0 ? 0 : id < V ? id : V - 1, E), column, y);
  store_floats<O, RUN>(out + t * E + column, y);
}
#else
#define CAP 1024
#define FEW 16

// dtable = 0, 16 bytes a thread and step; counts [V] = 0 and totals [3] = 0.
extern "C" __global__ void __launch_bounds__(256)
zero(uint4* table, i64 vectors, u8* tail, int tail_bytes, int* counts, int* totals, int V) {
  const i64 at = (i64)blockIdx.x * 256 + threadIdx.x, hop = (i64)gridDim.x * 256;
  pdl_wait();
  pdl_launch();
  for (i64 i = at; i < vectors; i += hop) table[i] = make_uint4(0, 0, 0, 0);
  for (i64 i = at; i < tail_bytes; i += hop) tail[i] = 0;
  for (i64 i = at; i < V; i += hop) counts[i] = 0;
  if (at < 3) totals[at] = 0;
}

extern "C" __global__ void __launch_bounds__(256)
count(const ID* ids, int* counts, int* number, int T, int V) {
  const int t = blockIdx.x * 256 + threadIdx.x;
  pdl_wait();
  pdl_launch();
  if (t >= T) return;
  const i64 id = (i64)ids[t];
  number[t] = id >= 0 && id < V ? atomicAdd(counts + id, 1) : -1;
}

// The first token of an id takes its stretch. totals: tokens placed, ids of few tokens (they lie in
// `present` from its start), other ids (from its end, T - 1, backwards). A warp adds at once.
extern "C" __global__ void __launch_bounds__(256)
place(const ID* ids, const int* counts, const int* number, int* starts, int* present, int* totals,
      int T) {
  const int t = blockIdx.x * 256 + threadIdx.x;
  pdl_wait();
  pdl_launch();
  const int lane = threadIdx.x & 31;
  const bool first = t < T && number[t] == 0;
  const int id = first ? (int)ids[t] : 0, n = first ? counts[id] : 0;
  int end = n;  // of this stretch, from the start of the warp's
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int below = __shfl_up_sync(FULL_MASK, end, d);
    if (lane >= d) end += below;
  }
  const u32 few = __ballot_sync(FULL_MASK, first && n <= FEW);
  int base = 0, place_few = 0;
  if (lane == 31 && end) base = atomicAdd(totals, end);
  if (lane == 31 && few) place_few = atomicAdd(totals + 1, __popc(few));
  base = __shfl_sync(FULL_MASK, base, 31);
  place_few = __shfl_sync(FULL_MASK, place_few, 31);
  if (!first) return;
  starts[id] = base + end - n;
  if (n <= FEW) present[place_few + __popc(few & ((1u << lane) - 1))] = id;
  else present[T - 1 - atomicAdd(totals + 2, 1)] = id;
}

extern "C" __global__ void __launch_bounds__(256)
fill(const ID* ids, const int* number, const int* starts, int* list, int T) {
  const int t = blockIdx.x * 256 + threadIdx.x;
  pdl_wait();
  pdl_launch();
  if (t < T && number[t] >= 0) list[starts[ids[t]] + number[t]] = t;
}

// A block an id; thread c adds up columns c RUN ..., (c + 256) RUN ..., in f32.
extern "C" __global__ void __launch_bounds__(256)
gather_few(const X* g, O* table, const int* counts, const int* starts, const int* present,
           const int* totals, const int* list, int E) {
  __shared__ int tokens[FEW], sorted[FEW];
  pdl_wait();
  pdl_launch();
  if (blockIdx.x >= totals[1]) return;
  const int id = present[blockIdx.x], n = counts[id];
  if (threadIdx.x < n) tokens[threadIdx.x] = list[starts[id] + threadIdx.x];
  __syncthreads();
  if (threadIdx.x < n) {
    int rank = 0;
    for (int k = 0; k < n; k++) rank += tokens[k] < tokens[threadIdx.x];
    sorted[rank] = tokens[threadIdx.x];
  }
  __syncthreads();
  for (int column = threadIdx.x * RUN; column < E; column += 256 * RUN) {
    float sum[RUN] = {};
#pragma unroll 4
    for (int i = 0; i < n; i++) {
      Pack<X, RUN> v = load_pack<X, RUN>(g + (i64)sorted[i] * E + column);
#pragma unroll
      for (int j = 0; j < RUN; j++) sum[j] += v[j];
    }
    store_floats<O, RUN>(table + (i64)id * E + column, sum);
  }
}

// 8 warps of 32 RUN columns; warp w adds tokens w, w + 8, ... of the sorted stretch, in f32.
extern "C" __global__ void __launch_bounds__(256, 4)
gather(const ID* ids, const X* g, O* table, const int* counts, const int* starts,
       const int* present, const int* totals, const int* list, int T, int E) {
  __shared__ int tokens[CAP], sorted[CAP];
  __shared__ int found;
  __shared__ float room[8][32 * RUN];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int column = (blockIdx.y * 32 + lane) * RUN;
  pdl_wait();
  pdl_launch();
  if (blockIdx.x >= totals[2]) return;
  const int id = present[T - 1 - blockIdx.x], n = counts[id];
  float sum[RUN] = {};
  auto add = [&](int many) {
#pragma unroll 4
    for (int i = warp; i < many; i += 8) {
      if (column >= E) continue;
      Pack<X, RUN> v = load_pack<X, RUN>(g + (i64)sorted[i] * E + column);
#pragma unroll
      for (int j = 0; j < RUN; j++) sum[j] += v[j];
    }
  };
  if (n <= CAP) {
    const int* mine = list + starts[id];
    for (int i = threadIdx.x; i < n; i += 256) tokens[i] = mine[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += 256) {  // its rank is its place
      int rank = 0;
      for (int k = 0; k < n; k++) rank += tokens[k] < tokens[i];
      sorted[rank] = tokens[i];
    }
    __syncthreads();
    add(n);
  } else {
    for (int base = 0; base < T; base += CAP) {  // CAP ids at a time, in order, by the first warp
      if (warp == 0) {
        int many = 0;
        for (int t = base + lane; t - lane < min(base + CAP, T); t += 32) {
          const bool hit = t < T && (i64)ids[t] == id;
          const u32 hits = __ballot_sync(FULL_MASK, hit);
          if (hit) sorted[many + __popc(hits & ((1u << lane) - 1))] = t;
          many += __popc(hits);
        }
        if (lane == 0) found = many;
      }
      __syncthreads();
      add(found);
      __syncthreads();
    }
  }
#pragma unroll
  for (int j = 0; j < RUN; j++) room[warp][lane * RUN + j] = sum[j];
  __syncthreads();
  const int first = blockIdx.y * 32 * RUN;
  for (int c = threadIdx.x; c < 32 * RUN && first + c < E; c += 256) {
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < 8; w++) total += room[w][c];
    table[(i64)id * E + first + c] = from_float<O>(total);
  }
}
#endif
