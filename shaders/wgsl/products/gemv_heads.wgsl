// What follows a product x W = (q, k, v) [M, (H + 2 KH) D]: an RMS norm of each head of q and k, or
// of all of them at once (NORM), rope, k and v into the caches (SLOTS) or [M, KH, D].
// One workgroup of THREADS for each head of each row; a thread finishes units (gemv_units.wgsl).
// More values: THREADS, NORM: "", or what a norm goes over, with weights of: "head" [D], "heads"
//   [H, D] and [KH, D], "all" (at once) [H D] and [KH D]; OFFSET (added to weights), LAST (the norm
//   comes after rope).
# import "gemv_units.wgsl" as units with context
struct Params {
  x_base: u32, q_norm_base: u32, k_norm_base: u32, {{ units.bases() }} count: u32, eps: f32,
}
{{ read(0, "x", X) }}
# set first = 3 if NORM else 1
# if NORM
{{ read(1, "q_norm", "f32") }}
{{ read(2, "k_norm", "f32") }}
# endif
{{ units.bindings(first) }}
{{ parameters(first + units.ARRAYS + 3) }}
# if NORM
{{ workgroup("squares", "f32", THREADS) }}
# endif
{{ units.functions() }}
# if NORM
// The weight of the norm of a head's dim.
fn gain(head: u32, dim: u32) -> f32 {
#   set own = 0 if NORM == "head" else D
#   set more = " + %s" % OFFSET if OFFSET else ""
  if (head < {{ H }}u) { return q_norm[p.q_norm_base + head * {{ own }}u + dim]{{ more }}; }
  return k_norm[p.k_norm_base + (head - {{ H }}u) * {{ own }}u + dim]{{ more }};
}
# endif
fn unit(base: u32, j: u32) -> vec4<f32> {
  var y = vec4<f32>();
  for (var r = 0u; r < 4u; r++) { y[r] = x_at(base + dim_of(j, r)); }
  return y;
}

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
#   if NORM == "all"
  let begin = select({{ H }}u, 0u, head < {{ H }}u);
  let heads = select({{ KH }}u, {{ H }}u, head < {{ H }}u);
#   else
  let begin = head;
  const heads = 1u;
#   endif
  var sum = 0.0;
  for (var i = thread; i < heads * {{ D // 4 }}u; i += {{ THREADS }}u) {
    let other = begin + i / {{ D // 4 }}u;
    let j = i % {{ D // 4 }}u;
    var y = unit(base + (other - head) * {{ D }}u, j);
#   if LAST
    y = turned(y, turn_of(row_of_turn(other, j, m), other, j));
#   endif
    sum += dot(y, y);
  }
  squares[thread] = sum;
  workgroupBarrier();
  var total = 0.0;
  for (var i = 0u; i < {{ THREADS }}u; i++) { total += squares[i]; }
  let f = inverseSqrt(total / f32(heads * {{ D }}u) + p.eps);
# endif
  for (var j = thread; j < {{ D // 4 }}u; j += {{ THREADS }}u) {
    var y = unit(base, j);
    let turn = turn_of(row_of_turn(head, j, m), head, j);
# if NORM and LAST
    y = turned(y, turn);
# endif
# if NORM
    if (head < {{ H + KH }}u) {
      for (var r = 0u; r < 4u; r++) { y[r] *= f * gain(head, dim_of(j, r)); }
    }
# endif
# if not (NORM and LAST)
    y = turned(y, turn);
# endif
    settle(head, j, m, y, turn.slot);
  }
}
