// Weights in planes (boostr/quant/scheme.py): w[n, k] = scale · (code - zero) + offset.
//
// All that knows how codes and scales lie: GEMVs, products of tiles, tensor cores, embeddings and
// dequantize ask it for codes as bytes, for bytes as floats, and for the scale and the offset of a
// group. A load brings `words` words of codes: 1 or 2, of 4 or 8 inputs; 4, of 16 inputs of 8 bits
// or 32 of fewer; or with 0 a single code of 8 bits, for rows that do not come in words.
// Value: FORM, a Form of boostr/quant/forms.py; of floats there are no planes.
# set BITS = {"c8": 8, "c6": 6, "c4": 4}.get(FORM.codes, 0)
# set GROUP = FORM.group
# set PLANES = ([""] + (["_high"] if BITS == 6 else []) + (["_scales"] if BITS else [])
                + (["_supers"] if FORM.super else []) + (["_offsets"] if FORM.offsets else []))
// `lifted` has codes in the ten low bits of f16 from bit SHIFT on, which adds 2^(10 - SHIFT).
# set SHIFT = 0 if BITS == 8 else 10 - BITS
# set LIFT = 2.0 ** (10 - SHIFT) + FORM.zero + (128 if BITS == 8 else 0)

# macro vector(words)
{{ "u32" if words == 1 else "vec%d<u32>" % words }}
{%- endmacro %}
// How many times `each` inputs a row of K has; K is a number or an expression.
# macro per_row(K, each)
{%- if K is number -%} {{ (K + each - 1) // each }}u
{%- else -%} (({{ K }} + {{ each - 1 }}u) / {{ each }}u)
{%- endif -%}
{%- endmacro %}
// The fields of `struct Params` that say where planes begin: codes and high bits in loads (with
// `words` 0 in codes), the others in elements.
# macro bases(name)
{% for plane in PLANES %}{{ name ~ plane }}_base: u32, {% endfor %}
{%- endmacro %}

// -- what depends on the form alone --------------------------------------------------------------
# macro decoders(words)
#   if BITS and words
#     set T = vector(words)
// Codes of four inputs as floats, all larger by LIFT, which is exact: two for one operation on
// words, and no integer is converted, which has a quarter of the rate.
fn lifted(four: u32) -> vec4<f32> {
#     set field = "0x%08xu" % ((2 ** BITS - 1) * 2 ** SHIFT * 65537)
#     set begin = "0x%08xu" % ((25 - SHIFT) * 1024 * 65537)
  let even = four{{ " ^ 0x80808080u" if BITS == 8 }}{{ " << %du" % SHIFT if SHIFT }};
  let odd = {{ "even >> 8u" if BITS == 8 else "four >> %du" % (8 - SHIFT) }};
  let a = unpack2x16float((even & {{ field }}) | {{ begin }});
  let b = unpack2x16float((odd & {{ field }}) | {{ begin }});
  return vec4<f32>(a.x, b.x, a.y, b.y);
}
// code - zero.
fn codes(four: u32) -> vec4<f32> { return lifted(four) - vec4<f32>({{ LIFT }}); }
// The codes that a load has for inputs from k on (a multiple of 4 · words, of 16 with 4 words), a
// byte each; bits above them are of no account, as `lifted` drops them. Nibbles lie as 16 low ones
// below 16 high ones; pairs of bits as 8 of all four places.
fn bytes(q: {{ T }}, {{ "h: %s, " % vector([words, 2] | min) if BITS == 6 }}k: u32) -> {{ T }} {
#     if BITS == 8
  return q;
#     else
  let turn = {{ T }}((k & 16u) / 4u);
#       if BITS == 4
  return q >> turn;
#       else
#         if words == 4
  let pairs = vec4<u32>(h, h >> vec2<u32>(2u)) >> turn;
#         else
  let pairs = h >> {{ T }}((k & 24u) / 4u);
#         endif
  let low = {{ T }}(0x0f0f0f0fu);
  return ((q >> turn) & low) | ((pairs << {{ T }}(4u)) & ~low);
#       endif
#     endif
}
#   endif
#   if FORM.scale == "f16" or FORM.offsets
// The f16 in the low bits of a word, by whole numbers: WGSL's own conversion may take numbers below
// 2^-14 for 0, and scales are as small.
fn half(h: u32) -> f32 {
  let size = (h & 0x7fffu) << 13u;
  let tiny = size < 0x00800000u;
  let up = select(select(0x38000000u, 0x38800000u, tiny), 0x70000000u, size >= 0x0f800000u);
  let value = bitcast<f32>(size + up) - select(0.0, 0x1p-14, tiny);
  return select(value, -value, (h & 0x8000u) != 0u);
}
#   endif
// A load: codes, and as they lie in memory the scale and offset of the group of its first input.
struct Raw {
  q: {{ vector(words) if words else "i32" }},
#   if BITS == 6
  h: {{ vector([words, 2] | min) }},
#   endif
#   if GROUP
  scale: {{ "f32" if FORM.scale == "f32" else "u32" }},
#     if FORM.super
  super_scale: f32,
#     endif
#     if FORM.offsets
  offset: u32,
#     endif
#   endif
}
# endmacro

// -- one weight ----------------------------------------------------------------------------------
// Bindings from `first` on, in the order of PLANES, and with rows of K inputs
//   NAME_raw(row, k)              a load, of inputs from k on
//   NAME_scale(raw, row, k)       the scale of k's group, which must be that of the load's first
//   NAME_offset(raw, row, k)      input, or the next one where groups are shorter than a load
//   NAME_values(raw, row, k)      with 1 word: four weights; with 0 words NAME_value: one
// The scale of a row (GROUP 0) is in none of these, but NAME_scales[p.NAME_scales_base + row].
# macro planes(first, name, K, words)
#   set n = namespace(at=first)
{{ read(n.at, name, "u32" if words else "i8", [words, 1] | max) }}
#   if BITS == 6
#     set n.at = n.at + 1
{{ read(n.at, name ~ "_high", "u32", [words, 2] | min) }}
#   endif
#   set n.at = n.at + 1
{{ read(n.at, name ~ "_scales", "f32" if FORM.scale == "f32" else "u32") }}
#   if FORM.super
#     set n.at = n.at + 1
{{ read(n.at, name ~ "_supers", "f32") }}
#   endif
#   if FORM.offsets
#     set n.at = n.at + 1
{{ read(n.at, name ~ "_offsets", "u32") }}
#   endif
#   if GROUP
fn {{ name }}_group(row: u32, k: u32) -> u32 {
  return row * {{ per_row(K, GROUP) }} + k / {{ GROUP }}u;
}
#   endif
fn {{ name }}_raw(row: u32, k: u32) -> Raw {
#   if GROUP
  let g = {{ name }}_group(row, k);
#   endif
  return Raw(
#   if not words
    {{ name }}_at(p.{{ name }}_base + row * {{ K }}{{ "u" if K is number }} + k),
#   elif BITS == 8
    {{ name }}[p.{{ name }}_base + row * {{ per_row(K, 4 * words) }} + k / {{ 4 * words }}u],
#   elif words == 4
    {{ name }}[p.{{ name }}_base + row * {{ per_row(K, 32) }} + k / 32u],
#   else
    {{ name }}[p.{{ name }}_base + row * {{ per_row(K, 8 * words) }} + k / 32u * {{ 4 // words }}u
               + k % 16u / {{ 4 * words }}u],
#   endif
#   if BITS == 6 and words == 1
    {{ name }}_high[p.{{ name }}_high_base + row * {{ per_row(K, 16) }} + k / 32u * 2u
                    + k % 8u / 4u],
#   elif BITS == 6
    {{ name }}_high[p.{{ name }}_high_base + row * {{ per_row(K, 32) }} + k / 32u],
#   endif
#   if GROUP
#     set each = {"f32": 1, "f16": 2, "i8": 4}[FORM.scale]
    {{ name }}_scales[(p.{{ name }}_scales_base + g){{ " / %du" % each if each > 1 }}],
#     if FORM.super
    {{ name }}_supers[p.{{ name }}_supers_base + row * {{ per_row(K, FORM.super) }}
                      + k / {{ FORM.super }}u],
#     endif
#     if FORM.offsets
    {{ name }}_offsets[(p.{{ name }}_offsets_base + g) / 2u],
#     endif
#   endif
  );
}
#   if GROUP
fn {{ name }}_scale(raw: Raw, row: u32, k: u32) -> f32 {
#     if FORM.scale == "f32"
  return raw.scale;
#     elif FORM.scale == "f16"
  return half(raw.scale >> ((p.{{ name }}_scales_base + {{ name }}_group(row, k)) % 2u * 16u));
#     else
  let place = (p.{{ name }}_scales_base + {{ name }}_group(row, k)) % 4u;
  return f32(bitcast<i32>(raw.scale << (24u - 8u * place)) >> 24u) * raw.super_scale;
#     endif
}
#     if FORM.offsets
fn {{ name }}_offset(raw: Raw, row: u32, k: u32) -> f32 {
  return half(raw.offset >> ((p.{{ name }}_offsets_base + {{ name }}_group(row, k)) % 2u * 16u));
}
#     endif
#   endif
#   if words < 2
#     set kind = "vec4<f32>" if words else "f32"
fn {{ name }}_value{{ "s" if words }}(raw: Raw, row: u32, k: u32) -> {{ kind }} {
#     if words
  let code = codes(bytes(raw.q, {{ "raw.h, " if BITS == 6 }}k));
#     else
  let code = f32(raw.q - {{ FORM.zero }});
#     endif
#     if GROUP
  return {{ name }}_scale(raw, row, k) * code
         {{- " + %s(%s_offset(raw, row, k))" % (kind, name) if FORM.offsets }};
#     else
  return code;
#     endif
}
#   endif
# endmacro
