// Weights in their stored form (boostr/quant/scheme.py): the only code that knows how codes lie.
//
//   w[n, k] = scale[n, g] (number(code[n, k]) - ZERO) + offset[n, g], scale = FACTOR scale super
//
// or w itself, where codes are floats.
//
// Macros, the fields of a Form (boostr/quant/forms.py): CODES (F32, F16, BF16: floats; C8 signed
// bytes; E4M3 8-bit floats, none of them NaN; C6 C5 C4 C3 C2 fields of bits in one plane or two),
// ZERO, GROUP (inputs that share a scale; 0: a row), SCALE_T (float, f16, bf16, i8, e8m0 or e4m3),
// FACTOR, SUPER (inputs that share a super-scale; 0: none), ROUNDS (x is rounded to int8 too).
// TABLE: the numbers of codes of up to 4 bits: 16 bytes as 4 words, or under TABLE_FLOATS 16 f32 as
// four such tables, of their bytes 0 to 3. OFFSET_T: groups have offsets of that type, which FLOORS
// of SUPER inputs multiply; or ZEROS, subtracted from codes.
// A new width of codes is its LOW_BITS and HIGH_BITS.
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
#ifndef FACTOR
#define FACTOR 1.f
#endif
#ifndef SUPER
#define SUPER 0
#endif
#ifdef OFFSET_T
#define OFFSETS 1
#else
#define OFFSETS 0
#define OFFSET_T f16
#endif
#ifndef FLOORS
#define FLOORS 0
#endif
#ifndef ZEROS
#define ZEROS 0
#endif
#ifdef TABLE
#define LOOKED_UP 1
#else
#define LOOKED_UP 0
#define TABLE 0
#endif
#ifndef TABLE_FLOATS
#define TABLE_FLOATS 0
#endif
#ifndef ROUNDS
#define ROUNDS 0
#endif
#define IS_FLOAT (CODES == F32 || CODES == F16 || CODES == BF16)
// bits of a code in the planes of codes and of high bits; 0 where there is no field
#define NIBBLES (CODES == C6 || CODES == C5 || CODES == C4)
#define LOW_BITS (NIBBLES ? 4 : CODES == C3 || CODES == C2 ? 2 : 0)
#define HIGH_BITS (CODES == C6 ? 2 : CODES == C5 || CODES == C3 ? 1 : 0)
#define PAIRS (HIGH_BITS == 2)
#define INTEGERS (!IS_FLOAT && CODES != E4M3 && !TABLE_FLOATS)  // codes stand for bytes,
#define SIGNED (CODES == C8 || LOOKED_UP)                        // which have a sign
#define ROW_SCALE (!IS_FLOAT && GROUP == 0)

#if CODES == F32
typedef float Code;
#elif CODES == F16
typedef f16 Code;
#elif CODES == BF16
typedef bf16 Code;
#elif CODES == C8
typedef i8 Code;
#elif CODES == E4M3 || LOW_BITS
typedef u8 Code;
#else
#error "weights.cuh: no decoder for these CODES"
#endif

const int GROUP_INPUTS = GROUP ? GROUP : 1 << 30, SUPER_INPUTS = SUPER ? SUPER : 1 << 30;

// -- scales and offsets ---------------------------------------------------------------------------
struct e8m0 { u8 byte; };  // 2^(byte - 127); 255, a NaN, is not expected
struct e4m3 { u8 byte; };  // sign, 4 bits of exponent, 3 of fraction; NaNs are not expected
DEVICE float to_float(u8 x) { return (float)x; }
DEVICE float to_float(e8m0 x) { return __uint_as_float(x.byte ? x.byte << 23 : 1 << 22); }
DEVICE float to_float(e4m3 x) {
  const u16 half = (x.byte & 0x80) << 8 | (x.byte & 0x7f) << 7;
  return __half2float(__ushort_as_half(half)) * 256.f;
}

// The planes of a weight, or of one of its rows: where they begin; null where the form has none.
struct Planes {
  const u8* codes;
  const u8* high;
  const SCALE_T* scales;
  const float* supers;
  const OFFSET_T* offsets;  // or zeros
  const float* floors;
};

DEVICE int code_bytes(int K) { return LOW_BITS ? K / 8 * LOW_BITS : K * (int)sizeof(Code); }
DEVICE int high_bytes(int K) { return K / 8 * HIGH_BITS; }
DEVICE int groups_of(int K) { return (K + GROUP_INPUTS - 1) / GROUP_INPUTS; }
DEVICE int supers_of(int K) { return (K + SUPER_INPUTS - 1) / SUPER_INPUTS; }
DEVICE Planes weight_row(const Planes& w, i64 n, int K) {
  const i64 group = n * groups_of(K), super = n * supers_of(K);
  return {w.codes + n * code_bytes(K), w.high + n * high_bytes(K), w.scales + group,
          w.supers + super, w.offsets + group, w.floors + super};
}

