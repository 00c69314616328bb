// Rounding rows to int8 with a scale for each row or group of `group` inputs; results are exact.
//
//   scale = absmax / 127; q = rint(w / scale), halves to even, in -127..127; of zeros scale 0, q 0
//
// STEP "scales": w [N, K] -> scales f32 [N, G]: TEAM threads (a power of 2) for each group.
// STEP "values": w, scales -> values int8 [N, K], as words of 4: a thread for each word of the flat
//   tensor, so that rows of any length may share words.
// Values: STEP, X dtype of w, TEAM; 256 threads a workgroup.
struct Params { size: u32, K: u32, G: u32, group: u32, w_first: u32 }
{{ read(0, "w", X) }}
# if STEP == "scales"
{{ write(1, "scales", "f32") }}
{{ parameters(2) }}
{{ workgroup("tops", "f32", 256) }}
# else
{{ read(1, "scales", "f32") }}
{{ write(2, "values", "i8") }}
{{ parameters(3) }}
# endif
# include "math.wgsl"

// a / b with one rounding, of b > 0: WGSL's own may be off by 2.5 ulp. What is small is scaled, as
// its residue would be a denormal, which some GPUs take for zero.
fn quotient(a: f32, b: f32) -> f32 {
  let up = select(1.0, 1.8446744073709552e19, abs(a) < 1e-18);
  let q = a * up / b;
  return (q + residue(a * up, q, b) / b) / up;
}

@compute @workgroup_size(256)
fn quantize(
    @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32) {
  {{ poison("t", 256) if STEP == "scales" else "" }}
  let block = flat_workgroup(id, count);
# if STEP == "scales"
  let index = block * {{ 256 // TEAM }}u + t / {{ TEAM }}u;
  var top = 0.0;
  if (index < p.size) {
    let row = index / p.G;
    let first = (index - row * p.G) * p.group;
    let end = min(first + p.group, p.K);
    for (var k = first + t % {{ TEAM }}u; k < end; k += {{ TEAM }}u) {
      top = max(top, abs(w_at(p.w_first + row * p.K + k)));
    }
  }
  tops[t] = top;
#   for half in (128, 64, 32, 16, 8, 4, 2, 1) if half < TEAM
  workgroupBarrier();
  if (t % {{ TEAM }}u < {{ half }}u) { tops[t] = max(tops[t], tops[t + {{ half }}u]); }
#   endfor
  if (t % {{ TEAM }}u == 0u && index < p.size) { scales[index] = quotient(tops[t], 127.0); }
# else
  let first = (block * 256u + t) * 4u;
  if (first >= p.size) { return; }
  var q = vec4<i32>(0);
  for (var e = 0u; e < 4u; e++) {
    let i = min(first + e, p.size - 1u);
    let row = i / p.K;
    let scale = scales[row * p.G + (i - row * p.K) / p.group];
    let x = w_at(p.w_first + i);
    var y = 0.0;
    if (scale > 0.0) {
      // both larger, so that no residue is a denormal
      let up = select(1.0, 1.8446744073709552e19, scale < 1e-18);
      let s = scale * up;
      y = x * up / s;
      y += residue(x * up, y, s) / s;
    }
    q[e] = i32(clamp(round(y), -127.0, 127.0));
  }
  values_put(first / 4u, q);
# endif
}
