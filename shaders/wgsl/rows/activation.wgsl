// Activations, the gated ones of MLPs, and their gradients, element by element.
//
//   out = f(x) or f(x) * up (GATED); f: "silu" x / (1 + exp(-x)), "gelu" x * Phi(x),
//   "gelu_tanh" x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))).
//   gradient (BACK): dx = g * up * f'(x), dup = g * f(x).
// f32 arithmetic.
//
// Rows of `columns` elements, which may lie apart (strides), as the halves of one matrix [T, 2F]
// do; the results are dense. A thread has one run of RUN elements; lengths and places in runs.
// RUN 1: any length and place; a thread has one word of the results.
//
// Values: X type, RUN, FORM, GATED, BACK. Source: Elfwing et al. 2017; Hendrycks & Gimpel 2016;
// Shazeer 2020; erfc: Numerical Recipes in C, 2nd edition, 6.2 (relative error below 1.2e-7).
# from "runs.wgsl" import Q, bindings with context
{% set PER = PER_WORD[X] %}
struct Params {
  count: u32, columns: u32, x_stride: u32, up_stride: u32, g_stride: u32,
  x_at: u32, up_at: u32, g_at: u32, out_at: u32, dup_at: u32,
}
{% set reads = [("x", X)] + ([("up", X)] if GATED else []) + ([("g", X)] if BACK else []) %}
{{ bindings(reads, [("out", X)] + ([("dup", X)] if GATED and BACK else [])) }}
{% set V = "vec4<f32>" if RUN > 1 else "f32" %}

// 87: the largest argument whose exp is a number, with room to add to it
fn logistic(x: {{ V }}) -> {{ V }} {
  return 1.0 / (1.0 + exp(clamp(-x, {{ V }}(-87.0), {{ V }}(87.0))));
}
struct Pair { value: {{ V }}, slope: {{ V }} }

# if FORM == "silu"
fn both(x: {{ V }}) -> Pair {
  let s = logistic(x);
  return Pair(x * s, s * (1.0 + x * (1.0 - s)));
}
# elif FORM == "gelu"
fn erfc_of_size(z: {{ V }}) -> {{ V }} {  // z >= 0
  let t = 1.0 / (1.0 + 0.5 * z);
  var s = t * 0.17087277 - 0.82215223;
# for c in (1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368)
  s = fma(s, t, {{ V }}({{ c }}));
# endfor
  return t * exp(max(fma(s, t, -z * z - 1.26551223), {{ V }}(-87.0)));
}
fn both(x: {{ V }}) -> Pair {
  let tail = 0.5 * erfc_of_size(abs(x) * 0.70710678118654752);
  let phi = select(tail, 1.0 - tail, x > {{ V }}(0.0));
  let density = 0.3989422804014327 * exp(max(-0.5 * x * x, {{ V }}(-87.0)));
  return Pair(x * phi, phi + x * density);
}
# else
fn both(x: {{ V }}) -> Pair {
  let c = clamp(x, {{ V }}(-50.0), {{ V }}(50.0));  // beyond, s is 0 or 1
  let s = logistic(1.5957691216057308 * c * (1.0 + 0.044715 * c * c));
  let inner = 1.5957691216057308 * (1.0 + 0.134145 * c * c);
  return Pair(x * s, s + x * s * (1.0 - s) * inner);
}
# endif

# if RUN > 1
@compute @workgroup_size(256)
fn elementwise(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
               @builtin(local_invocation_index) thread: u32) {
  let i = flat_workgroup(group, groups) * 256u + thread;
  if (i >= p.count) { return; }
  let row = i / p.columns;
  let column = i - row * p.columns;
  let a = x_run(p.x_at + row * p.x_stride + column);
# if GATED
  let b = up_run(p.up_at + row * p.up_stride + column);
# endif
# if BACK
  let c = g_run(p.g_at + row * p.g_stride + column);
# endif
  var result = Run();
  var other = Run();
# for k in range(Q)
  let f{{ k }} = both(a[{{ k }}]);
# if BACK
  result[{{ k }}] = c[{{ k }}] * f{{ k }}.slope{{ " * b[%d]" % k if GATED else "" }};
  other[{{ k }}] = c[{{ k }}] * f{{ k }}.value;
# else
  result[{{ k }}] = f{{ k }}.value{{ " * b[%d]" % k if GATED else "" }};
# endif
# endfor
  out_put_run(p.out_at + i, result);
# if BACK and GATED
  dup_put_run(p.dup_at + i, other);
# endif
}
# else
@compute @workgroup_size(256)
fn elementwise(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
               @builtin(local_invocation_index) thread: u32) {
  let w = flat_workgroup(group, groups) * 256u + thread;
  if (w * {{ PER }}u >= p.count) { return; }
  var result = vec2<f32>();
  var other = vec2<f32>();
# for k in range(PER)
  if (w * {{ PER }}u + {{ k }}u < p.count) {
    let i = w * {{ PER }}u + {{ k }}u;
    let row = i / p.columns;
    let column = i - row * p.columns;
    let f = both(x_at(p.x_at + row * p.x_stride + column));
    let b = {{ "up_at(p.up_at + row * p.up_stride + column)" if GATED else "1.0" }};
# if BACK
    let c = g_at(p.g_at + row * p.g_stride + column);
    result[{{ k }}] = c * f.slope * b;
    other[{{ k }}] = c * f.value;
# else
    result[{{ k }}] = f.value * b;
# endif
  }
# endfor
  out_put(p.out_at / {{ PER }}u + w, result{{ "" if PER == 2 else ".x" }});
# if BACK and GATED
  dup_put(p.dup_at / {{ PER }}u + w, other{{ "" if PER == 2 else ".x" }});
# endif
}
# endif
