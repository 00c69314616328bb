// The last step of a norm's gradient for its weight and bias: partial sums of groups added up.
//
// out[e] = sum over p of partial[start + p * E + e], P of them. Workgroup: 32 columns by SHARES
// shares of the P rows. Values: W type of the weight, SHARES.
struct Params { P: u32, E: u32, start: u32 }
{{ read(0, "partial", "f32") }}
{{ write(1, "out", W) }}
{{ parameters(2) }}
{{ workgroup("room", "f32", 32 * SHARES) }}
@compute @workgroup_size({{ 32 * SHARES }})
fn norm_weights(@builtin(workgroup_id) group: vec3<u32>,
                @builtin(local_invocation_index) thread: u32) {
  {{ poison("thread", 32 * SHARES) }}
  let lane = thread % 32u;
  let e = group.x * 32u + lane;
  var sum = 0.0;
  if (e < p.E) {
    var i = thread / 32u;
    for (; i + {{ 3 * SHARES }}u < p.P; i += {{ 4 * SHARES }}u) {  // four loads in flight
# for u in range(4)
      let v{{ u }} = partial[p.start + (i + {{ u * SHARES }}u) * p.E + e];
# endfor
      sum += (v0 + v1) + (v2 + v3);
    }
    for (; i < p.P; i += {{ SHARES }}u) { sum += partial[p.start + i * p.E + e]; }
  }
  room[thread] = sum;
# for d in (512, 256, 128, 64, 32) if d < 32 * SHARES
  workgroupBarrier();
  if (thread < {{ d }}u) { room[thread] += room[thread + {{ d }}u]; }
# endfor
  workgroupBarrier();
{% set PER = PER_WORD[W] %}
  if (thread < {{ 32 // PER }}u && group.x * 32u + {{ PER }}u * thread < p.E) {
# if PER == 2
    out_put(group.x * 16u + thread, vec2<f32>(room[2u * thread], room[2u * thread + 1u]));
# else
    out_put(group.x * 32u + thread, room[thread]);
# endif
  }
}
