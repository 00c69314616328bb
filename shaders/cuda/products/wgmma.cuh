// Warpgroup products of more widths than hopper.cuh has, and of signed bytes.
#define WG_R64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define WG_R72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define WG_R80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define WG_R88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define WG_R96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WG_R104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WG_R112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WG_R120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WG_T96 WG_T64 ", " WG_R64 ", " WG_R72 ", " WG_R80 ", " WG_R88
#define WG_T128 WG_T96 ", " WG_R96 ", " WG_R104 ", " WG_R112 ", " WG_R120
#define WG_O96 WG_O64, WG_O8(64), WG_O8(72), WG_O8(80), WG_O8(88)
#define WG_O128 WG_O96, WG_O8(96), WG_O8(104), WG_O8(112), WG_O8(120)
#define WG_T4 "%0, %1, %2, %3"
#define WG_T010 WG_R0  // 010 is 8: WG_O8 is taken
#define WG_T16 WG_R0 ", " WG_R8
#define WG_O4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define WG_O010 WG_O8(0)
#define WG_O16 WG_O8(0), WG_O8(8)
WGMMA_BOTH(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
WGMMA_BOTH(16, 010, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
WGMMA_BOTH(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
WGMMA_BOTH(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#define WG_I4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define WG_I8(i) WG_I4(i), WG_I4(i + 4)
#define WG_I16(i) WG_I8(i), WG_I8(i + 8)
#define WG_I32(i) WG_I16(i), WG_I16(i + 16)
#define WG_I64(i) WG_I32(i), WG_I32(i + 32)
#define WGMMA_INT8(N, A, TEXT, I0, I1, ...)                                                     \
  DEVICE void wgmma_int8(int (&d)[A], u64 a, u64 b) {                                           \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" TEXT "}, " I0 ", " I1 \
                 ", 1;" : __VA_ARGS__ : "l"(a), "l"(b));                                        \
  }
WGMMA_INT8(8, 4, WG_T4, "%4", "%5", WG_I4(0))
WGMMA_INT8(16, 8, WG_R0, "%8", "%9", WG_I8(0))
WGMMA_INT8(32, 16, WG_T16, "%16", "%17", WG_I16(0))
WGMMA_INT8(64, 32, WG_T32, "%32", "%33", WG_I32(0))
WGMMA_INT8(128, 64, WG_T64, "%64", "%65", WG_I64(0))
WGMMA_INT8(256, 128, WG_T128, "%128", "%129", WG_I64(0), WG_I64(64))

template <int N> DEVICE void pin(int (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+r"(x[i])::"memory");
}