// From what is stored to what it means; `super` and `floor` count under SUPER and FLOORS.
DEVICE float full_scale(SCALE_T scale, float super) {
  const float own = to_float(scale) * FACTOR;
  return SUPER ? own * super : own;
}
DEVICE float full_offset(OFFSET_T offset, float floor, float scale) {
  const float own = to_float(offset);
  return ZEROS ? -scale * own : FLOORS ? own * floor : own;
}
DEVICE float scale_at(const Planes& row, int k) {
  return full_scale(row.scales[k / GROUP_INPUTS], SUPER ? row.supers[k / SUPER_INPUTS] : 1.f);
}
// What a whole row is multiplied by after its sum.
DEVICE float row_scale(const Planes& w, i64 n) {
  return ROW_SCALE ? full_scale(w.scales[n], 1.f) : 1.f;
}

// Numbers of inputs from k on, of one group -> weights; a scale of the whole row too.
template <int N> DEVICE void affine(const Planes& row, int k, float (&w)[N]) {
  const float scale = scale_at(row, k);
  const OFFSET_T stored = OFFSETS ? row.offsets[k / GROUP_INPUTS] : OFFSET_T();
  const float zero = ZEROS ? to_float(stored) : 0.f;
  const float offset = full_offset(stored, FLOORS ? row.floors[k / SUPER_INPUTS] : 1.f, scale);
#pragma unroll
  for (int i = 0; i < N; i++) {
    w[i] = __fmul_rn(ZEROS ? w[i] - zero : w[i], scale);
    if (OFFSETS && !ZEROS) w[i] = __fadd_rn(w[i], offset);
  }
}

// -- codes: four of them as bytes -----------------------------------------------------------------
// What four nibbles stand for in table PART, as bytes.
template <int PART> DEVICE u32 looked_up(u32 nibbles) {
  constexpr u32 words[16] = {TABLE};
  const u32 at = nibbles & 0x7777;
  const u32 low = __byte_perm(words[4 * PART], words[4 * PART + 1], at);
  if (LOW_BITS < 4) return low;
  const u32 high = __byte_perm(words[4 * PART + 2], words[4 * PART + 3], at);
  return __byte_perm(low, high, (nibbles & 0x8888) >> 1 | 0x3210);
}
// Four bytes below 16 as nibbles.
DEVICE u32 nibbles_of(u32 bytes) { return __byte_perm(bytes | bytes >> 4, 0, 0x4420); }

// The codes of inputs 4 i .. 4 i + 3 of 32, from word i % LOW_BITS of their low bits and word
// i % HIGH_BITS of their high ones; byte by byte, so that single bytes may be given too.
DEVICE u32 four_stored(u32 low, u32 high, int i) {
  if (!LOW_BITS) return low;
  if (LOW_BITS == 4) low = low >> (i & 4) & 0x0f0f0f0fu;
  else low = low >> (i & 6) & 0x03030303u;
  if (HIGH_BITS == 2) high = high >> (i & 6) & 0x03030303u;
  else high = high >> (i & 7) & 0x01010101u;
  return HIGH_BITS ? low | high << LOW_BITS : low;
}
// And what they stand for, if that is bytes; else as they are.
DEVICE u32 four_codes(u32 low, u32 high, int i) {
  if (!LOOKED_UP || TABLE_FLOATS) return four_stored(low, high, i);
  if (LOW_BITS < 4) return looked_up<0>(nibbles_of(four_stored(low, high, i)));
  // a word's nibbles are those of two fours, one by one: the compiler looks them up once for both
  return __byte_perm(looked_up<0>(low), looked_up<0>(low >> 16), i & 4 ? 0x7531 : 0x6420);
}

