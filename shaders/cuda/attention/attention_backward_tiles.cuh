// Products of tiles in shared memory, for the kernels of attention's gradient. Included where DP
// (the padded width), TYPE, THREADS and PITCH (bytes of a row, an odd multiple of 16) are known.

// This lane's address for ldmatrix_x4 on a 16 x 16 block: matrices down the rows first, or along
// the columns first. See mma.cuh: `a` serves A, and B whose rows are k (transposed); `b` serves B
// whose rows are columns of the product, and A whose rows are k (transposed).
DEVICE u32 lane_a(u32 base, int lane, int pitch) {
  return base + (lane & 15) * pitch + (lane >> 4) * 16;
}
DEVICE u32 lane_b(u32 base, int lane, int pitch) {
  return base + ((lane & 7) + ((lane >> 4) << 3)) * pitch + ((lane >> 3) & 1) * 16;
}

template <int I, int J> DEVICE void clear(float (&c)[I][J][4]) {
#pragma unroll
  for (int i = 0; i < I; i++)
#pragma unroll
    for (int j = 0; j < J; j++)
#pragma unroll
      for (int x = 0; x < 4; x++) c[i][j][x] = 0.f;
}

// c += a b, both in shared memory; A_COLS: a's rows are k; B_ROWS: b's rows are k. KS steps of 16.
template <bool A_COLS, bool B_ROWS, int KS, int I, int J>
DEVICE void product(float (&c)[I][J][4], u32 a, int a_pitch, u32 b, int b_pitch) {
#pragma unroll
  for (int k = 0; k < KS; k++) {
    u32 fa[I][4];
#pragma unroll
    for (int i = 0; i < I; i++) {
      if (A_COLS) ldmatrix_x4_trans(fa[i], a + k * 16 * a_pitch + i * 32);
      else ldmatrix_x4(fa[i], a + i * 16 * a_pitch + k * 32);
    }
#pragma unroll
    for (int j = 0; j < J / 2; j++) {
      u32 fb[4];
      if (B_ROWS) ldmatrix_x4_trans(fb, b + k * 16 * b_pitch + j * 32);
      else ldmatrix_x4(fb, b + j * 16 * b_pitch + k * 32);
#pragma unroll
      for (int i = 0; i < I; i++) {
        mma_16816<TYPE>(c[i][2 * j], fa[i], fb[0], fb[1]);
        mma_16816<TYPE>(c[i][2 * j + 1], fa[i], fb[2], fb[3]);
      }
    }
  }
}

// c += a b with a in registers, as packed C fragments: a[i][2 k], a[i][2 k + 1] make step k. (AI is
// I wherever this runs; kernels with other shapes compile the call and drop it.)
template <int I, int J, int AI, int A>
DEVICE void product(float (&c)[I][J][4], const u32 (&a)[AI][A][2], u32 b) {
#pragma unroll
  for (int k = 0; k < A / 2; k++)
#pragma unroll
    for (int j = 0; j < J / 2; j++) {
      u32 fb[4];
      ldmatrix_x4_trans(fb, b + k * 16 * PITCH + j * 32);
#pragma unroll
      for (int i = 0; i < I; i++) {
        const u32(&own)[A][2] = a[i < AI ? i : 0];
        u32 fa[4] = {own[2 * k][0], own[2 * k][1], own[2 * k + 1][0], own[2 * k + 1][1]};
        mma_16816<TYPE>(c[i][2 * j], fa, fb[0], fb[1]);
        mma_16816<TYPE>(c[i][2 * j + 1], fa, fb[2], fb[3]);
      }
    }
}

// ROWS rows of a head to shared memory; rows from `rows` on and columns from D on become zeros.
template <int ROWS> DEVICE void load_tile(u32 to, const TYPE* from, i64 pitch, int rows, int D) {
#pragma unroll
  for (int x = 0; x < (ROWS * (DP / 8) + THREADS - 1) / THREADS; x++) {
    int piece = threadIdx.x + x * THREADS, row = piece / (DP / 8), column = piece % (DP / 8);
    if ((ROWS * (DP / 8)) % THREADS && row >= ROWS) break;
    bool valid = row < rows && column * 8 < D;
    cp_async16(to + row * PITCH + column * 16, valid ? from + row * pitch + column * 8 : from,
               valid);
  }
}
