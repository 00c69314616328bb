// AdamW over many tensors in one launch, in place, and the norm of many tensors; see
// boostr/ops/optim.py.
//
//   g = grad * grad_scale, 0 where that is 0
//   m += (1 - beta1) (g - m);   v += (1 - beta2) (g^2 - v)
//   p = p (1 - lr wd) - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
//
// Shapes: up to TENSORS flat tensors of any lengths; `Table` holds their addresses by value.
// param and grad float | f16 | bf16; m, v float32; master float32 or none. With a master copy the
// parameter is only written.
// Mapping: a block of THREADS takes CHUNK elements of one tensor, found by bisection of
// `first_block`; a thread takes 8 elements at a time in accesses of 16 bytes. A tensor that is not
// aligned to 16 bytes, and the last few elements of any, go one by one.
// Bytes: PARAM bf16 with a master moves 28 an element: 2 + 12 read and 2 + 12 written.
// Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization; step as torch's AdamW.
// Macros: PARAM, GRAD float | f16 | bf16, MASTER 0 | 1, THREADS, ROUNDS.
#include "prelude.cuh"

#define TENSORS 64
#define EACH 8
#define CHUNK (THREADS * EACH * ROUNDS)

struct Table {
  u64 param[TENSORS], grad[TENSORS], m[TENSORS], v[TENSORS], master[TENSORS];
  i64 length[TENSORS];
  int first_block[TENSORS];  // first_block[count..] is more than any block
};
// A number, or where it lies on the device (`kind` 1 float32, 2 int32).
struct Scalar {
  u64 address;
  float value;
  int kind;
  DEVICE float read() const {
    if (kind == 0) return value;
    return kind == 1 ? *(const float*)address : (float)*(const int*)address;
  }
};
struct Knobs {
  Table table;
  Scalar step, lr, grad_scale;
  float log_beta1, log_beta2, rest1, rest2, eps, weight_decay;  // rest = 1 - beta
};

DEVICE int find_tensor(const int* first_block, int block) {
  int low = 0;
#pragma unroll
  for (int half = TENSORS / 2; half; half >>= 1)
    if (first_block[low + half] <= block) low += half;
  return low;
}

struct Update {
  float grad_scale, rest1, rest2, keep, rate, inverse_root, eps;
  DEVICE Update(const Knobs& k) {
    float t = k.step.read(), lr = k.lr.read();
    grad_scale = k.grad_scale.read();
    rest1 = k.rest1, rest2 = k.rest2, eps = k.eps;
    keep = 1.f - lr * k.weight_decay;
    rate = lr / -expm1f(t * k.log_beta1);          // lr / (1 - beta1^t)
    inverse_root = rsqrtf(-expm1f(t * k.log_beta2));  // 1 / sqrt(1 - beta2^t)
  }
  DEVICE float operator()(float p, float g, float& m, float& v) const {
    g = grad_scale == 0.f ? 0.f : g * grad_scale;  // g may be nan
    m += rest1 * (g - m);
    v += rest2 * (g * g - v);
    return p * keep - rate * m / (sqrtf(v) * inverse_root + eps);
  }
};

DEVICE void load8(float (&x)[8], const float* p) {
  float4 a = *(const float4*)p, b = *(const float4*)(p + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
template <typename T> DEVICE void load8(float (&x)[8], const T* p) {
  Vec<T, 8> v = load_vec<T, 8>(p);
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = v[i];
}
DEVICE void store8(float* p, const float (&x)[8]) {
  *(float4*)p = make_float4(x[0], x[1], x[2], x[3]);
  *(float4*)(p + 4) = make_float4(x[4], x[5], x[6], x[7]);
}
template <typename T> DEVICE void store8(T* p, const float (&x)[8]) {
  Vec<T, 8> v;
#pragma unroll
  for (int i = 0; i < 8; i++) v.at[i] = from_float<T>(x[i]);
  store_vec(p, v);
}

extern "C" __global__ __launch_bounds__(THREADS) void adamw(const __grid_constant__ Knobs knobs) {
  const Table& t = knobs.table;
  int at = find_tensor(t.first_block, blockIdx.x);
  i64 n = t.length[at], start = (i64)(blockIdx.x - t.first_block[at]) * CHUNK;
  PARAM* param = (PARAM*)t.param[at];
  const GRAD* grad = (const GRAD*)t.grad[at];
  float *m = (float*)t.m[at], *v = (float*)t.v[at], *master = (float*)t.master[at];
  u64 address = (u64)param | (u64)grad | (u64)m | (u64)v | (u64)master;
  Update update(knobs);
  i64 end = min(n, start + CHUNK);
  i64 whole = address & 15 ? start : start + (end - start) / EACH * EACH;
#pragma unroll
  for (int r = 0; r < ROUNDS; r++) {
    i64 i = start + (i64)(r * THREADS + threadIdx.x) * EACH;
    if (i >= whole) break;
    float g[8], p[8], m8[8], v8[8];
    load8(g, grad + i);
    load8(m8, m + i);
    load8(v8, v + i);
    if (MASTER) load8(p, master + i);
    else load8(p, param + i);
#pragma unroll
    for (int j = 0; j < 8; j++) p[j] = update(p[j], g[j], m8[j], v8[j]);
    store8(m + i, m8);
    store8(v + i, v8);
    if (MASTER) store8(master + i, p);
    store8(param + i, p);
  }
  for (i64 i = whole + threadIdx.x; i < end; i += THREADS) {
    float p = MASTER ? master[i] : to_float(param[i]);
    p = update(p, to_float(grad[i]), m[i], v[i]);
    if (MASTER) master[i] = p;
    param[i] = from_float<PARAM>(p);
  }
}

// The sum of squares of each block's chunk goes to partial[first + block]; `grad` of the table.
struct Norms {
  Table table;
};
extern "C" __global__ __launch_bounds__(THREADS) void square_sums(
    const __grid_constant__ Norms norms, float* partial, int first) {
  __shared__ float room[THREADS / 32];
  const Table& t = norms.table;
  int at = find_tensor(t.first_block, blockIdx.x);
  i64 n = t.length[at], start = (i64)(blockIdx.x - t.first_block[at]) * CHUNK;
  const GRAD* grad = (const GRAD*)t.grad[at];
  i64 end = min(n, start + CHUNK);
  i64 whole = (u64)grad & 15 ? start : start + (end - start) / EACH * EACH;
  float sum = 0.f;
#pragma unroll
  for (int r = 0; r < ROUNDS; r++) {
    i64 i = start + (i64)(r * THREADS + threadIdx.x) * EACH;
    if (i >= whole) break;
    float g[8];
    load8(g, grad + i);
#pragma unroll
    for (int j = 0; j < 8; j++) sum += g[j] * g[j];
  }
  for (i64 i = whole + threadIdx.x; i < end; i += THREADS) {
    float g = to_float(grad[i]);
    sum += g * g;
  }
  sum = block_sum<THREADS / 32>(sum, room);
  if (threadIdx.x == 0) partial[first + blockIdx.x] = sum;
}

// norm = sqrt of the sum of n partial sums. One block of 1024.
extern "C" __global__ __launch_bounds__(1024) void root_of_sums(const float* partial, float* norm,
                                                                int n) {
  __shared__ float room[32];
  pdl_wait();
  float sum = 0.f;
  for (int i = threadIdx.x; i < n; i += 1024) sum += partial[i];
  sum = block_sum<32>(sum, room);
  if (threadIdx.x == 0) *norm = sqrtf(sum);
}
