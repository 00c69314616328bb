// The engine of the GEMV kernels: streams weight rows through shared memory and multiplies them
// with the ROWS (1..8) rows of x that lie there.
//
// A warp reads UNIT_ROWS = 32 / LANES * PER_LANE weight rows at a time, a unit: LANES lanes share a
// row, each lane has PER_LANE rows in registers (so one read of x serves PER_LANE rows). Rows are
// cut into stages of UNROLL chunks a lane; STAGES of them are on their way to shared memory at any
// time, so that a warp never waits for one row to end before it asks for the next, and the first
// stages are asked for before `pdl_wait`: weights are constant, so they arrive while the kernel
// before this one still runs. KSPLIT warps, a team, share a unit: they take its stages in turn.
//
// Each lane copies what it will read itself (FETCH 1, cp.async; FETCH 0, plain loads for sm_75), so
// no barrier is needed; block forms and group scales are copied by the lanes together. (Bulk copies
// completed by an mbarrier, on sm_90, were not faster.)
// SLOW: element by element from global memory, for rows that are not 16-byte aligned.
//
// DIGITS (weights of bytes or nibbles, x of 16 bits): x is kept in block floating point, 16 values
// with one scale and two signed digits of base 256 each, so that dp4a does four products at a
// time: a tenth of the instructions. Its error, 2^-16 of the largest of 16, is below x's own
// rounding.
//
// What the host knows of K and the grid shortens the code, which small kernels wait for: WHOLE
// (rows end with a stage), SINGLE (a team has one unit at most), FILLED (its stages fit the ring).
//
// Macros: FORM (weights.cuh), GROUP, X_T (x's type), PACKED (x in shared memory keeps X_T, else it
// is f32), ROWS, LANES 8|16|32, PER_LANE, UNROLL, STAGES, KSPLIT, BLOCK_WARPS, FETCH, SLOW.
#ifndef GROUP
#define GROUP 32
#endif
#ifndef SLOW
#define SLOW 0
#endif
#ifndef PACKED
#define PACKED 0
#endif
#ifndef DIGITS
#define DIGITS 0
#endif
#ifndef WHOLE
#define WHOLE 0
#endif
#ifndef SINGLE
#define SINGLE 0
#endif
#ifndef FILLED
#define FILLED 0
#endif

typedef Chunk<FORM> Stored;
#if FORM == W8A8
typedef i8 Xs;
typedef int Sum;
#elif DIGITS
typedef i8 Xs;
typedef float Sum;
#elif PACKED
typedef X_T Xs;
typedef float Sum;
#else
typedef float Xs;
typedef float Sum;
#endif

const int THREADS = BLOCK_WARPS * 32;
const int TEAMS = BLOCK_WARPS / KSPLIT;
const int LANE_ROWS = 32 / LANES;  // rows that a warp reads side by side
const int UNIT_ROWS = LANE_ROWS * PER_LANE;
const int STEP = LANES * Stored::ELEMENTS;  // inputs of a row that its lanes decode at a time
const int DEPTH = STEP * UNROLL;            // inputs of a row in a stage
const int SEGMENT = DEPTH / Stored::ELEMENTS * Stored::BYTES;
const bool BLOCKS = FORM == Q8_0 || FORM == Q4_1;
const int SLOT = SEGMENT + (BLOCKS ? 16 : 0);  // block rows may start between multiples of 16
const int SCALES = FORM == INT8_GROUP ? DEPTH / GROUP : 0;
const int STAGE_BYTES = UNIT_ROWS * SLOT + (UNIT_ROWS * SCALES * 4 + 15) / 16 * 16;
const int RING_BYTES = SLOW ? 0 : BLOCK_WARPS * STAGES * STAGE_BYTES;
const int PARTIAL_BYTES = KSPLIT > 1 ? 2 * BLOCK_WARPS * UNIT_ROWS * ROWS * 4 : 0;
const int V = 16 / sizeof(Xs);       // values of x in a 16-byte read
const int SUMS = ROWS <= 2 ? 2 : 1;  // accumulators of a row in a lane
static_assert(SCALES * GROUP == DEPTH || FORM != INT8_GROUP, "a stage holds whole groups");

