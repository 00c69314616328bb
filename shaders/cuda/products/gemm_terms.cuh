// What the tensor-core products make of codes beside `two_halves` of weights.cuh.
//
// Numbers of TABLE_FLOATS have more bits than a 16-bit float: they are the sum of two, the nearest
// and what is left of it (16 bits in all for bf16, 22 for f16), and cost two products. TABLE is then
// of such pairs, the nearest in the low half of a word.
#if TABLE_FLOATS
template <int FIRST> DEVICE void two_terms(u32 codes, u32& near, u32& rest) {
  const u32 at = nibbles_of(codes), pick = FIRST ? 0x7362 : 0x5140;
  near = __byte_perm(looked_up<0>(at), looked_up<1>(at), pick);
  rest = __byte_perm(looked_up<2>(at), looked_up<3>(at), pick);
}
#endif

// a - b, two of them; exact for integers up to 256. There is no bf16 subtraction below sm_90.
DEVICE u32 less(u32 a, u32 b, bf16) {
  u32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(b), "r"(0xbf80bf80u), "r"(a));
  return pair;
}
DEVICE u32 less(u32 a, u32 b, f16) {
  u32 pair;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  return pair;
}
