// What attention_decode.cu does with sums: merged over the warps of a block, to a slot of the
// partials; under FINISH to the output, by the last of the blocks that share a row.

// A range without keys: rows R0..R1 of a sequence, slots from..to; FINISH: 0 and the sink.
DEVICE void write_empty(const Call& a, const Sequence& s, int kv, int R0, int R1, int from,
                        int to, bool inside) {
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

// The factor exp(m - M) / total of sums with maximum m (log2 units) and `sum`, and lse.
DEVICE float finish_row(const Call& a, int row, float m, float sum) {
  float sink = a.sinks ? a.sinks[row % a.H] * LOG2E : -INF, top = fmaxf(m, sink);
  float base = top == -INF ? 0.f : top;
  float total = sum * exp2_fast(m - base) + exp2_fast(sink - base);
  a.lse[row] = total > 0.f ? logf(total) + base * LN2 : -INF;
  return total > 0.f ? exp2_fast(m - base) / total : 0.f;
}

constexpr int LANE_WIDTH = V_DIM % 4 == 0 ? 4 : 1;  // columns of a thread in what follows
constexpr int ITEMS_OF_ROW = V_DIM / LANE_WIDTH;
typedef Vec<float, LANE_WIDTH> Columns;

DEVICE Columns load_cached(const float* p) {  // past L1, which other blocks' writes do not reach
  Columns x;
  if (LANE_WIDTH == 4)
    *(float4*)&x = __ldcg((const float4*)p);
  else
    x.at[0] = __ldcg(p);
  return x;
}

DEVICE void store_out(const Call& a, i64 row, int d, Columns x, float scale) {
  Vec<QT, LANE_WIDTH> y;
#pragma unroll
  for (int e = 0; e < LANE_WIDTH; e++) y.at[e] = from_float<QT>(x.at[e] * scale);
  store_vec<QT, LANE_WIDTH>(a.out + row * V_DIM + d, y);
}

// Joins `used` slots of all rows. Threads take (row, columns) and, if there are more of them,
// every parts-th slot. Shared memory: [rows][used] weights | [parts][rows][V_DIM] sums.
DEVICE void join_slots(const Call& a, const Shared& sh, int rows, int used) {
  constexpr int THREADS = N_WARPS * 32, BATCH = 4;
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  float* weights = sh.sums;
  for (int r = warp; r < rows; r += N_WARPS) {
    const float2* ms = (const float2*)a.ms + (i64)sh.rows[r].result * a.S;
    float2 held = lane < used ? __ldcg(ms + lane) : make_float2(-INF, 0.f);
    float m = held.x, sum = 0.f;
    for (int s = 32 + lane; s < used; s += 32) m = fmaxf(m, __ldcg(ms + s).x);
    m = warp_max(m);
    for (int s = lane; s < used; s += 32) {
      float2 x = s < 32 ? held : __ldcg(ms + s);
      float w = x.y > 0.f ? exp2_fast((x.x - m) * LOG2E) : 0.f;
      weights[r * used + s] = w;
      sum += w * x.y;
    }
    sum = warp_sum(sum);
    if (lane == 0) sh.scale[r] = finish_row(a, sh.rows[r].result, m * LOG2E, sum);
  }
  __syncthreads();
  int items = rows * ITEMS_OF_ROW, parts = max(1, THREADS / items);
  float* room = sh.sums + round_up(rows * used, 4);
#pragma unroll 1
  for (int i = threadIdx.x; i < items * parts; i += THREADS) {
    int part = (u32)i / (u32)items, item = i - part * items;
    int r = (u32)item / ITEMS_OF_ROW, d = (u32)item % ITEMS_OF_ROW * LANE_WIDTH;
    const float* from = a.partial + (i64)sh.rows[r].result * a.S * V_DIM + d;
    Columns sum = {};
#pragma unroll 1
    for (int s = part; s < used; s += parts * BATCH) {
      Columns x[BATCH] = {};
      float w[BATCH];
#pragma unroll
      for (int j = 0; j < BATCH; j++) {
        int at = s + j * parts;
        w[j] = at < used ? weights[r * used + at] : 0.f;
        if (w[j] != 0.f) x[j] = load_cached(from + (i64)at * V_DIM);
      }
#pragma unroll
      for (int j = 0; j < BATCH; j++)
#pragma unroll
        for (int e = 0; e < LANE_WIDTH; e++) sum.at[e] += w[j] * x[j].at[e];
    }
    if (parts == 1)
      store_out(a, sh.rows[r].result, d, sum, sh.scale[r]);
    else
      *(Columns*)(room + i * LANE_WIDTH) = sum;
  }
  if (parts == 1) return;
  __syncthreads();
  for (int i = threadIdx.x; i < items; i += THREADS) {
    Columns sum = {};
    for (int part = 0; part < parts; part++) {
      Columns x = *(Columns*)(room + (part * items + i) * LANE_WIDTH);
#pragma unroll
      for (int e = 0; e < LANE_WIDTH; e++) sum.at[e] += x.at[e];
    }
    int r = (u32)i / ITEMS_OF_ROW, d = (u32)i % ITEMS_OF_ROW * LANE_WIDTH;
    store_out(a, sh.rows[r].result, d, sum, sh.scale[r]);
  }
}

// Whether this block is the last of `used` that have written their slots.
DEVICE bool last_of(const Call& a, const Shared& sh, int used) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    u32* counter = a.counters + sh.rows[0].result;
    last = atomicAdd(counter, 1) == used - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

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
      sh.scale[r] = finish_row(a, sh.rows[r].result, m, total);
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
  if (FINISH && !alone && last_of(a, sh, place.used)) join_slots(a, sh, rows, place.used);
  __syncthreads();
}
