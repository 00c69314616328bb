// What attention_decode.cu does with sums: merged over the warps of a block, to a slot of the
// partials; under FINISH to the output, by the last of the blocks that share a row.

// A range without keys: rows R0..R1 of a sequence, slots from..to; FINISH: 0 and the sink.
DEVICE void write_empty(const Call& a, const Sequence& s, int kv, int R0, int R1, int from,
                        int to, bool inside) {
  if (EARLY) pdl_wait();
#pragma unroll 1
  for (int R = R0 + (threadIdx.x >> 5); R < R1; R += N_WARPS) {
    int query = (u32)R / (u32)a.G, head = kv * a.G + R - query * a.G, lane = threadIdx.x & 31;
    i64 row = (i64)(s.first + query) * a.H + head;
#if FINISH
#pragma unroll 1
    for (int d = lane; d < V_DIM; d += 32) a.out[row * V_DIM + d] = from_float<QT>(0.f);
    if (lane == 0) a.lse[row] = a.sinks && inside ? a.sinks[head] : -INF;
#else
#pragma unroll 1
    for (int i = from + lane; i < to; i += 32)
      ((float2*)a.ms)[row * a.S + i] = make_float2(-INF, 0.f);
#endif
  }
}

// exp(m - M) / total of sums with maximum m (log2 units) and `sum`; sets lse.
DEVICE float finish_row(const Call& a, int row, float m, float sum, float& lse) {
  float sink = a.sinks ? a.sinks[row % a.H] * LOG2E : -INF, top = fmaxf(m, sink);
  float base = top == -INF ? 0.f : top;
  float total = sum * exp2_fast(m - base) + exp2_fast(sink - base);
  lse = total > 0.f ? logf(total) + base * LN2 : -INF;
  return total > 0.f ? exp2_fast(m - base) / total : 0.f;
}

constexpr int LANE_WIDTH = V_DIM % 4 == 0 ? 4 : 1;  // columns of a thread in what follows
constexpr int ITEMS_OF_ROW = V_DIM / LANE_WIDTH;
typedef Vec<float, LANE_WIDTH> Columns;

DEVICE void store_out(const Call& a, i64 row, int d, Columns x, float scale) {
  Vec<QT, LANE_WIDTH> y;
#pragma unroll
  for (int e = 0; e < LANE_WIDTH; e++) y.at[e] = from_float<QT>(x.at[e] * scale);
  store_vec<QT, LANE_WIDTH>(a.out + row * V_DIM + d, y);
}

#if FINISH
// Slots of one row as a lane sees them: its columns of BATCH of them, read past L1, which other
// blocks' writes do not reach.
constexpr int COLUMN_GROUPS = (ITEMS_OF_ROW + 31) / 32, BATCH = COLUMN_GROUPS == 1 ? 8 : 4;
struct Slots {
  Columns x[BATCH][COLUMN_GROUPS];

  DEVICE void load(const float* from, int s, int step, int used) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int j = 0; j < BATCH; j++)
#pragma unroll
      for (int c = 0; c < COLUMN_GROUPS; c++) {
        int at = s + j * step, item = c * 32 + lane;
        const float* p = from + (i64)at * V_DIM + item * LANE_WIDTH;
        x[j][c] = Columns();
        if (at >= used || item >= ITEMS_OF_ROW) continue;
        if (LANE_WIDTH == 4)
          *(float4*)&x[j][c] = __ldcg((const float4*)p);
        else
          x[j][c].at[0] = __ldcg(p);
      }
  }
};

