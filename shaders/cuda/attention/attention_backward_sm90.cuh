// Tiles and products of the kernels of attention's gradient on Hopper. Included where TYPE, DP (64
// or 128, the padded width) and THREADS are known. Tiles [rows, DP] of 16-bit numbers lie in blocks
// of 64 columns, each [rows][128 bytes] in 128-byte swizzle: what `swizzled_descriptor` describes,
// with the rows as rows of a product or, transposed, as its k.

// ROWS rows of a head; rows from `rows` on and columns from D on become zeros.
template <int ROWS> DEVICE void load_tile(u32 to, const TYPE* from, i64 pitch, int rows, int D) {
  const int column = threadIdx.x % (DP / 8);
#pragma unroll
  for (int x = 0; x < (ROWS * (DP / 8) + THREADS - 1) / THREADS; x++) {
    int row = threadIdx.x / (DP / 8) + x * (THREADS / (DP / 8));
    if ((ROWS * (DP / 8)) % THREADS && row >= ROWS) break;
    bool valid = row < rows && column * 8 < D;
    cp_async16(to + column / 8 * (ROWS * 128) + row * 128 + ((column ^ row) & 7) * 16,
             valid ? from + row * pitch + column * 8 : from, valid);
  }
}

// Descriptors as in hopper.cuh, from their low words: steps are then one addition each.
DEVICE u32 low_word(u32 address, u32 leading = 16) { return address >> 4 | leading >> 4 << 16; }
DEVICE u64 descriptor(u32 low) { return (u64)(1u << 30 | 1024 >> 4) << 32 | low; }

// The same for all threads of a warp, so that addresses stay in uniform registers.
DEVICE int uniform(int x) { return __shfl_sync(FULL_MASK, x, 0); }

// c = a b over DP: 64 rows of a [A_ROWS] and all rows of b [COLUMNS], DP along the 128 bytes.
template <int A_ROWS, int COLUMNS> DEVICE void scores(float (&c)[COLUMNS / 2], u32 a, u32 b) {
  const u32 low_a = low_word(a), low_b = low_word(b);
#pragma unroll
  for (int k = 0; k < DP / 16; k++)
    Wgmma<TYPE, COLUMNS>::template ss<0>(c, descriptor(low_a + k / 4 * (A_ROWS * 8) + k % 4 * 2),
                                         descriptor(low_b + k / 4 * (COLUMNS * 8) + k % 4 * 2),
                                         k > 0);
}

// c += a b: a packed in registers [64, K], b [K, DP] with rows along k.
template <int K> DEVICE void gradient(float (&c)[DP / 2], const u32* a, u32 b) {
  const u32 low = low_word(b, K * 128);
#pragma unroll
  for (int k = 0; k < K / 16; k++)
    Wgmma<TYPE, DP>::template rs<1>(c, a + 4 * k, descriptor(low + k * 128), 1);
}

// A gradient of a warpgroup's 64 rows a group, from registers to shared memory, and from there out.
DEVICE void stage(char* room, const float (&c)[DP / 2], float factor) {
  const int lane = threadIdx.x & 31;
  char* own = room + (threadIdx.x / 32 * 16 + lane / 4) * OUT_PITCH + 4 * (lane & 3);
#pragma unroll
  for (int j = 0; j < DP / 8; j++) {
    *(u32*)(own + 16 * j) = pack2<TYPE>(c[4 * j] * factor, c[4 * j + 1] * factor);
    *(u32*)(own + 8 * OUT_PITCH + 16 * j) =
        pack2<TYPE>(c[4 * j + 2] * factor, c[4 * j + 3] * factor);
  }
}
