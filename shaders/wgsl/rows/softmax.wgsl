// Softmax of rows of N elements: exp(x - max) / sum, a row of -inf gives zeros; with LOG
// x - max - log(sum).
//
// x: row r from (r / inner) * stride + (r % inner) * N; out dense. f32 arithmetic.
// Threads: as norm.wgsl (LANES a row, ROWS rows a workgroup, ITEMS runs of RUN elements in
// registers, ITEMS 0: read twice, with a running maximum and sum). SPLIT: long rows that are few:
// a workgroup has `share` runs of one; `softmax_partial` leaves its maximum and sum in partial
// [rows, splits], `softmax_apply` puts those of a row together and writes. RUN 1: any length and
// place.
//
// What is below LOWEST counts as -inf: arithmetic on infinities is not to be relied on.
// Values: X type, RUN, ITEMS, LANES, ROWS, EXACT, LOG, SPLIT ("", "partial", "apply").
// Source: the running form, Milakov & Gimelshein 2018.
# from "reduce_rows.wgsl" import reduction, lanes_parameter, lanes_value with context
# from "runs.wgsl" import Q, bindings, lifting with context
{% set PER = PER_WORD[X] %}
struct Params {
  rows: u32, runs: u32, inner: u32, stride: u32, x_at: u32, out_at: u32, splits: u32, share: u32,
}
# if SPLIT == "partial"
{{ bindings([("x", X)], [("partial", "f32")]) }}
# elif SPLIT == "apply"
{{ bindings([("x", X), ("partial", "f32")], [("out", X)]) }}
# else
{{ bindings([("x", X)], [("out", X)]) }}
# endif
{{ reduction("row_max", "f32", "max", LANES, ROWS, PER if RUN == 1 else 1) }}
{{ reduction("row_sum", "f32", "add", LANES, ROWS, PER if RUN == 1 else 1) }}
{{ lifting() }}
var<private> minus_infinity: u32 = 0xff800000u;