// Where x[k] lies in its row in shared memory: so that the 16-byte reads of LANES lanes follow each
// other without bank conflicts.
DEVICE int place(int k) {
  if (SLOW || Stored::ELEMENTS <= V) return k;
  const int in_step = k % STEP, chunk = in_step / Stored::ELEMENTS, e = in_step % Stored::ELEMENTS;
  return k - in_step + e / V * (LANES * V) + chunk * V + e % V;
}
// Length of a row of x in shared memory, in values.
DEVICE int x_stride(int K) { return (K + STEP - 1) / STEP * STEP; }

// Shared memory behind the ring: x, the teams' partial sums, and from `behind` what a kernel adds.
DEVICE int x_bytes(int K) {
  return (DIGITS ? ROWS * x_stride(K) / 4 * 9 : ROWS * x_stride(K) * (int)sizeof(Xs)) / 16 * 16;
}
// Distance of rows of x there, in values: under DIGITS high digits, low digits, scales (f32).
DEVICE int x_pitch(int stride) { return DIGITS ? stride / 4 * 9 : stride; }
DEVICE u8* behind(u8* shared, int K) { return shared + RING_BYTES + x_bytes(K) + PARTIAL_BYTES; }

// -- asynchronous copies -------------------------------------------------------------------------
DEVICE void copy_16(u32 to, const void* from) {
#if FETCH
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(from)
               : "memory");
#else
  const uint4 v = load_stream(from);
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w) : "memory");
#endif
}
DEVICE void copy_4(u32 to, const float* from) {
#if FETCH
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
#else
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(*from) : "memory");
#endif
}
// The end of a row, an even number of bytes below 16: no load may touch what lies behind a matrix.
DEVICE void copy_end(u32 to, const u8* from, int bytes) {
  int i = 0;
  for (; i + 4 <= bytes; i += 4) copy_4(to + i, (const float*)(from + i));
  if (i < bytes) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to + i), "h"(*(const u16*)(from + i)) : "memory");
  }
}
DEVICE void copies_commit() {
#if FETCH
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
DEVICE void copies_wait() {  // for all but the youngest STAGES - 1 groups
#if FETCH
  asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
#endif
}

// -- one warp's stream of stages -----------------------------------------------------------------
// Job: what the rows are. at(unit, lane_row, r) -> address of a row, scales(unit, lane_row, r) ->
// of its scales; units, first, stride: where they end and which are this team's.
template <class Job> struct Stream {
  const Job& job;
  u32 ring;                   // shared address of this warp's stages
  int K, row_bytes, steps;    // steps: stages of a row
  int lane, lane_row, part;   // part: which of the team's warps
  int unit, step, slot;       // what is asked for next
  const u8* row[PER_LANE];

  DEVICE Stream(const Job& j, u8* shared, int K_, int row_bytes_)
      : job(j), K(K_), row_bytes(row_bytes_) {
    const int warp = threadIdx.x >> 5;
    ring = shared_address(shared) + warp * (STAGES * STAGE_BYTES);
    lane = (threadIdx.x & 31) % LANES, lane_row = (threadIdx.x & 31) / LANES;
    part = warp % KSPLIT;
    steps = (K + DEPTH - 1) / DEPTH;
    unit = job.first, step = part, slot = 0;
    if (part >= steps) unit = job.units;  // nothing for this warp
    find_rows();
  }

  DEVICE void find_rows() {
    if (unit >= job.units) return;
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) row[r] = job.at(unit, lane_row, r);
  }

  // Ask for the next stage, if there is one.
  DEVICE void ask() {
    if (unit < job.units) {
      const u32 to = ring + slot * STAGE_BYTES;
      if (BLOCKS) ask_blocks(to);
      else ask_chunks(to);
      if (SCALES) ask_scales(to + UNIT_ROWS * SLOT);
      step += KSPLIT;
      if (step >= steps) {
        step = part, unit = SINGLE ? job.units : unit + job.stride;
        if (!SINGLE) find_rows();
      }
    }
    copies_commit();
    slot = slot + 1 == STAGES ? 0 : slot + 1;
  }

  DEVICE void ask_chunks(u32 to) {
    const int begin = step * SEGMENT + lane * 16;
#pragma unroll
    for (int r = 0; r < PER_LANE; r++)
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int at = begin + u * (LANES * 16);
        if (WHOLE || at < row_bytes) {
          const int n = r * LANE_ROWS + lane_row;
          copy_16(to + n * SLOT + (u * LANES + lane) * 16, row[r] + at);
        }
      }
  }

  DEVICE void ask_blocks(u32 to) {  // from the last multiple of 16 on; nothing past the row's end
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) {
      const u8* start = row[r] + step * SEGMENT;
      const int shift = (int)((u64)start & 15);
      const int bytes = shift + min(SEGMENT, row_bytes - step * SEGMENT);
#pragma unroll
      for (int i = 0; i < SLOT / 16; i += LANES) {
        const int at = (i + lane) * 16;
        if (at < bytes) {
          const u32 place = to + (r * LANE_ROWS + lane_row) * SLOT + at;
          if (bytes - at >= 16) copy_16(place, start - shift + at);
          else copy_end(place, start - shift + at, bytes - at);
        }
      }
    }
  }

  DEVICE void ask_scales(u32 to) {
    const int groups = (K + GROUP - 1) / GROUP;
#pragma unroll
    for (int r = 0; r < PER_LANE; r++)
#pragma unroll
      for (int i = 0; i < SCALES; i += LANES) {
        const int g = i + lane;
        if (g < SCALES && step * SCALES + g < groups) {
          copy_4(to + ((r * LANE_ROWS + lane_row) * SCALES + g) * 4,
                 job.scales(unit, lane_row, r) + step * SCALES + g);
        }
      }
  }
};

