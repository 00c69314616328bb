// The inner loops of gemm_sm90.cu: how a warpgroup multiplies 64 rows of w by TOKENS tokens, stage
// by stage of the ring. Floats and bytes come from shared memory as they are; codes become A
// fragments in registers.
#include "wgmma.cuh"

struct Ring {
  u32 stages, full, empty;  // shared addresses; barriers 8 bytes apart
  int done;                 // stages of the tiles before this one
};

// Which step of K stage i of `count` holds: blocks start at different places, so that they do not
// all read the same lines of x at once.
struct Walk {
  int begin, count, turn;
  DEVICE int k(int i) const {
    const int at = i + turn;
    return (begin + (at < count ? at : at - count)) * BK;
  }
};

// What a block works on; in shared memory, since registers are few.
struct Work {
  Planes at;           // of its first row
  const float* downs;  // of its first row, if FOLDED
  int left;            // rows from there to the end
  Walk walk;
};

DEVICE void wait_full(Ring ring, int i) {
  mbarrier_wait(ring.full + (ring.done + i) % STAGES * 8, (ring.done + i) / STAGES & 1);
}
// Stage i may be overwritten: said by a lane of each warp, to each block that writes there.
DEVICE void release(Ring ring, int i) {
  const int lane = threadIdx.x % 32;
  const u32 empty = ring.empty + (ring.done + i) % STAGES * 8;
  if (PAIR == 1 && lane == 0) mbarrier_arrive(empty);
  if (PAIR == 2 && lane < 2) mbarrier_arrive_at(peer(empty, lane));
}
DEVICE u32 stage_of(Ring ring, int i) {
  return ring.stages + (ring.done + i) % STAGES * STAGE_BYTES;
}

#if !CODED
DEVICE void one_step(acc_t (&acc)[ACC], u64 a, u64 b) {
#if ROUNDS
  wgmma_int8(acc, a, b);
#else
  Wgmma<X, TOKENS>::template ss<0>(acc, a, b, 1);
#endif
}
DEVICE void multiply(acc_t (&acc)[ACC], Ring ring, int group, const Work& w, int) {
  pin(acc);
  for (int i = 0; i < w.walk.count; ++i) {
    wait_full(ring, i);
    const u64 a = swizzled_descriptor(stage_of(ring, i) + group * 64 * 128);
    const u64 b = swizzled_descriptor(stage_of(ring, i) + W_STAGE);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      one_step(acc, descriptor_plus(a, k * 32), descriptor_plus(b, k * 32));
    wgmma_commit();
    wgmma_wait<1>();
    if (i) release(ring, i - 1);
  }
  wgmma_wait<0>();
  pin(acc);
}
#else
#include "gemm_sm90_codes.cuh"
#if FEW
#include "gemm_sm90_few.cuh"
#else
#include "gemm_sm90_many.cuh"
#endif
#endif
