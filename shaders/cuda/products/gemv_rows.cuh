// The engine of the GEMV kernels: streams weight rows through shared memory and multiplies them
// with the ROWS (1..8) rows of x that lie there.
//
// A warp reads UNIT_ROWS = 32 / LANES * PER_LANE weight rows at a time, a unit: LANES lanes share a
// row, each lane has PER_LANE rows in registers (so one read of x serves PER_LANE rows). Rows are
// cut into stages of UNROLL chunks a lane; STAGES of them are on their way to shared memory at any
// time, so that a warp never waits for one row to end before it asks for the next, and the first
// stages are asked for before `pdl_wait`: weights are constant, so they arrive while the kernel
// before this one still runs. KSPLIT warps, a team, share a unit: they take its stages in turn, and
// after a BATCH of units they meet, for each to add up the sums of one unit and to finish it.
//
// A stage is the planes of a unit's rows one after the other: codes, high bits, scales, supers,
// offsets, floors. Each lane copies the codes that it will read itself (FETCH 1, cp.async; FETCH 0,
// plain loads for sm_75), so no barrier is needed; the others are copied by the lanes of a row
// together, in pieces of HIGH_PIECE bytes, and PIECE of scales and offsets. (Bulk copies completed
// by an mbarrier, on sm_90, were not faster.)
// SLOW: element by element from global memory, for rows that are not 16-byte aligned.
//
// DIGITS (weights of codes, x of 16 bits): x is kept in block floating point, 16 values with one
// scale and two signed digits of base 256 each, so that tensor cores multiply bytes. Its error,
// 2^-16 of the largest of 16, is below x's own rounding. SUMMED: the sum of the 16 lies beside their
// scale, for what is added to codes (zero and offset). LANES is 4 and rows come in pairs: lane
// 4 g + t has bytes of rows g and g + 8 where A of m16n8k32 wants them, of inputs of its own. In B
// the two digits of these inputs are columns 2 t and 2 t + 1, which are zero elsewhere: so C gives
// each lane the sums of its own inputs alone, to be scaled by their groups.
//
// What the host knows of K and the grid shortens the code, which small kernels wait for: WHOLE
// (rows end with a stage), SINGLE (a team has one unit at most), FILLED (its stages fit the ring).
//
// A block takes neighbouring rows, as many as others, so that few blocks read from one page of
// memory.
//
// Macros: those of weights.cuh, X_T (x's type), PACKED (x in shared memory keeps X_T, else it is
// f32), ROWS, LANES 8|16|32 (DIGITS: 4), PER_LANE, UNROLL, STAGES, KSPLIT, BLOCK_WARPS, FETCH, SLOW,
// PIECE, HIGH_PIECE.
#include "mma.cuh"
#ifndef PIECE
#define PIECE 16
#endif
#ifndef HIGH_PIECE
#define HIGH_PIECE 16
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

