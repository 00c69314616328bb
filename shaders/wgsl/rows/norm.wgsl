// RMS and layer normalisation of rows, with the residual add before or behind it.
//
//   RMS    y = h * r * (w + offset)            r = 1 / sqrt(mean(h^2) + eps)
//   layer  y = (h - m) * r * w + b             r = 1 / sqrt(mean((h - m)^2) + eps), m = mean(h)
// h = x + residual (ADD; then written too) or x. AFTER: y = residual + factor * (the above).
// Sums and products in f32.
//
// x: rows of E elements, row r from (r / inner) * stride + (r % inner) * E; residual, y, h dense.
// Threads: LANES of them a row, ROWS rows a workgroup (1 where LANES > 32). Thread l has the runs
// l, l + LANES, ... of RUN elements: ITEMS of them, kept in registers, so that memory is read once;
// ITEMS 0: as many as it takes, read again. Lengths and places in runs.
// RUN 1: rows of any length and place, by elements; a workgroup has the rows whose elements fill
// whole words.
//
// Values: X of x, W of weight and bias; RUN, ITEMS, LANES, ROWS; EXACT: a row is just ITEMS * LANES
// runs; ADD, AFTER, LAYER, BIAS. Source: Zhang & Sennrich 2019; Ba et al. 2016.
# from "reduce_rows.wgsl" import reduction, lanes_parameter, lanes_value with context
# from "runs.wgsl" import Q, bindings, rounding with context
{% set PER = PER_WORD[X] %}
struct Params {
  rows: u32, runs: u32, inner: u32, stride: u32,
  x_at: u32, residual_at: u32, weight_at: u32, bias_at: u32, y_at: u32, h_at: u32,
  inverse: f32, eps: f32, offset: f32,{{ " factor: f32," if AFTER }}
}
{% set reads = [("x", X)] + ([("residual", X)] if ADD or AFTER else []) + [("weight", W)] %}
{% set reads = reads + ([("bias", W)] if BIAS else []) %}
{{ bindings(reads, [("y", X)] + ([("h", X)] if ADD else [])) }}
{{ rounding(X) }}
{{ reduction("row_sum", "f32", "add", LANES, ROWS, 2 if RUN > 1 else 2 * PER) }}
{% macro horizontal(v) %}dot({{ v }}, vec4<f32>(1.0)){% endmacro %}

# if RUN > 1
{#- The statements of the caller for each run `a` of this thread, at column `c`. #}
{% macro each() %}
# if ITEMS
# for i in range(ITEMS)
  if ({{ "live" if EXACT else "live && c" ~ i ~ " < p.runs" }}) {
{{ caller("a" ~ i, "c" ~ i) }}
  }
# endfor
# else
  for (var c = lane; c < p.runs; c += {{ LANES }}u) {
    let a = {{ "h_run(p.h_at + out + c)" if ADD else "x_run(source + c)" }};
{{ caller("a", "c") }}
  }
# endif
{% endmacro %}
@compute @workgroup_size({{ LANES * ROWS }})
fn norm_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  let first = flat_workgroup(group, groups) * {{ ROWS }}u;
  if (first >= p.rows) { return; }
  {{ poison("thread", LANES * ROWS) }}
  let lane = thread % {{ LANES }}u;
  let row = first + thread / {{ LANES }}u;
  let live = {{ "row < p.rows" if ROWS > 1 else "true" }};
  let source = p.x_at + (row / p.inner) * p.stride + (row % p.inner) * p.runs;
  let out = row * p.runs;
  var total = 0.0;
# for i in range(ITEMS)
  let c{{ i }} = lane + {{ i * LANES }}u;
  var a{{ i }} = Run();
  if ({{ "live" if EXACT else "live && c" ~ i ~ " < p.runs" }}) {
    a{{ i }} = x_run(source + c{{ i }});
  }
# endfor
# if ADD
# for i in range(ITEMS)
  var b{{ i }} = Run();  // loaded before anything is written: stores and loads keep their order
  if ({{ "live" if EXACT else "live && c" ~ i ~ " < p.runs" }}) {
    b{{ i }} = residual_run(p.residual_at + out + c{{ i }});
  }
# endfor
# for i in range(ITEMS)
  if ({{ "live" if EXACT else "live && c" ~ i ~ " < p.runs" }}) {
# for k in range(Q)
    a{{ i }}[{{ k }}] = rounded(a{{ i }}[{{ k }}] + b{{ i }}[{{ k }}]);
# endfor
    h_put_run(p.h_at + out + c{{ i }}, a{{ i }});
  }
# endfor
# if not ITEMS
  for (var c = lane; c < p.runs; c += {{ LANES }}u) {
    var a = x_run(source + c);
    let other = residual_run(p.residual_at + out + c);
# for k in range(Q)
    a[{{ k }}] = rounded(a[{{ k }}] + other[{{ k }}]);
# endfor
    h_put_run(p.h_at + out + c, a);  // read again by this very thread
  }
# endif
# endif
# call(a, c) each()
# for k in range(Q)
    total += {{ horizontal(a ~ "[" ~ k ~ "]") if LAYER else "dot(%s[%d], %s[%d])" % (a, k, a, k) }};
# endfor
# endcall
  total = row_sum(total, 0u, thread, lanes);
  var mean = 0.0;
# if LAYER
  mean = total * p.inverse;
  total = 0.0;
# call(a, c) each()
# for k in range(Q)
    total += dot({{ a }}[{{ k }}] - mean, {{ a }}[{{ k }}] - mean);
# endfor
# endcall
  total = row_sum(total, 1u, thread, lanes);
# endif
  let r = inverseSqrt(total * p.inverse + p.eps);
# call(a, c) each()
    let w = weight_run(p.weight_at + {{ c }});
# if BIAS
    let b = bias_run(p.bias_at + {{ c }});
# endif
    var result = Run();
# for k in range(Q)
{% set centred = "(%s[%d] - mean)" % (a, k) if LAYER else "%s[%d]" % (a, k) %}
    result[{{ k }}] = {{ centred }} * r * (w[{{ k }}] + p.offset)
                {{ "+ b[%d]" % k if BIAS else "" }};
# endfor
# if AFTER
    let other = residual_run(p.residual_at + out + {{ c }});
# for k in range(Q)
    result[{{ k }}] = fma(vec4<f32>(p.factor), result[{{ k }}], other[{{ k }}]);
# endfor
# endif
    y_put_run(p.y_at + out + {{ c }}, result);
# endcall
}
# else
fn value(row: u32, e: u32) -> f32 {
  let v = x_at(p.x_at + (row / p.inner) * p.stride + (row % p.inner) * p.runs + e);
  return {{ "rounded1(v + residual_at(p.residual_at + row * p.runs + e))" if ADD else "v" }};
}

