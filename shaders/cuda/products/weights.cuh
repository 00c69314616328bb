// Weights in their stored form: the bytes of a chunk (what one lane decodes at a time) from shared
// memory to registers, from there to floats four at a time; and one element from global memory.
// The forms are those of boostr/quant/scheme.py:
//   F32, F16, BF16         floats, 16 bytes to a chunk
//   INT8, W8A8             int8, one f32 scale for each row; 16 to a chunk
//   INT8_GROUP             int8, one f32 scale for each row and GROUP inputs; 16 to a chunk
//   Q8_0                   blocks of 32: f16 d, 32 int8; w = d q; 34 bytes
//   Q4_1                   blocks of 32: f16 d, f16 m, 32 nibbles; w = d q + m; 20 bytes
// `four` gives four numbers as they lie, `bytes` the same as signed bytes (not of floats): the
// caller multiplies sums by the row's, the group's or the block's scale (and adds offset * sum of
// x for Q4_1).
#define F32 0
#define F16 1
#define BF16 2
#define INT8 3
#define INT8_GROUP 4
#define Q8_0 5
#define Q4_1 6
#define W8A8 7

// Two 16-bit floats in a word -> floats; exact.
DEVICE float low_half(u32 w) { return __low2float(*(__half2*)&w); }
DEVICE float high_half(u32 w) { return __high2float(*(__half2*)&w); }
DEVICE float low_bf16(u32 w) { return __uint_as_float(w << 16); }
DEVICE float high_bf16(u32 w) { return __uint_as_float(w & 0xffff0000u); }

// Four unsigned bytes - bias -> floats, exact: byte b under 0x4b000000 is the float 2^23 + b.
template <int BIAS> DEVICE void four_bytes(u32 bytes, float (&w)[4]) {
  const float magic = 8388608.f + BIAS;
  w[0] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7540)) - magic;
  w[1] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7541)) - magic;
  w[2] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7542)) - magic;
  w[3] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7543)) - magic;
}

// -- chunks: ELEMENTS inputs in BYTES bytes, WORDS registers when loaded -------------------------
// SCALED: each chunk has a scale (and an offset) of its own, known after `load`.
template <int WHICH> struct Chunk {  // F32, F16, BF16, INT8, INT8_GROUP, W8A8
  static const int BYTES = 16, WORDS = 4;
  static const int ELEMENTS = WHICH == F32 ? 4 : WHICH == F16 || WHICH == BF16 ? 8 : 16;
  static const bool SCALED = WHICH == INT8_GROUP;
  u32 word[WORDS];

  DEVICE void load(const u8* p) {
    uint4 v = *(const uint4*)p;
    word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
  }
  DEVICE void four(int i, float (&w)[4]) const {
    if (WHICH == F32) {
#pragma unroll
      for (int j = 0; j < 4; j++) w[j] = __uint_as_float(word[j]);
    } else if (WHICH == F16) {
      w[0] = low_half(word[2 * i]), w[1] = high_half(word[2 * i]);
      w[2] = low_half(word[2 * i + 1]), w[3] = high_half(word[2 * i + 1]);
    } else if (WHICH == BF16) {
      w[0] = low_bf16(word[2 * i]), w[1] = high_bf16(word[2 * i]);
      w[2] = low_bf16(word[2 * i + 1]), w[3] = high_bf16(word[2 * i + 1]);
    } else {
      four_bytes<128>(word[i] ^ 0x80808080u, w);
    }
  }
  DEVICE int bytes(int i) const { return (int)word[i % WORDS]; }
  DEVICE float scale() const { return 1.f; }
  DEVICE float offset() const { return 0.f; }
};

template <> struct Chunk<Q8_0> {
  static const int BYTES = 34, WORDS = 8, ELEMENTS = 32;
  static const bool SCALED = true;
  u32 word[WORDS];
  float d;

  DEVICE void load(const u8* p) {  // p is even; one word read too many lies in the stage's slack
    const u32* base = (const u32*)((u64)p & ~3ull);
    const bool odd = (u64)p & 2;
    const u32 first = base[0];
    d = odd ? high_half(first) : low_half(first);
    if (odd) {
#pragma unroll
      for (int i = 0; i < 8; i++) word[i] = base[i + 1];
    } else {
      u32 previous = first;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const u32 next = base[i + 1];
        word[i] = __funnelshift_r(previous, next, 16);
        previous = next;
      }
    }
  }
  DEVICE void four(int i, float (&w)[4]) const { four_bytes<128>(word[i] ^ 0x80808080u, w); }
  DEVICE int bytes(int i) const { return (int)word[i]; }
  DEVICE float scale() const { return d; }
  DEVICE float offset() const { return 0.f; }
};

template <> struct Chunk<Q4_1> {
  static const int BYTES = 20, WORDS = 4, ELEMENTS = 32;
  static const bool SCALED = true;
  u32 word[WORDS];
  float d, m;

  DEVICE void load(const u8* p) {
    const u32* base = (const u32*)p;
    d = low_half(base[0]), m = high_half(base[0]);
#pragma unroll
    for (int i = 0; i < 4; i++) word[i] = base[i + 1];
  }
  DEVICE void four(int i, float (&w)[4]) const {  // 0..3 low nibbles: elements 0..15; then high
    four_bytes<0>((u32)bytes(i), w);
  }
  DEVICE int bytes(int i) const {
    return (int)((i < 4 ? word[i & 3] : word[i & 3] >> 4) & 0x0f0f0f0fu);
  }
  DEVICE float scale() const { return d; }
  DEVICE float offset() const { return m; }
};

// -- one element, from a row in global memory of any alignment; without scales of INT8 forms ----
DEVICE float f16_bytes(const u8* p) {
  return __half2float(__ushort_as_half((u16)(p[0] | (u32)p[1] << 8)));
}
template <int WHICH> DEVICE float element(const u8* row, int k) {
  if (WHICH == F32) return ((const float*)row)[k];
  if (WHICH == F16) return to_float(((const f16*)row)[k]);
  if (WHICH == BF16) return to_float(((const bf16*)row)[k]);
  if (WHICH == Q8_0) {
    const u8* block = row + (k >> 5) * 34;
    return f16_bytes(block) * (float)(i8)block[2 + (k & 31)];
  }
  if (WHICH == Q4_1) {
    const u8* block = row + (k >> 5) * 20;
    const u32 q = (block[4 + (k & 15)] >> (k & 16 ? 4 : 0)) & 15;
    return f16_bytes(block) * (float)q + f16_bytes(block + 2);
  }
  return (float)((const i8*)row)[k];
}