# if RUN > 1
fn max4(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn fetch(i: u32) -> Run {
  var v = x_run(i);
# for k in range(Q)
  v[{{ k }}] = lifted(v[{{ k }}]);
# endfor
  return v;
}
# else
fn fetch1(row: u32, e: u32) -> f32 {
  return lifted1(x_at(p.x_at + (row / p.inner) * p.stride + (row % p.inner) * p.runs + e));
}
# endif
{% set V = "vec4<f32>" if RUN > 1 else "f32" %}
// 1 / sum, 0 for a row of -inf; LOG: log(sum)
fn last_of(top: f32, total: f32) -> f32 {
# if LOG
  return log(total);
# else
  return select(1.0 / total, 0.0, top <= LOWEST);
# endif
}
fn result_of(v: {{ V }}, top: f32, last: f32) -> {{ V }} {
# if LOG
  let lost = bitcast<f32>(minus_infinity | select(0u, 0x400000u, top <= LOWEST));
  return select((v - top) - last, {{ V }}(lost), v <= {{ V }}(LOWEST));
# else
  return exp(v - top) * last;
# endif
}

# if RUN > 1
// The maximum and sum of exp(x - maximum) of runs lane, lane + LANES, ... below `end`.
struct Running { top: f32, sum: f32 }
fn run_over(start: u32, begin: u32, end: u32) -> Running {
  var top = LOWEST;
  var sum = 0.0;
  for (var c = begin; c < end; c += {{ 2 * LANES }}u) {
    let a = fetch(start + c);
    var b = a;
    let two = c + {{ LANES }}u < end;
    if (two) { b = fetch(start + c + {{ LANES }}u); }
    var high = top;
# for k in range(Q)
    high = max(high, max(max4(a[{{ k }}]), max4(b[{{ k }}])));
# endfor
    sum *= exp(top - high);
    top = high;
    var more = 0.0;
# for k in range(Q)
    sum += dot(exp(a[{{ k }}] - high), vec4<f32>(1.0));
    more += dot(exp(b[{{ k }}] - high), vec4<f32>(1.0));
# endfor
    sum += select(0.0, more, two);
  }
  return Running(top, sum);
}
# endif

# if SPLIT
@compute @workgroup_size({{ LANES }})
fn softmax_{{ SPLIT }}(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  let number = flat_workgroup(group, groups);
  if (number >= p.rows * p.splits) { return; }
  {{ poison("thread", LANES) }}
  let row = number / p.splits;
  let begin = (number % p.splits) * p.share + thread;
  let end = min((number % p.splits + 1u) * p.share, p.runs);
  let source = p.x_at + (row / p.inner) * p.stride + (row % p.inner) * p.runs;
# if SPLIT == "partial"
  let own = run_over(source, begin, end);
  let top = row_max(own.top, 0u, thread, lanes);
  let total = row_sum(own.sum * exp(own.top - top), 0u, thread, lanes);
  if (thread == 0u) { partial[number] = vec4<f32>(top, total, 0.0, 0.0); }
# else
  var own = Running(LOWEST, 0.0);
  if (thread < p.splits) {  // at most LANES of them
    let found = partial[row * p.splits + thread];
    own = Running(found.x, found.y);
  }
  let top = row_max(own.top, 0u, thread, lanes);
  let last = last_of(top, row_sum(own.sum * exp(own.top - top), 0u, thread, lanes));
  for (var c = begin; c < end; c += {{ LANES }}u) {
    var a = fetch(source + c);
# for k in range(Q)
    a[{{ k }}] = result_of(a[{{ k }}], top, last);
# endfor
    out_put_run(p.out_at + row * p.runs + c, a);
  }
# endif
}
# elif RUN > 1
@compute @workgroup_size({{ LANES * ROWS }})
fn softmax(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  let first = flat_workgroup(group, groups) * {{ ROWS }}u;
  if (first >= p.rows) { return; }
  {{ poison("thread", LANES * ROWS) }}
  let lane = thread % {{ LANES }}u;
  let row = first + thread / {{ LANES }}u;
  let live = {{ "row < p.rows" if ROWS > 1 else "true" }};
  let source = p.x_at + (row / p.inner) * p.stride + (row % p.inner) * p.runs;
  let out = p.out_at + row * p.runs;
# if ITEMS
  var top = LOWEST;
# for i in range(ITEMS)
  let c{{ i }} = lane + {{ i * LANES }}u;
  let inside{{ i }} = {{ "live" if EXACT else "live && c" ~ i ~ " < p.runs" }};
  var a{{ i }} = Run();
  if (inside{{ i }}) { a{{ i }} = fetch(source + c{{ i }}); }
# endfor
# for i in range(ITEMS)
# for k in range(Q)
  top = select(top, max(top, max4(a{{ i }}[{{ k }}])), inside{{ i }});
# endfor
# endfor
  top = row_max(top, 0u, thread, lanes);
  var total = 0.0;
# for i in range(ITEMS)
# for k in range(Q)
  total += select(0.0, dot(exp(a{{ i }}[{{ k }}] - top), vec4<f32>(1.0)), inside{{ i }});
# endfor
# endfor
  let last = last_of(top, row_sum(total, 0u, thread, lanes));
# for i in range(ITEMS)
  if (inside{{ i }}) {
# for k in range(Q)
    a{{ i }}[{{ k }}] = result_of(a{{ i }}[{{ k }}], top, last);
# endfor
    out_put_run(out + c{{ i }}, a{{ i }});
  }
# endfor
# else
  let own = run_over(source, lane, p.runs);
  let top = row_max(own.top, 0u, thread, lanes);
  let last = last_of(top, row_sum(own.sum * exp(own.top - top), 0u, thread, lanes));
  for (var c = lane; c < p.runs; c += {{ LANES }}u) {
    var a = fetch(source + c);
# for k in range(Q)
    a[{{ k }}] = result_of(a[{{ k }}], top, last);
# endfor
    out_put_run(out + c, a);
  }
# endif
}
# else
@compute @workgroup_size({{ LANES }})
fn softmax(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  let number = flat_workgroup(group, groups);
  let first = number * {{ PER }}u;  // the rows whose elements fill whole words
  if (first >= p.rows) { return; }
  {{ poison("thread", LANES) }}
  var tops = vec2<f32>();
  var lasts = vec2<f32>();
# for k in range(PER)
  {
    let columns = select(0u, p.runs, first + {{ k }}u < p.rows);
    var top = LOWEST;
    for (var e = thread; e < columns; e += {{ LANES }}u) {
      top = max(top, fetch1(first + {{ k }}u, e));
    }
    top = row_max(top, {{ k }}u, thread, lanes);
    var total = 0.0;
    for (var e = thread; e < columns; e += {{ LANES }}u) {
      total += exp(fetch1(first + {{ k }}u, e) - top);
    }
    tops[{{ k }}] = top;
    lasts[{{ k }}] = last_of(top, row_sum(total, {{ k }}u, thread, lanes));
  }
# endfor
  let count = min({{ PER }}u, p.rows - first) * p.runs;
  for (var w = thread; w * {{ PER }}u < count; w += {{ LANES }}u) {
    var result = vec2<f32>();
# for k in range(PER)
    if (w * {{ PER }}u + {{ k }}u < count) {
      let j = w * {{ PER }}u + {{ k }}u;
      let second = j >= p.runs;
      let v = fetch1(first + u32(second), select(j, j - p.runs, second));
      let top = select(tops.x, tops.y, second);
      result[{{ k }}] = result_of(v, top, select(lasts.x, lasts.y, second));
    }
# endfor
    out_put(p.out_at / {{ PER }}u + number * p.runs + w, result{{ "" if PER == 2 else ".x" }});
  }
}
# endif
