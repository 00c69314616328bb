// The gradients of RMS and layer normalisation, of rows h of E elements.
//
// n = the normalised row before the weight, c = g * (w + offset):
//   RMS    dh = r * (c - n * mean(c * n))            r = 1 / sqrt(mean(h^2) + eps)
//   layer  dh = r * (c - mean(c) - n * mean(c * n))  r = 1 / sqrt(mean((h - m)^2) + eps)
//   dw = sum over rows of g * n, db = sum over rows of g
// With ADD, `passed` is the gradient of h itself, which dh takes too. All dense.
//
// Threads as in norm.wgsl, with ITEMS runs in registers. A grid of few workgroups goes over the
// rows, so that a thread's columns stay the same: it adds up dw and db in registers, leaves them in
// partial f32 [1 + LAYER, groups * ROWS, E] (WANTS), and norm_weights.wgsl adds these:
// deterministic. The next row is loaded before the sums of this one.
// RUN 1: rows of any length, by elements; dw and db are added up in `partial` itself.
//
// Values: X of x, g, dh; W of weight; RUN, ITEMS, LANES, ROWS, EXACT; ADD, LAYER, WANTS.
# from "reduce_rows.wgsl" import reduction, lanes_parameter, lanes_value with context
# from "runs.wgsl" import Q, bindings, raw_type with context
{% set PER = PER_WORD[X] %}
{% set SUMS = "vec4<f32>" if LAYER else "vec2<f32>" %}
struct Params {
  rows: u32, runs: u32, groups: u32, g_at: u32, x_at: u32, weight_at: u32, passed_at: u32,
  inverse: f32, eps: f32, offset: f32,
}
{% set reads = [("g", X), ("x", X), ("weight", W)] + ([("passed", X)] if ADD else []) %}
{{ bindings(reads, [("dh", X)] + ([("partial", "f32")] if WANTS else [])) }}
{{ reduction("row_sum", "f32", "add", LANES, ROWS) if LAYER else "" }}
{{ reduction("row_sums", SUMS, "add", LANES, ROWS) }}

// What a row's threads must know of all of it; `sums` are of (x - m)^2, c (x - m) and c.
struct Row { mean: f32, r: f32, slope: f32, plain: f32 }
fn row_of(mean: f32, sums: {{ SUMS }}) -> Row {
  let r = inverseSqrt(sums.x * p.inverse + p.eps);
  let slope = sums.y * p.inverse * r * r * r;
  return Row(mean, r, slope, {{ "sums.z * p.inverse * r" if LAYER else "0.0" }});
}

