// What the GEMVs share (gemv.wgsl, gemv_gated.wgsl, gemv_qkv.wgsl import it): rows of a weight in
// its stored form times 1..8 rows of x, float32 sums (int32 where x is rounded, FORM.rounds_input).
//
// Threads: a workgroup is TEAMS = THREADS / TEAM teams; a team has R rows of the weight and deals
// their inputs out in chunks of CHUNK (16 bytes of codes or 16-bit floats): chunk c goes to thread
// c % TEAM. A thread first issues the loads of UNROLL chunks of all R rows, then those of x, then
// multiplies. Sums meet by shuffles within a subgroup and through shared memory across them, once.
// DIGITS (gemv_digits.wgsl): a thread keeps its chunks of x for all R rows, which it takes BATCH at
// a time: when it has multiplied a chunk of one it asks for that of the next batch's.
// RMS norm: y = (sum w·g·x) / rms(x), so the mean square is just one more sum and delays nothing.
// Layer norm: every workgroup first makes the mean and the variance of the rows of x.
// Values: FORM (of the weight, boostr/quant/forms.py; planes.wgsl reads it), SLOW (rows or x off 16
//   bytes: CHUNK 1), X, K, M (rows of x that the text holds; p.M are real), THREADS, TEAM, R, BATCH
//   (R without DIGITS), UNROLL, LANES (of a subgroup, 0: only the device knows), DIGITS, INPUT
//   ("plain", or "combine": x from the splits of attention), NORM (a `NormForm` of gemv_input.py,
//   or "").
# import "planes.wgsl" as planes with context
# from "reduce_rows.wgsl" import reduction with context
# set ROUNDED = FORM.rounds_input
# set WORDS = 0 if SLOW else 4
# set CHUNK = 1 if SLOW else {0: 8, 8: 16}.get(planes.BITS, 32)
# set CHUNKS = K // CHUNK
// A chunk has SPANS groups of inputs, or is a part of one; a span is PARTS times 16 inputs.
# set GROUP = FORM.group
# set GROUPED = planes.GROUPED
# set SPANS = [CHUNK // GROUP, 1] | max if GROUP else 1
# set PARTS = CHUNK // 16 // SPANS
# set PLANES = planes.PLANES
# set bases = planes.bases
# set TEAMS = THREADS // TEAM
# set SUM = "i32" if ROUNDED else "f32"
# set LATE = NORM and not NORM.layer and not DIGITS
# set SUMS = R * M + (M if LATE else 0)
# set SUBGROUPS = caps.subgroup_max > 0
# set LEAST = [TEAM, (LANES or caps.subgroup_min) if SUBGROUPS else 1]|min
# set MOST = [TEAM, LANES or caps.subgroup_max]|min
// Chunks of a row that a thread keeps, and whether the last of them may lie behind the row's end.
# set HELD = (CHUNKS + TEAM - 1) // TEAM
# set EDGE = CHUNKS % TEAM != 0
# import "gemv_digits.wgsl" as digits with context
# import "gemv_sums.wgsl" as sums with context
# set meet = sums.meet