#if ROUNDS
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
const int STEP = LANES * Chunk::ELEMENTS;  // inputs of a row that its lanes decode at a time
const int DEPTH = STEP * UNROLL;           // inputs of a row in a stage
const int CHUNKS = LANES * UNROLL;         // of a row in a stage
const bool GROUPED = GROUP != 0, SUMMED = DIGITS && (ZERO || OFFSETS);
const bool TOGETHER = GROUPED || HIGH_BITS;  // whether lanes read what others copied
// bytes of a row in a stage, plane by plane
const int SLOT = CHUNKS * Chunk::BYTES, HIGH_SLOT = CHUNKS * Chunk::HIGH_BYTES;
// Four lanes read half of the banks at once: rows that are read together begin in different ones,
// those of codes by a swap of neighbouring pieces in every other row.
const int SWAP = LANES == 4 && SLOT % 128 == 0 ? 64 : 0;
const int HIGH_PITCH = LANES == 4 ? (UNROLL | 1) * LANES * Chunk::HIGH_BYTES : HIGH_SLOT;
const int SCALES = GROUPED ? DEPTH / GROUP_INPUTS : 0, SUPERS = SUPER ? DEPTH / SUPER_INPUTS : 0;
const int SCALE_SLOT = SCALES * (int)sizeof(SCALE_T), SUPER_SLOT = SUPERS * 4;
const int OFFSET_SLOT = OFFSETS ? SCALES * (int)sizeof(OFFSET_T) : 0;
const int FLOOR_SLOT = FLOORS ? SUPER_SLOT : 0;
// where the planes of a unit begin in a stage
const int HIGH_AT = UNIT_ROWS * SLOT, SCALES_AT = HIGH_AT + UNIT_ROWS * HIGH_PITCH;
const int SUPERS_AT = SCALES_AT + (UNIT_ROWS * SCALE_SLOT + 15) / 16 * 16;
const int OFFSETS_AT = SUPERS_AT + (UNIT_ROWS * SUPER_SLOT + 15) / 16 * 16;
const int FLOORS_AT = OFFSETS_AT + (UNIT_ROWS * OFFSET_SLOT + 15) / 16 * 16;
const int STAGE_BYTES = FLOORS_AT + (UNIT_ROWS * FLOOR_SLOT + 15) / 16 * 16;
const int RING_BYTES = SLOW ? 0 : BLOCK_WARPS * STAGES * STAGE_BYTES;
const int BATCH = ROWS <= 2 ? KSPLIT : 1, UNIT_SUMS = UNIT_ROWS * ROWS;
const int PARTIAL_BYTES = KSPLIT > 1 ? 2 * BLOCK_WARPS * BATCH * UNIT_SUMS * 4 : 0;
const int V = 16 / sizeof(Xs);       // values of x in a 16-byte read
const int SUMS = ROWS <= 2 ? 2 : 1;  // accumulators of a row in a lane
static_assert(!GROUPED || SCALES * GROUP == DEPTH, "a stage holds whole groups");
static_assert(SUPERS * SUPER == (SUPER ? DEPTH : 0), "a stage holds whole super-groups");
static_assert(SCALE_SLOT % PIECE == 0 && OFFSET_SLOT % PIECE == 0 && HIGH_SLOT % HIGH_PIECE == 0,
              "a stage holds whole pieces");
static_assert(!DIGITS || (LANES == 4 && PER_LANE % 2 == 0), "pairs of rows are rows of A");

// Where x[k] lies in its row in shared memory: so that the 16-byte reads of LANES lanes follow each
// other without bank conflicts. Under DIGITS its high digit; the low one is LANES * V behind.
const int BETWEEN = (DIGITS ? 2 : 1) * LANES * V;  // one such read of all lanes and the next
DEVICE int place(int k) {
  if (SLOW || (!DIGITS && Chunk::ELEMENTS <= V)) return k;
  const int in_step = k % STEP, chunk = in_step / Chunk::ELEMENTS, e = in_step % Chunk::ELEMENTS;
  return (k - in_step) / (LANES * V) * BETWEEN + e / V * BETWEEN + chunk * V + e % V;
}
// Length of a row of x in shared memory, in values.
DEVICE int x_stride(int K) { return (K + STEP - 1) / STEP * STEP; }

// Shared memory behind the ring: x, the teams' partial sums, and from `behind` what a kernel adds.
// Under DIGITS a row is its digits, and for each 16 a scale (and a sum), f32.
const int BLOCK_FLOATS = SUMMED ? 2 : 1;
DEVICE int x_pitch(int stride) {  // distance of rows, in values
  return DIGITS ? stride * 2 + stride / 4 * BLOCK_FLOATS : stride;
}
DEVICE int x_bytes(int K) { return (ROWS * x_pitch(x_stride(K)) * (int)sizeof(Xs)) / 16 * 16; }
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
// BYTES 1 to 16 of a small plane. cp.async knows no less than 4: those bytes wait for memory.
template <int BYTES> DEVICE void copy_piece(u32 to, const void* from) {
  if constexpr (BYTES == 16) copy_16(to, from);
  else if constexpr (BYTES == 1)
    asm volatile("st.shared.u8 [%0], %1;" ::"r"(to), "r"((u32)*(const u8*)from) : "memory");
  else if constexpr (BYTES == 2)
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(*(const u16*)from) : "memory");
#if FETCH
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES)
                 : "memory");
#else
  else if constexpr (BYTES == 4)
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(*(const u32*)from) : "memory");
  else {
    const uint2 v = *(const uint2*)from;
    asm volatile("st.shared.v2.u32 [%0], {%1,%2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory");
  }
#endif
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

// The same, which the compiler does not find anew at every use.
DEVICE int found(int value) {
  asm("" : "+r"(value));
  return value;
}
DEVICE int swap(int lane_row) { return lane_row & 1 ? SWAP : 0; }

#include "gemv_products.cuh"

