// Attention forward without tensor cores: any GPU, any dtype (f32 sums), D any, Dv <= 512.
// Formula, shapes and arguments are those of attention.cu.
// A block of 256 threads takes 64 queries of one head, a tile has 64 keys. Thread (y, x) of 16 x 16
// owns rows 4 y .. 4 y + 3: the scores of keys x + 16 j, and of every 64 columns of out the four at
// 4 x. q, k and v pass through shared memory in chunks of 64 columns, as floats.
// Macros: Q_TYPE, KV_TYPE, V_CHUNKS (Dv <= 64 V_CHUNKS), PAGED.
#include "prelude.cuh"
#include "attention.cuh"

#define SIDE 64   // rows, keys and columns at a time
#define PITCH 68  // floats: rows 4 banks apart
#define LOWEST -1e30f

// 64 rows x `width` columns, as floats; rows without address and columns from `width` on are 0.
template <typename E, typename F> DEVICE void load_chunk(float* to, int width, F at) {
  for (int i = threadIdx.x; i < SIDE * SIDE; i += 256) {
    int row = i / SIDE, column = i % SIDE;
    const E* from = column < width ? at(row) : nullptr;
    to[row * PITCH + column] = from == nullptr ? 0.f : to_float(from[column]);
  }
}

DEVICE float4 four(const float* p) { return *(const float4*)p; }
DEVICE float dot4(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}
DEVICE float over_row(float x, bool largest) {  // over the 16 threads of a row
#pragma unroll
  for (int d = 8; d; d >>= 1) {
    float other = __shfl_xor_sync(FULL_MASK, x, d);
    x = largest ? fmaxf(x, other) : x + other;
  }
  return x;
}

