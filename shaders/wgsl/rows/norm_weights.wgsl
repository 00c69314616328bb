// The last step of a norm's gradient for its weight and bias: partial sums of groups added up.
//
// out[n][e] = sum over p of partial[n][p][e], P of them, n 0 and with LAYER 1. Workgroup: 16
// columns by SHARES shares of the P rows; its y is n. A thread has 8 loads in flight.
// Values: W type of the weight and bias, SHARES, LAYER.
struct Params { P: u32, E: u32 }
{{ read(0, "partial", "f32") }}
{{ write(1, "dw", W) }}
{{ write(2, "db", W) if LAYER else "" }}
{{ parameters(2 + LAYER) }}
{{ workgroup("room", "f32", 16 * SHARES) }}
@compute @workgroup_size({{ 16 * SHARES }})
fn norm_weights(@builtin(workgroup_id) group: vec3<u32>,
                @builtin(local_invocation_index) thread: u32) {
  {{ poison("thread", 16 * SHARES) }}
  let lane = thread % 16u;
  let e = group.x * 16u + lane;
  let start = group.y * p.P * p.E;
  var sum = 0.0;
  if (e < p.E) {
    var i = thread / 16u;
    for (; i + {{ 7 * SHARES }}u < p.P; i += {{ 8 * SHARES }}u) {
# for u in range(8)
      let v{{ u }} = partial[start + (i + {{ u * SHARES }}u) * p.E + e];
# endfor
      sum += ((v0 + v1) + (v2 + v3)) + ((v4 + v5) + (v6 + v7));
    }
    for (; i < p.P; i += {{ SHARES }}u) { sum += partial[start + i * p.E + e]; }
  }
  room[thread] = sum;
# for d in (512, 256, 128, 64, 32, 16) if d < 16 * SHARES
  workgroupBarrier();
  if (thread < {{ d }}u) { room[thread] += room[thread + {{ d }}u]; }
# endfor
  workgroupBarrier();
{% set PER = PER_WORD[W] %}
  if (thread < {{ 16 // PER }}u && group.x * 16u + {{ PER }}u * thread < p.E) {
# if PER == 2
    let at = group.x * 8u + thread;
    let sums = vec2<f32>(room[2u * thread], room[2u * thread + 1u]);
# else
    let at = group.x * 16u + thread;
    let sums = room[thread];
# endif
# if LAYER
    if (group.y == 1u) {
      db_put(at, sums);
      return;
    }
# endif
    dw_put(at, sums);
  }
}
