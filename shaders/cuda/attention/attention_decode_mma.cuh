// The sums of one warp of attention_decode.cu on tensor cores: ROWS / 16 tiles of 16 rows against
// units of KEYS keys. Scores s = q kT are C of m16n8k16; their weights, packed, are A of o += p v.
// Each warp goes on by itself: 16 rows are few, so warps divide the keys.
constexpr int TILES = ROWS / 16;
constexpr bool Q_HELD = TILES == 1 && HEAD_DIM <= 128;

#if PACKED
// Bytes 0 and 2 of a word of int8 as two bf16, exactly: 128 + 7 bits, less 128 or with a sign 256.
DEVICE u32 two_codes(u32 w) {
  u32 y;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;"
      : "=r"(y)
      : "r"((w & 0x007f007fu) | 0x43004300u), "r"(0x3f803f80u),
        "r"((w & 0x00800080u) | 0xc300c300u));
  return y;
}
DEVICE void ldmatrix_x2_trans(u32& a, u32& b, u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(a), "=r"(b) : "r"(address) : "memory");
}
#endif

// Sums of one warp. Lane l has rows l/4 and l/4 + 8 of each tile, columns 2 (l%4) + {0, 1} of 8;
// PACKED: of 16 columns 4 (l%4) + {0, 2} in the first o of two, {1, 3} in the second.
struct Sums {
  float o[TILES][V_WIDTH / 8][4], top[TILES][2], sum[TILES][2];
  u32 q[K_WIDTH / 16][4];

  DEVICE u32 q_at(const Shared& sh, int tile, int k) {
    int lane = threadIdx.x & 31;
    return shared_address((const QT*)sh.q + (tile * 16 + (lane & 15)) * Q_PITCH + (lane >> 4) * 8) +
           k * 32;
  }

  DEVICE void begin() {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
      top[t][0] = top[t][1] = -INF;
      sum[t][0] = sum[t][1] = 0.f;
#pragma unroll
      for (int n = 0; n < V_WIDTH / 8; n++)
        o[t][n][0] = o[t][n][1] = o[t][n][2] = o[t][n][3] = 0.f;
    }
  }

  DEVICE void hold(const Shared& sh) {
    if (Q_HELD)
#pragma unroll
      for (int k = 0; k < K_WIDTH / 16; k++) ldmatrix_x4(q[k], q_at(sh, 0, k));
  }

  // p (u's first key) and which keys are there; K rows and V rows of the unit; `values` waits.
  template <typename Wait>
  DEVICE void step(const Call& a, const Shared& sh, int p0, u32 mask, bool full, const CT* keys,
                   Wait values) {
    int lane = threadIdx.x & 31;
    float s[TILES][KEYS / 8][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++) s[t][n][0] = s[t][n][1] = s[t][n][2] = s[t][n][3] = 0.f;
#if PACKED
    const CT* at = keys + lane / 4 * K_PITCH + lane % 4 * 4;
#else
    u32 at = shared_address(keys + ((lane & 7) + (lane >> 4) * 8) * K_PITCH +
                            ((lane >> 3) & 1) * 8);
#endif
#pragma unroll
    for (int k = 0; k < K_WIDTH / 16; k++) {
      u32 rows[TILES][4];
#pragma unroll
      for (int t = 0; t < TILES; t++)
        if (!Q_HELD) ldmatrix_x4(rows[t], q_at(sh, t, k));
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++) {
        u32 b[4];
#if PACKED
#pragma unroll
        for (int i = 0; i < 2; i++) {
          u32 codes = *(const u32*)(at + (2 * n + i) * 8 * K_PITCH + k * 16);
          b[2 * i] = two_codes(codes), b[2 * i + 1] = two_codes(codes >> 8);
        }
#else
        ldmatrix_x4(b, at + n * 32 * K_PITCH + k * 32);
#endif
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          mma_16816<QT>(s[t][2 * n], Q_HELD ? q[k] : rows[t], b[0], b[1]);
          mma_16816<QT>(s[t][2 * n + 1], Q_HELD ? q[k] : rows[t], b[2], b[3]);
        }
      }
    }
#if PACKED
    const float* scales = (const float*)(keys + ROWS_OF_STAGE);
    scale_columns(s, scales);
#endif
#pragma unroll
    for (int t = 0; t < TILES; t++) softmax(a, sh, t, p0, mask, full, s[t]);
    const CT* first = values();
#if PACKED
    scale_columns(s, scales + KEYS);
    u32 v = shared_address(first + (lane & 15) * V_PITCH);
#else
    u32 v = shared_address(first + (lane & 15) * V_PITCH + (lane >> 4) * 8);