// Four unsigned bytes - LESS -> floats, exact: byte b under 0x4b000000 is the float 2^23 + b.
template <int LESS> DEVICE void four_bytes(u32 bytes, float* w) {
  const float magic = 8388608.f + LESS;
  w[0] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7540)) - magic;
  w[1] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7541)) - magic;
  w[2] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7542)) - magic;
  w[3] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7543)) - magic;
}
// Two e4m3, in the high bytes of 16 bits each, -> f16, which has a bit more of exponent: times 2^8.
DEVICE u32 two_e4m3(u32 tops, f16) {
  const u32 small = (tops & 0x80008000u) | (tops >> 1 & 0x3f803f80u);
  u32 pair;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(small), "r"(0x5c005c00u));
  return pair;
}
// And bf16, which has four more: times 2^120, less 0 (there is no bf16 product below sm_90).
DEVICE u32 two_e4m3(u32 tops, bf16) {
  const u32 small = (tops & 0x80008000u) | (tops >> 4 & 0x07f007f0u);
  u32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;"
      : "=r"(pair) : "r"(small), "r"(0x7b807b80u), "r"(0x80008000u));
  return pair;
}
// Two 16-bit floats in a word -> floats; exact.
DEVICE float low_half(u32 w) { return __low2float(*(__half2*)&w); }
DEVICE float high_half(u32 w) { return __high2float(*(__half2*)&w); }
DEVICE float low_bf16(u32 w) { return __uint_as_float(w << 16); }
DEVICE float high_bf16(u32 w) { return __uint_as_float(w & 0xffff0000u); }

// Four codes -> numbers without their zero.
DEVICE void four_floats(u32 codes, float* w) {
#if CODES == E4M3
  const u32 left = two_e4m3(__byte_perm(codes, 0, 0x1404), f16());
  const u32 right = two_e4m3(__byte_perm(codes, 0, 0x3424), f16());
  w[0] = low_half(left), w[1] = high_half(left), w[2] = low_half(right), w[3] = high_half(right);
#elif TABLE_FLOATS
  const u32 at = nibbles_of(codes);
  const u32 a = looked_up<0>(at), b = looked_up<1>(at), c = looked_up<2>(at), d = looked_up<3>(at);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u32 low = __byte_perm(a, b, i < 2 ? 0x5140 : 0x7362);  // of numbers i and i ^ 1
    const u32 high = __byte_perm(c, d, i < 2 ? 0x5140 : 0x7362);
    w[i] = __uint_as_float(__byte_perm(low, high, i & 1 ? 0x7632 : 0x5410));
  }
#else
  if (SIGNED) four_bytes<128 + ZERO>(codes ^ 0x80808080u, w);
  else four_bytes<ZERO>(codes, w);
#endif
}

// Exponents under which bytes are integers; `kept` in a register, for which the compiler must not
// know them (there is a number that is not negative): else a mask and they would take two
// instructions.
DEVICE u32 magic_of(bf16) { return 0x43004300u; }
DEVICE u32 magic_of(f16) { return 0x64006400u; }
DEVICE u32 kept(u32 magic, int number) {
  u32 same;
  asm("or.b32 %0, %1, %2;" : "=r"(same) : "r"(magic), "r"(number >> 31));
  return same;
}
// The first bytes of both halves of a word (the others: anything), codes without their zero, as
// 16-bit floats in a word; exact. Not of TABLE_FLOATS; a ZERO of signed codes is 0 or -128.
// bf16: 0x4300 | low 7 bits is 128 + v; the sign bit of a signed byte turns 128 into 256:
// (128 + v) - (128 or 256). There is no bf16 subtraction below sm_90.
DEVICE u32 spread_halves(u32 bytes, u32 magic, bf16) {
  if (CODES == E4M3) return two_e4m3(bytes << 8, bf16());
  const u32 value = (bytes & 0x007f007fu) | magic;
  u32 less = 0x43004300u + (SIGNED ? 0 : ZERO) * 0x00010001u;
  if (SIGNED) less = (bytes & 0x00800080u) | magic;
  if (SIGNED && ZERO) less = (bytes >> 7 & 0x00010001u) * 0x4300u;  // of codes below 0 alone
  u32 pair;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(less), "r"(0xbf80bf80u), "r"(value));
  return pair;
}
// f16: 0x6400 | u is 1024 + u, and u = v + 128 for a signed byte.
template <int LESS> DEVICE u32 less_magic(u32 value) {
  const u32 base = 0x64006400u + ((SIGNED ? 128 : 0) + LESS) * 0x00010001u;
  u32 pair;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(value), "r"(base));
  return pair;
}
DEVICE u32 spread_halves(u32 bytes, u32 magic, f16) {
  if (CODES == E4M3) return two_e4m3(bytes << 8, f16());
  const u32 u = SIGNED ? bytes ^ 0x00800080u : bytes;
  return less_magic<ZERO>((u & 0x00ff00ffu) | magic);
}
// The same of bytes FIRST and FIRST + 1 (0 or 2) of four codes.
template <int FIRST> DEVICE u32 two_halves(u32 codes, bf16) {
  if (CODES == E4M3) return two_e4m3(__byte_perm(codes, 0, FIRST ? 0x3424 : 0x1404), bf16());
  return spread_halves(__byte_perm(codes, 0, FIRST ? 0x4342 : 0x4140), magic_of(bf16()), bf16());
}
template <int FIRST, int LESS = ZERO> DEVICE u32 two_halves(u32 codes, f16) {
  if (CODES == E4M3) return two_e4m3(__byte_perm(codes, 0, FIRST ? 0x3424 : 0x1404), f16());
  const u32 u = SIGNED ? codes ^ 0x80808080u : codes;
  return less_magic<LESS>(__byte_perm(u, 0x64646464u, FIRST ? 0x4342 : 0x4140));
}