// Joins `used` slots of all rows. A warp takes a row, or every parts-th slot of one; then the parts
// are added up through shared memory.
DEVICE void join_slots(const Call& a, const Shared& sh, int rows, int used) {
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, parts = max(1, N_WARPS / rows);
#pragma unroll 1
  for (int task = warp; task < rows * parts; task += N_WARPS) {
    int part = task / rows, r = task - part * rows, row = sh.rows[r].result;
    const float2* ms = (const float2*)a.ms + (i64)row * a.S;
    const float* from = a.partial + (i64)row * a.S * V_DIM;
    Slots slots;
    slots.load(from, part, parts, used);
    float2 held = lane < used ? __ldcg(ms + lane) : make_float2(-INF, 0.f);
    float m = held.x;
    for (int s = 32 + lane; s < used; s += 32) m = fmaxf(m, __ldcg(ms + s).x);
    m = warp_max(m);
    float base = m == -INF ? 0.f : m, weight = exp2_fast((held.x - base) * LOG2E);
    float sum = weight * held.y, lse;
    for (int s = 32 + lane; s < used; s += 32) {
      float2 other = __ldcg(ms + s);
      sum += exp2_fast((other.x - base) * LOG2E) * other.y;
    }
    float scale = finish_row(a, row, m * LOG2E, warp_sum(sum), lse);
    if (part == 0 && lane == 0) a.lse[row] = lse;
    Columns total[COLUMN_GROUPS] = {};
#pragma unroll 1
    for (int s = part; s < used; s += parts * BATCH) {
      if (s != part) slots.load(from, s, parts, used);
#pragma unroll
      for (int j = 0; j < BATCH; j++) {
        int at = s + j * parts;
        float w = __shfl_sync(FULL_MASK, weight, at & 31);
        if (at >= 32 && at < used) w = exp2_fast((__ldcg(ms + at).x - base) * LOG2E);
#pragma unroll
        for (int c = 0; c < COLUMN_GROUPS; c++)
#pragma unroll
          for (int e = 0; e < LANE_WIDTH; e++) total[c].at[e] += w * slots.x[j][c].at[e];
      }
    }
#pragma unroll
    for (int c = 0; c < COLUMN_GROUPS; c++) {
      int item = c * 32 + lane;
      if (item >= ITEMS_OF_ROW) continue;
      if (parts == 1) {
        store_out(a, row, item * LANE_WIDTH, total[c], scale);
      } else {
#pragma unroll
        for (int e = 0; e < LANE_WIDTH; e++) total[c].at[e] *= scale;
        *(Columns*)(sh.sums + (task * ITEMS_OF_ROW + item) * LANE_WIDTH) = total[c];
      }
    }
  }
  if (parts == 1) return;
  __syncthreads();
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * ITEMS_OF_ROW; i += N_WARPS * 32) {
    Columns sum = {};
    for (int part = 0; part < parts; part++) {
      Columns x = *(Columns*)(sh.sums + (part * rows * ITEMS_OF_ROW + i) * LANE_WIDTH);
#pragma unroll
      for (int e = 0; e < LANE_WIDTH; e++) sum.at[e] += x.at[e];
    }
    int r = (u32)i / ITEMS_OF_ROW, d = (u32)i % ITEMS_OF_ROW * LANE_WIDTH;
    store_out(a, sh.rows[r].result, d, sum, 1.f);
  }
}

// Whether this block is the last of `used` that have written their slots; then it sees them all.
DEVICE bool last_of(const Call& a, const Shared& sh, int used) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    u32 *counter = a.counters + sh.rows[0].result, before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
                 : "=r"(before) : "l"(counter) : "memory");
    last = before == used - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  return last;
}
#endif

// All warps' results, merged.
DEVICE void write_merged(const Call& a, const Shared& sh, Sums& sums, int rows, Place place) {
  int warp = threadIdx.x >> 5;
  bool alone = FINISH && place.used == 1;
  sums.stats(sh.stats + warp * ROWS);
  __syncthreads();  // all rings are idle now
  auto highest = [&](int r) {
    float m = sh.stats[r].x;
#pragma unroll
    for (int w = 1; w < N_WARPS; w++) m = fmaxf(m, sh.stats[w * ROWS + r].x);
    return m;
  };
  sums.store(sh.sums + warp * ROWS * SUM_PITCH, rows, [&](int r, float own) {
    return own == -INF ? 0.f : exp2_fast(own - highest(r));
  });
  if (threadIdx.x < rows) {
    int r = threadIdx.x;
    float m = highest(r), total = 0.f;
#pragma unroll
    for (int w = 0; w < N_WARPS; w++) {
      float2 x = sh.stats[w * ROWS + r];
      if (x.x != -INF) total += x.y * exp2_fast(x.x - m);
    }
    if (alone)
      sh.scale[r] = finish_row(a, sh.rows[r].result, m, total, a.lse[sh.rows[r].result]);
    else
      ((float2*)a.ms)[(i64)sh.rows[r].result * a.S + place.split] = make_float2(m * LN2, total);
  }
  __syncthreads();
#pragma unroll 1
  for (u32 i = threadIdx.x; i < rows * ITEMS_OF_ROW; i += N_WARPS * 32) {
    u32 r = i / ITEMS_OF_ROW, d = i % ITEMS_OF_ROW * LANE_WIDTH;
    Columns x = {};
#pragma unroll
    for (int w = 0; w < N_WARPS; w++) {
      Columns y = load_vec<float, LANE_WIDTH>(sh.sums + (w * ROWS + r) * SUM_PITCH + d);
#pragma unroll
      for (int e = 0; e < LANE_WIDTH; e++) x.at[e] += y.at[e];
    }
    i64 row = sh.rows[r].result;
    if (alone)
      store_out(a, row, d, x, sh.scale[r]);
    else
      store_vec<float, LANE_WIDTH>(a.partial + (row * a.S + place.split) * V_DIM + d, x);
  }
#if FINISH
  if (!alone && last_of(a, sh, place.used)) join_slots(a, sh, rows, place.used);
#endif
  __syncthreads();
}
