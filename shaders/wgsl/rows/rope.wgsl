// Rotary position embedding of packed heads.
//
//   (a, b) -> (a cos - b sin, b cos + a sin), cos and sin of row rows[t] of the tables; the pairs
//   are (i, i + HALF), or (2i, 2i + 1) with INTERLEAVED; dimensions 2 HALF .. pass through.
//
// x: [T, H, D], token t from element t * stride; out dense; tables f32 [S, HALF]; rows i32 [T].
// turn: 1, or -1 to rotate back (the gradient).
//
// RUN 8 or 4: a thread has two runs of RUN elements of a head: RUN pairs (split-half: of both
// halves; INTERLEAVED: side by side), or what passes through. Neighbouring threads have
// neighbouring units of a head, then heads, which find the tables in the cache.
// RUN 1: any sizes and places; a thread has one word of the result.
//
// Values: X type, RUN, D, HALF, H, INTERLEAVED.
// Source: Su et al. 2021, RoFormer.
# from "runs.wgsl" import Q, bindings, run_types, read_runs, write_runs with context
{% set PER = PER_WORD[X] %}
struct Params { tokens: u32, stride: u32, x_at: u32, cos_at: u32, sin_at: u32, rows_at: u32,
                out_at: u32, turn: f32 }
# if RUN > 1
{{ run_types() }}
{{ read_runs(0, "x", X) }}
# else
{{ read(0, "x", X) }}
# endif
{{ read(1, "cosines", "f32", 4 if RUN > 1 else 1) }}
{{ read(2, "sines", "f32", 4 if RUN > 1 else 1) }}
{{ read(3, "rows", "i32") }}
# if RUN > 1
{{ write_runs(4, "out", X) }}
# else
{{ write(4, "out", X) }}
# endif
{{ parameters(5) }}

# if RUN > 1
{% set TURNED = HALF // RUN %}
{% set REST = (D - 2 * HALF) // (2 * RUN) %}
{% set UNITS = TURNED + REST %}
@compute @workgroup_size(256)
fn rope(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let i = flat_workgroup(group, groups) * 256u + thread;
  let t = i / {{ UNITS * H }}u;
  if (t >= p.tokens) { return; }
  let unit = i % {{ UNITS }}u;
  let head = (i / {{ UNITS }}u) % {{ H }}u;
  // the two runs of this thread in a head
# if INTERLEAVED
  let first = 2u * unit;
  let second = first + 1u;
# else
  let turned = unit < {{ TURNED }}u;
  let first = select(unit + {{ TURNED }}u, unit, turned);
  let second = first + select({{ REST }}u, {{ TURNED }}u, turned);
# endif
  let base = p.x_at + t * p.stride + head * {{ D // RUN }}u;
  let a = x_run(base + first);
  let b = x_run(base + second);
  var c = Run();
  var s = Run();
  if (unit < {{ TURNED }}u) {
    let row = u32(rows[p.rows_at + t]) * {{ HALF // 4 }}u + unit * {{ Q }}u;
# for k in range(Q)
    c[{{ k }}] = cosines[p.cos_at + row + {{ k }}u];
    s[{{ k }}] = sines[p.sin_at + row + {{ k }}u] * p.turn;
# endfor
  } else {
# for k in range(Q)
    c[{{ k }}] = vec4<f32>(1.0);
# endfor
  }
  let to = p.out_at + (t * {{ H }}u + head) * {{ D // RUN }}u;
  var y = Run();
  var z = Run();
# for k in range(Q)
# if INTERLEAVED
{#- vector k of a and b has pairs (x, y) and (z, w); those of a come first in the tables #}
# for v, w, at in (("a", "y", k), ("b", "z", k + Q))
{% set cs = "c[%d].%s" % (at // 2, "zw" if at % 2 else "xy") %}
{% set sn = "s[%d].%s" % (at // 2, "zw" if at % 2 else "xy") %}
  {
    let e = {{ v }}[{{ k }}].xz;
    let o = {{ v }}[{{ k }}].yw;
    let even = e * {{ cs }} - o * {{ sn }};
    let odd = o * {{ cs }} + e * {{ sn }};
    {{ w }}[{{ k }}] = vec4<f32>(even.x, odd.x, even.y, odd.y);
  }
# endfor
# else
  y[{{ k }}] = a[{{ k }}] * c[{{ k }}] - b[{{ k }}] * s[{{ k }}];
  z[{{ k }}] = b[{{ k }}] * c[{{ k }}] + a[{{ k }}] * s[{{ k }}];
# endif
# endfor
  out_put_run(to + first, y);
  out_put_run(to + second, z);
}
# else
fn turned(i: u32) -> f32 {
  let d = i % {{ D }}u;
  let t = i / {{ H * D }}u;
  let base = p.x_at + t * p.stride + (i % {{ H * D }}u) - d;
  let own = x_at(base + d);
  if (d >= {{ 2 * HALF }}u) { return own; }
# if INTERLEAVED
  let at = d / 2u;
  let back = d % 2u == 1u;
  let other = x_at(base + (d ^ 1u));
# else
  let at = d % {{ HALF }}u;
  let back = d >= {{ HALF }}u;
  let other = x_at(base + select(at + {{ HALF }}u, at, back));
# endif
  let row = u32(rows[p.rows_at + t]) * {{ HALF }}u + at;
  let s = sines[p.sin_at + row] * p.turn;
  return own * cosines[p.cos_at + row] + other * select(-s, s, back);
}

@compute @workgroup_size(256)
fn rope(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
  let w = flat_workgroup(group, groups) * 256u + thread;
  let i = w * {{ PER }}u;
  let count = p.tokens * {{ H * D }}u;
  if (i >= count) { return; }
# if PER == 1
  out_put(p.out_at + w, turned(i));
# else
  var second = 0.0;
  if (i + 1u < count) { second = turned(i + 1u); }
  out_put(p.out_at / 2u + w, vec2<f32>(turned(i), second));
# endif
}
# endif
