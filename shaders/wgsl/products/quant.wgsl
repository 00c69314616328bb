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
// 2^n for n in -126..127.
fn power_of_two(n: i32) -> f32 { return bitcast<f32>(u32(n + 127) << 23u); }

// a / b with one rounding, halves to even, of a >= 0, b > 0. By whole numbers: WGSL's own may be off
// by 2.5 ulp, and compilers see through sums that would mend it.
fn quotient(a: f32, b: f32) -> f32 {
  let x = bitcast<u32>(a);
  let y = bitcast<u32>(b);
  if (x < 0x800000u || y < 0x800000u) { return a / b; }  // zeros and denormals
  let m = (x & 0x7fffffu) | 0x800000u;
  let d = (y & 0x7fffffu) | 0x800000u;
  var q = m / d;  // of 2^24 times it, from the top, 8 bits at a time
  var r = m - q * d;
  for (var i = 0u; i < 3u; i++) {
    let next = (r << 8u) / d;
    r = (r << 8u) - next * d;
    q = (q << 8u) | next;
  }
  var e = i32(x >> 23u) - i32(y >> 23u) - 24;
  if (q >= 0x1000000u) {  // 25 bits: the last is the half
    let half = q & 1u;
    q >>= 1u;
    e += 1;
    q += half & select(q & 1u, 1u, r != 0u);
  } else {
    q += select(u32(2u * r > d), q & 1u, 2u * r == d);
  }
  let part = max(e, -250) / 2;  // 2^e itself may be out of range
  return f32(q) * power_of_two(part) * power_of_two(max(e, -250) - part);
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
    let y = min(round(quotient(abs(x), select(1.0, scale, scale > 0.0))), 127.0);
    q[e] = i32(select(y, -y, x < 0.0));
  }
  values_put(first / 4u, q);
# endif
}
