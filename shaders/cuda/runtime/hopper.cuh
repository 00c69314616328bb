// Hopper's asynchronous machinery (sm_90a) as functions: mbarriers, bulk tensor copies (TMA),
// warpgroup matrix products (wgmma), named barriers, register reallocation.
// Source: PTX ISA 8.0+, sections 9.7.13 (mbarrier), 9.7.9.27 (cp.async.bulk), 9.7.15 (wgmma).
#include "prelude.cuh"

// A tensor map made by cuTensorMapEncodeTiled; a `const __grid_constant__` kernel parameter.
struct alignas(64) TensorMap { u64 words[16]; };

// -- clusters ------------------------------------------------------------------------------------
DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// Another block's shared memory, at this block's address `p`.
DEVICE u32 peer(u32 p, int block) {
  u32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(p), "r"(block));
  return there;
}

// -- mbarriers: `address` is a shared address of 8 bytes -----------------------------------------
DEVICE void mbarrier_init(u32 address, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals));
}
// Makes the inits visible to the copy engine; before the __syncthreads that publishes them.
DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void mbarrier_arrive(u32 address) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
}
// At the barrier of any block of the cluster, by its address there (`peer`).
DEVICE void mbarrier_arrive_at(u32 address) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(address)
               : "memory");
}
// Arrive, and let the phase also wait for `bytes` of bulk copies.
DEVICE void mbarrier_expect(u32 address, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes)
               : "memory");
}
DEVICE bool mbarrier_try(u32 address, u32 parity) {
  u32 done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done) : "r"(address), "r"(parity) : "memory");
  return done;
}
// Wait for the end of the phase of this parity; a fresh barrier passes a wait for parity 1.
DEVICE void mbarrier_wait(u32 address, u32 parity) {
  while (!mbarrier_try(address, parity)) {}
}

// -- bulk tensor copies, global to shared: issued by one thread ----------------------------------
#define L2_EVICT_FIRST 0x12f0000000000000ull
#define L2_EVICT_LAST 0x14f0000000000000ull

DEVICE void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// The box at coordinates x (innermost), y, z. Out of bounds reads as zero and counts as bytes.
DEVICE void tma_load(u32 target, const TensorMap* map, u32 barrier, int x, int y, int z,
                     u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(target), "l"(map), "r"(barrier),
      "r"(x), "r"(y), "r"(z), "l"(policy)
      : "memory");
}
// Orders this thread's ordinary shared accesses before later ones of wgmma and the copy engine.
DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// -- warps and warpgroups ------------------------------------------------------------------------
DEVICE void named_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
DEVICE void named_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
template <int N> DEVICE void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> DEVICE void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// -- wgmma ---------------------------------------------------------------------------------------
// Before the first wgmma after other instructions wrote its registers.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Keeps the compiler from moving reads or writes of these registers across this point.
template <int N> DEVICE void pin(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(x[i])::"memory");
}
template <int N> DEVICE void pin(u32 (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}

// Descriptor of a shared matrix in 128-byte swizzle, its atoms (8 rows of 128 bytes) 1024-aligned.
//   K-major (rows of A, or of B = k^T, along the 128 bytes): 8-row groups 1024 bytes apart; a step
//     of 16 along k is 32 bytes; a step of 64 is the next column block. `leading` is not read.
//   MN-major (transposed B: row = k, the N axis along the 128 bytes): groups of 8 k 1024 bytes
//     apart, 64-wide column blocks `leading` bytes apart; a step of 16 along k is 2048 bytes.
DEVICE u64 swizzled_descriptor(u32 address, u32 leading = 16) {
  return (u64)((address & 0x3ffff) >> 4) | (u64)(leading >> 4) << 16 | (u64)(1024 >> 4) << 32 |
         (u64)1 << 62;
}
DEVICE u64 descriptor_plus(u64 descriptor, u32 bytes) { return descriptor + (bytes >> 4); }

// Wgmma<T, N>::ss / rs: acc[N / 2] (+)= A[64, 16] B[16, N] over a warpgroup; `keep` 0 starts anew.
// A by descriptor (K-major) or as four registers of two elements, B by descriptor, K-major or
// (TRANS 1) MN-major. Accumulators: lane l of warp w holds rows 16 w + l / 4 (+ 8) and columns
// 8 j + 2 (l % 4) + {0, 1} in acc[4 j + {0, 1}] (+ 2); A's registers are {row, row + 8} x
// {k, k + 8} in the same places, so that 16 accumulator columns, packed, are the next product's A.
template <typename T, int N> struct Wgmma;

#define WG_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WG_R8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define WG_R16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define WG_R24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define WG_R32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define WG_R40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define WG_R48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define WG_R56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define WG_T32 WG_R0 ", " WG_R8 ", " WG_R16 ", " WG_R24
#define WG_T40 WG_T32 ", " WG_R32
#define WG_T64 WG_T40 ", " WG_R40 ", " WG_R48 ", " WG_R56
#define WG_O8(i)                                                                            \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define WG_O32 WG_O8(0), WG_O8(8), WG_O8(16), WG_O8(24)
#define WG_O40 WG_O32, WG_O8(32)
#define WG_O64 WG_O40, WG_O8(40), WG_O8(48), WG_O8(56)

// N, A = N / 2 accumulators, the type and its name, texts of the operands after them.
#define WGMMA_OF(N, A, TYPE, NAME, I0, I1, I2, I3, I4, I5, I6)                                 \
  template <> struct Wgmma<TYPE, N> {                                                          \
    template <int TRANS> static DEVICE void ss(float (&d)[A], u64 a, u64 b, int keep) {        \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " I2 ", 0;\n"                             \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {"        \
                   WG_T##A "}, " I0 ", " I1 ", p, 1, 1, 0, " I3 ";\n}"                         \
                   : WG_O##A : "l"(a), "l"(b), "r"(keep), "n"(TRANS));                         \
    }                                                                                          \
    template <int TRANS> static DEVICE void rs(float (&d)[A], const u32* a, u64 b, int keep) { \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " I5 ", 0;\n"                             \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {"        \
                   WG_T##A "}, {" I0 ", " I1 ", " I2 ", " I3 "}, " I4 ", p, 1, 1, " I6 ";\n}"  \
                   : WG_O##A : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep),  \
                     "n"(TRANS));                                                              \
    }                                                                                          \
  };
#define WGMMA_BOTH(N, A, ...)                      \
  WGMMA_OF(N, A, bf16, "bf16", __VA_ARGS__)        \
  WGMMA_OF(N, A, f16, "f16", __VA_ARGS__)

WGMMA_BOTH(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
WGMMA_BOTH(80, 40, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
WGMMA_BOTH(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
