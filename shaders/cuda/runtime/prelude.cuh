// What every kernel uses: types, conversions, wide loads and stores, copies, reductions.
// NVRTC has no standard headers; only CUDA's own two are included (40 ms each).
#include <cuda_fp16.h>
#include <cuda_bf16.h>

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef __half f16;
typedef __nv_bfloat16 bf16;
typedef float f32;

#define INF __int_as_float(0x7f800000)
#define FULL_MASK 0xffffffffu
#define DEVICE __device__ __forceinline__
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

// -- conversions ---------------------------------------------------------------------------------
DEVICE float to_float(float x) { return x; }
DEVICE float to_float(f16 x) { return __half2float(x); }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
DEVICE float to_float(i8 x) { return x; }

template <typename T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE f16 from_float<f16>(float x) { return __float2half_rn(x); }
template <> DEVICE bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// Two floats rounded into one u32, the first in the low half.
template <typename T> DEVICE u32 pack2(float low, float high);
template <> DEVICE u32 pack2<f16>(float low, float high) {
  __half2 two = __floats2half2_rn(low, high);
  return *(u32*)&two;
}
template <> DEVICE u32 pack2<bf16>(float low, float high) {
  __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  return *(u32*)&two;
}

DEVICE float exp2_fast(float x) {  // -inf gives 0; relative error 2^-22; subnormals are 0
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// -- N elements of T as one access: N * sizeof(T) is 4, 8 or 16, the address a multiple of it ----
template <typename T, int N> struct alignas(sizeof(T) * N) Vec {
  T at[N];
  DEVICE float operator[](int i) const { return to_float(at[i]); }
};
template <typename T, int N> DEVICE Vec<T, N> load_vec(const T* p) { return *(const Vec<T, N>*)p; }
template <typename T, int N> DEVICE void store_vec(T* p, Vec<T, N> v) { *(Vec<T, N>*)p = v; }

// 16 bytes that are read once: past L1, first to leave L2.
DEVICE uint4 load_stream(const void* p) {
  uint4 v;
#if __CUDA_ARCH__ >= 800
#define LOAD_STREAM "ld.global.nc.L1::no_allocate.L2::256B.v4.u32"
#else
#define LOAD_STREAM "ld.global.nc.L1::no_allocate.v4.u32"
#endif
  asm volatile(LOAD_STREAM " {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// -- copies from global to shared memory, whose addresses are 32-bit numbers ---------------------
DEVICE u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// cp.async: 16 bytes behind the program's back, of which the first `bytes` are read and the rest
// are zeros. On sm_75 the copy, of 16 bytes or none, is done at once.
DEVICE void cp_async_part(u32 to, const void* from, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :: "r"(to), "l"(from), "r"(bytes) : "memory");
#else
  uint4 x = bytes ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};"
               :: "r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
#endif
}
DEVICE void cp_async16(u32 to, const void* from, bool valid = true) {
  cp_async_part(to, from, valid ? 16 : 0);
}
DEVICE void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most PENDING of this thread's committed groups are under way; others' need a barrier too.
template <int PENDING> DEVICE void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
#endif
}

// -- reductions ----------------------------------------------------------------------------------
DEVICE float warp_sum(float x) {
#pragma unroll
  for (int d = 16; d; d >>= 1) x += __shfl_xor_sync(FULL_MASK, x, d);
  return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
  for (int d = 16; d; d >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, d));
  return x;
}

// Sum over a block of WARPS warps, known to all threads. `room` is shared memory for WARPS floats;
// safe to call again at once.
template <int WARPS> DEVICE float block_sum(float x, float* room) {
  x = warp_sum(x);
  if (WARPS == 1) return x;
  __syncthreads();
  if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = x;
  __syncthreads();
  x = (threadIdx.x & 31) < WARPS ? room[threadIdx.x & 31] : 0.f;
  return warp_sum(x);
}
template <int WARPS> DEVICE float block_max(float x, float* room) {
  x = warp_max(x);
  if (WARPS == 1) return x;
  __syncthreads();
  if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = x;
  __syncthreads();
  x = (threadIdx.x & 31) < WARPS ? room[threadIdx.x & 31] : -INF;
  return warp_max(x);
}

// -- programmatic dependent launch (sm_90): the next kernel of a chain starts before this ends ---
// Before `pdl_wait` a kernel may read only what no kernel of the program writes: weights.
DEVICE void pdl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void pdl_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
