// Operands of products: four elements at a time, from any stored form, edges filled with zeros.
//
// An operand is a stack of lines of `form` f32, f16, bf16, or words (int8, four to a u32, whose
// words count as elements); or the weight's lines are its rows in planes (FORM, planes.wgsl).
// `whole`: lines begin and end at whole vectors, so that one load takes four elements. Raw words go
// to registers first and are decoded when they are needed, which keeps global loads in flight
// behind arithmetic.
# import "planes.wgsl" as planes with context
# set W = "words" if FORM.rounds_input else FORM.codes
# set IN_PLANES = planes.BITS and not FORM.rounds_input
# set PLANES = planes.PLANES
# set bases = planes.bases
# set open_table = planes.open_table
# set SCALED_COLUMNS = FORM.row_scaled

# macro raw_type(form, whole)
{%- if form == "words" -%} vec4<u32>
{%- elif form == "f32" or not whole -%} vec4<f32>
{%- else -%} vec2<u32>
{%- endif -%}
# endmacro

// The operand's array at a binding; NAME_line(number, batch), where a line begins; NAME_load(line,
// at, end), four raw elements from `at` of it, zeros from `end` on (`full`: the caller keeps before
// it); NAME_decode(raw).
# macro operand(binding, name, form, whole, full=false)
# set stored = "i8" if form == "words" else form
# set width = 1 if not whole else {"words": 4}.get(form, 4 // PER_WORD[stored])
{{ read(binding, name, stored, width) }}
fn {{name}}_line(number: u32, batch: u32) -> u32 {
  return p.{{name}}_base + number * p.{{name}}_line + batch * p.{{name}}_batch;
}
# if form == "words"
// line: an element's number in int8; at and end: words.
fn {{name}}_load(line: u32, at: u32, end: u32) -> vec4<u32> {
#   if whole
#   if not full
  if (at >= end) { return vec4<u32>(0u); }
#   endif
  return {{name}}[line / 16u + at / 4u];
#   else
  return vec4<u32>({{name}}_word(line, at, end), {{name}}_word(line, at + 1u, end),
                   {{name}}_word(line, at + 2u, end), {{name}}_word(line, at + 3u, end));
}
fn {{name}}_word(line: u32, at: u32, end: u32) -> u32 {
  var word = 0u;
  for (var i = 0u; i < 4u; i++) {
    let k = at * 4u + i;
    if (at + i / 4u < end && k < p.K) {
      word |= (bitcast<u32>({{name}}_at(line + k)) & 255u) << (8u * i);
    }
  }
  return word;
#   endif
}
fn {{name}}_decode(raw: vec4<u32>) -> vec4<u32> { return raw; }
# elif whole
fn {{name}}_load(line: u32, at: u32, end: u32) -> {{ raw_type(form, whole) }} {
#   if not full
  if (at >= end) { return {{ raw_type(form, whole) }}(); }
#   endif
#   if form == "f32"
  return {{name}}[(line + at) / 4u];
#   else
  return {{name}}[line / 4u + at / 4u];
#   endif
}
fn {{name}}_decode(raw: {{ raw_type(form, whole) }}) -> vec4<f32> {
#   if form == "f32"
  return raw;
#   else
  return vec4<f32>(unpack_{{form}}(raw.x), unpack_{{form}}(raw.y));
#   endif
}
# else
fn {{name}}_one(line: u32, at: u32, end: u32) -> f32 {
  if (at >= end) { return 0.0; }
  return {{name}}_at(line + at);
}
fn {{name}}_load(line: u32, at: u32, end: u32) -> vec4<f32> {
  return vec4<f32>({{name}}_one(line, at, end), {{name}}_one(line, at + 1u, end),
                   {{name}}_one(line, at + 2u, end), {{name}}_one(line, at + 3u, end));
}
fn {{name}}_decode(raw: vec4<f32>) -> vec4<f32> { return raw; }
# endif
# endmacro

// The same of a weight in planes, where NAME_decode(raw, line, at) needs the place too. The scale of
// a row is left to the end of the product.
# macro planes_operand(binding, name, whole, full)
{{ planes.decoders(1 if whole else 0) }}
{{ planes.planes(binding, name, "p.K", 1 if whole else 0) }}
fn {{name}}_line(number: u32, batch: u32) -> u32 { return number; }
#   if whole
fn {{name}}_load(line: u32, at: u32, end: u32) -> Raw {
#     if not full
  if (at >= end) { return Raw(); }
#     endif
  return {{name}}_raw(line, at);
}
fn {{name}}_decode(raw: Raw, line: u32, at: u32) -> vec4<f32> {
  return {{name}}_values(raw, line, at);
}
#   else
fn {{name}}_one(line: u32, at: u32, end: u32) -> f32 {
  if (at >= end) { return 0.0; }
  return {{name}}_value({{name}}_raw(line, at), line, at);
}
fn {{name}}_load(line: u32, at: u32, end: u32) -> vec4<f32> {
  return vec4<f32>({{name}}_one(line, at, end), {{name}}_one(line, at + 1u, end),
                   {{name}}_one(line, at + 2u, end), {{name}}_one(line, at + 3u, end));
}
fn {{name}}_decode(raw: vec4<f32>, line: u32, at: u32) -> vec4<f32> { return raw; }
#   endif
# endmacro
// What a weight's raw elements are.
# macro raw_weight(whole)
{{ "Raw" if IN_PLANES and whole else raw_type(W if not IN_PLANES else "f32", whole) }}
{%- endmacro %}
