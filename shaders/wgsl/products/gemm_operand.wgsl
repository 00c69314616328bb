// Operands of products: four elements at a time, from any stored form, edges filled with zeros.
//
// An operand is a stack of lines of `form` f32, f16, bf16, i8 (int8), i8g (int8 with an f32 scale
// for each GROUP elements), q8_0, q4_1 (GGUF blocks of 32), or words (int8, four to a u32, whose
// words count as elements). `whole`: lines begin and end at whole vectors, so that one load takes
// four elements. Raw words go to registers first and are decoded when they are needed, which keeps
// global loads in flight behind arithmetic.

# macro raw_type(form, whole)
{%- if form == "words" -%} vec4<u32>
{%- elif form == "f32" or not whole -%} vec4<f32>
{%- elif form == "i8" -%} u32
{%- else -%} vec2<u32>
{%- endif -%}
# endmacro

// The operand's array at a binding; NAME_line(number, batch), where a line begins; NAME_load(line,
// at, end), four raw elements from `at` of it, zeros from `end` on (`full`: the caller keeps before
// it); NAME_decode(raw).
# macro operand(binding, name, form, whole, full=false)
# set stored = {"i8g": "i8", "words": "i8", "q8_0": "u32", "q4_1": "u32"}.get(form, form)
# set width = 1 if stored == "u32" or not whole else {"words": 4}.get(form, 4 // PER_WORD[stored])
{{ read(binding, name, stored, width) }}
# if form == "i8g"
{{ read(binding + 1, name + "_scale", "f32") }}
fn {{name}}_line(number: u32, batch: u32) -> u32 { return number; }
# else
fn {{name}}_line(number: u32, batch: u32) -> u32 {
  return p.{{name}}_offset + number * p.{{name}}_line + batch * p.{{name}}_batch;
}
# endif
# if form == "q8_0"
// line: the row's first byte; `at` counts weights. 34 bytes a block: f16 d, then 32 int8.
fn {{name}}_load(line: u32, at: u32, end: u32) -> vec2<u32> {
#   if not full
  if (at >= end) { return vec2<u32>(0u); }
#   endif
  let block = line + (at / 32u) * 34u;
  let place = block + 2u + at % 32u;
  let low = {{name}}[place / 4u];
  let high = {{name}}[(place + 2u) / 4u];
  let word = select(low, (low >> 16u) | (high << 16u), (place & 2u) != 0u);
  return vec2<u32>(word, {{name}}[block / 4u] >> ((block & 2u) * 8u));
}
fn {{name}}_decode(raw: vec2<u32>) -> vec4<f32> {
  return unpack2x16float(raw.y).x * vec4<f32>(unpack_i8(raw.x));
}
# elif form == "q4_1"
// 20 bytes a block: f16 d, f16 m, 16 bytes with elements 0..15 in the low and 16..31 in the high
// nibbles.
fn {{name}}_load(line: u32, at: u32, end: u32) -> vec2<u32> {
#   if not full
  if (at >= end) { return vec2<u32>(0u); }
#   endif
  let block = line / 4u + (at / 32u) * 5u;
  let word = {{name}}[block + 1u + (at % 16u) / 4u] >> ((at & 16u) / 4u);
  return vec2<u32>(word & 0x0f0f0f0fu, {{name}}[block]);
}
fn {{name}}_decode(raw: vec2<u32>) -> vec4<f32> {
  let dm = unpack2x16float(raw.y);
  return fma(vec4<f32>(dm.x), vec4<f32>(unpack_u8(raw.x)), vec4<f32>(dm.y));
}
# elif form == "words"
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
#   if form == "i8g"
  let scale = {{name}}_scale[p.scale_offset + line * p.groups + at / {{GROUP}}u];
  let first = (p.{{name}}_offset + line * p.{{name}}_line) / 4u;
  return vec2<u32>({{name}}[first + at / 4u], bitcast<u32>(scale));
#   elif form == "f32"
  return {{name}}[(line + at) / 4u];
#   else
  return {{name}}[line / 4u + at / 4u];
#   endif
}
fn {{name}}_decode(raw: {{ raw_type(form, whole) }}) -> vec4<f32> {
#   if form == "f32"
  return raw;
#   elif form == "i8"
  return vec4<f32>(unpack_i8(raw));
#   elif form == "i8g"
  return bitcast<f32>(raw.y) * vec4<f32>(unpack_i8(raw.x));
#   else
  return vec4<f32>(unpack_{{form}}(raw.x), unpack_{{form}}(raw.y));
#   endif
}
# else
fn {{name}}_one(line: u32, at: u32, end: u32) -> f32 {
  if (at >= end) { return 0.0; }
#   if form == "i8g"
  let scale = {{name}}_scale[p.scale_offset + line * p.groups + at / {{GROUP}}u];
  return scale * f32({{name}}_at(p.{{name}}_offset + line * p.{{name}}_line + at));
#   else
  return f32({{name}}_at(line + at));
#   endif
}
fn {{name}}_load(line: u32, at: u32, end: u32) -> vec4<f32> {
  return vec4<f32>({{name}}_one(line, at, end), {{name}}_one(line, at + 1u, end),
                   {{name}}_one(line, at + 2u, end), {{name}}_one(line, at + 3u, end));
}
fn {{name}}_decode(raw: vec4<f32>) -> vec4<f32> { return raw; }
# endif
# endmacro
