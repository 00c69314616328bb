// Codes and what goes with them as products of gemm_sm90.cu find them, with few tokens and many.
#define STEPS (BK / 16)                                  // products of a stage
#define SCALES (GROUP && GROUP < BK ? BK / GROUP : 1)  // of a row in a stage

// SCALES numbers of T as words, which nothing takes apart in the stage that loads them: whoever
// does waits for memory.
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
  // Lane `from` of four has it.
  DEVICE Packed of_lane(int from) const {
    Packed p;
#pragma unroll
    for (int i = 0; i < WORDS; ++i) p.word[i] = __shfl_sync(FULL_MASK, word[i], from, 4);
    return p;
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
  u32 high[2][2];  // of 32 k each; FEW have theirs in the stage
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
    if (GROUP || FOLDED) s.scales[h].load(at.scales, k, K);
    if (OFFSETS) s.offsets[h].load(at.offsets, k, K);
    s.super[h] = SUPER ? at.supers[k / SUPER_INPUTS] : 1.f;
    s.floor[h] = FLOORS ? at.floors[k / SUPER_INPUTS] : 1.f;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int from = k + i * 32;
      const u8* p = at.high + from / 8 * HIGH_BITS + (HIGH_BITS == 2 ? 2 * t : 2 * (t & 1));
      s.high[i][h] = HIGH_BITS && !FEW && (WHOLE || from < K) ? *(const u16*)p : 0;
    }
  }
  return s;
}

DEVICE u32 shared_u16(u32 p) {
  u16 v;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(p));
  return v;
}
// Where byte `at` of a row of BYTES lies: chunks of 16 bytes are swizzled as the copy engine does
// it for rows of 128, 64 or 32 bytes, and not for 16.
template <int BYTES> DEVICE u32 byte_address(u32 rows, int row, int at) {
  const int turn = BYTES == 128  ? row & 7
                   : BYTES == 64 ? row >> 1 & 3
                   : BYTES == 32 ? row >> 2 & 1
                                 : 0;
  return rows + row * BYTES + ((at / 16 ^ turn) << 4) + at % 16;
}
DEVICE u32 code_address(u32 stage, int row, int at) {
  return byte_address<W_ROW>(stage, row, at);
}
