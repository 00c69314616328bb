// What follows a product x W = (q, k, v) [M, (H + 2 KH) D]: an RMS norm of each head of q and k
// (NORM), rope, k and v into the caches (SLOTS) or [M, KH, D].
// One workgroup of THREADS for each head of each row; a thread finishes units (gemv_units.wgsl).
// More values: THREADS.
struct Params {
  x_base: u32, q_norm_base: u32, k_norm_base: u32, cos_base: u32, sin_base: u32, rows_base: u32,
  slots_base: u32, k_base: u32, v_base: u32, count: u32, eps: f32,
}
{{ read(0, "x", X) }}
# set b = 3 if NORM else 1
# if NORM
{{ read(1, "q_norm", "f32") }}
{{ read(2, "k_norm", "f32") }}
# endif
{{ read(b, "cosines", "f32") }}
{{ read(b + 1, "sines", "f32") }}
{{ read(b + 2, "rows", "i32") }}
# if SLOTS
{{ read(b + 3, "slots", "i32") }}
# endif
# set first = b + 4 if SLOTS else b + 3
{{ write(first, "q", X) }}
{{ write(first + 1, "keys", CACHE) }}
{{ write(first + 2, "values", CACHE) }}
{{ parameters(first + 3) }}
# if NORM
{{ workgroup("squares", "f32", THREADS) }}
# endif
# include "gemv_units.wgsl"

@compute @workgroup_size({{ THREADS }})
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(num_workgroups) num_workgroups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  {{ poison("thread", THREADS) }}
  let n = flat_workgroup(workgroup_id, num_workgroups);
  if (n >= p.count) { return; }
  let m = n / {{ H + 2 * KH }}u;
  let head = n % {{ H + 2 * KH }}u;
  let base = p.x_base + n * {{ D }}u;
# if NORM
  var sum = 0.0;
  for (var d = thread; d < {{ D }}u; d += {{ THREADS }}u) {
    let v = x_at(base + d);
    sum = fma(v, v, sum);
  }
  squares[thread] = sum;
  workgroupBarrier();
  var total = 0.0;
  for (var i = 0u; i < {{ THREADS }}u; i++) { total += squares[i]; }
  let f = inverseSqrt(total / {{ D }}.0 + p.eps);
# endif
  for (var j = thread; j < {{ D // 4 }}u; j += {{ THREADS }}u) {
    var y = vec4<f32>();
    for (var r = 0u; r < 4u; r++) { y[r] = x_at(base + dim_of(j, r)); }
# if NORM
    if (head < {{ H + KH }}u) {
      for (var r = 0u; r < 4u; r++) {
        let dim = dim_of(j, r);
        let g = select(k_norm[p.k_norm_base + dim], q_norm[p.q_norm_base + dim], head < {{ H }}u);
        y[r] *= f * g;
      }
    }
# endif
    settle(head, j, m, y, turn_of(row_of_turn(head, j, m), j));
  }
}