# macro declarations()
fn add4(w: vec4<f32>, x: vec4<f32>, sum: f32) -> f32 {
  return fma(w.w, x.w, fma(w.z, x.z, fma(w.y, x.y, fma(w.x, x.x, sum))));
}
{{ planes.decoders(WORDS) }}
// -- x: a chunk of one row -----------------------------------------------------------------------
# if SLOW
alias Input = {{ SUM }};
#   if ROUNDED
{{ read(0, "x", "i8") }}
fn input(m: u32, c: u32) -> Input { return x_at(p.x_base + m * {{ XS }}u + c); }
#   else
{{ read(0, "x", X) }}
fn input(m: u32, c: u32) -> Input { return x_at(p.x_base + m * {{ K }}u + c); }
fn squares(x: Input) -> f32 { return x * x; }
fn scaled(x: Input, g: Input) -> Input { return x * g; }
fn added(x: Input) -> f32 { return x; }
fn centred(x: Input, mean: f32, f: f32) -> Input { return (x - mean) * f; }
fn shifted(x: Input, b: Input) -> Input { return x + b; }
#   endif
fn kept(x: Input, live: bool) -> Input { return select({{ SUM }}(0), x, live); }
# elif ROUNDED
alias Input = vec4<u32>;
{{ read(0, "x", "u32", 4) }}
fn input(m: u32, c: u32) -> Input { return x[p.x_base + m * {{ XS // 16 }}u + c]; }
fn kept(x: Input, live: bool) -> Input { return select(vec4<u32>(), x, live); }
# else
#   set parts = range(CHUNK // 8)
struct Eight { a: vec4<f32>, b: vec4<f32> }
struct Input { {% for i in parts %}e{{ i }}: Eight, {% endfor %} }
#   if INPUT == "combine"
{{ read(0, "partials", "f32", 4) }}
#     include "attention_decode_parts.wgsl"
fn eight(m: u32, i: u32) -> Eight {
  let row = m * {{ K // PARTS_DV }}u + i / {{ PARTS_DV // 8 }}u;
  let d4 = 2u * (i % {{ PARTS_DV // 8 }}u);
  return Eight(combined4(row, d4), combined4(row, d4 + 1u));
}
#   elif X == "f32"
{{ read(0, "x", "f32", 4) }}
fn eight(m: u32, i: u32) -> Eight {
  let at = p.x_base + m * {{ K // 4 }}u + 2u * i;
  return Eight(x[at], x[at + 1u]);
}
#   else
{{ read(0, "x", X, 4) }}
fn eight_of(v: vec4<u32>) -> Eight {
  return Eight(vec4<f32>(unpack_{{ X }}(v.x), unpack_{{ X }}(v.y)),
               vec4<f32>(unpack_{{ X }}(v.z), unpack_{{ X }}(v.w)));
}
fn eight(m: u32, i: u32) -> Eight { return eight_of(x[p.x_base + m * {{ K // 8 }}u + i]); }
#   endif
fn input(m: u32, c: u32) -> Input {
  return Input({% for i in parts %}eight(m, {{ parts|length }}u * c + {{ i }}u), {% endfor %});
}
fn kept8(x: Eight, live: bool) -> Eight {
  return Eight(select(vec4<f32>(), x.a, live), select(vec4<f32>(), x.b, live));
}
fn kept(x: Input, live: bool) -> Input {
  return Input({% for i in parts %}kept8(x.e{{ i }}, live), {% endfor %});
}
fn squares8(x: Eight) -> f32 { return add4(x.a, x.a, add4(x.b, x.b, 0.0)); }
fn squares(x: Input) -> f32 {
  return {% for i in parts %}{{ " + " if i }}squares8(x.e{{ i }}){% endfor %};
}
fn scaled8(x: Eight, g: Eight) -> Eight { return Eight(x.a * g.a, x.b * g.b); }
fn scaled(x: Input, g: Input) -> Input {
  return Input({% for i in parts %}scaled8(x.e{{ i }}, g.e{{ i }}), {% endfor %});
}
fn total8(x: Eight, sum: f32) -> f32 {
  return sum + dot(x.a, vec4<f32>(1.0)) + dot(x.b, vec4<f32>(1.0));
}
#   if NORM and NORM.layer
fn added(x: Input) -> f32 {
  return {% for i in parts %}{{ " + " if i }}total8(x.e{{ i }}, 0.0){% endfor %};
}
fn centred8(x: Eight, mean: f32, f: f32) -> Eight {
  return Eight((x.a - mean) * f, (x.b - mean) * f);
}
fn centred(x: Input, mean: f32, f: f32) -> Input {
  return Input({% for i in parts %}centred8(x.e{{ i }}, mean, f), {% endfor %});
}
fn shifted8(x: Eight, b: Eight) -> Eight { return Eight(x.a + b.a, x.b + b.b); }
fn shifted(x: Input, b: Input) -> Input {
  return Input({% for i in parts %}shifted8(x.e{{ i }}, b.e{{ i }}), {% endfor %});
}
#   endif
#   if DIGITS
{{ digits.functions() }}
#   endif
# endif

// -- weights: a chunk of one row, and its product with one of x ----------------------------------
# if SLOW
alias Chunk = {{ SUM }};
fn times(w: Chunk, x: Input, sum: {{ SUM }}) -> {{ SUM }} {
  return {{ "w * x + sum" if ROUNDED else "fma(w, x, sum)" }};
}
# elif FORM.codes == "f32"
alias Chunk = Eight;
fn times(w: Chunk, x: Input, sum: f32) -> f32 { return add4(w.b, x.e0.b, add4(w.a, x.e0.a, sum)); }
# elif FORM.is_float
alias Chunk = vec4<u32>;
fn times(w: Chunk, x: Input, sum: f32) -> f32 {
  let a = vec4<f32>(unpack_{{ FORM.codes }}(w.x), unpack_{{ FORM.codes }}(w.y));
  let b = vec4<f32>(unpack_{{ FORM.codes }}(w.z), unpack_{{ FORM.codes }}(w.w));
  return add4(b, x.e0.b, add4(a, x.e0.a, sum));
}
# elif ROUNDED
alias Chunk = vec4<u32>;
fn product(w: u32, x: u32) -> i32 {
#   if caps.dot4
  return dot4I8Packed(w, x);
#   else
  return dot(unpack_i8(w), unpack_i8(x));
#   endif
}
fn times(w: Chunk, x: Input, sum: i32) -> i32 {
  return sum + product(w.x, x.x) + product(w.y, x.y) + product(w.z, x.z) + product(w.w, x.w);
}
# else
// With x of 16 bits codes stay larger by LIFT, which is taken off by way of the sum of x: it costs
// sums 2 to 4 of their 24 bits.
#   set LIFT = 0 if DIGITS or X == "f32" else planes.LIFT
struct Chunk {
  q: {{ planes.vector([4, planes.LOW] | min) }},
#   if planes.HIGH
  h: {{ planes.vector(planes.HIGH) }},
#   endif
#   for i in range(SPANS) if GROUPED
  scale{{ i }}: f32, {{ "offset%d: f32," % i if FORM.offsets }}
#   endfor
}
#   if DIGITS
fn times(w: Chunk, x: Digits, sum: f32) -> f32 {
  var y = sum;
#     for i in range(SPANS)
  {
    var low = 0;
    var high = 0;
#       for part in range(PARTS * i, PARTS * (i + 1))
    let b{{ part }} = {{ planes.bytes_of("w", "%du" % (16 * part)) }}
        {{- " & vec4<u32>(0x%08xu)" % ((2 ** planes.BITS - 1) * 0x01010101) if planes.BITS < 8 }};
    low += low_dots(b{{ part }}, x.e{{ 2 * part }}, x.e{{ 2 * part + 1 }});
    high += high_dots(b{{ part }}, x.e{{ 2 * part }}, x.e{{ 2 * part + 1 }});
#       endfor
    var s = f32(256 * high + low{{ " - %d * x.ones%d" % (FORM.zero, i) if FORM.zero }});
#       if planes.ZEROS
    s = fma(-w.offset{{ i }}, f32(x.ones{{ i }}), s);
#       endif
    y = fma({{ "w.scale%d * x.scale" % i if GROUPED else "x.scale" }}, s, y);
#       if FORM.offsets and not planes.ZEROS
    y = fma(w.offset{{ i }} * x.scale, f32(x.ones{{ i }}), y);
#       endif
  }
#     endfor
  return y;
}
#   else
#     set as_float = "lifted" if LIFT else "codes"
fn sixteen(b: vec4<u32>, x0: Eight, x1: Eight, sum: f32) -> f32 {
  let s = add4({{ as_float }}(b.y), x0.b, add4({{ as_float }}(b.x), x0.a, sum));
  return add4({{ as_float }}(b.w), x1.b, add4({{ as_float }}(b.z), x1.a, s));
}
fn times(w: Chunk, x: Input, sum: f32) -> f32 {
  var y = sum;
#   for i in range(SPANS)
  {
#     if LIFT or FORM.offsets
    var ones = 0.0;
#       for e in range(2 * PARTS)
    ones = total8(x.e{{ 2 * PARTS * i + e }}, ones);
#       endfor
#     endif
    var s = {{ "0.0" if GROUPED else "y" }};
#     if planes.ZEROS
    s = fma({{ "%.1f" % -LIFT }} - w.offset{{ i }}, ones, s);
#     elif LIFT
    s = fma({{ -LIFT }}, ones, s);
#     endif
#     for part in range(PARTS * i, PARTS * (i + 1))
    s = sixteen({{ planes.bytes_of("w", "%du" % (16 * part)) }},
                x.e{{ 2 * part }}, x.e{{ 2 * part + 1 }}, s);
#     endfor
#     if GROUPED
    y = fma(w.scale{{ i }}, s, y);
#     else
    y = s;
#     endif
#     if FORM.offsets and not planes.ZEROS
    y = fma(w.offset{{ i }}, ones, y);
#     endif
  }
#   endfor
  return y;
}
#   endif
# endif

{{ sums.functions() }}
# endmacro

// Binds a weight's planes.
# macro weight(binding, name)
#   if planes.BITS
{{ planes.planes(binding, name, K, WORDS) }}
#   elif SLOW
{{ read(binding, name, FORM.codes) }}
#   else
{{ read(binding, name, "f32" if FORM.codes == "f32" else "u32", 4) }}
#   endif
fn {{ name }}_chunk(row: u32, c: u32) -> Chunk {
#   if SLOW and FORM.is_float
  return {{ name }}_at(p.{{ name }}_base + row * {{ K }}u + c);
#   elif SLOW
  let raw = {{ name }}_raw(row, c);
  return {{ "raw.q" if ROUNDED else name ~ "_value(raw, row, c)" }};
#   elif FORM.codes == "f32"
  let at = p.{{ name }}_base + row * {{ K // 4 }}u + 2u * c;
  return Chunk({{ name }}[at], {{ name }}[at + 1u]);
#   elif FORM.is_float
  return {{ name }}[p.{{ name }}_base + row * {{ K // 8 }}u + c];
#   elif ROUNDED
  return {{ name }}_raw(row, c * {{ CHUNK }}u).q;
#   else
  return {{ name }}_decoded({{ name }}_raw(row, c * {{ CHUNK }}u), row, c);
#   endif
}
#   if planes.BITS and not (SLOW or ROUNDED)
fn {{ name }}_decoded(raw: Raw, row: u32, c: u32) -> Chunk {
  return Chunk(
    raw.q, {{ "raw.h," if planes.HIGH }}
#     for i in range(SPANS) if GROUPED
#       set at = "(raw, row, c * %du + %du)" % (CHUNK, i * GROUP)
    {{ name }}_scale{{ at }}, {{ "%s_offset%s," % (name, at) if FORM.offsets }}
#     endfor
  );
}
#   endif
// What a finished sum of a row is multiplied by.
fn {{ name }}_scale_of(row: u32) -> f32 {
#   if FORM.row_scaled
  return {{ name }}_row_scale(row);
#   else
  return 1.0;
#   endif
}
# endmacro

// Arrays of a norm, and where they begin among the parameters.
# set NORM_ARRAYS = ([] if not NORM else ["norm", "norm_bias"] if NORM.bias else ["norm"])
# macro norm_bases()
norm_base: u32,{{ " norm_bias_base: u32," if NORM_ARRAYS | length > 1 }}
# endmacro
# macro norm(binding)
{{ _vector(binding, "norm", "gains", " + %s" % NORM.offset if NORM.offset else "") }}
#   if NORM.bias
{{ _vector(binding + 1, "norm_bias", "shifts", "") }}
#   endif
#   if NORM.layer
{{ reduction("row_sums", ROW_SUMS, "add", THREADS) }}
#   endif
# endmacro
# macro _vector(binding, name, function, more)
#   if SLOW
{{ read(binding, name, "f32") }}
fn {{ function }}(c: u32) -> Input { return {{ name }}[p.{{ name }}_base + c]{{ more }}; }
#   else
{{ read(binding, name, "f32", 4) }}
fn {{ function }}8(i: u32) -> Eight {
  let at = p.{{ name }}_base + 2u * i;
  return Eight({{ name }}[at]{{ more }}, {{ name }}[at + 1u]{{ more }});
}
fn {{ function }}(c: u32) -> Input {
  return Input(
#     for e in range(CHUNK // 8)
    {{ function }}8({{ CHUNK // 8 }}u * c + {{ e }}u),
#     endfor
  );
}
#   endif
# endmacro
// mean{m} and inverse{m}, 1 / sqrt(variance + eps), of the rows of x; up to four at a time.
# set TOGETHER = [M, 4] | min
# set ROW_SUMS = "vec%d<f32>" % TOGETHER if TOGETHER > 1 else "f32"
# macro statistics()
#   set lanes = "%du" % LANES if LANES else "lanes" if SUBGROUPS else "1u"
#   for first in range(0, M, TOGETHER)
  var parts{{ first }} = {{ ROW_SUMS }}();
{{ _over_rows(first, "added(%s)") }}
  let means{{ first }} = row_sums(parts{{ first }}, 0u, thread, {{ lanes }}) / {{ K }}.0;
#     for m in range(first, first + TOGETHER)
  let mean{{ m }} = means{{ first }}{{ "[%d]" % (m - first) if TOGETHER > 1 }};
#     endfor
  parts{{ first }} = {{ ROW_SUMS }}();
{{ _over_rows(first, "squares(centred(%s, mean%d, 1.0))") }}
  let spread{{ first }} = row_sums(parts{{ first }}, 1u, thread, {{ lanes }}) / {{ K }}.0;
#     for m in range(first, first + TOGETHER)
  let spread_of{{ m }} = spread{{ first }}{{ "[%d]" % (m - first) if TOGETHER > 1 }};
  let inverse{{ m }} = inverseSqrt(spread_of{{ m }} + p.eps);
#     endfor
#   endfor
# endmacro
# macro _over_rows(first, of)
  for (var c = thread; c < {{ CHUNKS }}u; c += {{ THREADS }}u) {
    parts{{ first }} += {{ ROW_SUMS }}(
#   for m in range(first, first + TOGETHER)
#     set x = "input(%s, c)" % ("min(%du, p.M - 1u)" % m if m else "0u")
      {{ of % ((x, m) if "%d" in of else x) }},
#   endfor
    );
  }
# endmacro

// Chunks at, at + TEAM, ...; under `edge` the last of them may lie behind the row's end. What
// `meanwhile` says is done while the weights are on their way.
# macro batch(names, steps, edge, meanwhile="")
  {
#   for u in range(steps)
#     set last = edge and u == steps - 1
#     if last
    let c{{ u }} = min(at + {{ u * TEAM }}u, {{ CHUNKS - 1 }}u);
#     else
    let c{{ u }} = at + {{ u * TEAM }}u;
#     endif
#     for name in names
    let w{{ u }}_{{ loop.index0 }} = {{ name }}_chunk(row{{ loop.index0 }}, c{{ u }});
#     endfor
#   endfor
    {{ meanwhile }}
#   for u in range(steps)
#     set last = edge and u == steps - 1
#     if NORM
    let g{{ u }} = gains(c{{ u }});
#     endif
#     if NORM and NORM.bias
    let b{{ u }} = shifts(c{{ u }});
#     endif
#     for m in range(M)
#       set value = "input(%s, c%d)" % ("min(%du, p.M - 1u)" % m if m else "0u", u)
#       if NORM and NORM.layer
#         set value = "scaled(centred(%s, mean%d, inverse%d), g%d)" % (value, m, m, u)
#         set value = "shifted(%s, b%d)" % (value, u) if NORM.bias else value
#       endif
#       if last
    let x{{ u }}_{{ m }} = kept({{ value }}, at + {{ u * TEAM }}u < {{ CHUNKS }}u);
#       else
    let x{{ u }}_{{ m }} = {{ value }};
#       endif
#       if LATE
    sum{{ R * M + m }} += squares(x{{ u }}_{{ m }});
    let h{{ u }}_{{ m }} = scaled(x{{ u }}_{{ m }}, g{{ u }});
#       else
    let h{{ u }}_{{ m }} = x{{ u }}_{{ m }};
#       endif
#       for r in range(R)
    sum{{ r * M + m }} = times(w{{ u }}_{{ r }}, h{{ u }}_{{ m }}, sum{{ r * M + m }});
#       endfor
#     endfor
#   endfor
  }
# endmacro

// Sums of a team's rows · rows of x: row r · row m of x goes to place r·M + m of `meeting`, and
// with LATE the sum of squares of row m of x to R·M + m. `rows(batch, name)` declares NAME0,
// NAME1, ..., which are of the weights `names`; `meanwhile` is done while the first weights are on
// their way.
# macro accumulate(rows, names, meanwhile="")
#   if DIGITS
{{ _in_digits(rows, names, meanwhile) }}
#   else
#     if NORM and NORM.layer
{{ statistics() }}
#     endif
{{ rows("0u") }}
{{ _streamed(names, meanwhile) }}
#   endif
# endmacro
# macro _in_digits(rows, names, meanwhile)
{{ digits.ask() }}
  let at = thread % {{ TEAM }}u;
#   for h in range(HELD)
#     set last = EDGE and h == HELD - 1
#     set c = "at + %du" % (h * TEAM)
  let c{{ h }} = {{ "min(%s, %du)" % (c, CHUNKS - 1) if last else c }};
#   endfor
{{ rows("0u") }}
#   for h in range(HELD)
#     for name in names
  var w{{ h }}_{{ loop.index0 }} = {{ name }}_raw(row{{ loop.index0 }}, c{{ h }} * {{ CHUNK }}u);
#     endfor
#   endfor
#   if NORM and NORM.layer
{{ statistics() }}
#   endif
{{ digits.share() }}
  {{ meanwhile }}
#   for h in range(HELD)
#     set live = "at + %du < %du" % (h * TEAM, CHUNKS) if EDGE and h == HELD - 1 else "true"
#     for m in range(M)
  let x{{ h }}_{{ m }} = kept_digits({{ m }}u, c{{ h }}, {{ digits.factor(m) }}, {{ live }});
#     endfor
#   endfor
#   set batches = R // BATCH
#   if batches > 1
  for (var batch = 0u; batch < {{ batches }}u; batch++) {
    let more = batch < {{ batches - 1 }}u;
{{ rows("batch") }}
{{ rows("(batch + 1u)", "next") }}
#     for name in names
#       set r = loop.index0
{{ _row_in_digits(name, r) }}
    if (more) {
#       for h in range(HELD)
      w{{ h }}_{{ r }} = {{ name }}_raw(next{{ r }}, c{{ h }} * {{ CHUNK }}u);
#       endfor
    }
#     endfor
{{ sums.gather(0, BATCH * M, "batch * %du" % (BATCH * M)) }}
  }
#   else
#     for name in names
{{ _row_in_digits(name, loop.index0) }}
#     endfor
{{ sums.gather(0, BATCH * M, "0u") }}
#   endif
# endmacro
# macro _row_in_digits(name, r)
#   for m in range(M)
  var sum{{ r * M + m }} = 0.0;
#   endfor
#   for h in range(HELD)
  {
    let w = {{ name }}_decoded(w{{ h }}_{{ r }}, row{{ r }}, c{{ h }});
#     for m in range(M)
    sum{{ r * M + m }} = times(w, x{{ h }}_{{ m }}, sum{{ r * M + m }});
#     endfor
  }
#   endfor
# endmacro
# macro _streamed(names, meanwhile)
#   for i in range(SUMS)
  var sum{{ i }}: {{ SUM }} = {{ SUM }}(0);
#   endfor
  var at = thread % {{ TEAM }}u;
#   if not UNROLL
  // one text for all chunks: a software adapter takes seconds to compile each copy
  {{ meanwhile }}
  for (var s = 0u; s < {{ HELD }}u; s++) {
{{ batch(names, 1, EDGE) }}
    at += {{ TEAM }}u;
  }
#   else
#     set looped = (HELD - (1 if EDGE else 0)) // UNROLL * UNROLL
#     set rest = HELD - looped
#     set first = UNROLL if looped and (meanwhile or looped == UNROLL) else 0
#     if first
{{ batch(names, UNROLL, false, meanwhile) }}
  at += {{ UNROLL * TEAM }}u;
#     endif
#     if looped > first
  for (var s = 0u; s < {{ (looped - first) // UNROLL }}u; s++) {
{{ batch(names, UNROLL, false) }}
    at += {{ UNROLL * TEAM }}u;
  }
#     endif
#     if rest
{{ batch(names, rest, EDGE, "" if looped else meanwhile) }}
#     endif
#   endif
{{ sums.gather(0, R * M, "0u") }}
#   if LATE
{{ sums.gather(R * M, M, "%du" % (R * M)) }}
#   endif
# endmacro

// Opens the entry point, and names its thread and its group of rows.
# macro entry()
@compute @workgroup_size({{ THREADS }})
fn main(
  @builtin(workgroup_id) workgroup_id: vec3<u32>,
  @builtin(num_workgroups) num_workgroups: vec3<u32>,
  @builtin(local_invocation_index) thread: u32,
#   if SUBGROUPS and not LANES
  @builtin(subgroup_size) lanes: u32,
#   endif
) {
  {{ poison("thread", THREADS) }}
{{ planes.open_table("thread") }}
  let group = flat_workgroup(workgroup_id, num_workgroups);
  let team = group * {{ TEAMS }}u + thread / {{ TEAM }}u;
#   if not SUBGROUPS
  const width = 1u;
#   elif LANES
  const width = {{ MOST }}u;
#   else
  let width = min({{ TEAM }}u, lanes);
#   endif
# endmacro
