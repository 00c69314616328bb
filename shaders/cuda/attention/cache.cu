// The paged cache: where tokens lie, writing rows of keys and values, stepping a decode loop.
//
// slot_mapping: slot = block * bs + position % bs, block = table[sequence, position / bs %
//   columns]; -1 where the block or the sequence is negative. One thread a token.
// kv_write: row t of k and v to row slots[t] of the caches; rows out of range are dropped.
//   `team` threads a token, runs of VEC elements; blockIdx.y is 0 for k and 1 for v.
// advance_rows: state [F, R], a column a sequence; see boostr/ops/rows.py. One thread a place.
//
// Macros: X type of new rows, C type of the caches, VEC (only kv_write).
#include "rows.cuh"

#ifndef X
extern "C" __global__ void __launch_bounds__(256)
slot_mapping(const int* positions, const int* sequences, const int* table, int* slots, int T,
             int columns, int block_size) {
  const int t = blockIdx.x * 256 + threadIdx.x;
  pdl_wait();
  pdl_launch();
  if (t >= T) return;
  const int position = positions[t];
  int page = position / block_size, offset = position % block_size;
  if (offset < 0) {  // floor, as the composite has it
    offset += block_size;
    page--;
  }
  int column = page % columns;
  if (column < 0) column += columns;
  const int sequence = sequences[t];
  const int block = sequence < 0 ? -1 : table[(i64)sequence * columns + column];
  slots[t] = block < 0 ? -1 : block * block_size + offset;
}

enum { IDS, POSITIONS, LENGTHS, OWNERS, DRAWS, LIMITS, ENDS, FIELDS = ENDS + 8 };

extern "C" __global__ void __launch_bounds__(64)
advance_rows(int* state, const int* chosen, const int* places, int B, int R) {
  const int b = blockIdx.x * 64 + threadIdx.x;
  pdl_wait();
  pdl_launch();
  if (b >= B) return;
  const int r = places ? places[b] : b, token = chosen[b];
  if (r < 0 || r >= R) return;
  auto at = [&](int field) -> int& { return state[(i64)field * R + r]; };
  if (at(OWNERS) < 0) return;
  const int position = at(POSITIONS) + 1;
  bool ended = token < 0 || position >= at(LIMITS);
#pragma unroll
  for (int field = ENDS; field < FIELDS; field++) ended |= at(field) == token;
  at(IDS) = token;
  at(POSITIONS) = position;
  at(LENGTHS) = ended ? 0 : at(LENGTHS) + 1;
  at(DRAWS)++;
  if (ended) at(OWNERS) = -1;
}
#else
extern "C" __global__ void
kv_write(const X* k, const X* v, C* k_cache, C* v_cache, const int* slots, int k_width, int v_width,
         i64 k_stride, i64 v_stride, int total_slots, int T, int team) {
  const bool is_v = blockIdx.y;
  const i64 t = (i64)blockIdx.x * (blockDim.x / team) + threadIdx.x / team;
  const X* source = is_v ? v + t * v_stride : k + t * k_stride;
  const int width = is_v ? v_width : k_width;
  pdl_wait();
  pdl_launch();
  const i64 slot = t < T ? slots[t] : -1;
  if (slot < 0 || slot >= total_slots) return;
  C* to = (is_v ? v_cache : k_cache) + slot * width;
#pragma unroll 2
  for (int i = threadIdx.x % team * VEC; i < width; i += team * VEC) {
    Pack<X, VEC> a = load_pack<X, VEC>(source + i);
    float y[VEC];
#pragma unroll
    for (int j = 0; j < VEC; j++) y[j] = a[j];
    store_floats<C, VEC>(to + i, y);
  }
}
#endif
