// The sums of one warp of attention_decode.cu on tensor cores: ROWS / 16 tiles of 16 rows against
// units of KEYS keys. Scores s = q kT are C of m16n8k16; their weights, packed, are A of o += p v.
// Each warp goes on by itself: 16 rows are few, so warps divide the keys.
constexpr int TILES = ROWS / 16;
constexpr bool Q_HELD = TILES == 1 && HEAD_DIM <= 128;

// Sums of one warp. Lane l has rows l/4 and l/4 + 8 of each tile, columns 2 (l%4) + {0, 1} of 8.
struct Sums {
  float o[TILES][V_WIDTH / 8][4], top[TILES][2], sum[TILES][2];
  u32 q[K_WIDTH / 16][4];

  DEVICE u32 q_at(const Shared& sh, int tile, int k) {
    int lane = threadIdx.x & 31;
    return shared_address((const CT*)sh.q + (tile * 16 + (lane & 15)) * K_PITCH + (lane >> 4) * 8) +
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
    u32 at = shared_address(keys + ((lane & 7) + (lane >> 4) * 8) * K_PITCH +
                            ((lane >> 3) & 1) * 8);
#pragma unroll
    for (int k = 0; k < K_WIDTH / 16; k++) {
      u32 rows[TILES][4];
#pragma unroll
      for (int t = 0; t < TILES; t++)
        if (!Q_HELD) ldmatrix_x4(rows[t], q_at(sh, t, k));
#pragma unroll
      for (int n = 0; n < KEYS / 16; n++) {
        u32 b[4];
        ldmatrix_x4(b, at + n * 32 * K_PITCH + k * 32);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          mma_16816<CT>(s[t][2 * n], Q_HELD ? q[k] : rows[t], b[0], b[1]);
          mma_16816<CT>(s[t][2 * n + 1], Q_HELD ? q[k] : rows[t], b[2], b[3]);
        }
      }
    }
    u32 weights[TILES][KEYS / 16][4];
#pragma unroll
    for (int t = 0; t < TILES; t++) softmax(a, sh, t, p0, mask, full, s[t], weights[t]);
    u32 v = shared_address(values() + (lane & 15) * V_PITCH + (lane >> 4) * 8);
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++)
#pragma unroll
      for (int d = 0; d < V_WIDTH / 16; d++) {
        u32 b[4];
        ldmatrix_x4_trans(b, v + n * 32 * V_PITCH + d * 32);
#pragma unroll
        for (int t = 0; t < TILES; t++) {
          mma_16816<CT>(o[t][2 * d], weights[t][n], b[0], b[1]);
          mma_16816<CT>(o[t][2 * d + 1], weights[t][n], b[2], b[3]);
        }
      }
  }

  DEVICE void softmax(const Call& a, const Shared& sh, int t, int p0, u32 mask, bool full,
                      float (&s)[KEYS / 8][4], u32 (&weights)[KEYS / 16][4]) {
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
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) {
        s[n][e] = exp2_fast(s[n][e] - base[e >> 1]);
        sum[t][e >> 1] += s[n][e];
      }
      weights[n / 2][n % 2 * 2] = pack2<CT>(s[n][0], s[n][1]);
      weights[n / 2][n % 2 * 2 + 1] = pack2<CT>(s[n][2], s[n][3]);
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
        float* line = to + row * SUM_PITCH + (lane & 3) * 2;
#pragma unroll
        for (int n = 0; n < V_WIDTH / 8; n++)
          *(float2*)(line + n * 8) = make_float2(o[t][n][2 * i] * f, o[t][n][2 * i + 1] * f);
      }
  }
};