// -- products ------------------------------------------------------------------------------------
struct Sums {
  Sum at[PER_LANE][ROWS][SUMS];

  DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < PER_LANE * ROWS * SUMS; i++) (&at[0][0][0])[i] = 0;
  }
  DEVICE Sum total(int r, int m) const {
    return SUMS == 2 ? at[r][m][0] + at[r][m][SUMS - 1] : at[r][m][0];
  }
};

// x: the shared rows, at the first value that this lane reads for the chunk.
DEVICE void multiply_int8(const Stored (&w)[PER_LANE], const i8* x, int stride, Sums& sums) {
#pragma unroll
  for (int m = 0; m < ROWS; m++) {
    const uint4 v = *(const uint4*)(x + m * stride);
    const u32 word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int r = 0; r < PER_LANE; r++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        Sum& sum = sums.at[r][m][SUMS == 2 ? i & 1 : 0];
        sum = __dp4a((int)w[r].word[i % Stored::WORDS], (int)word[i], (int)sum);
      }
  }
}

// row: of x in shared memory; at: where this lane's values of the chunk are in it.
DEVICE void multiply_digits(const Stored (&w)[PER_LANE], const float (&scale)[PER_LANE],
                            const i8* row, int at, int stride, Sums& sums) {
#pragma unroll
  for (int j = 0; j < Stored::ELEMENTS; j += 16)
#pragma unroll
    for (int m = 0; m < ROWS; m++) {
      const i8* own = row + m * x_pitch(stride);
      const int k = at + j * LANES;
      const uint4 h = *(const uint4*)(own + k), l = *(const uint4*)(own + stride + k);
      const float x_scale = *(const float*)(own + 2 * stride + k / 4);
      const u32 high[4] = {h.x, h.y, h.z, h.w}, low[4] = {l.x, l.y, l.z, l.w};
      int x_high = 0, x_low = 0;
      if (FORM == Q4_1) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          x_high = __dp4a(0x01010101, (int)high[i], x_high);
          x_low = __dp4a(0x01010101, (int)low[i], x_low);
        }
      }
#pragma unroll
      for (int r = 0; r < PER_LANE; r++) {
        int a = 0, b = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          a = __dp4a(w[r].bytes(j / 4 + i), (int)high[i], a);
          b = __dp4a(w[r].bytes(j / 4 + i), (int)low[i], b);
        }
        float part = (float)(a * 256 + b);
        if (Stored::SCALED) part *= scale[r];
        if (FORM == Q4_1) part = fmaf(w[r].offset(), (float)(x_high * 256 + x_low), part);
        Sum& sum = sums.at[r][m][SUMS == 2 ? j / 16 & 1 : 0];
        sum = fmaf(x_scale, part, sum);
      }
    }
}