#endif
    u32 weights[TILES][KEYS / 16][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int n = 0; n < KEYS / 8; n++) {
        weights[t][n / 2][n % 2 * 2] = pack2<QT>(s[t][n][0], s[t][n][1]);
        weights[t][n / 2][n % 2 * 2 + 1] = pack2<QT>(s[t][n][2], s[t][n][3]);
      }
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++)
#pragma unroll
      for (int d = 0; d < V_WIDTH / 16; d++) {
        u32 b[4];
#if PACKED
        u32 low, high;  // keys 0 .. 7 and 8 .. 15, two columns in each half of a word
        ldmatrix_x2_trans(low, high, v + n * 16 * V_PITCH + d * 16);
        b[0] = two_codes(low), b[1] = two_codes(high);
        b[2] = two_codes(low >> 8), b[3] = two_codes(high >> 8);
#else
        ldmatrix_x4_trans(b, v + n * 32 * V_PITCH + d * 32);
#endif
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          mma_16816<QT>(o[t][2 * d], weights[t][n], b[0], b[1]);
          mma_16816<QT>(o[t][2 * d + 1], weights[t][n], b[2], b[3]);
        }
      }
  }

  // s of each key times its scale.
  DEVICE void scale_columns(float (&s)[TILES][KEYS / 8][4], const float* scales) {
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
      float2 two = *(const float2*)(scales + n * 8 + (threadIdx.x & 3) * 2);
#pragma unroll
      for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int e = 0; e < 4; e++) s[t][n][e] *= e & 1 ? two.y : two.x;
    }
  }

  // Products s become weights.
  DEVICE void softmax(const Call& a, const Shared& sh, int t, int p0, u32 mask, bool full,
                      float (&s)[KEYS / 8][4]) {
    int lane = threadIdx.x & 31;
    float high[2] = {top[t][0], top[t][1]};
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        int key = n * 8 + (lane & 3) * 2 + (e & 1), row = t * 16 + (lane >> 2) + (e >> 1) * 8;
        s[n][e] = score(a, sh, s[n][e], row, p0 + key, full, mask >> key & 1);
        high[e >> 1] = fmaxf(high[e >> 1], s[n][e]);
      }
    float base[2];
    bool higher = false;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      high[i] = fmaxf(high[i], __shfl_xor_sync(FULL_MASK, high[i], 1));
      high[i] = fmaxf(high[i], __shfl_xor_sync(FULL_MASK, high[i], 2));
      base[i] = high[i] == -INF ? 0.f : high[i];
      higher |= high[i] > top[t][i];
    }
    if (__any_sync(FULL_MASK, higher)) {
      float fade[2] = {exp2_fast(top[t][0] - base[0]), exp2_fast(top[t][1] - base[1])};
#pragma unroll
      for (int i = 0; i < 2; i++) sum[t][i] *= fade[i], top[t][i] = high[i];
#pragma unroll
      for (int n = 0; n < V_WIDTH / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[t][n][e] *= fade[e >> 1];
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[n][e] = exp2_fast(s[n][e] - base[e >> 1]);
        sum[t][e >> 1] += s[n][e];
      }
  }

  DEVICE void stats(float2* to) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float x = sum[t][i];
        x += __shfl_xor_sync(FULL_MASK, x, 1);
        x += __shfl_xor_sync(FULL_MASK, x, 2);
        if ((lane & 3) == 0) to[t * 16 + i * 8 + lane / 4] = make_float2(top[t][i], x);
      }
  }

  // The rows below `count`, times the factor of each, to shared memory.
  template <typename Factor> DEVICE void store(float* to, int count, Factor factor) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        int row = t * 16 + i * 8 + lane / 4;
        if (row >= count) continue;
        float f = factor(row, top[t][i]);
#if PACKED
        float* line = to + row * SUM_PITCH + (lane & 3) * 4;
#pragma unroll
        for (int d = 0; d < V_WIDTH / 16; d++) {
          float(&x)[4] = o[t][2 * d], (&y)[4] = o[t][2 * d + 1];
          *(float4*)(line + d * 16) = make_float4(x[2 * i] * f, y[2 * i] * f, x[2 * i + 1] * f,
                                                  y[2 * i + 1] * f);
        }
#else
        float* line = to + row * SUM_PITCH + (lane & 3) * 2;
#pragma unroll
        for (int n = 0; n < V_WIDTH / 8; n++)
          *(float2*)(line + n * 8) = make_float2(o[t][n][2 * i] * f, o[t][n][2 * i + 1] * f);
#endif
      }
  }
};
