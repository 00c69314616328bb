// Weights in their stored form (boostr/quant/scheme.py): the only code that knows how codes lie.
//
//   w[n, k] = scale[n, g] (code[n, k] - ZERO) + offset[n, g]      or w itself, where codes are floats
//
// Macros, the fields of a Form (boostr/quant/forms.py): CODES (F32, F16, BF16: floats; C8 signed
// bytes, C4 nibbles, C6 nibbles and pairs), ZERO, GROUP (inputs that share a scale; 0: a row),
// SCALE_T (float, f16 or i8), SUPER (inputs that share a super-scale; 0: none), OFFSETS (whether
// groups have them), ROUNDS (x is rounded to int8 too).
// A new width of codes is its branch in `four_codes` and where its words lie.
#include "forms.cuh"
#ifndef ZERO
#define ZERO 0
#endif
#ifndef GROUP
#define GROUP 0
#endif
#ifndef SCALE_T
#define SCALE_T float
#endif
#ifndef SUPER
#define SUPER 0
#endif
#ifndef OFFSETS
#define OFFSETS 0
#endif
#ifndef ROUNDS
#define ROUNDS 0
#endif
#define IS_FLOAT (CODES == F32 || CODES == F16 || CODES == BF16)
#define NIBBLES (CODES == C4 || CODES == C6)
#define PAIRS (CODES == C6)
#define ROW_SCALE (!IS_FLOAT && GROUP == 0)

#if CODES == F32
typedef float Code;
#elif CODES == F16
typedef f16 Code;
#elif CODES == BF16
typedef bf16 Code;
#elif CODES == C8
typedef i8 Code;
#elif NIBBLES
typedef u8 Code;
#else
#error "weights.cuh: no decoder for these CODES"
#endif

const int GROUP_INPUTS = GROUP ? GROUP : 1 << 30, SUPER_INPUTS = SUPER ? SUPER : 1 << 30;

// The planes of a weight, or of one of its rows: where they begin; null where the form has none.
struct Planes {
  const u8* codes;
  const u8* high;
  const SCALE_T* scales;
  const float* supers;
  const f16* offsets;
};

DEVICE int code_bytes(int K) { return NIBBLES ? K / 2 : K * (int)sizeof(Code); }
DEVICE int groups_of(int K) { return (K + GROUP_INPUTS - 1) / GROUP_INPUTS; }
DEVICE Planes weight_row(const Planes& w, i64 n, int K) {
  const i64 group = n * groups_of(K);
  return {w.codes + n * code_bytes(K), w.high + n * (K / 4), w.scales + group,
          w.supers + n * (K / SUPER_INPUTS), w.offsets + group};
}

DEVICE float to_float(i8 x) { return (float)x; }
DEVICE float scale_at(const Planes& row, int k) {
  const float scale = to_float(row.scales[k / GROUP_INPUTS]);
  return SUPER ? scale * row.supers[k / SUPER_INPUTS] : scale;
}
DEVICE float offset_at(const Planes& row, int k) { return to_float(row.offsets[k / GROUP_INPUTS]); }
// What a whole row is multiplied by after its sum.
DEVICE float row_scale(const Planes& w, i64 n) { return ROW_SCALE ? to_float(w.scales[n]) : 1.f; }

// -- codes: four of them as bytes (C8: signed) ----------------------------------------------------
// Of inputs 4 i .. 4 i + 3 of 32 (NIBBLES), from word i % 4 of their nibbles and word i % 2 of their
// pairs; byte by byte, so that single bytes may be given too.
#if NIBBLES
DEVICE u32 four_codes(u32 nibbles, u32 pairs, int i) {
  const u32 low = nibbles >> (i & 4) & 0x0f0f0f0fu;
  return PAIRS ? low | (pairs >> (i & 6) & 0x03030303u) << 4 : low;
}
#else
DEVICE u32 four_codes(u32 word, u32, int) { return word; }
#endif

// Four unsigned bytes - LESS -> floats, exact: byte b under 0x4b000000 is the float 2^23 + b.
template <int LESS> DEVICE void four_bytes(u32 bytes, float* w) {
  const float magic = 8388608.f + LESS;
  w[0] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7540)) - magic;
  w[1] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7541)) - magic;
  w[2] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7542)) - magic;
  w[3] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7543)) - magic;
}
// Four codes -> floats without their zero.
DEVICE void four_floats(u32 codes, float* w) {
  if (CODES == C8) four_bytes<128 + ZERO>(codes ^ 0x80808080u, w);
  else four_bytes<ZERO>(codes, w);
}

