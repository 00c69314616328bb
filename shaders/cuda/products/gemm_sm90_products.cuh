// The inner loops of gemm_sm90.cu: how a warpgroup multiplies 64 rows of w by TOKENS tokens, stage
// by stage of the ring. Floats and bytes come from shared memory as they are; codes become A
// fragments in registers, while the products of the stage before are under way.
#include "wgmma.cuh"

struct Ring {
  u32 stages, full, empty;  // shared addresses; barriers 8 bytes apart
};

// Which step of K stage i of `count` holds: blocks start at different places, so that they do not
// all read the same lines of x at once.
struct Walk {
  int begin, count, turn;
  DEVICE int k(int i) const {
    const int at = i + turn;
    return (begin + (at < count ? at : at - count)) * BK;
  }
};

// What a block works on; in shared memory, since registers are few.
struct Work {
  Planes at;           // of its first row
  const float* downs;  // of its first row, if FOLDED
  int left;            // rows from there to the end
  Walk walk;
};

DEVICE void wait_full(Ring ring, int i) {
  mbarrier_wait(ring.full + i % STAGES * 8, i / STAGES & 1);
}
// Stage i may be overwritten: said by a lane of each warp.
DEVICE void release(Ring ring, int i) {
  if (threadIdx.x % 32 == 0) mbarrier_arrive(ring.empty + i % STAGES * 8);
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
#define STEPS (BK / 16)                                  // products of a stage
#define SCALES (GROUP && GROUP < BK ? BK / GROUP : 1)  // of a row in a stage
// What is subtracted from codes, so that offsets are small beside the weights: little is lost when
// both are rounded.
#define CENTRE (!OFFSETS || CODES == E4M3 ? ZERO : SIGNED ? 0 : 1 << (LOW_BITS + HIGH_BITS - 1))

// SCALES numbers of T as words, which nothing takes apart in the stage that loads them: whoever does
// waits for memory.
template <typename T> struct Packed {
  static const int BYTES = SCALES * (int)sizeof(T), WORDS = (BYTES + 3) / 4;
  u32 word[WORDS];

  // Of a row's numbers, those of inputs from k on.
  DEVICE void load(const T* row, int k, int K) {
    const T* from = row + k / GROUP_INPUTS;
    if (!WHOLE) {
      Vec<T, SCALES> v = {};
#pragma unroll
      for (int u = 0; u < SCALES; ++u) {
        const int at = k + u * (BK / SCALES);
        if (at < K) v.at[u] = row[at / GROUP_INPUTS];
      }
      word[WORDS - 1] = 0;
      memcpy(word, &v, sizeof(v));
    } else if (BYTES <= 2) {
      word[0] = BYTES == 1 ? *(const u8*)from : *(const u16*)from;
    } else {
      const Vec<u32, WORDS> v = load_vec<u32, WORDS>((const u32*)from);
      memcpy(word, &v, sizeof(v));
    }
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
  Packed<OFFSET_T> offsets[2];
  float super[2], floor[2];
  u32 high[2][2];  // of 32 k each
};
// The row that stands for row `row`: the last one for those behind it, which are not stored.
DEVICE int real_row(const Work& w, int row) { return min(row, w.left - 1); }
// Of stage i.
DEVICE Small fetch(const Work& w, int row, int i, int K) {
  Small s;
  const int k = w.walk.k(i);
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const Planes at = weight_row(w.at, real_row(w, row + 8 * h), K);
    if (FOLDED) s.scales[h].load(at.scales, k, K);
    if (OFFSETS) s.offsets[h].load(at.offsets, k, K);
    s.super[h] = SUPER ? at.supers[k / SUPER_INPUTS] : 1.f;
    s.floor[h] = FLOORS ? at.floors[k / SUPER_INPUTS] : 1.f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int from = k + i * 32;
      const u8* p = at.high + from / 8 * HIGH_BITS + (HIGH_BITS == 2 ? 2 * t : 2 * (t & 1));
      s.high[i][h] = HIGH_BITS && (WHOLE || from < K) ? *(const u16*)p : 0;
    }
  }
  return s;
}
// Scales and offsets of a row in a stage as pairs of f16.
struct Affine {
  u32 scale[SCALES], offset[SCALES];

