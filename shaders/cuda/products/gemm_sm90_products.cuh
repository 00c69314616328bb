// The inner loops of gemm_sm90.cu: how a warpgroup multiplies 64 rows of w by TOKENS tokens, stage
// by stage of the ring. Floats and bytes come from shared memory as they are. Codes become A
// fragments in registers; under GROUP the sums of a unit, k that have one scale, are made apart,
// PART tokens at a time, and added to the total by that scale while the next are under way.
#include "wgmma.cuh"

struct Ring {
  u32 stages, full, empty;  // shared addresses; barriers 8 bytes apart
};

// Which step of K stage i of `count` holds: blocks start at different places, so that they do not
// all read the same lines of x at once. Then come stages of sums of x.
struct Walk {
  int begin, count, turn, tail_begin, tail_count;
  DEVICE int k(int i) const {
    const int at = i + turn;
    return (begin + (at < count ? at : at - count)) * BK;
  }
};

// What a block works on; in shared memory, since registers are few.
struct Work {
  Planes at;  // of its first row
  int left;   // rows from there to the end
  Walk walk;
};

DEVICE void wait_full(Ring ring, int i) {
  mbarrier_wait(ring.full + i % STAGES * 8, i / STAGES & 1);
}
// Stage i may be overwritten: said by a lane of each warp, to all blocks that copy into it.
DEVICE void release(Ring ring, int i) {
  if (threadIdx.x % 32) return;
  const u32 barrier = ring.empty + i % STAGES * 8;
#if PEERS == 1
  mbarrier_arrive(barrier);
#else
#pragma unroll
  for (int peer = 0; peer < PEERS; ++peer) arrive_at(barrier, first_peer() + peer);
#endif
}
DEVICE u32 stage_of(Ring ring, int i) { return ring.stages + i % STAGES * STAGE_BYTES; }

#if !CODED
DEVICE void one_step(acc_t (&acc)[ACC], u64 a, u64 b) {
#if ROUNDS
  wgmma_int8(acc, a, b);
#else
  Wgmma<X, TOKENS>::template ss<0>(acc, a, b, 1);
#endif
}
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int group, const Work& w, int) {
  for (int i = 0; i < w.walk.count; ++i) {
    wait_full(ring, i);
    const u64 a = swizzled_descriptor(stage_of(ring, i) + group * 64 * 128);
    const u64 b = swizzled_descriptor(stage_of(ring, i) + W_STAGE);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      one_step(acc, descriptor_plus(a, k * 32), descriptor_plus(b, k * 32));
    wgmma_commit();
    wgmma_wait<1>();
    if (i) release(ring, i - 1);
  }
  wgmma_wait<0>();
  pin(acc);
}
#else

// -- fragments ------------------------------------------------------------------------------------
#define UNIT (GROUP == 16 || GROUP == 32 || TABLE_FLOATS ? 32 : 64)  // k converted at once
#define UNITS (BK / UNIT)
#define STEPS (UNIT / 16)               // products of one
#define SUMS (GROUP == 16 ? 2 : 1)      // and sums, if GROUP
#define TERMS (TABLE_FLOATS ? 2 : 1)    // 16-bit floats that make a number, see two_terms
#define SCALES (UNITS * SUMS)           // that are read of a row and stage; a wide group's again
#define PART (TOKENS < 64 ? TOKENS : 64)  // tokens of a sum
#define PARTS (TOKENS / PART)

// SCALES numbers of T as words, which the compiler does not take apart before they are needed.
template <typename T> struct Packed {
  static const int WORDS = (SCALES * (int)sizeof(T) + 3) / 4;
  u32 word[WORDS];

  DEVICE Packed() {}
  DEVICE Packed(const Vec<T, SCALES>& v) {
    word[WORDS - 1] = 0;
    memcpy(word, &v, sizeof(v));
    pin(word);
  }
  DEVICE T at(int i) const {
    const u32 bits = word[i * (int)sizeof(T) / 4] >> i * (int)sizeof(T) % 4 * 8;
    T v;
    memcpy(&v, &bits, sizeof(T));
    return v;
  }
};

// What a stage has beside its codes, as it is stored, for rows `row` and row + 8.
struct Small {
  Packed<SCALE_T> scales[2];
  Packed<OFFSET_T> zeros[2];
  float super[2];
  u32 high[2][2];  // of 32 k each
};
// One for each UNIT / SUMS inputs from k on.
template <typename T> DEVICE Vec<T, SCALES> spread(const T* row, int k, int K, bool real) {
  Vec<T, SCALES> v = {};
  if (GROUP <= UNIT / SUMS && K % BK == 0) {
    if (real) v = load_vec<T, SCALES>(row + k / GROUP_INPUTS);
  } else {
#pragma unroll
    for (int u = 0; u < SCALES; ++u) {
      const int at = k + u * (UNIT / SUMS);
      if (real && at < K) v.at[u] = row[at / GROUP_INPUTS];
    }
  }
  return v;
}
// Of stage i.
DEVICE Small fetch(const Work& w, int row, int i, int K) {
  Small s;
  const int k = w.walk.k(i);
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const bool real = row + 8 * h < w.left && k < K;
    const Planes at = weight_row(w.at, row + 8 * h, K);
    if (GROUP) s.scales[h] = spread(at.scales, k, K, real);
    if (ZEROS) s.zeros[h] = spread(at.offsets, k, K, real);
    s.super[h] = SUPER && real ? at.supers[k / SUPER_INPUTS] : 1.f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int from = k + i * 32;
      const u8* p = at.high + from / 8 * HIGH_BITS + (HIGH_BITS == 2 ? 2 * t : 2 * (t & 1));
      s.high[i][h] = HIGH_BITS && real && from < K ? *(const u16*)p : 0;
    }
  }
  return s;
}

