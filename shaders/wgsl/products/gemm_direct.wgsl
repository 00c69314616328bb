// y[M, N] = x · wᵀ as gemm.wgsl, without shared memory: for software adapters, whose barriers
// cost more than the loads that they save, and for products too small for a tile.
//
// A thread makes 4 x 4 outputs from 4 + 4 vectors of 4 inputs; 64 threads, 8 x 8 of these.
// Grid: (M / 32, N / 32, batches x splits). Forms, SPLIT, limits: gemm.wgsl.
# set DOT4 = X == "words"
# set RESULT = "i32" if DOT4 else "f32"
# set SHARED = "u32" if DOT4 else "f32"
# set SCALED_ROWS = DOT4
# set FULL = false
# import "gemm_operand.wgsl" as o with context
# set SCALED_COLUMNS = o.SCALED_COLUMNS
# include "gemm_head.wgsl"

fn dot4(a: vec4<{{SHARED}}>, b: vec4<{{SHARED}}>) -> {{RESULT}} {
# if DOT4
  return dot_words(a.x, b.x) + dot_words(a.y, b.y) + dot_words(a.z, b.z) + dot_words(a.w, b.w);
# else
  return dot(a, b);
# endif
}
# macro quads(name, length, across)
#   for i in range(4)
#     if across
    let {{name}}t{{i}} = {{name}}_decode({{name}}_load(
      {{name}}_line(k + {{i}}u, batch), {{name}}_at, select(0u, {{length}}, k + {{i}}u < last),
    ));
#     else
#       set place = ", w_line_%d, k" % i if name == "w" and o.IN_PLANES
    let {{name}}{{i}} = {{name}}_decode({{name}}_load({{name}}_line_{{i}}, k, last){{ place }});
#     endif
#   endfor
#   if across
#     for i in range(4)
#       set c = "xyzw"[i]
    let {{name}}{{i}} = vec4<f32>(
      {{name}}t0.{{c}}, {{name}}t1.{{c}}, {{name}}t2.{{c}}, {{name}}t3.{{c}},
    );
#     endfor
#   endif
# endmacro

@compute @workgroup_size(64)
fn gemm(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
{{ poison("t", 64) }}
# if GUARD
  if (flag[0] == 0u) { return; }
# endif
{{ o.open_table("t") }}
  let split = id.z % p.splits;
  let batch = id.z / p.splits;
  let x_at = id.x * 32u + t / 8u * 4u;
  let w_at = id.y * 32u + t % 8u * 4u;
  if (x_at >= p.M || w_at >= p.N) { return; }
# for i in range(4)
#   if not X_ACROSS
  let x_line_{{i}} = x_line(min(x_at + {{i}}u, p.M - 1u), batch);
#   endif
#   if not W_ACROSS
  let w_line_{{i}} = w_line(min(w_at + {{i}}u, p.N - 1u), batch);
#   endif
  var c{{i}} = vec4<{{RESULT}}>();
# endfor
  let first = split * p.steps * 16u;
  let last = min(p.units, first + p.steps * 16u);
  for (var k = first; k < last; k += 4u) {
{{ quads("x", "p.M", X_ACROSS) }}
{{ quads("w", "p.N", W_ACROSS) }}
# for i in range(4)
    c{{i}} += vec4<{{RESULT}}>(
      dot4(x{{i}}, w0), dot4(x{{i}}, w1), dot4(x{{i}}, w2), dot4(x{{i}}, w3),
    );
# endfor
  }
# if SPLIT
  let slab = split * (grid.z / p.splits) + batch;
# else
  let slab = batch;
# endif
# for i in range(4)
  emit(slab, x_at + {{i}}u, w_at, c{{i}});
# endfor
}
