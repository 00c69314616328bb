// Elements of a weight in each stored form, as floats; layouts as in boostr/quant/scheme.py.
//
// FORM 0 floats of type W; 1 int8 with f32 scales [N, G], one for each 2^shift columns (shift 30:
// for the whole row); 2 Q8_0, blocks of 34 bytes: f16 d, 32 int8, w = d q; 3 Q4_1, blocks of 20
// bytes: f16 d, f16 m, 16 bytes of nibbles (low: elements 0..15), w = d q + m.
#include "rows.cuh"

DEVICE float half_at(const u8* p) { return __half2float(__ushort_as_half(*(const u16*)p)); }

// N elements (1 or 8, column a multiple of N) of row `row` of a weight with K columns.
template <int N>
DEVICE void decode(const void* table, const float* scales, i64 row, int column, int K, int G,
                   int shift, float (&out)[N]) {
#if FORM == 0
  Pack<W, N> v = load_pack<W, N>((const W*)table + row * K + column);
#pragma unroll
  for (int j = 0; j < N; j++) out[j] = v[j];
#elif FORM == 1
  const i8* q = (const i8*)table + row * K + column;
  const float scale = scales[row * G + (column >> shift)];
  if constexpr (N == 1) {
    out[0] = scale * q[0];
  } else {
    const int2 words = *(const int2*)q;
#pragma unroll
    for (int j = 0; j < N; j++)
      out[j] = scale * (float)(i8)((j < 4 ? words.x : words.y) >> 8 * (j & 3));
  }
#elif FORM == 2
  const u8* block = (const u8*)table + (row * (K / 32) + column / 32) * 34;
  const float d = half_at(block);
  const u16* q = (const u16*)(block + 2 + column % 32);  // blocks are only 2-byte aligned
#pragma unroll
  for (int j = 0; j < N; j += 2) {
    const int two = q[j / 2];
    out[j] = d * (float)(i8)two;
    out[j + 1] = d * (float)(i8)(two >> 8);
  }
#else
  const u8* block = (const u8*)table + (row * (K / 32) + column / 32) * 20;
  const float d = half_at(block), m = half_at(block + 2);
  const int at = column % 32, down = at < 16 ? 0 : 4;
  const u32* q = (const u32*)(block + 4 + at % 16);
  const u32 words[2] = {q[0] >> down, q[1] >> down};
#pragma unroll
  for (int j = 0; j < N; j++) out[j] = d * (float)(words[j / 4] >> 8 * (j & 3) & 15) + m;
#endif
}
