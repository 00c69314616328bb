// cross_entropy and its gradient; see boostr/ops/loss.py.
//
//   lse[t]  = log sum_v exp(x[t, v])
//   loss[t] = (1 - s) (lse[t] - x[t, target]) + s (lse[t] - mean_v x[t, v]);  0 where ignored
//   dx      = (exp(x - lse) - (1 - s) [v = target] - s / V) * g[t];           0 where ignored
//
// Shapes: x [T, V] with rows `stride` elements apart from element x_at, targets [T], losses, lse
// f32 [T]. A target outside of 0..V-1 gives a loss of nan and reads nothing.
// `cross_entropy`: a workgroup of LANES threads a row, or (SPLIT) for 1 / splits of it, which
// leaves its maximum, sum and plain sum in partial [T, splits] for `finish`. A thread has 4 runs of
// RUN elements in flight and keeps a maximum and a sum of its own (online softmax: Milakov &
// Gimelshein 2018). Runs lie on 16 bytes wherever a row begins: elements of its neighbours count
// as -inf.
// `reduce`: one workgroup. `cross_entropy_backward`: a thread a run (SPANS: of x and dx as one
// line, so that a run may end one row and begin the next), or with RUN 1 a word of dx.
//
// Logits below LOWEST count as -inf: arithmetic on infinities is not to be relied on.
// Values: ENTRY, X logits, TARGET, RUN, LANES, SPLIT, MEAN, SPANS.
# from "reduce_rows.wgsl" import reduction, lanes_parameter, lanes_value with context
# from "runs.wgsl" import Q, run_types, read_runs, write_runs, lifting with context
{{ lifting() }}
const LOG2E = 1.4426950408889634;
var<private> nan_bits: u32 = 0x7fc00000u;
# if ENTRY != "cross_entropy_backward"
struct Params {
  T: u32, V: u32, stride: u32, x_at: u32, targets_at: u32, losses_at: u32, lse_at: u32,
  ignored: i32, smoothing: f32, splits: u32, share: u32,
}
# endif
{% macro softmax_parts() %}
{{ reduction("row_max", "f32", "max", LANES, 1, 1) }}
{{ reduction("row_sum", "vec2<f32>", "add", LANES, 1, 1) }}
{% endmacro %}
{% macro finishing() %}
// Of a row: its maximum, (sum of exp(x - maximum), plain sum of x).
fn finish_row(t: u32, top: f32, sums: vec2<f32>) {
  let log_sum = log(sums.x);
  lse[p.lse_at + t] = top + log_sum;
  let target_ = i32(targets_at(p.targets_at + t));
  var loss = bitcast<f32>(nan_bits);
  if (target_ >= 0 && u32(target_) < p.V) {
    let chosen = logits_at(p.x_at + t * p.stride + u32(target_));
    loss = (1.0 - p.smoothing) * (log_sum - (chosen - top));
    if (p.smoothing != 0.0) {
      loss += p.smoothing * (log_sum - (sums.y / f32(p.V) - top));
    }
  }
  losses[p.losses_at + t] = select(loss, 0.0, target_ == p.ignored);
}
{% endmacro %}
{#- logits and x are one array, by elements and by runs #}
# if ENTRY == "cross_entropy"
{{ run_types() }}
{{ read_runs(0, "x", X) }}
# if SPLIT
{{ write(1, "partial", "f32", 4) }}
{{ parameters(2) }}
# else
{{ read(1, "logits", X) }}
{{ read(2, "targets", TARGET) }}
{{ write(3, "losses", "f32") }}
{{ write(4, "lse", "f32") }}
{{ parameters(5) }}
{{ finishing() }}
# endif
{{ softmax_parts() }}
fn max4(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn sum4(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }
// Which elements of vector k of run c are not of this row, or of a run behind `end`.
fn outside(c: u32, k: u32, skew: u32, end: u32) -> vec4<bool> {
  let e = vec4<u32>(c * {{ RUN }}u + 4u * k - skew) + vec4<u32>(0u, 1u, 2u, 3u);
  return (e >= vec4<u32>(p.V)) | vec4<bool>(c >= end);
}

@compute @workgroup_size({{ LANES }})
fn cross_entropy(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  let number = flat_workgroup(group, groups);
  if (number >= p.T * p.splits) { return; }
  {{ poison("thread", LANES) }}
  let t = number / p.splits;
  let start = p.x_at + t * p.stride;
  let skew = start % {{ RUN }}u;
  let first = start / {{ RUN }}u;
  let runs = (skew + p.V + {{ RUN - 1 }}u) / {{ RUN }}u;
  let begin = (number % p.splits) * p.share;
  let end = min(begin + p.share, runs);
  var top = LOWEST;
  var sums = vec2<f32>();  // of exp(x - top), of x
  for (var c = begin + thread; c < end; c += {{ 4 * LANES }}u) {
# for u in range(4)
    let c{{ u }} = c + {{ u * LANES }}u;
    var a{{ u }} = Run();
    if (c{{ u }} < end) { a{{ u }} = x_run(first + c{{ u }}); }
# endfor
    if (p.smoothing != 0.0) {
# for u in range(4)
# for k in range(Q)
      let out{{ u }}{{ k }} = outside(c{{ u }}, {{ k }}u, skew, end);
      sums.y += sum4(select(a{{ u }}[{{ k }}], vec4<f32>(), out{{ u }}{{ k }}));
# endfor
# endfor
    }
    // elements before and behind the row, and runs behind the end
    if (c == 0u || c + {{ 3 * LANES }}u + 1u >= end) {
# for u in range(4)
# for k in range(Q)
      let out{{ u }}{{ k }} = outside(c{{ u }}, {{ k }}u, skew, end);
      a{{ u }}[{{ k }}] = select(a{{ u }}[{{ k }}], vec4<f32>(LOWEST), out{{ u }}{{ k }});
# endfor
# endfor
    }
    var high = top;
# for u in range(4)
# for k in range(Q)
    a{{ u }}[{{ k }}] = lifted(a{{ u }}[{{ k }}]);
    high = max(high, max4(a{{ u }}[{{ k }}]));
# endfor
# endfor
    sums.x *= exp(top - high);
    top = high;
    // of -inf alone: nothing, not exp(0)
    let shift = select(top, 0.0, top <= LOWEST) * LOG2E;
# for u in range(4)
# for k in range(Q)
    sums.x += sum4(exp2(fma(a{{ u }}[{{ k }}], vec4<f32>(LOG2E), vec4<f32>(-shift))));
# endfor
# endfor
  }
  let whole = row_max(top, 0u, thread, lanes);
  sums.x *= exp(top - whole);
  sums = row_sum(sums, 0u, thread, lanes);
  if (thread == 0u) {
# if SPLIT
    partial[number] = vec4<f32>(whole, sums, 0.0);
# else
    finish_row(t, whole, sums);
# endif
  }
}
# elif ENTRY == "finish"
{{ read(0, "partial", "f32", 4) }}
{{ read(1, "logits", X) }}
{{ read(2, "targets", TARGET) }}
{{ write(3, "losses", "f32") }}
{{ write(4, "lse", "f32") }}
{{ parameters(5) }}
{{ finishing() }}
{{ softmax_parts() }}
@compute @workgroup_size({{ LANES }})
fn finish(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  let t = flat_workgroup(group, groups);
  if (t >= p.T) { return; }
  {{ poison("thread", LANES) }}
  var own = vec4<f32>(LOWEST, 0.0, 0.0, 0.0);
  if (thread < p.splits) { own = partial[t * p.splits + thread]; }  // at most LANES
  let whole = row_max(own.x, 0u, thread, lanes);
  let sums = row_sum(vec2<f32>(own.y * exp(own.x - whole), own.z), 0u, thread, lanes);
  if (thread == 0u) { finish_row(t, whole, sums); }
}
# elif ENTRY == "reduce"
{{ read(0, "losses", "f32", 4) }}
{{ read(1, "targets", TARGET) }}
{{ write(2, "total", "f32") }}
{{ write(3, "rows", "f32") }}
{{ parameters(4) }}
{{ reduction("all_sum", "f32", "add", LANES, 1, 1) }}
{{ reduction("all_count", "u32", "add", LANES, 1, 1) }}
@compute @workgroup_size({{ LANES }})
fn reduce(@builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  {{ poison("thread", LANES) }}
  var sum = 0.0;
  var count = 0u;
  for (var i = 4u * thread; i < p.T; i += {{ 4 * LANES }}u) {
    let four = losses[i / 4u];
    let valid = vec4<u32>(i) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.T);
    sum += dot(select(vec4<f32>(), four, valid), vec4<f32>(1.0));
    for (var k = 0u; k < min(4u, p.T - i); k++) {
      count += u32(i32(targets_at(p.targets_at + i + k)) != p.ignored);
    }
  }
  sum = all_sum(sum, 0u, thread, lanes);
  count = all_count(count, 0u, thread, lanes);
  if (thread != 0u) { return; }
  rows[0] = f32(count);
# if MEAN
  total[0] = select(sum / f32(max(count, 1u)), bitcast<f32>(nan_bits), count == 0u);
# else
  total[0] = sum;
# endif
}
# else
struct Params {
  T: u32, V: u32, stride: u32, x_at: u32, targets_at: u32, lse_at: u32, g_at: u32, g_step: u32,
  rows_at: u32, out_at: u32, ignored: i32, smoothing: f32,
}
{{ run_types() if RUN > 1 else "" }}
{{ read_runs(0, "x", X) if RUN > 1 else read(0, "x", X) }}
{{ read(1, "targets", TARGET) }}
{{ read(2, "lse", "f32") }}
{{ read(3, "g", "f32") }}
{{ read(4, "rows", "f32") }}
{{ write_runs(5, "out", X) if RUN > 1 else write(5, "out", X) }}
{{ parameters(6) }}
// (whether row t counts, its target, its lse, its gradient)
struct Row { counts: bool, chosen: u32, lse: f32, scale: f32 }
fn row_of(t: u32) -> Row {
  let target_ = i32(targets_at(p.targets_at + t));
  let scale = g[p.g_at + t * p.g_step]{{ " / rows[p.rows_at]" if MEAN else "" }};
  return Row(target_ != p.ignored, u32(target_), lse[p.lse_at + t], scale);
}
# if RUN > 1
// Of logits of one row, in columns e.
fn slopes(row: Row, logits: vec4<f32>, e: vec4<u32>) -> vec4<f32> {
  let v = fma(max(logits, vec4<f32>(LOWEST)), vec4<f32>(LOG2E), vec4<f32>(-row.lse * LOG2E));
  let less = p.smoothing / f32(p.V) * row.scale;
  let hot = select(vec4<f32>(), vec4<f32>((1.0 - p.smoothing) * row.scale),
                   e == vec4<u32>(row.chosen));
  let slope = fma(exp2(v), vec4<f32>(row.scale), vec4<f32>(-less)) - hot;
  return select(vec4<f32>(), slope, row.counts);
}
@compute @workgroup_size(256)
fn cross_entropy_backward(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32) {
  let i = flat_workgroup(group, groups) * 256u + thread;
# if SPANS
  let t = i * {{ RUN }}u / p.V;
  if (t >= p.T) { return; }
  let column = i * {{ RUN }}u - t * p.V;
  let a = x_run(p.x_at / {{ RUN }}u + i);
# else
  let runs = p.V / {{ RUN }}u;
  let t = i / runs;
  if (t >= p.T) { return; }
  let column = (i - t * runs) * {{ RUN }}u;
  let a = x_run((p.x_at + t * p.stride + column) / {{ RUN }}u);  // on its way with the row's own
# endif
  let row = row_of(t);
  var result = Run();
# for k in range(Q)
  let e{{ k }} = vec4<u32>(column + {{ 4 * k }}u) + vec4<u32>(0u, 1u, 2u, 3u);
  result[{{ k }}] = slopes(row, a[{{ k }}], e{{ k }});
# endfor
# if SPANS
  if (column + {{ RUN }}u > p.V) {
    let next = row_of(min(t + 1u, p.T - 1u));
# for k in range(Q)
    let other{{ k }} = slopes(next, a[{{ k }}], e{{ k }} - p.V);
    result[{{ k }}] = select(result[{{ k }}], other{{ k }}, e{{ k }} >= vec4<u32>(p.V));
# endfor
  }
# endif
  out_put_run(p.out_at / {{ RUN }}u + i, result);
}
# else
fn slope(i: u32) -> f32 {
  let t = i / p.V;
  let v = i - t * p.V;
  let row = row_of(t);
  if (!row.counts) { return 0.0; }
  let hot = select(0.0, 1.0 - p.smoothing, v == row.chosen);
  let a = max(x_at(p.x_at + t * p.stride + v), LOWEST);
  return (exp(a - row.lse) - hot - p.smoothing / f32(p.V)) * row.scale;
}
@compute @workgroup_size(256)
fn cross_entropy_backward(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32) {
  let w = flat_workgroup(group, groups) * 256u + thread;
  let count = p.T * p.V;
# if PER_WORD[X] == 1
  if (w >= count) { return; }
  out_put(p.out_at + w, slope(w));
# else
  let i = 2u * w;
  if (i >= count) { return; }
  var second = 0.0;
  if (i + 1u < count) { second = slope(i + 1u); }
  out_put(p.out_at / 2u + w, vec2<f32>(slope(i), second));
# endif
}
# endif
# endif
