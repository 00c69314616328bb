// Products of codes by up to 64 tokens: the weight streams, and what a row has beside its codes is
// on its way for four stages and more. Codes are exact; sums of a group are made apart and then
// scaled. Offsets multiply sums of x, which are products with ones.
#include "gemm_terms.cuh"

#define SUMS_X (OFFSETS && !ZEROS)
// inputs whose products are under way at once; 64 if registers suffice, also for a second block
#define UNIT (GROUP % 64 || (GROUP && TOKENS == 64 && BLOCKS == 2) ? 32 : 64)
#define UNITS (BK / UNIT)
#define SPANS (UNIT / 32)
#define PARTS (GROUP && GROUP < UNIT ? UNIT / GROUP : 1)  // of a unit, with sums of their own
#define SPAN_GROUP (GROUP && GROUP < BK ? GROUP : BK)     // of a group, in a stage
#define ENDS(unit) (GROUP && ((unit) + 1) * UNIT % SPAN_GROUP == 0)
#define OVERLAP (UNIT == 64)  // the next unit is decoded while products of a unit are under way

// Of the stage that lane `from` of four has fetched.
DEVICE Small of_lane(const Small& s, int from) {
  Small all;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (GROUP) all.scales[h] = s.scales[h].of_lane(from);
    if (OFFSETS) all.offsets[h] = s.offsets[h].of_lane(from);
    all.super[h] = SUPER ? __shfl_sync(FULL_MASK, s.super[h], from, 4) : 1.f;
    all.floor[h] = FLOORS ? __shfl_sync(FULL_MASK, s.floor[h], from, 4) : 1.f;
  }
  return all;
}

// Codes of 32 k as they lie in the stage, rows `row` and row + 8, for the steps' left and right
// halves: lane t takes k = 2t, 2t + 1 and these + 8 of every 16. What is packed has both steps in a
// byte.
struct Raw {
  u32 code[2][LOW_BITS ? 1 : 2][LOW_BITS == 2 ? 1 : 2], high[2];

  // own: where the lane's first codes are in the stage. Others are there with bits of the address
  // flipped, as chunks of 16 bytes are swizzled, and 8 rows on, which are swizzled alike.
  DEVICE void load(u32 stage, u32 own, int row, int span) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < (LOW_BITS ? 1 : 2); ++i)
#pragma unroll
        for (int side = 0; side < (LOW_BITS == 2 ? 1 : 2); ++side) {
          const int at = span * 4 * (LOW_BITS ? LOW_BITS : 8) + i * 16 + side * 8;
          code[half][i][side] = shared_u16((own ^ at / 16 * 16) + at % 16 + half * 8 * W_ROW);
        }
#if HIGH_BITS
      const int t = threadIdx.x & 3;
      const int at = span * 4 * HIGH_BITS + (HIGH_BITS == 2 ? 2 * t : 2 * (t & 1));
      high[half] = shared_u16(byte_address<HIGH_ROW>(stage + HIGH_AT, row + half * 8, at));
#endif
    }
  }
  // Codes of a step in the low bytes of the halves of a word.
  DEVICE u32 codes(int half, int step, int side) const {
    const u32 low = code[half][LOW_BITS ? 0 : step][LOW_BITS == 2 ? 0 : side];
    u32 above = HIGH_BITS ? __byte_perm(high[half], 0, 0x4140) : 0;
    if (HIGH_BITS == 1) above >>= (threadIdx.x & 3) >> 1;  // inputs 4 and more on are a bit each
    return four_codes(__byte_perm(low, 0, 0x4140), above, 4 * step + 2 * side);
  }
};

// A fragments of a unit.
typedef u32 Fragments[2 * SPANS][4];
DEVICE void decode_unit(const Raw (&raw)[SPANS], int unit, const Small& small, u32 magic,
                        Fragments& a) {
#pragma unroll
  for (int step = 0; step < 2 * SPANS; ++step)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int g = (unit * UNIT + step * 16) / SPAN_GROUP;
      const float zero = ZEROS ? to_float(small.offsets[half].at(g)) : 0.f;
      const u32 zeros = ZEROS ? pack2<X>(zero, zero) : 0;
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const u32 codes = raw[step / 2].codes(half, step % 2, side);
        const u32 pair = spread_halves(codes, magic, X());
        a[step][half + 2 * side] = ZEROS ? less(pair, zeros, X()) : pair;
      }
    }
}