@compute @workgroup_size({{ LANES }})
fn norm_forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  let number = flat_workgroup(group, groups);
  let first = number * {{ PER }}u;
  if (first >= p.rows) { return; }
  {{ poison("thread", LANES) }}
  var means = vec2<f32>();
  var scales = vec2<f32>();
# for k in range(PER)
  {
    let row = first + {{ k }}u;
    let columns = select(0u, p.runs, row < p.rows);
    var total = 0.0;
    for (var e = thread; e < columns; e += {{ LANES }}u) {
      let v = value(row, e);
      total += {{ "v" if LAYER else "v * v" }};
    }
    total = row_sum(total, {{ 2 * k }}u, thread, lanes);
# if LAYER
    means[{{ k }}] = total * p.inverse;
    total = 0.0;
    for (var e = thread; e < columns; e += {{ LANES }}u) {
      let v = value(row, e) - means[{{ k }}];
      total += v * v;
    }
    total = row_sum(total, {{ 2 * k + 1 }}u, thread, lanes);
# endif
    scales[{{ k }}] = inverseSqrt(total * p.inverse + p.eps);
  }
# endfor
  let count = min({{ PER }}u, p.rows - first) * p.runs;
  for (var w = thread; w * {{ PER }}u < count; w += {{ LANES }}u) {
    var outs = vec4<f32>();
    var sums = vec4<f32>();
# for k in range(PER)
    if (w * {{ PER }}u + {{ k }}u < count) {
      let j = w * {{ PER }}u + {{ k }}u;
      let second = j >= p.runs;  // at most two rows
      let e = select(j, j - p.runs, second);
      let v = value(first + u32(second), e);
      sums[{{ k }}] = v;
      outs[{{ k }}] = (v - select(means.x, means.y, second)) * select(scales.x, scales.y, second)
                * (weight_at(p.weight_at + e) + p.offset)
                {{ "+ bias_at(p.bias_at + e)" if BIAS else "" }};
# if AFTER
      outs[{{ k }}] = fma(p.factor, outs[{{ k }}], residual_at(p.residual_at + first * p.runs + j));
# endif
    }
# endfor
    let at = number * p.runs + w;
    y_put(p.y_at / {{ PER }}u + at, outs{{ ".xy" if PER == 2 else ".x" }});
# if ADD
    h_put(p.h_at / {{ PER }}u + at, sums{{ ".xy" if PER == 2 else ".x" }});
# endif
  }
}
# endif
