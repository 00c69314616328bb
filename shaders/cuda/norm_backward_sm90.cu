// norm_backward for Hopper: rows come through a ring in shared memory, filled by bulk copies, so
// that RING rows are on their way whatever the registers hold. Formulas: norm_gradient.cuh.
//
// Threads: LANES of them a row (32, or all of the block's), ROWS teams a block, each with a ring of
// its own: RING slots of a row of g, x and (ADD) passed. The first lane refills a slot when the
// sums over its row are known, as then all lanes have read it. Results leave by plain stores.
// Dynamic shared memory: ROWS * RING * (2 + ADD) * E elements of X; rows are multiples of 16 bytes.
#include "hopper.cuh"
#include "norm_gradient.cuh"

#define PARTS (2 + ADD)

DEVICE void bulk_load(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
      ::"r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

// Arguments as norm_backward's.
extern "C" __global__ void __launch_bounds__(LANES* ROWS)
norm_backward(const X* g, const X* passed, const X* x, const W* weight, X* dh, float* partial,
              int rows, int E, float eps, float offset) {
  extern __shared__ __align__(128) u8 ring[];
  __shared__ alignas(8) u64 full[ROWS * RING];
  __shared__ float room[LANES > 32 ? (2 + LAYER) * LANES / 16 : 1];
  int turn = 0;
  const int lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
  const float inverse = __fdividef(1.f, (float)E);
  const int group = blockIdx.x * ROWS + team, groups = gridDim.x * ROWS;
  X* slots = (X*)ring + (i64)team * RING * PARTS * E;
  const u32 barriers = shared_address(full + team * RING);
  if (lane == 0)
    for (int s = 0; s < RING; s++) mbarrier_init(barriers + 8 * s, 1);
  mbarrier_init_fence();
  __syncthreads();
  pdl_wait();
  pdl_launch();
  auto fill = [&](int row, int slot) {
    if (row >= rows) return;
    const u32 bytes = E * (u32)sizeof(X), barrier = barriers + 8 * slot;
    const u32 to = shared_address(slots + slot * PARTS * E);
    mbarrier_expect(barrier, PARTS * bytes);
    bulk_load(to, g + (i64)row * E, bytes, barrier);
    bulk_load(to + bytes, x + (i64)row * E, bytes, barrier);
    if (ADD) bulk_load(to + 2 * bytes, passed + (i64)row * E, bytes, barrier);
  };
  if (lane == 0)
    for (int s = 0; s < RING; s++) fill(group + s * groups, s);
  float sum_w[ITEMS][VEC] = {}, sum_b[ITEMS][VEC] = {}, w[ITEMS][VEC];
  load_gain(weight, lane, E, offset, w);
  int slot = 0;
  u32 parity = 0;
  for (int row = group; row < rows; row += groups) {
    const X* here = slots + slot * PARTS * E;
    mbarrier_wait(barriers + 8 * slot, parity);
    Run b[ITEMS], a[ITEMS], p[ADD ? ITEMS : 1];
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      b[i].clear();
      a[i].clear();
      if (!INSIDE(i)) continue;
      b[i] = load_pack<X, VEC>(here + COLUMN(i));
      a[i] = load_pack<X, VEC>(here + E + COLUMN(i));
      if (ADD) p[ADD ? i : 0] = load_pack<X, VEC>(here + 2 * E + COLUMN(i));
    }
    float mean = 0.f, sums[2 + LAYER] = {};
#if LAYER
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
#pragma unroll
      for (int j = 0; j < VEC; j++) mean += a[i][j];
    mean = row_reduce<AddOp, LANES>(mean, room, turn) * inverse;
#endif
#pragma unroll
    for (int i = 0; i < ITEMS; i++)
      if (INSIDE(i)) add_to_sums(a[i], b[i], w[i], mean, sums);
    row_reduce_all<AddOp, LANES, 2 + LAYER>(sums, room, turn);
    if (LANES == 32) __syncwarp();
    if (lane == 0) fill(row + RING * groups, slot);
    const RowScale scale(mean, sums, inverse, eps);
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      if (!INSIDE(i)) continue;
      float result[VEC];
      finish(a[i], b[i], w[i], scale, result, sum_w[i], sum_b[i]);
      if (ADD)
#pragma unroll
        for (int j = 0; j < VEC; j++) result[j] += p[ADD ? i : 0][j];
      store_floats<X, VEC>(dh + (i64)row * E + COLUMN(i), result);
    }
    if (++slot == RING) {
      slot = 0;
      parity ^= 1;
    }
  }
  if (partial) {
    store_sums(sum_w, partial, (float*)ring, lane, E);
    if (LAYER) store_sums(sum_b, partial + (i64)gridDim.x * E, (float*)ring, lane, E);
  }
}