// acc += the sums of group g of a stage.
DEVICE void add_group(float (&acc)[ACC], const float (&sum)[ACC], const float (&x_sum)[ACC],
                      const Small& s, int g) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float scale = full_scale(s.scales[half].at(g), s.super[half]);
    const float offset = SUMS_X ? full_offset(s.offsets[half].at(g), s.floor[half], scale) : 0.f;
#pragma unroll
    for (int j = half * 2; j < ACC; j += j & 1 ? 3 : 1) {
      acc[j] += scale * sum[j];
      if (SUMS_X) acc[j] += offset * x_sum[j];
    }
  }
}

typedef float Sums[PARTS][ACC];
// Starts the products of a unit with its tokens at descriptor b.
DEVICE void start_unit(const Fragments& a, u64 b, int unit, float (&acc)[ACC], Sums& sums,
                       Sums& x_sums) {
  const u32 one = pack2<X>(1.f, 1.f), ones[4] = {one, one, one, one};
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 2 * SPANS; ++i) {
    const int step = unit * 2 * SPANS + i, part = i * PARTS / (2 * SPANS);
    const u64 tokens = descriptor_plus(b, step / 4 * X_BOX + step % 4 * 32);
    const int keep = !GROUP || step * 16 % SPAN_GROUP;
    Wgmma<X, TOKENS>::template rs<0>(GROUP ? sums[part] : acc, a[i], tokens, keep);
    if (SUMS_X) Wgmma<X, TOKENS>::template rs<0>(x_sums[part], ones, tokens, keep);
  }
  wgmma_commit();
}

DEVICE void multiply(float (&acc)[ACC], Ring ring, int group, const Work& w, int K) {
  const int count = w.walk.count, t = threadIdx.x & 3;
  const int row = group * 64 + (threadIdx.x % 128 >> 5) * 16 + ((threadIdx.x & 31) >> 2);
  const u32 magic = kept(magic_of(X()), K);
  Sums sums = {}, x_sums = {};
  Fragments a[2];
  Raw raw[SPANS];
  Small next = fetch(w, row, min(t, count - 1), K), these = next, now, before;
  const u32 first = code_address(0, row, 2 * t);
  auto load = [&](int i, int unit) {
    const u32 stage = stage_of(ring, i);
#pragma unroll
    for (int s = 0; s < SPANS; ++s) raw[s].load(stage, stage + first, row, unit * SPANS + s);
  };
  // Waits for the products of a unit of stage i.
  auto end_unit = [&](int i, int unit, const Small& small) {
    wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < (ENDS(unit) ? PARTS : 0); ++part) {
      pin(sums[part]), pin(x_sums[part]);
      const int g = (unit * UNIT + part * (UNIT / PARTS)) / SPAN_GROUP;
      add_group(acc, sums[part], x_sums[part], small, g);
    }
    if (unit == UNITS - 1) release(ring, i);
  };
  wait_full(ring, 0);
  load(0, 0);
  for (int i = 0; i < count; ++i) {
    before = now;
    if (i % 4 == 0) {
      these = next;
      if (i + 4 < count) next = fetch(w, row, min(i + 4 + t, count - 1), K);
    }
    now = of_lane(these, i % 4);
    // a lane's, so that the compiler knows that it is the same for all: four instructions a product
    const u64 b = swizzled_descriptor(__shfl_sync(FULL_MASK, stage_of(ring, i) + W_STAGE, 0));
#pragma unroll
    for (int unit = 0; unit < UNITS; ++unit) {
      Fragments& own = a[OVERLAP ? unit % 2 : 0];
      decode_unit(raw, unit, now, magic, own);
      if (unit + 1 < UNITS) {
        load(i, unit + 1);
      } else if (i + 1 < count) {
        wait_full(ring, i + 1);
        load(i + 1, 0);
      }
      if (OVERLAP && unit) end_unit(i, unit - 1, now);
      if (OVERLAP && !unit && i) end_unit(i - 1, UNITS - 1, before);
      start_unit(own, b, unit, acc, sums, x_sums);
      if (!OVERLAP) end_unit(i, unit, now);
    }
  }
  if (OVERLAP) end_unit(count - 1, UNITS - 1, now);
  pin(acc);
}