// Codes FIRST and FIRST + 1 (0 or 2) of four, without their zero, as 16-bit floats in a word; exact.
// bf16: 0x4300 | low 7 bits is 128 + v; the sign bit of a signed byte turns 128 into 256:
// (128 + v) - (128 or 256). There is no bf16 subtraction below sm_90.
template <int FIRST> DEVICE u32 two_halves(u32 codes, bf16) {
  const u32 bytes = __byte_perm(codes, 0, FIRST ? 0x4342 : 0x4140);
  const u32 value = (bytes & 0x007f007fu) | 0x43004300u;
  const u32 minus = 0xc300c300u | (CODES == C8 ? bytes & 0x00800080u : ZERO * 0x00010001u);
  u32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(value), "r"(0x3f803f80u), "r"(minus));
  return pair;
}
// f16: 0x6400 | u is 1024 + u, and u = v + 128 for a signed byte.
template <int FIRST> DEVICE u32 two_halves(u32 codes, f16) {
  const u32 u = CODES == C8 ? codes ^ 0x80808080u : codes;
  const u32 value = __byte_perm(u, 0x64646464u, FIRST ? 0x4342 : 0x4140);
  const u32 base = 0x64006400u + (CODES == C8 ? 128 : ZERO) * 0x00010001u;
  u32 pair;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(value), "r"(base));
  return pair;
}

// Two 16-bit floats in a word -> floats; exact.
DEVICE float low_half(u32 w) { return __low2float(*(__half2*)&w); }
DEVICE float high_half(u32 w) { return __high2float(*(__half2*)&w); }
DEVICE float low_bf16(u32 w) { return __uint_as_float(w << 16); }
DEVICE float high_bf16(u32 w) { return __uint_as_float(w & 0xffff0000u); }

// -- chunks: ELEMENTS inputs of a row that a lane holds in registers -------------------------------
struct Chunk {
  static const int ELEMENTS = NIBBLES ? 32 : 16 / (int)sizeof(Code);
  static const int BYTES = 16, HIGH_BYTES = PAIRS ? 8 : 0;
  static const int SCALES = ELEMENTS > GROUP_INPUTS ? ELEMENTS / GROUP_INPUTS : 1;
  u32 word[4], pairs[2];

  DEVICE void load(const u8* codes, const u8* high) {
    const uint4 v = *(const uint4*)codes;
    word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
    const uint2 p = PAIRS ? *(const uint2*)high : make_uint2(0, 0);
    pairs[0] = p.x, pairs[1] = p.y;
  }
  // Codes 4 i .. 4 i + 3; not of floats.
  DEVICE u32 bytes(int i) const { return four_codes(word[i & 3], pairs[i & 1], i); }
  // Numbers 4 i .. 4 i + 3 as floats: code - ZERO, or w itself.
  DEVICE void four(int i, float (&w)[4]) const {
    if (CODES == F32) {
#pragma unroll
      for (int j = 0; j < 4; j++) w[j] = __uint_as_float(word[j]);
    } else if (CODES == F16) {
      w[0] = low_half(word[2 * i & 3]), w[1] = high_half(word[2 * i & 3]);
      w[2] = low_half(word[(2 * i + 1) & 3]), w[3] = high_half(word[(2 * i + 1) & 3]);
    } else if (CODES == BF16) {
      w[0] = low_bf16(word[2 * i & 3]), w[1] = high_bf16(word[2 * i & 3]);
      w[2] = low_bf16(word[(2 * i + 1) & 3]), w[3] = high_bf16(word[(2 * i + 1) & 3]);
    } else {
      four_floats(bytes(i), w);
    }
  }
};

// -- numbers of a row in global memory, as floats: code - ZERO, or w itself -----------------------
// Any alignment.
DEVICE float one(const Planes& row, int k) {
#if IS_FLOAT
  return to_float(((const Code*)row.codes)[k]);
#elif NIBBLES
  const u32 pairs = PAIRS ? row.high[k / 32 * 8 + k % 8] : 0;
  return (float)((int)(four_codes(row.codes[k / 32 * 16 + k % 16], pairs, k % 32 / 4) & 255) - ZERO);
#else
  return (float)(((const i8*)row.codes)[k] - ZERO);
#endif
}
// From k on, a multiple of 8; the row of codes begins at a multiple of 16 bytes, bytes of 8.
DEVICE void eight(const Planes& row, int k, float (&w)[8]) {
#if CODES == F32
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 v = *(const float4*)((const float*)row.codes + k + i);
    w[i] = v.x, w[i + 1] = v.y, w[i + 2] = v.z, w[i + 3] = v.w;
  }
#elif IS_FLOAT
  const Vec<Code, 8> v = load_vec<Code, 8>((const Code*)row.codes + k);
#pragma unroll
  for (int i = 0; i < 8; i++) w[i] = v[i];
#else
  const int i = k % 32 / 4;
  const uint2 v = *(const uint2*)(row.codes + (NIBBLES ? k / 32 * 16 + k % 16 : k));
  const uint2 p = PAIRS ? *(const uint2*)(row.high + k / 32 * 8) : make_uint2(0, 0);
  four_floats(four_codes(v.x, p.x, i), w);
  four_floats(four_codes(v.y, p.y, i + 1), w + 4);
#endif
}
// N (1 or 8) weights from k on, a multiple of N: exactly what the form means.
template <int N> DEVICE void decode(const Planes& row, int k, float (&w)[N]) {
  if constexpr (N == 1) w[0] = one(row, k);
  else eight(row, k, w);
  if (IS_FLOAT) return;
  const float scale = scale_at(row, k), offset = OFFSETS ? offset_at(row, k) : 0.f;
#pragma unroll
  for (int i = 0; i < N; i++) w[i] = OFFSETS ? fmaf(w[i], scale, offset) : w[i] * scale;
}
