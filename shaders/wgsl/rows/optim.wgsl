// AdamW of one tensor, in place, and the norm of many tensors; see boostr/ops/optim.py.
//
//   g = grad * grad_scale, 0 where that is 0
//   m += (1 - beta1) (g - m);   v += (1 - beta2) (g^2 - v)
//   p = p (1 - lr wd) - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)
//
// Shapes: all n elements, dense; param P and grad G of 32 or 16 bits; m (moment), v (square),
// master f32. With a
// MASTER copy the parameter is only written. t, lr and grad_scale are parameters or, where STEP, LR
// or SCALE name a type, lie in memory.
// A thread has RUN elements (4; places in runs), or with RUN 1 those of one word of the
// parameter, whose other element may belong to a neighbour and stays.
// `square_sums`: workgroups go over the runs of one tensor, each leaves a sum in partial from
// `first`; `root_of_sums`: one workgroup.
//
// Values: ENTRY, P, G, MASTER, STEP, LR, SCALE, RUN, LANES.
// Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization; step as torch's AdamW.
# from "reduce_rows.wgsl" import reduction, lanes_parameter, lanes_value with context
# from "runs.wgsl" import Q, run_types, read_runs, write_runs with context
# if ENTRY == "adamw"
{% set PER = PER_WORD[P] %}
struct Params {
  n: u32, grad_at: u32, param_at: u32, m_at: u32, v_at: u32, master_at: u32,
  step_at: u32, lr_at: u32, scale_at: u32, step: f32, lr: f32, scale: f32,
  rate1: f32, rate2: f32, rest1: f32, rest2: f32, eps: f32, decay: f32,  // rate: -log(beta)
}
{% set scalars = [("step", STEP), ("lr", LR), ("scale", SCALE)] | selectattr(1) | list %}
{% set states = ["moment", "square"] + (["master"] if MASTER else []) %}
{% set n = 1 + scalars | length %}
{{ run_types() if RUN > 1 else "" }}
{{ read_runs(0, "grad", G) if RUN > 1 else read(0, "grad", G) }}
# for name, dtype in scalars
{{ read(loop.index, name, dtype) }}
# endfor
{{ write_runs(n, "param", P) if RUN > 1 else write(n, "param", P) }}
# for name in states
{{ write_runs(n + loop.index, name, "f32") if RUN > 1 else write(n + loop.index, name, "f32") }}
# endfor
{{ parameters(n + 1 + states | length) }}
{% set V = "vec4<f32>" if RUN > 1 else "f32" %}

// 1 - exp(-y), y > 0, without cancellation
fn one_minus_exp(y: f32) -> f32 {
  let series = y * (1.0 - y / 2.0 * (1.0 - y / 3.0 * (1.0 - y / 4.0 * (1.0 - y / 5.0
             * (1.0 - y / 6.0 * (1.0 - y / 7.0))))));
  return select(1.0 - exp(-min(y, 80.0)), series, y < 0.3);
}
struct Rule { scale: f32, keep: f32, rate: f32, spread: f32 }
fn rule() -> Rule {
  let t = {{ "f32(step[p.step_at])" if STEP else "p.step" }};
  let lr_ = {{ "lr[p.lr_at]" if LR else "p.lr" }};
  return Rule({{ "scale[p.scale_at]" if SCALE else "p.scale" }}, 1.0 - lr_ * p.decay,
              lr_ / one_minus_exp(t * p.rate1), inverseSqrt(one_minus_exp(t * p.rate2)));
}
struct Moved { p: {{ V }}, m: {{ V }}, v: {{ V }} }
fn moved(r: Rule, p0: {{ V }}, g0: {{ V }}, m0: {{ V }}, v0: {{ V }}) -> Moved {
  let g = select(g0 * r.scale, {{ V }}(), r.scale == 0.0);  // g0 may be nan
  let m = m0 + p.rest1 * (g - m0);
  let v = v0 + p.rest2 * (g * g - v0);
  return Moved(p0 * r.keep - r.rate * m / (sqrt(v) * r.spread + p.eps), m, v);
}

