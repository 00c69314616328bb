// Rounding rows to int8 with a scale for each row or group, and reading packed weights back.
//
// quantize: scale = absmax / 127 of a group of inputs, q = rint(w / scale), halves to even, clipped
//   to -127..127; a group of zeros has scale 0 and q 0. Division is IEEE: results are exact.
//   LANES threads a group (up to a warp, or a whole block for a row), 256 threads a block, RUN
//   elements an access. Macros: X type of w, RUN, LANES 4..32 or 256.
// dequantize: out[r] = the row as floats of O; a thread decodes RUN elements, `chunks` blocks of
//   256 threads a row. Macros: those of weights.cuh, RUN 8 or 1, O.
#include "rows.cuh"

#ifdef CODES
#include "weights.cuh"

extern "C" __global__ void __launch_bounds__(256)
dequantize(Planes weight, O* out, int K, int chunks) {
  const i64 row = blockIdx.x / chunks;
  const int column = ((blockIdx.x % chunks) * 256 + threadIdx.x) * RUN;
  pdl_wait();
  pdl_launch();
  if (column >= K) return;
  float y[RUN];
  decode<RUN>(weight_row(weight, row, K), column, y);
  store_floats<O, RUN>(out + row * K + column, y);
}
#else
// w [rows, K], G groups of `group` inputs a row; values [rows, K], scales [rows, G].
extern "C" __global__ void __launch_bounds__(256)
quantize(const X* w, i8* values, float* scales, i64 groups, int K, int G, int group) {
  __shared__ float room[LANES > 32 ? LANES / 16 : 1];
  int turn = 0;
  const int lane = threadIdx.x % LANES;
  const i64 index = (i64)blockIdx.x * (256 / LANES) + threadIdx.x / LANES;
  pdl_wait();
  pdl_launch();
  const bool live = index < groups;
  const i64 row = live ? index / G : 0;
  const int first = live ? (int)(index % G) * group : 0, end = live ? min(first + group, K) : 0;
  const X* source = w + row * K;
  float top = 0.f;
#pragma unroll 4
  for (int k = first + lane * RUN; k < end; k += LANES * RUN) {
    Pack<X, RUN> a = load_pack<X, RUN>(source + k);
#pragma unroll
    for (int j = 0; j < RUN; j++) top = fmaxf(top, fabsf(a[j]));
  }
  top = row_reduce<MaxOp, LANES>(top, room, turn);
  if (!live) return;
  const float scale = __fdiv_rn(top, 127.f), by = scale > 0.f ? scale : 1.f;
  if (lane == 0) scales[index] = scale;
#pragma unroll 4
  for (int k = first + lane * RUN; k < end; k += LANES * RUN) {
    Pack<X, RUN> a = load_pack<X, RUN>(source + k);
    u32 words[(RUN + 3) / 4] = {};
#pragma unroll
    for (int j = 0; j < RUN; j++) {
      const float q = fminf(fmaxf(rintf(__fdiv_rn(a[j], by)), -127.f), 127.f);
      words[j / 4] |= (u32)(u8)(i8)(int)q << 8 * (j % 4);
    }
    i8* to = values + row * K + k;
    if constexpr (RUN == 8) *(uint2*)to = make_uint2(words[0], words[RUN == 8]);
    else if constexpr (RUN == 4) *(u32*)to = words[0];
    else *to = (i8)words[0];
  }
}
#endif
