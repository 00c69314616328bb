// q [M, XS] int8 = rint(h / scale), scale [M] = max |h| / 127, of h = x or norm(x) [M, K] in
// x's dtype: what products with rounded inputs read. Columns K..XS-1 (XS a multiple of 16) are 0.
// One workgroup of THREADS a row; a thread makes whole words of four.
// Values: X, K, XS, THREADS, NORM (a `NormForm` of gemv_input.py, or "").
struct Params { x_base: u32, norm_base: u32, norm_bias_base: u32, eps: f32 }
{{ read(0, "x", X) }}
# if NORM
{{ read(1, "norm", "f32") }}
#   if NORM.bias
{{ read(2, "norm_bias", "f32") }}
#   endif
# endif
# set first = 1 if not NORM else 3 if NORM.bias else 2
{{ write(first, "q", "i8") }}
{{ write(first + 1, "scale", "f32") }}
{{ parameters(first + 2) }}
{{ workgroup("shared_sums", "f32", THREADS) }}

// v / s to the last bit, which division in WGSL is not promised to be.
fn quotient(v: f32, s: f32) -> f32 {
  let q = v / s;
  return fma(fma(-q, s, v), 1.0 / s, q);
}
# if NORM
fn value(row: u32, k: u32, mean: f32, f: f32) -> f32 {
  let x = x_at(p.x_base + row * {{ K }}u + k){{ " - mean" if NORM.layer }};
  let gain = norm[p.norm_base + k]{{ " + %s" % NORM.offset if NORM.offset }};
  let h = x * f * gain{{ " + norm_bias[p.norm_bias_base + k]" if NORM.bias }};
#   if X == "f32"
  return h;
#   else
  return unpack_{{ X }}(pack_{{ X }}(vec2<f32>(h, 0.0))).x;
#   endif
}
# else
fn value(row: u32, k: u32, mean: f32, f: f32) -> f32 { return x_at(p.x_base + row * {{ K }}u + k); }
# endif
# macro tree(combine)
  workgroupBarrier();
#   for half in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if half < THREADS
  if (thread < {{ half }}u) {
    shared_sums[thread] = {{ combine("shared_sums[thread]", "shared_sums[thread + %du]" % half) }};
  }
  workgroupBarrier();
#   endfor
# endmacro
# macro larger(a, b)
max({{ a }}, {{ b }})
# endmacro
# macro added(a, b)
{{ a }} + {{ b }}
# endmacro

@compute @workgroup_size({{ THREADS }})
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(num_workgroups) num_workgroups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
) {
  {{ poison("thread", THREADS) }}
  let row = flat_workgroup(workgroup_id, num_workgroups);
  var f = 1.0;
  var mean = 0.0;
# if NORM and NORM.layer
  var sum = 0.0;
  for (var k = thread; k < {{ K }}u; k += {{ THREADS }}u) {
    sum += x_at(p.x_base + row * {{ K }}u + k);
  }
  shared_sums[thread] = sum;
{{ tree(added) }}
  mean = shared_sums[0] / {{ K }}.0;
  workgroupBarrier();
# endif
# if NORM
  var squares = 0.0;
  for (var k = thread; k < {{ K }}u; k += {{ THREADS }}u) {
    let v = x_at(p.x_base + row * {{ K }}u + k){{ " - mean" if NORM.layer }};
    squares += v * v;
  }
  shared_sums[thread] = squares;
{{ tree(added) }}
  f = inverseSqrt(shared_sums[0] / {{ K }}.0 + p.eps);
  workgroupBarrier();
# endif
  var top = 0.0;
  for (var k = thread; k < {{ K }}u; k += {{ THREADS }}u) {
    top = max(top, abs(value(row, k, mean, f)));
  }
  shared_sums[thread] = top;
{{ tree(larger) }}
  let s = quotient(shared_sums[0], 127.0);
  if (thread == 0u) { scale[row] = s; }
  let divisor = select(1.0, s, s > 0.0);
  for (var w = thread; w < {{ XS // 4 }}u; w += {{ THREADS }}u) {
    var v = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
      if (4u * w + i < {{ K }}u) { v[i] = quotient(value(row, 4u * w + i, mean, f), divisor); }
    }
    let rounded = clamp(round(v), vec4<f32>(-127.0), vec4<f32>(127.0));
    q_put(row * {{ XS // 4 }}u + w, vec4<i32>(rounded));
  }
}