extern "C" __global__ void __launch_bounds__(256, 1) attention_simt(
    Q_TYPE* out, float* lse, const Q_TYPE* q, const KV_TYPE* k, const KV_TYPE* v, const int* cu_q,
    const int* cu_k, const int* table, const float* slopes, const float* sinks, i64 q_row,
    i64 q_head, i64 k_row, i64 k_head, i64 v_row, i64 v_head, i64 k_block, i64 v_block, int Tq,
    int B, int H, int group, int D, int Dv, int left, int right, int bottom_right, float scale,
    float softcap, int block_size, int columns, int together, int) {
  __shared__ __align__(16) float wide[SIDE * PITCH];  // q, then the probabilities
  __shared__ __align__(16) float keys[SIDE * PITCH];  // k, then v
  __shared__ int block_at[SIDE];                      // PAGED: the block of each key, -1: not there
  int x = threadIdx.x % 16, y = threadIdx.x / 16;
  int head = blockIdx.y * together + blockIdx.x % together;
  Place place = find_place(cu_q, cu_k, Tq, B, (gridDim.x - 1 - blockIdx.x) / together, SIDE, PAGED,
                           block_size * columns, bottom_right);
  if (place.rows <= 0) return;
  i64 token = place.q_first + place.row;
  q += token * q_row + head * q_head;
  k += place.k_first * k_row + head / group * k_head;
  v += place.k_first * v_row + head / group * v_head;
  table += PAGED ? (i64)place.segment * columns : 0;
  float slope = slopes == nullptr ? 0.f : slopes[head];

  float o[4][V_CHUNKS][4], top[4], sum[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    top[i] = LOWEST, sum[i] = 0.f;
#pragma unroll
    for (int c = 0; c < V_CHUNKS; c++) o[i][c][0] = o[i][c][1] = o[i][c][2] = o[i][c][3] = 0.f;
  }
  int begin = place.key_begin(0, left), end = place.key_end(place.rows - 1, right);
  for (int start = begin; start < end; start += SIDE) {
    int exist = end - start;
    if (PAGED) {
      __syncthreads();
      if (threadIdx.x < SIDE)
        block_at[threadIdx.x] = threadIdx.x < exist
                                    ? table[(start + threadIdx.x) / block_size % columns] : -1;
    }
    auto row_of = [&](const KV_TYPE* base, i64 row, i64 block, int r) -> const KV_TYPE* {
      if (r >= exist) return nullptr;
      if (!PAGED) return base + (start + r) * row;
      int b = block_at[r];
      return b < 0 ? nullptr : base + b * block + (start + r) % block_size * row;
    };
    float s[4][4] = {};
    for (int c = 0; c < D; c += SIDE) {
      __syncthreads();
      load_chunk<Q_TYPE>(wide, D - c, [&](int r) {
        return r < place.rows ? q + r * q_row + c : nullptr; });
      load_chunk<KV_TYPE>(keys, D - c, [&](int r) {
        const KV_TYPE* from = row_of(k, k_row, k_block, r);
        return from == nullptr ? from : from + c; });
      __syncthreads();
      int width = min(SIDE, D - c);
#pragma unroll 4
      for (int d = 0; d < width; d += 4) {
        float4 a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = four(wide + (4 * y + i) * PITCH + d);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          float4 b = four(keys + (x + 16 * j) * PITCH + d);
#pragma unroll
          for (int i = 0; i < 4; i++) s[i][j] = dot4(a[i], b, s[i][j]);
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int r = 4 * y + i;
      float best = LOWEST;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int key = start + x + 16 * j;
        float z = s[i][j] * scale;
        if (softcap > 0.f) z = softcap * tanhf(z / softcap);
        z -= slope * fabsf((float)(key - place.position(r)));
        bool seen = key >= place.key_begin(r, left) && key < place.key_end(r, right) &&
                    (!PAGED || block_at[x + 16 * j] >= 0);
        s[i][j] = seen ? z : -INF;
        best = fmaxf(best, s[i][j]);
      }
      best = fmaxf(top[i], over_row(best, true));
      float fade = exp2f((top[i] - best) * LOG2E);
      top[i] = best, sum[i] *= fade;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float p = exp2f((s[i][j] - best) * LOG2E);
        sum[i] += p;
        wide[r * PITCH + x + 16 * j] = p;
      }
#pragma unroll
      for (int c = 0; c < V_CHUNKS; c++)
#pragma unroll
        for (int e = 0; e < 4; e++) o[i][c][e] *= fade;
    }
#pragma unroll
    for (int c = 0; c < V_CHUNKS; c++) {
      if (c) __syncthreads();
      load_chunk<KV_TYPE>(keys, Dv - c * SIDE, [&](int r) {
        const KV_TYPE* from = row_of(v, v_row, v_block, r);
        return from == nullptr ? from : from + c * SIDE; });
      __syncthreads();
#pragma unroll 4
      for (int key = 0; key < SIDE; key += 4) {
        float4 b[4];
#pragma unroll
        for (int e = 0; e < 4; e++) b[e] = four(keys + (key + e) * PITCH + 4 * x);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float4 p = four(wide + (4 * y + i) * PITCH + key);
          float w[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
          for (int e = 0; e < 4; e++) {
            o[i][c][0] = fmaf(w[e], b[e].x, o[i][c][0]);
            o[i][c][1] = fmaf(w[e], b[e].y, o[i][c][1]);
            o[i][c][2] = fmaf(w[e], b[e].z, o[i][c][2]);
            o[i][c][3] = fmaf(w[e], b[e].w, o[i][c][3]);
          }
        }
      }
    }
  }
  bool has_sink = sinks != nullptr && place.segment < B;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int r = 4 * y + i;
    float total = over_row(sum[i], false), base = top[i], share = 1.f;
    if (has_sink) {
      base = fmaxf(base, sinks[head]);
      share = exp2f((top[i] - base) * LOG2E);
      total = total * share + exp2f((sinks[head] - base) * LOG2E);
    }
    float inverse = total > 0.f ? share / total : 0.f;
    if (r >= place.rows) continue;
    if (x == 0) lse[(token + r) * H + head] = total > 0.f ? base + logf(total) : -INF;
    for (int c = 0; c < V_CHUNKS; c++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (c * SIDE + 4 * x + e < Dv)
          out[((token + r) * H + head) * Dv + c * SIDE + 4 * x + e] =
              from_float<Q_TYPE>(o[i][c][e] * inverse);
  }
}