// -- one warp's stream of stages -----------------------------------------------------------------
// Job: what the rows are. at(unit, lane_row, r) -> the planes of a row; index(unit, lane_row, r) <
// end: whether it is the block's; units, first, stride: where units end and which are this team's.
template <class Job> struct Stream {
  const Job& job;
  u32 ring;                   // shared address of this warp's stages
  int K, steps;               // steps: stages of a row
  int lane, lane_row, part;   // part: which of the team's warps
  int unit, step, slot;       // what is asked for next
  int own_digits, own_blocks; // where this lane's begin, in bytes
  bool has_digits;            // a lane without has zeros of B
  Planes row[PER_LANE];       // this lane's pieces of what is asked for next
  bool is_row[PER_LANE];      // not past the block's last

  DEVICE Stream(const Job& j, u8* shared, int K_) : job(j), K(K_) {
    const int warp = threadIdx.x >> 5;
    ring = shared_address(shared) + warp * (STAGES * STAGE_BYTES);
    lane = found((threadIdx.x & 31) % LANES), lane_row = found((threadIdx.x & 31) / LANES);
    part = warp % KSPLIT;
    steps = (K + DEPTH - 1) / DEPTH;
    own_digits = found(lane * V + lane_row % 2 * (LANES * V));
    own_blocks = found(lane * (Chunk::ELEMENTS / 16) * BLOCK_FLOATS * 4);
    has_digits = lane_row / 2 == lane;
    unit = job.first, step = part, slot = 0;
    if (part >= steps) unit = job.units;  // nothing for this warp
    find_rows();
  }

  DEVICE void find_rows() {
    if (unit >= job.units) return;
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) {
      row[r] = job.at(unit, lane_row, r);
      row[r].codes += lane * 16, row[r].high += lane * HIGH_PIECE;
      skip(row[r].scales, lane * PIECE), skip(row[r].supers, lane * 4);
      skip(row[r].offsets, lane * PIECE), skip(row[r].floors, lane * 4);
      advance(row[r], part);
      is_row[r] = job.index(unit, lane_row, r) < job.end;
    }
  }

  template <typename T> DEVICE static void skip(const T*& plane, int bytes) {
    plane = (const T*)((const u8*)plane + bytes);
  }
  DEVICE static void advance(Planes& row, int stages) {
    row.codes += stages * SLOT, row.high += stages * HIGH_SLOT;
    row.scales += stages * SCALES, row.supers += stages * SUPERS;
    row.offsets += stages * SCALES, row.floors += stages * SUPERS;
  }

  // Ask for the next stage, if there is one.
  DEVICE void ask() {
    if (unit < job.units) {
      const u32 to = ring + slot * STAGE_BYTES;
#pragma unroll
      for (int r = 0; r < PER_LANE; r++) {
        const int n = r * LANE_ROWS + lane_row;
        const bool is = is_row[r];
        ask_plane<SLOT, 16>(is, to + n * SLOT, row[r].codes, code_bytes(K), swap(lane_row));
        ask_plane<HIGH_SLOT, HIGH_PIECE>(is, to + HIGH_AT + n * HIGH_PITCH, row[r].high,
                                         high_bytes(K));
        ask_plane<SCALE_SLOT, PIECE>(is, to + SCALES_AT + n * SCALE_SLOT, row[r].scales,
                                     groups_of(K) * (int)sizeof(SCALE_T));
        ask_plane<SUPER_SLOT, 4>(is, to + SUPERS_AT + n * SUPER_SLOT, row[r].supers,
                                 supers_of(K) * 4);
        ask_plane<OFFSET_SLOT, PIECE>(is, to + OFFSETS_AT + n * OFFSET_SLOT, row[r].offsets,
                                      groups_of(K) * (int)sizeof(OFFSET_T));
        ask_plane<FLOOR_SLOT, 4>(is, to + FLOORS_AT + n * FLOOR_SLOT, row[r].floors,
                                 supers_of(K) * 4);
        advance(row[r], KSPLIT);
      }
      step += KSPLIT;
      if (step >= steps) {
        step = part, unit = SINGLE ? job.units : unit + job.stride;
        if (!SINGLE) find_rows();
      }
    }
    copies_commit();
    slot = slot + 1 == STAGES ? 0 : slot + 1;
  }

  // This lane's pieces of the BYTES of a row that are in this stage, from `from` on; nothing past
  // the row's end.
  template <int BYTES, int SIZE>
  DEVICE void ask_plane(bool is_row, u32 to, const void* from, int row_bytes, int swapped = 0) {
    constexpr int PIECES = BYTES / SIZE;
#pragma unroll
    for (int i = 0; i < PIECES; i += LANES) {
      const bool is_piece = PIECES % LANES == 0 || i + lane < PIECES;
      if (is_row && is_piece && (WHOLE || step * BYTES + (i + lane) * SIZE < row_bytes))
        copy_piece<SIZE>(to + lane * SIZE + (i * SIZE ^ swapped), (const u8*)from + i * SIZE);
    }
  }
};