template <typename T>
DEVICE void multiply(const Stored (&w)[PER_LANE], const float (&scale)[PER_LANE], const T* x,
                     int stride, Sums& sums) {
  float part[PER_LANE][ROWS][SUMS], x_sum[ROWS];
  const bool scaled = Stored::SCALED;
  if (scaled) {
#pragma unroll
    for (int i = 0; i < PER_LANE * ROWS * SUMS; i++) (&part[0][0][0])[i] = 0.f;
#pragma unroll
    for (int m = 0; m < ROWS; m++) x_sum[m] = 0.f;
  }
#pragma unroll
  for (int j = 0; j < Stored::ELEMENTS; j += V) {
    Vec<T, V> values[ROWS];
#pragma unroll
    for (int m = 0; m < ROWS; m++) values[m] = load_vec<T, V>(x + m * stride + j * LANES);
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      float xf[ROWS][4];
#pragma unroll
      for (int m = 0; m < ROWS; m++) {
#pragma unroll
        for (int e = 0; e < 4; e++) xf[m][e] = values[m][i + e];
        if (FORM == Q4_1) x_sum[m] += (xf[m][0] + xf[m][1]) + (xf[m][2] + xf[m][3]);
      }
#pragma unroll
      for (int r = 0; r < PER_LANE; r++) {
        float wf[4];
        w[r].four((j + i) / 4, wf);
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int s = SUMS == 2 ? e & 1 : 0;
            if (scaled) part[r][m][s] = fmaf(wf[e], xf[m][e], part[r][m][s]);
            else sums.at[r][m][s] = fmaf(wf[e], xf[m][e], sums.at[r][m][s]);
          }
      }
    }
  }
  if (scaled) {
#pragma unroll
    for (int r = 0; r < PER_LANE; r++)
#pragma unroll
      for (int m = 0; m < ROWS; m++) {
#pragma unroll
        for (int s = 0; s < SUMS; s++)
          sums.at[r][m][s] = fmaf(scale[r], part[r][m][s], sums.at[r][m][s]);
        if (FORM == Q4_1) sums.at[r][m][0] = fmaf(w[r].offset(), x_sum[m], sums.at[r][m][0]);
      }
  }
}

// A stage that has arrived. LAST: the row may end in it. low: of the rows' addresses, for BLOCKS.
template <bool LAST, class Job>
DEVICE void multiply_stage(const Stream<Job>& s, const u32 (&low)[PER_LANE], int step,
                           const u8* stage, const Xs* x, int stride, Sums& sums) {
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const int chunk = u * LANES + s.lane;
    if (LAST && (step * UNROLL * LANES + chunk) * Stored::ELEMENTS >= s.K) break;
    Stored w[PER_LANE];
    float scale[PER_LANE];
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) {
      const int n = r * LANE_ROWS + s.lane_row;
      const u8* p = stage + n * SLOT + chunk * Stored::BYTES;
      if (BLOCKS) p += (low[r] + step * SEGMENT) & 15;
      w[r].load(p);
      scale[r] = w[r].scale();
      if (SCALES) {
        const float* all = (const float*)(stage + UNIT_ROWS * SLOT);
        scale[r] = all[n * SCALES + chunk * Stored::ELEMENTS / GROUP];
      }
    }
    const Xs* from = x + step * DEPTH + u * STEP + s.lane * V;
#if FORM == W8A8
    multiply_int8(w, from, stride, sums);
#elif DIGITS
    multiply_digits(w, scale, x, (int)(from - x), stride, sums);
#else
    multiply(w, scale, from, stride, sums);
#endif
  }
}

// Without the ring: this lane's inputs of its rows, one at a time.
template <class Job>
DEVICE void multiply_slow(const Job& job, int unit, int lane, int lane_row, int part, int K,
                          const Xs* x, int stride, Sums& sums) {
  for (int k = part * LANES + lane; k < K; k += KSPLIT * LANES) {
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) {
      float w = element<FORM>(job.at(unit, lane_row, r), k);
      if (FORM == INT8_GROUP) w *= job.scales(unit, lane_row, r)[k / GROUP];
#pragma unroll
      for (int m = 0; m < ROWS; m++) {
        Sum& sum = sums.at[r][m][0];
#if FORM == W8A8
        sum += (int)w * (int)x[m * stride + k];
#else
        sum = fmaf(w, to_float(x[m * stride + k]), sum);
#endif
      }
    }
  }
}