// -- chunks: ELEMENTS inputs of a row that a lane holds in registers ------------------------------
struct Chunk {
  static const int ELEMENTS = NIBBLES ? 32 : LOW_BITS ? 64 : 16 / (int)sizeof(Code);
  static const int BYTES = 16, HIGH_BYTES = ELEMENTS * HIGH_BITS / 8;
  static const int SCALES = ELEMENTS > GROUP_INPUTS ? ELEMENTS / GROUP_INPUTS : 1;
  u32 word[4], above[2];

  DEVICE void load(const u8* codes, const u8* high) {
    const uint4 v = *(const uint4*)codes;
    word[0] = v.x, word[1] = v.y, word[2] = v.z, word[3] = v.w;
    if (HIGH_BYTES == 4) above[0] = *(const u32*)high;
    if (HIGH_BYTES == 8) above[0] = ((const uint2*)high)->x, above[1] = ((const uint2*)high)->y;
  }
  // What codes 4 i .. 4 i + 3 stand for, as `four_codes`; not of floats.
  DEVICE u32 bytes(int i) const {
    if (!LOW_BITS) return word[i & 3];
    const int low = i / 8 * LOW_BITS + (i & LOW_BITS - 1);
    const int high = i / 8 * HIGH_BITS + (i & HIGH_BITS - 1);
    return four_codes(word[low], HIGH_BITS ? above[high] : 0, i % 8);
  }
  // The same; RAISED: 16 times that in the second 16 of 32 inputs, which takes no shift.
  static const bool RAISED = CODES == C4 && !LOOKED_UP;
  DEVICE u32 raised(int i) const {
    return RAISED && i & 4 ? word[i & 3] & 0xf0f0f0f0u : bytes(i);
  }
  // Numbers 4 i .. 4 i + 3 as floats, without their zero, or w itself.
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

// -- numbers of a row in global memory, as floats without their zero, or w itself -----------------
// Any alignment.
DEVICE float one(const Planes& row, int k) {
#if IS_FLOAT
  return to_float(((const Code*)row.codes)[k]);
#elif CODES == C8
  return (float)(((const i8*)row.codes)[k] - ZERO);
#else
  u32 low = row.codes[k], high = 0;
#if LOW_BITS
  low = row.codes[k / 32 * (4 * LOW_BITS) + k % (4 * LOW_BITS)];
#endif
#if HIGH_BITS
  high = row.high[k / 32 * (4 * HIGH_BITS) + k % (4 * HIGH_BITS)];
#endif
  float w[4];
  four_floats(four_codes(low, high, k % 32 / 4), w);
  return w[0];
#endif
}
// From k on, a multiple of 8; the row of codes begins at a multiple of 16 bytes, bytes of 8; high
// bits at a multiple of 8, or of 4 if they are single ones.
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
  uint2 low, high = {0, 0};
#if LOW_BITS
  low = *(const uint2*)(row.codes + k / 32 * (4 * LOW_BITS) + k % (4 * LOW_BITS));
#else
  low = *(const uint2*)(row.codes + k);
#endif
#if HIGH_BITS == 2
  high = *(const uint2*)(row.high + k / 32 * 8);
#elif HIGH_BITS == 1
  high.x = high.y = *(const u32*)(row.high + k / 32 * 4);
#endif
  const int i = k % 32 / 4;
  four_floats(four_codes(low.x, high.x, i), w);
  four_floats(four_codes(low.y, high.y, i + 1), w + 4);
#endif
}
// N (1 or 8) weights from k on, a multiple of N: exactly what the form means.
template <int N> DEVICE void decode(const Planes& row, int k, float (&w)[N]) {
  if constexpr (N == 1) w[0] = one(row, k);
  else eight(row, k, w);
  if (!IS_FLOAT) affine(row, k, w);
}