  DEVICE Affine(const Small& s, int half, float up) {
#pragma unroll
    for (int i = 0; i < (FOLDED ? SCALES : 0); ++i) {
      const float own = full_scale(s.scales[half].at(i), s.super[half]);
      scale[i] = pack2<f16>(own * up, own * up);
      if (!OFFSETS) continue;
      const float rest = full_offset(s.offsets[half].at(i), s.floor[half], own);
      const float all = rest + own * (CENTRE - ZERO);
      offset[i] = pack2<f16>(all * up, all * up);
    }
  }
};

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
// Two codes as a pair of A.
DEVICE u32 two_weights(u32 codes, u32 scale, u32 offset) {
#if !FOLDED
  return two_halves<0>(codes, X());
#else
#if TABLE_FLOATS
  const u32 at = nibbles_of(codes);
  const u32 numbers = __byte_perm(looked_up<0>(at), looked_up<1>(at), 0x5140);
#else
  const u32 numbers = two_halves<0, CENTRE>(codes, f16());
#endif
  u32 pair;
  if (OFFSETS)
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(numbers), "r"(scale), "r"(offset));
  else
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(numbers), "r"(scale));
  return pair;
#endif
}
// A fragments of a stage, rows `row` and row + 8: lane t takes k = 2t, 2t + 1 and these + 8 of every
// step. What is packed has both steps of 32 k in the same bytes.
DEVICE void load_a(u32 stage, int row, const Small& small, const float (&ups)[2],
                   u32 (&a)[STEPS][4]) {
  const int t = threadIdx.x & 3;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Affine affine(small, half, ups[half]);
#pragma unroll
    for (int step = 0; step < STEPS; step += LOW_BITS ? 2 : 1) {
      const int r = row + half * 8, at = step * 2 * (LOW_BITS ? LOW_BITS : 8);
      const u32 left = shared_u16(code_address(stage, r, at + 2 * t));
      const u32 right = LOW_BITS == 2 ? left : shared_u16(code_address(stage, r, at + 2 * t + 8));
      u32 high = small.high[step / 2][half];
      if (HIGH_BITS == 1) high >>= t >> 1;  // inputs 4 and more on are a bit each
#pragma unroll
      for (int i = 0; i < (LOW_BITS ? 2 : 1); ++i) {
        const int g = (step + i) * SCALES / STEPS;
        const u32 scale = affine.scale[g], offset = affine.offset[g];
        a[step + i][half] = two_weights(four_codes(left, high, 4 * i), scale, offset);
        a[step + i][half + 2] = two_weights(four_codes(right, high, 4 * i + 2), scale, offset);
      }
    }
  }
}

DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int group, const Work& w, int K) {
  const int count = w.walk.count;
  const int row = group * 64 + (threadIdx.x % 128 >> 5) * 16 + ((threadIdx.x & 31) >> 2);
  float ups[2] = {1.f, 1.f};
#pragma unroll
  for (int h = 0; h < 2; ++h)
    if (FOLDED)  // 1 / down, of a power of two
      ups[h] = __uint_as_float(0x7f000000u - __float_as_uint(w.downs[real_row(w, row + 8 * h)]));
  u32 a[2][STEPS][4];
  Small now = fetch(w, row, 0, K);
  auto stage = [&](int i, u32 (&a)[STEPS][4]) {
    const Small next = fetch(w, row, min(i + 1, count - 1), K);
    wait_full(ring, i);
    load_a(stage_of(ring, i), row, now, ups, a);
    const u64 b = swizzled_descriptor(stage_of(ring, i) + W_STAGE);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < STEPS; ++k)
      Wgmma<X, TOKENS>::template rs<0>(acc, a[k], descriptor_plus(b, k * 32), 1);
    wgmma_commit();
    wgmma_wait<1>();
    if (i) release(ring, i - 1);
    now = next;
  };
  int i = 0;
  for (; i + 1 < count; i += 2) {
    stage(i, a[0]);
    stage(i + 1, a[1]);
  }
  if (i < count) stage(i, a[0]);
  wgmma_wait<0>();
  pin(acc);
}
#endif