// The totals of this lane's rows for row `lane` of x (lanes >= ROWS get none: false). With KSPLIT
// the team's first warp alone gets them.
DEVICE bool reduce(Sums& sums, int lane, int lane_row, int part, int turn, Sum* room,
                   Sum (&total)[PER_LANE]) {
#pragma unroll
  for (int r = 0; r < PER_LANE; r++) {
    total[r] = 0;
#pragma unroll
    for (int m = 0; m < ROWS; m++) {
      Sum sum = sums.total(r, m);
#pragma unroll
      for (int d = LANES / 2; d; d >>= 1) sum += __shfl_xor_sync(FULL_MASK, sum, d);
      if (m == lane) total[r] = sum;
    }
  }
  if (KSPLIT == 1) return lane < ROWS;
  const int team = threadIdx.x / (32 * KSPLIT);
  Sum* own = room + ((turn & 1) * TEAMS + team) * (KSPLIT * UNIT_ROWS * ROWS);
  const int at = lane_row * ROWS + lane;
  if (lane < ROWS) {
#pragma unroll
    for (int r = 0; r < PER_LANE; r++)
      own[(part * PER_LANE + r) * (LANE_ROWS * ROWS) + at] = total[r];
  }
  asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "n"(KSPLIT * 32) : "memory");
  if (part || lane >= ROWS) return false;
#pragma unroll
  for (int r = 0; r < PER_LANE; r++) {
    total[r] = 0;
#pragma unroll
    for (int p = 0; p < KSPLIT; p++) total[r] += own[(p * PER_LANE + r) * (LANE_ROWS * ROWS) + at];
  }
  return true;
}

// A block takes neighbouring units, so that few blocks read from one page of memory; it is 1 % of
// a whole model's step.
template <class Job> DEVICE void share_out(Job& job, int units) {
  const int blocks = gridDim.x, block = blockIdx.x;
  job.first = (int)((i64)units * block / blocks) + (threadIdx.x >> 5) / KSPLIT;
  job.units = (int)((i64)units * (block + 1) / blocks);
  job.stride = TEAMS;
}

// The whole kernel. `shared`: RING_BYTES, then x, then PARTIAL_BYTES. Job also has ready(), which
// loads constants for fill(x), which fills the shared x after pdl_wait, and settle(row) after
// that; fixed(unit, ...) and fresh(unit, ...), which load what the epilogue needs, constants and
// what kernels write; finish(unit, ..., totals).
template <class Job> DEVICE void stream_rows(Job& job, u8* shared, int K, int row_bytes) {
  Stream<Job> stream(job, shared, K, row_bytes);
  const int stride = x_stride(K);
  Xs* x = (Xs*)(shared + RING_BYTES);
  Sum* room = (Sum*)(shared + RING_BYTES + x_bytes(K));
  if (!SLOW) {
#pragma unroll 1
    for (int i = 0; i < STAGES; i++) stream.ask();
  }
  const int lane = stream.lane, lane_row = stream.lane_row, part = stream.part;
  const bool writes = part == 0 && lane < job.M;
  if (writes && job.first < job.units) job.fixed(job.first, lane_row, lane);
  job.ready();
  pdl_launch();
  pdl_wait();
  if (writes && job.first < job.units) job.fresh(job.first, lane_row, lane);
  job.fill(x, stride);
  __syncthreads();
  if (writes) job.settle(lane);
  int slot = 0, round = 0;
  for (int unit = job.first; unit < job.units; unit += job.stride, round++) {
    Sums sums;
    sums.clear();
    u32 low[PER_LANE] = {};
    if (BLOCKS) {
#pragma unroll
      for (int r = 0; r < PER_LANE; r++) low[r] = (u32)(u64)job.at(unit, lane_row, r);
    }
    if (SLOW) {
      multiply_slow(job, unit, lane, lane_row, part, K, x, stride, sums);
    } else {
      for (int step = part; step < stream.steps; step += KSPLIT) {
        const u8* stage = shared + ((threadIdx.x >> 5) * STAGES + slot) * STAGE_BYTES;
        copies_wait();
        if (BLOCKS || SCALES) __syncwarp();
        if (WHOLE || (step + 1) * DEPTH <= K)
          multiply_stage<false>(stream, low, step, stage, x, stride, sums);
        else
          multiply_stage<true>(stream, low, step, stage, x, stride, sums);
        if (BLOCKS || SCALES) __syncwarp();
        if (FILLED) copies_commit();
        else stream.ask();
        if (++slot == STAGES) slot = 0;
      }
    }
    Sum total[PER_LANE];
    if (reduce(sums, lane, lane_row, part, round, room, total) && lane < job.M) {
      job.finish(unit, lane_row, lane, total);
      if (!SINGLE && unit + job.stride < job.units) {
        job.fixed(unit + job.stride, lane_row, lane);
        job.fresh(unit + job.stride, lane_row, lane);
      }
    }
    if (SINGLE) break;
  }
}