// -- products ------------------------------------------------------------------------------------
// A stage that has arrived. LAST: the row may end in it.
template <bool LAST, class Job>
DEVICE void multiply_stage(const Stream<Job>& s, int step, const u8* stage, const Xs* x, int stride,
                           Sums& sums) {
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const int chunk = u * LANES + s.lane;
    const bool inside = !LAST || (step * CHUNKS + chunk) * Chunk::ELEMENTS < s.K;
    // lanes that multiply together end together
    if (LAST && !(DIGITS ? (step * CHUNKS + u * LANES) * Chunk::ELEMENTS < s.K : inside)) break;
    Chunk w[PER_LANE];
    Affine affine[PER_LANE];
#pragma unroll
    for (int r = 0; r < PER_LANE; r++) {
      const int n = r * LANE_ROWS + s.lane_row;
      w[r].load(stage + n * SLOT + s.lane * 16 + (u * LANES * 16 ^ swap(s.lane_row)),
                stage + HIGH_AT + n * HIGH_PITCH + chunk * Chunk::HIGH_BYTES);
      affine[r].load(stage, n, chunk);
    }
#if DIGITS
    const int k = step * DEPTH + u * STEP;
    multiply_digits<LAST>(w, affine, x + s.own_digits + 2 * k,
                          (const float*)(x + 2 * stride + s.own_blocks) + k / 16 * BLOCK_FLOATS,
                          x_pitch(stride), inside, inside && s.has_digits, sums);
#else
    const Xs* from = x + step * DEPTH + u * STEP + s.lane * V;
#if ROUNDS
    multiply_int8(w, from, stride, sums);
#else
    multiply(w, affine, from, stride, sums);
#endif
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
      const Planes row = job.at(unit, lane_row, r);
      float w[1] = {one(row, k)};
      if (GROUPED) affine(row, k, w);
#pragma unroll
      for (int m = 0; m < ROWS; m++) {
        Sum& sum = sums.at[r][m][0];
#if ROUNDS
        sum += (int)w[0] * (int)x[m * stride + k];
#else
        sum = fmaf(w[0], to_float(x[m * stride + k]), sum);
#endif
      }
    }
  }
}

// A lane finishes rows `lane`, `lane + LANES`, ... of x.
const int OWN = ROWS > LANES ? ROWS / LANES : 1;

// The sums over the lanes of a row, of this lane's rows for its rows of x (lanes >= ROWS get none).
DEVICE void over_lanes(const Sums& sums, int lane, Sum (&total)[OWN][PER_LANE]) {
#pragma unroll
  for (int r = 0; r < PER_LANE; r++)
#pragma unroll
    for (int m = 0; m < ROWS; m++) {
      Sum sum = sums.total(r, m);
#pragma unroll
      for (int d = LANES / 2; d; d >>= 1) sum += __shfl_xor_sync(FULL_MASK, sum, d);
      if (m % LANES == lane) total[m / LANES][r] = sum;
    }
}

// f(total, where): for each of them, and where it lies among the totals of a unit.
template <class F>
DEVICE void each_total(Sum (&total)[OWN][PER_LANE], int lane, int lane_row, F f) {
  if (lane >= ROWS) return;
#pragma unroll
  for (int i = 0; i < OWN; i++)
#pragma unroll
    for (int r = 0; r < PER_LANE; r++)
      f(total[i][r], (r * LANE_ROWS + lane_row) * ROWS + i * LANES + lane);
}

// This block's part of `count` rows (or pairs of them) from `from` on, PER_UNIT of them in a unit.
template <int PER_UNIT, class Job> DEVICE void share_out(Job& job, int from, int count) {
  const int blocks = gridDim.x, block = blockIdx.x;
  job.base = from + (int)((i64)count * block / blocks);
  job.end = from + (int)((i64)count * (block + 1) / blocks);
  job.units = (job.end - job.base + PER_UNIT - 1) / PER_UNIT;
  job.first = (threadIdx.x >> 5) / KSPLIT, job.stride = TEAMS;
}

