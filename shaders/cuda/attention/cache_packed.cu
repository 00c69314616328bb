// Packed keys and values: rows rounded into a cache, and blocks of a cache as floats again.
//
//   int8: scale f32 = absmax / 127 of a row, code = rint(x / scale); x = scale code
//   int4: (scale, floor) bf16 of each 32 numbers, 16 steps; x = scale code + floor
// A scale is nan where a number of its group is none. Planes are those of boostr/quant/kv.py.
//
// kv_pack: row t of k [T, K, D] and v [T, K, DV], rows `stride` apart, to row slots[t] of the
//   planes; rows out of range are dropped. A warp a head; blockIdx.y is 0 for k, 1 for v.
// kv_unpack: the rows that block_table [B, columns] names, of all sequences one after the other, to
//   k_out, v_out [B columns, bs, K, D or DV], zeros behind kv_lens and where there is no block; and
//   the table that names these. A warp a head of a row; blockIdx.y as above.
// Macros: BITS 8 | 4; X, the type of floats; UNPACK 0 | 1. Limits: BITS 4 wants widths % 32 == 0.
#include "prelude.cuh"

constexpr int WARPS = 4;

struct Planes {
  u8* codes;
  void* scales;
  int width;  // numbers of a row
  DEVICE u8* row(i64 r) const { return codes + r * (width * BITS / 8); }
  DEVICE float* scale(i64 r) const { return (float*)scales + r; }
  DEVICE u32* pairs(i64 r) const { return (u32*)scales + r * (width / 32); }
};

#if !UNPACK
DEVICE u32 warp_largest(u32 x) {
#pragma unroll
  for (int d = 16; d; d >>= 1) x = max(x, __shfl_xor_sync(FULL_MASK, x, d));
  return x;
}

// |x| as bits: an order in which nan is above infinity, which is not below INFINITE.
constexpr u32 INFINITE = 0x7f800000;
DEVICE u32 size_of(float x) { return __float_as_uint(x) & 0x7fffffff; }
DEVICE int code_of(float x, float scale, int least, int most) {
  return scale > 0.f ? min(max(__float2int_rn(__fdiv_rn(x, scale)), least), most) : 0;
}

DEVICE void pack_row(const X* x, const Planes& to, i64 r) {
  const int lane = threadIdx.x & 31;
#if BITS == 8
  u32 top = 0;
  for (int d = lane; d < to.width; d += 32) top = max(top, size_of(to_float(x[d])));
  top = warp_largest(top);
  const float scale = top < INFINITE ? __fdiv_rn(__uint_as_float(top), 127.f) : __int_as_float(0x7fc00000);
  if (lane == 0) *to.scale(r) = scale;
  for (int d = lane; d < to.width; d += 32)
    to.row(r)[d] = (u8)code_of(to_float(x[d]), scale, -127, 127);
#else
  for (int d = 0; d < to.width; d += 32) {
    const float mine = to_float(x[d + lane]);
    const u32 top = warp_largest(size_of(mine));
    const bf16 floor = __float2bfloat16_rn(top < INFINITE ? -warp_max(-mine) : 0.f);
    const float above = mine - to_float(floor);
    const bf16 step = __float2bfloat16_rn(
        top < INFINITE ? __fdiv_rn(fmaxf(warp_max(above), 0.f), 15.f) : __int_as_float(0x7fc00000));
    if (lane == 0)
      to.pairs(r)[d / 32] = __bfloat16_as_ushort(step) | (u32)__bfloat16_as_ushort(floor) << 16;
    const int code = code_of(above, to_float(step), 0, 15);
    const int high = __shfl_down_sync(FULL_MASK, code, 16);
    if (lane < 16) to.row(r)[d / 2 + lane] = code | high << 4;
  }
#endif
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
kv_pack(const X* k, const X* v, u8* k_codes, void* k_scales, u8* v_codes, void* v_scales,
        const int* slots, int T, int K, int D, int DV, i64 k_stride, i64 v_stride,
        int total_slots) {
  const int at = blockIdx.x * WARPS + (threadIdx.x >> 5), t = at / K, head = at - t * K;
  const bool is_v = blockIdx.y;
  pdl_wait();
  pdl_launch();
  const int slot = t < T ? slots[t] : -1;
  if (slot < 0 || slot >= total_slots) return;
  const X* from = is_v ? v + t * v_stride + head * DV : k + t * k_stride + head * D;
  pack_row(from, is_v ? Planes{v_codes, v_scales, DV} : Planes{k_codes, k_scales, D},
           (i64)slot * K + head);
}
#else
DEVICE void unpack_row(X* to, const Planes& from, i64 r) {
  const int lane = threadIdx.x & 31;
#if BITS == 8
  const float scale = *from.scale(r);
  for (int d = lane; d < from.width; d += 32)
    to[d] = from_float<X>((float)(i8)from.row(r)[d] * scale);
#else
  for (int d = 0; d < from.width; d += 32) {
    const u32 pair = from.pairs(r)[d / 32];
    const u32 both = from.row(r)[d / 2 + (lane & 15)], code = lane < 16 ? both & 15 : both >> 4;
    to[d + lane] = from_float<X>(
        __fadd_rn((float)code * __uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)));
  }
#endif
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
kv_unpack(u8* k_codes, void* k_scales, u8* v_codes, void* v_scales, const int* table,
          const int* lens, X* k_out, X* v_out, int* table_out, int B, int columns, int bs, int K,
          int D, int DV) {
  const i64 at = (i64)blockIdx.x * WARPS + (threadIdx.x >> 5), row = at / K;
  const int head = (int)(at - row * K), lane = threadIdx.x & 31;
  const bool is_v = blockIdx.y;
  const i64 block = row / bs;  // b columns + column
  pdl_wait();
  pdl_launch();
  if (block >= (i64)B * columns) return;
  const int offset = (int)(row - block * bs), b = (int)(block / columns);
  const int source = table[block];
  if (head == 0 && offset == 0 && lane == 0 && !is_v) table_out[block] = source < 0 ? -1 : block;
  const Planes from = is_v ? Planes{v_codes, v_scales, DV} : Planes{k_codes, k_scales, D};
  X* to = (is_v ? v_out : k_out) + at * from.width;
  // of a ring that has turned every row is taken
  if (source >= 0 && block % columns * bs + offset < lens[b]) {
    unpack_row(to, from, ((i64)source * bs + offset) * K + head);
  } else {
    for (int d = lane; d < from.width; d += 32) to[d] = from_float<X>(0.f);
  }
}
#endif
