// Products of codes by more than 64 tokens: A fragments of a stage are made in registers while the
// products of the stage before are under way. FOLDED weights are scaled there.
// What is subtracted from codes, so that offsets are small beside the weights: little is lost when
// both are rounded.
#define CENTRE (!OFFSETS || CODES == E4M3 ? ZERO : SIGNED ? 0 : 1 << (LOW_BITS + HIGH_BITS - 1))

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
