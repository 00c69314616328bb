// The sums of one warp of attention_decode.cu in f32 arithmetic, for caches and q of any types.
// Scores: 8 lanes share a key and add up their 16-byte pieces of the product; weights pass through
// shared memory, since for the values every lane has columns of its own.
constexpr int PER = KEYS / 4;        // keys of a lane in the scores: lane/8 + 4 j
constexpr int NV = V_WIDTH / 32;     // columns of a lane in the sums
constexpr int VW = V_WIDTH % 128 == 0 ? 4 : V_WIDTH % 64 == 0 ? 2 : 1;  // consecutive ones

// Sums of one warp. Scores: 8 lanes share a key, 16-byte pieces l%8, l%8 + 8, ... of its row.
// Values: every lane has NV columns of all rows.
struct Sums {
  float o[ROWS][NV], top[ROWS], sum[ROWS];

  DEVICE void hold(const Shared&) {}

  DEVICE void begin() {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      top[r] = -INF, sum[r] = 0.f;
#pragma unroll
      for (int i = 0; i < NV; i++) o[r][i] = 0.f;
    }
  }

  template <typename Wait>
  DEVICE void step(const Call& a, const Shared& sh, int p0, u32 mask, bool full, const CT* keys,
                   Wait values) {
    int lane = threadIdx.x & 31, mine = lane >> 3;
    float s[ROWS][PER] = {};
#pragma unroll
    for (int c = 0; c < K_WIDTH / PIECE / 8; c++) {
      int d = (c * 8 + (lane & 7)) * PIECE;
      Vec<CT, PIECE> k[PER];
#pragma unroll
      for (int j = 0; j < PER; j++) k[j] = load_vec<CT, PIECE>(keys + (mine + 4 * j) * K_PITCH + d);
#pragma unroll
      for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int e = 0; e < PIECE; e += 4) {
          float4 x = *(const float4*)((const float*)sh.q + r * K_WIDTH + d + e);
#pragma unroll
          for (int j = 0; j < PER; j++)
            s[r][j] += x.x * k[j][e] + x.y * k[j][e + 1] + x.z * k[j][e + 2] + x.w * k[j][e + 3];
        }
    }
    __syncwarp();  // the weights of the last unit have been read
    const float* scales = (const float*)(keys + ROWS_OF_STAGE);  // PACKED
#pragma unroll
    for (int r = 0; r < ROWS; r++) softmax(a, sh, r, p0, mask, full, s[r], scales);
    const CT* v = values();
#pragma unroll 4
    for (int key = 0; key < KEYS; key++) {
      float x[NV];
#pragma unroll
      for (int i = 0; i < NV; i += VW) {
        Vec<CT, VW> piece = load_vec<CT, VW>(v + key * V_PITCH + i * 32 + lane * VW);
#pragma unroll
        for (int e = 0; e < VW; e++) x[i + e] = PACKED ? piece[e] * scales[KEYS + key] : piece[e];
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        float w = sh.p[key * ROWS + r];
#pragma unroll
        for (int i = 0; i < NV; i++) o[r][i] += w * x[i];
      }
    }
  }

  DEVICE void softmax(const Call& a, const Shared& sh, int r, int p0, u32 mask, bool full,
                      float (&s)[PER], const float* scales) {
    int lane = threadIdx.x & 31, mine = lane >> 3;
    float high = top[r];
#pragma unroll
    for (int j = 0; j < PER; j++) {
#pragma unroll
      for (int d = 4; d; d >>= 1) s[j] += __shfl_xor_sync(FULL_MASK, s[j], d);
      int key = mine + 4 * j;
      if (PACKED) s[j] *= scales[key];
      s[j] = score(a, sh, s[j], r, p0 + key, full, mask >> key & 1);
      high = fmaxf(high, s[j]);
    }
    high = fmaxf(high, __shfl_xor_sync(FULL_MASK, high, 8));
    high = fmaxf(high, __shfl_xor_sync(FULL_MASK, high, 16));
    float base = high == -INF ? 0.f : high;
    if (high > top[r]) {  // all lanes alike
      float fade = exp2_fast(top[r] - base);
      sum[r] *= fade, top[r] = high;
#pragma unroll
      for (int i = 0; i < NV; i++) o[r][i] *= fade;
    }
#pragma unroll
    for (int j = 0; j < PER; j++) {
      s[j] = exp2_fast(s[j] - base);
      sum[r] += s[j];
      if ((lane & 7) == (r & 7)) sh.p[(mine + 4 * j) * ROWS + r] = s[j];
    }
  }

  DEVICE void stats(float2* to) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float x = sum[r];
      x += __shfl_xor_sync(FULL_MASK, x, 8);
      x += __shfl_xor_sync(FULL_MASK, x, 16);
      if ((threadIdx.x & 31) == 0) to[r] = make_float2(top[r], x);
    }
  }

  template <typename Factor> DEVICE void store(float* to, int count, Factor factor) {
    int lane = threadIdx.x & 31;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      if (r >= count) continue;
      float f = factor(r, top[r]);
#pragma unroll
      for (int i = 0; i < NV; i++)
        to[r * SUM_PITCH + i / VW * VW * 32 + lane * VW + i % VW] = o[r][i] * f;
    }
  }
};
