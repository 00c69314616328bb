// Philox4x32-10: four random words from a counter of four and a key of two.
// Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3.
#include "prelude.cuh"

DEVICE uint4 philox4x32(uint4 c, u32 key0, u32 key1) {
#pragma unroll
  for (int i = 0; i < 10; i++) {
    u32 high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    u32 high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    c = make_uint4(high1 ^ c.y ^ key0, low1, high0 ^ c.w ^ key1, low0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}
