// What the kernels that go over rows share: runs of elements in registers, sums over a row.
// Data that other kernels write is read by plain loads after `pdl_wait`: never through the
// read-only path (`__ldg`, `const __restrict__`), which may keep what was there before the wait.
#include "prelude.cuh"

// -- N elements of T: loaded and stored in accesses of up to 16 bytes, kept as they lie -----------
template <typename T, int N> struct Pack {
  static constexpr int BYTES = N * (int)sizeof(T);
  u32 word[(BYTES + 3) / 4];
  DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < (BYTES + 3) / 4; i++) word[i] = 0;
  }
  DEVICE float operator[](int i) const;
  DEVICE void set_pair(int i, float a, float b);  // elements 2 i and 2 i + 1, N even
  DEVICE void set(const float (&x)[N]) {
    if constexpr (N == 1) {
      if constexpr (sizeof(T) == 4) word[0] = __float_as_uint(x[0]);
      else { T t = from_float<T>(x[0]); word[0] = *(const u16*)&t; }
    } else {
#pragma unroll
      for (int i = 0; i < N / 2; i++) set_pair(i, x[2 * i], x[2 * i + 1]);
    }
  }
};
DEVICE float unpack(u32 w, int odd, bf16*) {
  return __uint_as_float(odd ? w & 0xffff0000u : w << 16);
}
DEVICE float unpack(u32 w, int odd, f16*) {
  return __half2float(__ushort_as_half((u16)(odd ? w >> 16 : w & 0xffffu)));
}
template <typename T, int N> DEVICE float Pack<T, N>::operator[](int i) const {
  if constexpr (sizeof(T) == 4) return __uint_as_float(word[i]);
  else return unpack(word[i / 2], i & 1, (T*)nullptr);
}
template <typename T, int N> DEVICE void Pack<T, N>::set_pair(int i, float a, float b) {
  if constexpr (sizeof(T) == 4) {
    word[2 * i] = __float_as_uint(a);
    word[2 * i + 1] = __float_as_uint(b);
  } else {
    word[i] = pack2<T>(a, b);
  }
}

// `p` must be a multiple of min(16, N * sizeof(T)) bytes.
template <typename T, int N> DEVICE Pack<T, N> load_pack(const T* p) {
  Pack<T, N> v;
  if constexpr (Pack<T, N>::BYTES == 2) v.word[0] = *(const u16*)p;
  else if constexpr (Pack<T, N>::BYTES == 4) v.word[0] = *(const u32*)p;
  else if constexpr (Pack<T, N>::BYTES == 8) {
    uint2 a = *(const uint2*)p;
    v.word[0] = a.x; v.word[1] = a.y;
  } else {
#pragma unroll
    for (int i = 0; i < Pack<T, N>::BYTES / 16; i++) {
      uint4 a = ((const uint4*)p)[i];
      u32* w = v.word + 4 * i;
      w[0] = a.x; w[1] = a.y; w[2] = a.z; w[3] = a.w;
    }
  }
  return v;
}
template <typename T, int N> DEVICE void store_pack(T* p, const Pack<T, N>& v) {
  if constexpr (Pack<T, N>::BYTES == 2) *(u16*)p = (u16)v.word[0];
  else if constexpr (Pack<T, N>::BYTES == 4) *(u32*)p = v.word[0];
  else if constexpr (Pack<T, N>::BYTES == 8) *(uint2*)p = make_uint2(v.word[0], v.word[1]);
  else {
#pragma unroll
    for (int i = 0; i < Pack<T, N>::BYTES / 16; i++) {
      const u32* w = v.word + 4 * i;
      ((uint4*)p)[i] = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}
template <typename T, int N> DEVICE void store_floats(T* p, const float (&x)[N]) {
  Pack<T, N> v;
  v.set(x);
  store_pack<T, N>(p, v);
}

// -- sums and maxima over the N threads of a row --------------------------------------------------
// N is a power of two; more than a warp means that the block has one row. Then `room` is shared
// memory for 2 * COUNT * N / 32 floats, and `turn` flips between one call and the next: one barrier
// a call is enough, as a half of `room` is written again only after the barrier of the other half.
struct AddOp { static DEVICE float of(float a, float b) { return a + b; } };
struct MaxOp { static DEVICE float of(float a, float b) { return fmaxf(a, b); } };

template <typename OP, int N, int COUNT>
DEVICE void row_reduce_all(float (&x)[COUNT], float* room, int& turn) {
#pragma unroll
  for (int d = (N < 32 ? N : 32) / 2; d; d >>= 1)
#pragma unroll
    for (int c = 0; c < COUNT; c++) x[c] = OP::of(x[c], __shfl_xor_sync(FULL_MASK, x[c], d));
  if constexpr (N > 32) {
    constexpr int WARPS = N / 32;
    float* half = room + turn * (WARPS * COUNT);
    turn ^= 1;
    if ((threadIdx.x & 31) == 0)
#pragma unroll
      for (int c = 0; c < COUNT; c++) half[c * WARPS + (threadIdx.x >> 5)] = x[c];
    __syncthreads();
#pragma unroll
    for (int c = 0; c < COUNT; c++) {
      x[c] = half[c * WARPS];
#pragma unroll
      for (int w = 1; w < WARPS; w++) x[c] = OP::of(x[c], half[c * WARPS + w]);
    }
  }
}
template <typename OP, int N> DEVICE float row_reduce(float x, float* room, int& turn) {
  float one[1] = {x};
  row_reduce_all<OP, N, 1>(one, room, turn);
  return one[0];
}