DEVICE u32 shared_u16(u32 p) {
  u16 v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(p));
  return v;
}
// Where byte `at` of a row's codes lies: chunks of 16 bytes are swizzled as the copy engine does it
// for rows of 64 or 32 bytes, and not for 16.
DEVICE u32 code_address(u32 stage, int row, int at) {
  const int turn = W_ROW == 64 ? row >> 1 & 3 : W_ROW == 32 ? row >> 2 & 1 : 0;
  return stage + row * W_ROW + ((at / 16 ^ turn) << 4) + at % 16;
}
// Two codes as terms of A: without their zero, whose pair is `zeros`.
DEVICE void terms(u32 codes, u32 zeros, int i, u32 (*a)[4]) {
#if TABLE_FLOATS
  two_terms<0>(codes, a[0][i], a[1][i]);
#else
  const u32 pair = two_halves<0>(codes, X());
  a[0][i] = ZEROS ? less(pair, zeros, X()) : pair;
#endif
}
// A fragments of unit u of a stage, rows `row` and row + 8: lane t takes k = 2t, 2t + 1 and these + 8
// of every step. What is packed has both steps of 32 k in the same bytes.
DEVICE void load_a(u32 stage, int row, int u, const Small& small, u32 (&a)[STEPS * TERMS][4]) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int s = 0; s < STEPS; s += LOW_BITS ? 2 : 1) {
    const int step = u * STEPS + s;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + half * 8, at = step * 2 * (LOW_BITS ? LOW_BITS : 8);
      const u32 left = shared_u16(code_address(stage, r, at + 2 * t));
      const u32 right = LOW_BITS == 2 ? left : shared_u16(code_address(stage, r, at + 2 * t + 8));
      u32 high = small.high[step / 2][half];
      if (HIGH_BITS == 1) high >>= t >> 1;  // inputs 4 and more on are a bit each
#pragma unroll
      for (int i = 0; i < (LOW_BITS ? 2 : 1); ++i) {
        const float zero = ZEROS ? to_float(small.zeros[half].at((step + i) * SCALES / 4)) : 0.f;
        const u32 zeros = pack2<X>(zero, zero);
        terms(four_codes(left, high, 4 * i), zeros, half, a + (s + i) * TERMS);
        terms(four_codes(right, high, 4 * i + 2), zeros, half + 2, a + (s + i) * TERMS);
      }
    }
  }
}

#if GROUP == 0
// Codes become fragments during the products of the unit before.
template <int U> DEVICE void units(acc_t (&acc)[ACC], Ring ring, int i, int row, const Small& small,
                                   u32 (&a)[2][STEPS * TERMS][4], int odd) {
  if constexpr (U == 0) wait_full(ring, i);
  load_a(stage_of(ring, i), row, U, small, a[(odd + U) & 1]);
  const u64 b = swizzled_descriptor(stage_of(ring, i) + W_STAGE);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < STEPS * TERMS; ++k)
    Wgmma<X, TOKENS>::template rs<0>(acc, a[(odd + U) & 1][k],
                                     descriptor_plus(b, (U * STEPS + k / TERMS) * 32), 1);
  wgmma_commit();
  wgmma_wait<1>();
  if (U == 0 && i) release(ring, i - 1);
  if constexpr (U + 1 < UNITS) units<U + 1>(acc, ring, i, row, small, a, odd);
}
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int group, const Work& w, int K) {
  const int count = w.walk.count;
  const int row = group * 64 + (threadIdx.x % 128 >> 5) * 16 + ((threadIdx.x & 31) >> 2);
  u32 a[2][STEPS * TERMS][4];
  Small now = fetch(w, row, 0, K);
  auto stage = [&](int i, int odd) {
    const Small next = fetch(w, row, min(i + 1, count - 1), K);
    units<0>(acc, ring, i, row, now, a, odd);
    now = next;
  };
  int i = 0;
  for (; i + 1 < count; i += 2) {
    stage(i, 0);
    stage(i + 1, UNITS & 1);
  }
  if (i < count) stage(i, 0);
  wgmma_wait<0>();
  pin(acc);
}
#else