// The whole kernel. `shared`: RING_BYTES, then x, then PARTIAL_BYTES. Job also has ready(), which
// loads constants for fill(x), which fills the shared x after pdl_wait and fetch(), and settle(row)
// after that; fixed(unit, lane_row) and fresh(unit, lane_row, row), which load what the epilogue
// needs, constants and what kernels write; finish(unit, lane_row, row, totals).
template <class Job> DEVICE void stream_rows(Job& job, u8* shared, int K) {
  shared = (u8*)__cvta_shared_to_generic(found(shared_address(shared)));
  Stream<Job> stream(job, shared, K);
  const int stride = x_stride(K);
  Xs* x = (Xs*)(shared + RING_BYTES);
  Sum* room = (Sum*)(shared + RING_BYTES + x_bytes(K));
  if (!SLOW) {
#pragma unroll 1
    for (int i = 0; i < STAGES; i++) stream.ask();
  }
  const int lane = stream.lane, lane_row = stream.lane_row, part = stream.part;
  const int mine = part * job.stride;  // of a batch, the unit that this warp finishes
  const bool writes = part < BATCH && lane < job.M;
  if (writes && job.first + mine < job.units) job.fixed(job.first + mine, lane_row);
  job.ready();
  pdl_launch();
  pdl_wait();
  job.fetch();
  if (writes && job.first + mine < job.units) job.fresh(job.first + mine, lane_row, lane);
  job.fill(x, stride);
  __syncthreads();
  if (writes) job.settle(lane);
  const int team = threadIdx.x / (32 * KSPLIT);
  const int first_slot = found((threadIdx.x >> 5) * (STAGES * STAGE_BYTES));
  const int last = first_slot + (STAGES - 1) * STAGE_BYTES;
  int slot = first_slot, turn = 0;
  for (int batch = job.first; batch < job.units; batch += BATCH * job.stride, turn ^= 1) {
    Sum* sums_of_batch = room + (turn * TEAMS + team) * (BATCH * KSPLIT * UNIT_SUMS);
    Sum total[OWN][PER_LANE];
#pragma unroll 1
    for (int i = 0; i < BATCH; i++) {
      const int unit = batch + i * job.stride;
      if (unit >= job.units) break;
      Sums sums;
      sums.clear();
      if (SLOW) {
        multiply_slow(job, unit, lane, lane_row, part, K, x, stride, sums);
      } else {
        for (int step = part; step < stream.steps; step += KSPLIT) {
          const u8* stage = shared + slot;
          copies_wait();
          if (TOGETHER) __syncwarp();
          if (WHOLE || (step + 1) * DEPTH <= K)
            multiply_stage<false>(stream, step, stage, x, stride, sums);
          else
            multiply_stage<true>(stream, step, stage, x, stride, sums);
          if (TOGETHER) __syncwarp();
          if (FILLED) copies_commit();
          else stream.ask();
          slot = slot == last ? first_slot : slot + STAGE_BYTES;
        }
      }
      over_lanes(sums, lane, total);
      if (KSPLIT > 1)
        each_total(total, lane, lane_row, [&](Sum sum, int at) {
          sums_of_batch[(i * KSPLIT + part) * UNIT_SUMS + at] = sum;
        });
    }
    const int unit = batch + mine;
    if (KSPLIT > 1) {
      asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "n"(KSPLIT * 32) : "memory");
      if (part < BATCH && unit < job.units)
        each_total(total, lane, lane_row, [&](Sum& sum, int at) {
          sum = 0;
#pragma unroll
          for (int p = 0; p < KSPLIT; p++)
            sum += sums_of_batch[(part * KSPLIT + p) * UNIT_SUMS + at];
        });
    }
    if (writes && unit < job.units) {
      job.finish(unit, lane_row, lane, total[0]);
#pragma unroll
      for (int i = 1; i < OWN; i++) {
        const int m = lane + i * LANES;
        if (m >= job.M) break;
        job.settle(m);
        job.fresh(unit, lane_row, m);
        job.finish(unit, lane_row, m, total[i]);
      }
      const int next = unit + BATCH * job.stride;
      if (!SINGLE && next < job.units) {
        if (OWN > 1) job.settle(lane);
        job.fixed(next, lane_row);
        job.fresh(next, lane_row, lane);
      }
    }
    if (SINGLE) break;
  }
}