@compute @workgroup_size(256)
fn adamw(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) thread: u32) {
  let i = flat_workgroup(group, groups) * 256u + thread;
# if RUN > 1
  if (i >= p.n) { return; }
  let g = grad_run(p.grad_at + i);
  var m0 = moment_run(p.m_at + i);
  var v0 = square_run(p.v_at + i);
  var w = {{ "master_run(p.master_at + i)" if MASTER else "param_run(p.param_at + i)" }};
  let r = rule();
# for k in range(Q)
  let next{{ k }} = moved(r, w[{{ k }}], g[{{ k }}], m0[{{ k }}], v0[{{ k }}]);
  w[{{ k }}] = next{{ k }}.p;
  m0[{{ k }}] = next{{ k }}.m;
  v0[{{ k }}] = next{{ k }}.v;
# endfor
  moment_put_run(p.m_at + i, m0);
  square_put_run(p.v_at + i, v0);
# if MASTER
  master_put_run(p.master_at + i, w);
# endif
  param_put_run(p.param_at + i, w);
# else
  let word = p.param_at / {{ PER }}u + i;
  if (word * {{ PER }}u >= p.param_at + p.n) { return; }
  let r = rule();
  var result = vec2<f32>();
# for k in range(PER)
  {
    let place = word * {{ PER }}u + {{ k }}u;
    let j = place - p.param_at;  // wraps where the place is before the first
    result[{{ k }}] = param_at(place);
    if (j < p.n) {
      let w = {{ "master[p.master_at + j]" if MASTER else "result[%d]" % k }};
      let next = moved(r, w, grad_at(p.grad_at + j), moment[p.m_at + j], square[p.v_at + j]);
      moment[p.m_at + j] = next.m;
      square[p.v_at + j] = next.v;
# if MASTER
      master[p.master_at + j] = next.p;
# endif
      result[{{ k }}] = next.p;
    }
  }
# endfor
  param_put(word, result{{ "" if PER == 2 else ".x" }});
# endif
}
# elif ENTRY == "square_sums"
struct Params { n: u32, at: u32, first: u32, hop: u32 }
{{ run_types() }}
{{ read_runs(0, "x", G) }}
{{ read(1, "single", G) }}
{{ write(2, "partial", "f32") }}
{{ parameters(3) }}
{{ reduction("all_sum", "f32", "add", LANES, 1, 1) }}
@compute @workgroup_size({{ LANES }})
fn square_sums(@builtin(workgroup_id) group: vec3<u32>,
               @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  {{ poison("thread", LANES) }}
  var sum = 0.0;
  // elements before the first whole run, runs, elements behind
  let head = min(p.n, ({{ RUN }}u - p.at % {{ RUN }}u) % {{ RUN }}u);
  let runs = (p.n - head) / {{ RUN }}u;
  let base = (p.at + head) / {{ RUN }}u;
  let start = group.x * {{ LANES }}u + thread;
  for (var i = start; i < runs; i += 2u * p.hop) {
    let a = x_run(base + i);
    var b = Run();
    if (i + p.hop < runs) { b = x_run(base + i + p.hop); }
# for k in range(Q)
    sum += dot(a[{{ k }}], a[{{ k }}]) + dot(b[{{ k }}], b[{{ k }}]);
# endfor
  }
  let rest = head + {{ RUN }}u * runs;
  let odd = select(rest + start - head, start, start < head);
  if (odd < p.n) {
    let v = single_at(p.at + odd);
    sum += v * v;
  }
  sum = all_sum(sum, 0u, thread, lanes);
  if (thread == 0u) { partial[p.first + group.x] = sum; }
}
# else
struct Params { n: u32 }
{{ read(0, "partial", "f32") }}
{{ write(1, "norm", "f32") }}
{{ parameters(2) }}
{{ reduction("all_sum", "f32", "add", LANES, 1, 1) }}
@compute @workgroup_size({{ LANES }})
fn root_of_sums(@builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
  {{ lanes_value() }}
  {{ poison("thread", LANES) }}
  var sum = 0.0;
  for (var i = thread; i < p.n; i += {{ LANES }}u) { sum += partial[i]; }
  sum = all_sum(sum, 0u, thread, lanes);
  if (thread == 0u) { norm[0] = sqrt(sum); }
}
# endif