template <int FROM>
DEVICE void add_scaled(acc_t (&acc)[ACC], float (&sum)[PART / 2], const float (&scale)[2]) {
  pin(sum);
#pragma unroll
  for (int j = 0; j < PART / 2; ++j) acc[FROM + j] += scale[j >> 1 & 1] * sum[j];
}
// One of the JOBS of a stage: the products of a sum. While they are under way the job before is
// added, and after the last of a unit its next bytes become fragments.
#define JOBS (UNITS * PARTS * SUMS)
struct Worker {
  Ring ring;
  int row, count;
  Small now, next;
  u32 a[2][STEPS * TERMS][4];
  float sum[2][PART / 2];

  template <int J> DEVICE void add(acc_t (&acc)[ACC]) {
    float scale[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
      scale[h] = full_scale(now.scales[h].at(J / (PARTS * SUMS) * SUMS + J % SUMS), now.super[h]);
    add_scaled<J / SUMS % PARTS * (PART / 2)>(acc, sum[J & 1], scale);
  }
  template <int J> DEVICE void jobs(acc_t (&acc)[ACC], int i) {
    constexpr int U = J / (PARTS * SUMS), P = J / SUMS % PARTS, Q = J % SUMS;
    constexpr int COUNT = STEPS / SUMS * TERMS;
    const u64 b = swizzled_descriptor(stage_of(ring, i) + W_STAGE + P * PART * 128);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < COUNT; ++s) {
      const int at = Q * COUNT + s;
      Wgmma<X, PART>::template rs<0>(sum[J & 1], a[U & 1][at],
                                     descriptor_plus(b, (U * STEPS + at / TERMS) * 32), s != 0);
    }
    wgmma_commit();
    if constexpr (J > 0) {
      wgmma_wait<1>();
      add<J - 1>(acc);
    }
    if (P == PARTS - 1 && Q == SUMS - 1) {
      if (U < UNITS - 1) {
        load_a(stage_of(ring, i), row, U + 1, now, a[(U + 1) & 1]);
      } else if (i + 1 < count) {
        wait_full(ring, i + 1);
        load_a(stage_of(ring, i + 1), row, 0, next, a[(U + 1) & 1]);
      }
    }
    if constexpr (J + 1 < JOBS) jobs<J + 1>(acc, i);
  }
};
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int group, const Work& w, int K) {
  const int count = w.walk.count;
  if (count == 0) return;
  const int row = group * 64 + (threadIdx.x % 128 >> 5) * 16 + ((threadIdx.x & 31) >> 2);
  Worker work = {ring, row, count};
  work.now = fetch(w, row, 0, K);
  wait_full(ring, 0);
  load_a(stage_of(ring, 0), row, 0, work.now, work.a[0]);
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) work.next = fetch(w, row, i + 1, K);
    work.jobs<0>(acc, i);
    wgmma_wait<0>();
    work.add<JOBS - 1>(acc);
    release(ring, i);
    work.now = work.next;
#pragma unroll
    for (int s = 0; s < (UNITS & 1 ? STEPS * TERMS : 0); ++s)
#pragma unroll
      for (int j = 0; j < 4; ++j) work.a[0][s][j] = work.a[1][s][j];
  }
}
#endif
#endif

#if SUMMED
// -- offsets --------------------------------------------------------------------------------------
template <typename T> struct OffsetTerms { static const int COUNT = 2; };
template <> struct OffsetTerms<bf16> { static const int COUNT = 1; };

// A fragments of the offsets of 32 groups, 8 a step: its k = 2 i and 2 i + 1 are both group i, whose
// sums of x are two bf16 there.
struct Offsets {
  u32 a[4][2][4];  // [step][term]

  DEVICE void load(const Work& w, int row, int block, int K) {
    const int groups = groups_of(K);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Planes at = weight_row(w.at, row + i % 2 * 8, K);
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const int g = block * 32 + s * 8 + i / 2 * 4 + (threadIdx.x & 3);
        const bool real = row + i % 2 * 8 < w.left && g < groups;
        const float v = real ? offset_of(at, g * GROUP) : 0.f;
        a[s][0][i] = pack2<bf16>(v, v);
        const float rest = v - low_bf16(a[s][0][i]);
        a[s][1][i] = pack2<bf16>(rest, rest);
      }
    }
  }
  static DEVICE float offset_of(const Planes& row, int k) {
    const float floor = FLOORS ? row.floors[k / SUPER_INPUTS] : 1.f;
    return full_offset(row.offsets[k / GROUP_INPUTS], floor, 1.f);
  }
};
DEVICE void add_offsets(acc_t (&acc)[ACC], Ring ring, int row, const Work& w, int K) {
  const int first = w.walk.count;  // of these stages
  for (int i = 0; i < w.walk.tail_count; ++i) {
    Offsets now;
    now.load(w, row, w.walk.tail_begin + i, K);
    wait_full(ring, first + i);
    const u64 b = swizzled_descriptor(stage_of(ring, first + i) + W_STAGE);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; ++s)
#pragma unroll
      for (int term = 0; term < OffsetTerms<OFFSET_T>::COUNT; ++term)
        Wgmma<bf16, TOKENS>::template rs<0>(acc, now.a[s][term], descriptor_plus(b, s * 32), 1);
    wgmma_commit();
    wgmma_wait<0>();
    pin(acc);
    release(ring, first + i);
  }
}
#endif