# if RUN > 1
{% macro if_inside(i, row="row") %}
{{ "if (%s%s)" % ("%s < p.rows" % row, "" if EXACT else " && c%d < p.runs" % i) }}
{%- endmacro %}
@compute @workgroup_size({{ LANES * ROWS }})
fn norm_backward(@builtin(workgroup_id) group: vec3<u32>,
                 @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  {{ poison("thread", LANES * ROWS) }}
  let lane = thread % {{ LANES }}u;
  let team = thread / {{ LANES }}u;
# for i in range(ITEMS)
  let c{{ i }} = lane + {{ i * LANES }}u;
  var w{{ i }} = Run();
  if (c{{ i }} < p.runs) { w{{ i }} = weight_run(p.weight_at + c{{ i }}); }
# for k in range(Q)
  w{{ i }}[{{ k }}] += p.offset;
# endfor
  var dw{{ i }} = Run();
  var db{{ i }} = Run();
  var next_g{{ i }} = {{ raw_type(X) }}();
  var next_x{{ i }} = {{ raw_type(X) }}();
# endfor
  var row = group.x * {{ ROWS }}u + team;
# for i in range(ITEMS)
  {{ if_inside(i) }} {
    next_g{{ i }} = g_raw(p.g_at + row * p.runs + c{{ i }});
    next_x{{ i }} = x_raw(p.x_at + row * p.runs + c{{ i }});
  }
# endfor
  var turn = 0u;
  for (var base = group.x * {{ ROWS }}u; base < p.rows; base += p.groups * {{ ROWS }}u) {
    row = base + team;
    let after = row + p.groups * {{ ROWS }}u;
# for i in range(ITEMS)
    let g{{ i }} = g_unpacked(next_g{{ i }});
    let x{{ i }} = x_unpacked(next_x{{ i }});
    {{ if_inside(i, "after") }} {
      next_g{{ i }} = g_raw(p.g_at + after * p.runs + c{{ i }});
      next_x{{ i }} = x_raw(p.x_at + after * p.runs + c{{ i }});
    }
# endfor
# if ADD
# for i in range(ITEMS)
    var pass{{ i }} = Run();
    {{ if_inside(i) }} { pass{{ i }} = passed_run(p.passed_at + row * p.runs + c{{ i }}); }
# endfor
# endif
    var mean = 0.0;
    var sums = {{ SUMS }}();
# if LAYER
# for i in range(ITEMS)
    {{ if_inside(i) }} {
# for k in range(Q)
      mean += dot(x{{ i }}[{{ k }}], vec4<f32>(1.0));
# endfor
    }
# endfor
    mean = row_sum(mean, 0u, thread, lanes) * p.inverse;
# endif
# for i in range(ITEMS)
    {{ if_inside(i) }} {
# for k in range(Q)
{% set d = "(x%d[%d] - mean)" % (i, k) if LAYER else "x%d[%d]" % (i, k) %}
      let d{{ k }} = {{ d }};
      let u{{ k }} = g{{ i }}[{{ k }}] * w{{ i }}[{{ k }}];
      sums.x += dot(d{{ k }}, d{{ k }});
      sums.y += dot(u{{ k }}, d{{ k }});
# if LAYER
      sums.z += dot(u{{ k }}, vec4<f32>(1.0));
# endif
# endfor
    }
# endfor
    let known = row_of(mean, row_sums(sums, turn, thread, lanes));
    turn = 1u - turn;
# for i in range(ITEMS)
    {{ if_inside(i) }} {
      var result = Run();
# for k in range(Q)
      let d{{ k }} = x{{ i }}[{{ k }}]{{ " - mean" if LAYER else "" }};
      let v{{ k }} = g{{ i }}[{{ k }}];
      result[{{ k }}] = v{{ k }} * (w{{ i }}[{{ k }}] * known.r)
                - (d{{ k }} * known.slope + known.plain)
                {{ "+ pass%d[%d]" % (i, k) if ADD else "" }};
      dw{{ i }}[{{ k }}] += v{{ k }} * d{{ k }} * known.r;
# if LAYER
      db{{ i }}[{{ k }}] += v{{ k }};
# endif
# endfor
      dh_put_run(row * p.runs + c{{ i }}, result);
    }
# endfor
  }
# if WANTS
  let at = (group.x * {{ ROWS }}u + team) * p.runs;
# for i in range(ITEMS)
  if (c{{ i }} < p.runs) {
    partial_put_run(at + c{{ i }}, dw{{ i }});
# if LAYER
    partial_put_run(p.groups * {{ ROWS }}u * p.runs + at + c{{ i }}, db{{ i }});
# endif
  }
# endfor
# endif
}
# else
@compute @workgroup_size({{ LANES }})
fn norm_backward(@builtin(workgroup_id) group: vec3<u32>,
                 @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  {{ poison("thread", LANES) }}
  let E = p.runs;
# if WANTS
  let dw = group.x * E;
  let db = (p.groups + group.x) * E;
  for (var e = thread; e < E; e += {{ LANES }}u) {
    partial[dw + e] = 0.0;
# if LAYER
    partial[db + e] = 0.0;
# endif
  }
# endif
  var turn = 0u;
  for (var first = group.x * {{ PER }}u; first < p.rows; first += p.groups * {{ PER }}u) {
# for k in range(PER)
    let row{{ k }} = first + {{ k }}u;
    let count{{ k }} = select(0u, E, row{{ k }} < p.rows);
    var mean{{ k }} = 0.0;
    var sums{{ k }} = {{ SUMS }}();
# if LAYER
    for (var e = thread; e < count{{ k }}; e += {{ LANES }}u) {
      mean{{ k }} += x_at(p.x_at + row{{ k }} * E + e);
    }
    mean{{ k }} = row_sum(mean{{ k }}, turn, thread, lanes) * p.inverse;
# endif
    for (var e = thread; e < count{{ k }}; e += {{ LANES }}u) {
      let d = x_at(p.x_at + row{{ k }} * E + e) - mean{{ k }};
      let c = g_at(p.g_at + row{{ k }} * E + e) * (weight_at(p.weight_at + e) + p.offset);
      sums{{ k }} += {{ SUMS }}(d * d, c * d{{ ", c, 0.0" if LAYER else "" }});
    }
    let known{{ k }} = row_of(mean{{ k }}, row_sums(sums{{ k }}, turn, thread, lanes));
    turn = 1u - turn;
# if WANTS
    for (var e = thread; e < count{{ k }}; e += {{ LANES }}u) {
      let v = g_at(p.g_at + row{{ k }} * E + e);
      let d = x_at(p.x_at + row{{ k }} * E + e) - mean{{ k }};
      partial[dw + e] += v * d * known{{ k }}.r;
# if LAYER
      partial[db + e] += v;
# endif
    }
# endif
# endfor
    // rows that fill whole words of dh
    let count = min({{ PER }}u, p.rows - first) * E;
    for (var w = thread; w * {{ PER }}u < count; w += {{ LANES }}u) {
      var result = vec2<f32>();
# for k in range(PER)
      if (w * {{ PER }}u + {{ k }}u < count) {
        let j = w * {{ PER }}u + {{ k }}u;
        var known = known0;
        var e = j;
# if PER == 2
        if (j >= E) {
          known = known1;
          e = j - E;
        }
# endif
        let d = x_at(p.x_at + first * E + j) - known.mean;
        let c = g_at(p.g_at + first * E + j) * (weight_at(p.weight_at + e) + p.offset);
        result[{{ k }}] = c * known.r - (d * known.slope + known.plain)
                {{ "+ passed_at(p.passed_at + first * E + j)" if ADD else "" }};
      }
# endfor
      dh_put(first * E / {{ PER }}u + w, result{{ "" if PER == 2 else ".x" }});
    }
  }
}
# endif
