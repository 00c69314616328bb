// y[M, N] = x · wᵀ (+ bias + residual), any stored form of w, f32 or exact int32 sums.
//
// x: M lines of K, or K lines of M (X_ACROSS); w: N lines of K, or K lines of N (W_ACROSS); forms:
// gemm_operand.wgsl. A workgroup makes a tile of BM x BN, a thread TM x TN of it (runs of 4 rows
// and columns, spread evenly), 8 lanes side by side and 4 above each other: a warp reads a row of
// 128 bytes and broadcasts of shared memory at once. Tiles lie there as [BK][BM] and [BK][BN]; a
// thread brings blocks of 4 lines x 4 elements, turned in registers. STAGES 1: the raw words of
// the next tile are on their way while this one is multiplied; 2: tiles lie in shared memory
// twice, for one barrier a step instead of two; 0: neither.
// Grid: (tiles of M, tiles of N, batches x splits). SPLIT: the sums over a part of K go to a slab
// of y, [splits][batches][M][N] in f32 or i32, and gemm_finish.wgsl adds them up.
// X == "words": int8 in words, `p.K` int8 and `p.units` words to a line, exact int32 sums.
// FULL: K is whole steps of BK, so that loads need no end. UNROLL: steps of K in the text of
// the inner loop. GUARD: nothing is done unless `flag` is set (gemm_matrix.wgsl).
// Limits: N % 4 == 0 (OUT_WHOLE), else y is f32 or SPLIT. The register tile is CUTLASS's.
# import "gemm_operand.wgsl" as o with context
# set DOT4 = X == "words"
# set RESULT = "i32" if DOT4 else "f32"
# set SHARED = "u32" if DOT4 else "f32"
# set THREADS = BM // TM * (BN // TN)
# set X_RAW, W_RAW = o.raw_type(X, X_WHOLE), o.raw_weight(W_WHOLE)
# set XS = ("x", X_RAW, X_ACROSS, BM, 0)
# set WS = ("w", W_RAW, W_ACROSS, BN, [THREADS - BN // 4 * BK // 4, 0] | max)
# set SHARE = X_RAW == W_RAW and [BM, BN] | max * BK // 8 <= THREADS
# set SCALED_ROWS = DOT4
# set SCALED_COLUMNS = o.SCALED_COLUMNS
# include "gemm_head.wgsl"
{{ workgroup("xs", "vec4<" ~ SHARED ~ ">", [STAGES, 1] | max * BK * BM // 4) }}
{{ workgroup("ws", "vec4<" ~ SHARED ~ ">", [STAGES, 1] | max * BK * BN // 4) }}

# if DOT4
fn add_products(a: u32, b: vec4<u32>, sum: vec4<i32>) -> vec4<i32> {
  let products = vec4<i32>(
    dot_words(a, b.x), dot_words(a, b.y), dot_words(a, b.z), dot_words(a, b.w),
  );
  return sum + products;
}
# else
fn add_products(a: f32, b: vec4<f32>, sum: vec4<f32>) -> vec4<f32> {
  return fma(vec4<f32>(a), b, sum);
}
# endif

// -- moving a side's tile: a thread's blocks, registers SIDE_BLOCK_LINE. 8 lanes have blocks above
// each other and 4 side by side: loads of a warp see 8 lines, stores meet in no bank. SHARE: where
// half of the threads bring x and the others w, both use the same registers.
# macro declare(side)
#   set name, raw_type, across, rows, start = side
#   set high, wide = [rows // 4, 8] | min, [BK // 4, 4] | min
#   for b in range([rows // 4 * BK // 4 // THREADS, 1] | max)
  let {{name}}_block_{{b}} = t - {{start}}u + {{b * THREADS}}u;
  let {{name}}_row_{{b}} = {{name}}_block_{{b}} % {{high}}u
                + {{name}}_block_{{b}} / {{high * wide}}u % {{rows // 4 // high}}u * {{high}}u;
  let {{name}}_quad_{{b}} = ({{name}}_block_{{b}} / {{high}}u % {{wide}}u
                 + {{name}}_block_{{b}} / {{rows // 4 * wide}}u * {{wide}}u) * 4u;
#     for i in range(4) if name == "x" or not SHARE
  var {{name}}_{{b}}_{{i}}: {{ raw_type }};
#     endfor
#   endfor
# endmacro
# macro fetch(side, length)
#   set name, raw_type, across, rows, start = side
#   set raw = "x" if SHARE else name
#   for b in range([rows // 4 * BK // 4 // THREADS, 1] | max)
#     if rows // 4 * BK // 4 < THREADS
    if ({{ "t >= %du" % start if start else "t < %du" % (rows // 4 * BK // 4) }}) {
#     else
    {
#     endif
      let unit = first + {{name}}_quad_{{b}};
      let row = {{name}}_first + {{name}}_row_{{b}} * 4u;
#     for i in range(4)
#       if across
      {{raw}}_{{b}}_{{i}} = {{name}}_load({{name}}_line(unit + {{i}}u, batch), row,
                                           select(0u, {{length}}, unit + {{i}}u < last));
#       else
      {{raw}}_{{b}}_{{i}} = {{name}}_load({{name}}_line(min(row + {{i}}u, {{length}} - 1u), batch),
                                           unit, last);
#       endif
#     endfor
    }
#   endfor
# endmacro
# macro stash(side)
#   set name, raw_type, across, rows, start = side
#   set raw = "x" if SHARE else name
#   for b in range([rows // 4 * BK // 4 // THREADS, 1] | max)
#     if rows // 4 * BK // 4 < THREADS
    if ({{ "t >= %du" % start if start else "t < %du" % (rows // 4 * BK // 4) }}) {
#     else
    {
#     endif
#     if name == "w" and o.IN_PLANES
      let unit = first + w_quad_{{b}};
      let row = w_first + w_row_{{b}} * 4u;
#     endif
      let to = {{name}}_stage + {{name}}_quad_{{b}} * {{rows // 4}}u + {{name}}_row_{{b}};
#     for i in range(4)
#       set place = ", min(row + %du, p.N - 1u), unit" % i if name == "w" and o.IN_PLANES
      let v{{i}} = {{name}}_decode({{raw}}_{{b}}_{{i}}{{ place }});
#     endfor
#     for i in range(4)
#       if across
      {{name}}s[to + {{i * rows // 4}}u] = v{{i}};
#       else
#         set c = "xyzw"[i]
      {{name}}s[to + {{i * rows // 4}}u] = vec4<{{SHARED}}>(v0.{{c}}, v1.{{c}}, v2.{{c}}, v3.{{c}});
#       endif
#     endfor
    }
#   endfor
# endmacro
# macro multiply()
#   for k in range(UNROLL)
    {
#     for i in range(TM // 4)
      let a{{i}} = xs[xk + {{k * BM // 4 + i * BM // TM}}u];
#     endfor
#     for j in range(TN // 4)
      let b{{j}} = ws[wk + {{k * BN // 4 + j * BN // TN}}u];
#     endfor
#     for i in range(TM)
#       for j in range(TN // 4)
      c{{i}}_{{j}} = add_products(a{{i // 4}}.{{"xyzw"[i % 4]}}, b{{j}}, c{{i}}_{{j}});
#       endfor
#     endfor
    }
#   endfor
# endmacro

@compute @workgroup_size({{THREADS}})
fn gemm(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
# if GUARD
  if (flag[0] == 0u) { return; }
# endif
{{ poison("t", THREADS) }}
{{ o.open_table("t") }}
  let split = id.z % p.splits;
  let batch = id.z / p.splits;
  let x_first = id.x * {{BM}}u;
  let w_first = id.y * {{BN}}u;
  var first = split * p.steps * {{BK}}u;
  let last = min(p.units, first + p.steps * {{BK}}u);
  // 8 x 4 lanes, then warps of them side by side. WEAVE: lanes 2i and 2i + 1 share a column, i and
  // i + 2 a row: NVIDIA merges 16-byte reads of equal addresses between such lanes only.
  let warp = t / 32u;
# if WEAVE
  let tx = warp % {{BN // TN // 8}}u * 8u + t / 2u % 8u;
  let ty = warp / {{BN // TN // 8}}u * 4u + t / 16u % 2u * 2u + t % 2u;
# else
  let tx = warp % {{BN // TN // 8}}u * 8u + t % 8u;
  let ty = warp / {{BN // TN // 8}}u * 4u + t / 8u % 4u;
# endif
# for i in range(TM)
#   for j in range(TN // 4)
  var c{{i}}_{{j}} = vec4<{{RESULT}}>();
#   endfor
# endfor
{{ declare(XS) }}
{{ declare(WS) }}
# if STAGES
{{ fetch(XS, "p.M") }}
{{ fetch(WS, "p.N") }}
# endif
# if STAGES == 2
  var x_stage = 0u;
  var w_stage = 0u;
{{ stash(XS) }}
{{ stash(WS) }}
  workgroupBarrier();
# else
  let x_stage = 0u;
  let w_stage = 0u;
# endif
  for (; first < last;) {
# if STAGES == 0
{{ fetch(XS, "p.M") }}
{{ fetch(WS, "p.N") }}
# endif
# if STAGES < 2
{{ stash(XS) }}
{{ stash(WS) }}
    workgroupBarrier();
# endif
    first += {{BK}}u;
# if STAGES
    {{ "if (first < last) {" if FULL else "{" }}
{{ fetch(XS, "p.M") }}
{{ fetch(WS, "p.N") }}
    }
# endif
    var xk = x_stage + ty;
    var wk = w_stage + tx;
# if BK > UNROLL
    for (var part = 0u; part < {{BK // UNROLL}}u; part++) {
{{ multiply() }}
      xk += {{UNROLL * BM // 4}}u;
      wk += {{UNROLL * BN // 4}}u;
    }
# else
{{ multiply() }}
# endif
# if STAGES == 2
    // nobody reads the other stage: all are past the barrier behind the last step that did
    x_stage = {{BK * BM // 4}}u - x_stage;
    w_stage = {{BK * BN // 4}}u - w_stage;
{{ stash(XS) }}
{{ stash(WS) }}
# endif
    workgroupBarrier();
  }
# if SPLIT
  let slab = split * (grid.z / p.splits) + batch;
# else
  let slab = batch;
# endif
  let n = w_first + tx * 4u;
# for i in range(TM)
#   for j in range(TN // 4)
  emit(slab, x_first + ty * 4u + {{i // 4 * (4 * BM // TM) + i % 4}}u, n + {{j * 4 * BN // TN}}u,
       c{{i}}_{{j}});
#   endfor
# endfor
}
