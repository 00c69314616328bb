// Tensor cores of sm_75 and later as PTX: ldmatrix, mma.sync, and swizzled tiles in shared memory.
// Shared addresses are 32-bit numbers (`shared_address`), so that offsets fold into the
// instructions. On sm_75 (mma of k = 8, no bf16) the same calls work for f16.
//
// Fragments of m16n8k16, lane = 4 g + t (g = lane / 4, t = lane % 4):
//   A [16, 16]: a[0] = (g, 2t..2t+1), a[1] = (g+8, 2t..), a[2] = (g, 2t+8..), a[3] = (g+8, 2t+8..)
//   B [16, 8]:  b0 = (2t..2t+1, g), b1 = (2t+8.., g)    two 16-bit numbers in a u32, low one first
//   C [16, 8]:  c[0], c[1] = (g, 2t..2t+1), c[2], c[3] = (g+8, 2t..2t+1)
// So C of one product, packed by `pack2`, is A of the next: a[0], a[1] from n-tile 2k, a[2], a[3]
// from n-tile 2k+1.
// Source: PTX ISA 9.0, section 9.7.14.

// -- ldmatrix: 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix
// l / 8; matrix i arrives in r[i]: lane 4 g + t holds (g, 2t..2t+1), transposed (2t..2t+1, g).
DEVICE void ldmatrix_x4(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
DEVICE void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// -- mma.sync: c += a b, f32 sums -----------------------------------------------------------------
template <typename T> DEVICE void mma_16816(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);

template <> DEVICE void mma_16816<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else  // the same product as two halves of k
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}
template <> DEVICE void mma_16816<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();  // no bf16 products before sm_80
#endif
}

// -- bytes, A's with a sign or not: m16n8k32 with int32 sums. Lane 4 g + t has four of A's bytes in each word: a[0] =
// (g, 4t..4t+3), a[1] = (g+8, 4t..), a[2] = (g, 4t+16..), a[3] = (g+8, 4t+16..); of B b0 =
// (4t..4t+3, g), b1 = (4t+16.., g); C as above.
#if __CUDA_ARCH__ >= 800
#define MMA_BYTES(A)                                                                             \
  asm("mma.sync.aligned.m16n8k32.row.col.s32." A ".s8.s32 "                                      \
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                    \
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])                                           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#else  // the same product as quarters
#define MMA_BYTES(A)                                                                             \
  for (int i = 0; i < 4; i++)                                                                    \
  asm("mma.sync.aligned.m8n8k16.row.col.s32." A ".s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"          \
      : "+r"(c[i % 2 * 2]), "+r"(c[i % 2 * 2 + 1]) : "r"(a[i]), "r"(i < 2 ? b0 : b1))
#endif
template <bool SIGN> DEVICE void mma_16832(u32 (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  if (SIGN) MMA_BYTES("s8");
  else MMA_BYTES("u8");
}
#undef MMA_BYTES

// -- tiles in shared memory -----------------------------------------------------------------------
// Rows of CHUNKS pieces of 16 bytes (8 numbers), laid so that the 8 rows of one ldmatrix matrix
// touch all banks once. A tile must start at a multiple of 1024 bytes (swizzled forms).
//   CHUNKS % 8 == 0: piece c of row r lies at c ^ (r % 8)        (the 128-byte swizzle)
//   CHUNKS == 4:     at c ^ (r / 2 % 4)                          (the 64-byte swizzle)
//   else:            rows are an odd number of pieces apart.
template <int CHUNKS> struct Tile {
  static constexpr bool WIDE = CHUNKS % 8 == 0, NARROW = CHUNKS == 4;
  static constexpr int PITCH = 16 * (WIDE || NARROW ? CHUNKS : CHUNKS | 1);  // bytes of a row
  static constexpr int bytes(int rows) { return (rows * PITCH + 1023) / 1024 * 1024; }

  static DEVICE u32 offset(int row, int chunk) {
    if (WIDE) return row * PITCH + ((chunk ^ (row & 7)) << 4);
    if (NARROW) return row * PITCH + ((chunk ^ ((row >> 1) & 3)) << 4);
    return row * PITCH + (chunk << 4);
  }
  // From the address of (row, c) to that of (row, c + chunks): c < 2, chunks even (a step of k16).
  static DEVICE u32 along(u32 address, int chunks) {
    return WIDE || NARROW ? address ^ (chunks << 4) : address + (chunks << 4);
  }
  // Where this lane points ldmatrix_x4 for the 16 x 16 block at (0, 0) of a tile that starts at
  // `base`. Add 16 * PITCH * i for block row i, and use `along` for block column j (2 j chunks).
  // a_lane: rows are rows of A; also V's rows as k with ldmatrix_x4_trans (r[0], r[1] = b0, b1 of
  // the first n-tile, r[2], r[3] of the second).
  static DEVICE u32 a_lane(u32 base) {
    int lane = threadIdx.x & 31;
    return base + offset(lane & 15, lane >> 4);
  }
  // b_lane: rows are columns n of B (keys of q kᵀ, or a weight [out, in]), plain ldmatrix_x4:
  // r[0], r[1] = b0, b1 of rows 0-7, r[2], r[3] of rows 8-15.
  static DEVICE u32 b_lane(u32 base) {
    int lane = threadIdx.x & 31;
    return base + offset((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
  }
};
