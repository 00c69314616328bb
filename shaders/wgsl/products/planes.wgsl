// Weights in planes (boostr/quant/scheme.py): w[n, k] = scale · (number - zero) + offset.
//
// All that knows how codes and scales lie: GEMVs, products of tiles, tensor cores, embeddings and
// dequantize ask it for codes as bytes, for bytes as floats, and for the scale and the offset of a
// group. A load brings `words` words of four inputs: 1 or 2; 4, of 16 inputs of 8 bits or all of 32
// of fewer; or with 0 a single code of 8 bits, for rows that do not come in words.
// Value: FORM, a Form of boostr/quant/forms.py; of floats there are no planes.
# set BITS = {"c8": 8, "e4m3": 8, "c6": 6, "c5": 5, "c4": 4, "c3": 3, "c2": 2}.get(FORM.codes, 0)
// Bits of a code in its first plane and in the second; a field of b bits takes b words for 32 inputs.
# set LOW = {6: 4, 5: 4, 3: 2}.get(BITS, BITS)
# set HIGH = BITS - LOW
# set GROUPED = BITS and not FORM.row_scaled
# set ZEROS = FORM.offsets == "zeros"
# set PLANES = ([""] + (["_high"] if HIGH else []) + (["_scales"] if BITS else [])
                + (["_supers"] if FORM.super else []) + (["_offsets"] if FORM.offsets else [])
                + (["_floors"] if FORM.offsets == "u8" else []))
# set PER_PLANE_WORD = {"f32": 1, "f16": 2, "bf16": 2}
// `lifted` has codes in the ten low bits of f16 from bit SHIFT on, which adds 2^(10 - SHIFT).
# set LOOKED_UP = FORM.table or FORM.codes == "e4m3"
# set SHIFT = 10 - BITS if BITS < 8 else 0
# set LIFT = 0 if FORM.table else FORM.zero
# set LIFT = LIFT if LOOKED_UP else 2.0 ** (10 - SHIFT) + FORM.zero + (128 if BITS == 8 else 0)

# macro vector(words)
{{ "u32" if words == 1 else "vec%d<u32>" % words }}
{%- endmacro %}
// How many times `each` inputs a row of K has; K is a number or an expression. 0 inputs are a row.
# macro per_row(K, each)
{%- if not each -%} 1u
{%- elif K is number -%} {{ (K + each - 1) // each }}u
{%- else -%} (({{ K }} + {{ each - 1 }}u) / {{ each }}u)
{%- endif -%}
{%- endmacro %}
// The fields of `struct Params` that say where planes begin: those of codes in loads (with `words` 0
// in codes), the others in elements.
# macro bases(name)
{% for plane in PLANES %}{{ name ~ plane }}_base: u32, {% endfor %}
{%- endmacro %}
// The number that element `place` of a plane is, in the word that has it.
# macro number(kind, word, place)
#   set bits = 32 // PER_PLANE_WORD.get(kind, 4)
#   set down = "%s >> (%s %% %du * %du)" % (word, place, 32 // bits, bits)
{%- if kind == "f32" -%} {{ word }}
{%- elif kind == "f16" -%} half({{ down }})
{%- elif kind == "bf16" -%} bitcast<f32>(({{ down }}) << 16u)
{%- elif kind in ("i8", "zeros") -%} f32(bitcast<i32>({{ word }} << (24u - {{ place }} % 4u * 8u)) >> 24u)
{%- elif kind == "u8" -%} f32(({{ down }}) & 255u)
{%- else -%} {{ kind }}(({{ down }}) & 255u)
{%- endif -%}
{%- endmacro %}
// What a plane of b-bit fields has for `count` times four inputs, k and those behind it, each at the
// low end of its byte and below bits of no account.
# macro fields(plane, b, count, k)
#   set width = [count, b] | min
{{ vector(count) }}(
#   for j in range(count)
{{- plane ~ ("." ~ "xyzw"[j % b] if width > 1) }} >> ((({{ k }} + {{ 4 * j }}u) & {{ 32 - 4 * b }}u) / 4u)
{{- ", " if not loop.last -}}
#   endfor
)
{%- endmacro %}
// bytes() of a Raw, or of what has its words.
# macro bytes_of(raw, k)
bytes({{ raw }}.q, {{ raw ~ ".h, " if HIGH }}{{ k }})
{%- endmacro %}

// -- what depends on the form alone --------------------------------------------------------------
# macro decoders(words)
#   set H = vector([[words, HIGH] | min, 1] | max)
#   set Q = vector([[words, LOW] | min, 1] | max)
#   set T = vector([words, 1] | max)
#   if FORM.scale == "f16" or FORM.offsets == "f16"
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
#   if FORM.scale == "e8m0"
fn e8m0(byte: u32) -> f32 {
  return bitcast<f32>(select(max(byte << 23u, 0x00400000u), 0x7fc00000u, byte == 255u));
}
#   endif
#   if "e4m3" in (FORM.scale, FORM.codes)
fn e4m3(byte: u32) -> f32 {
  let size = (byte & 127u) << 20u;
  let tiny = size < 0x00800000u;
  let up = select(select(0x3c000000u, 0x3c800000u, tiny), 0x78000000u, size == 0x07f00000u);
  let value = bitcast<f32>(size + up) - select(0.0, 0x1p-6, tiny);
  return select(value, -value, (byte & 128u) != 0u);
}
#   endif
#   if FORM.table
// In shared memory, where a warp reads any 32 of 16 words at once; `open_table` fills it.
{{ workgroup("numbers", "f32", FORM.table | length) }}
#   endif
#   if BITS and words
#     if LOOKED_UP
#       set f = "numbers[(four >> %du) & " ~ (2 ** BITS - 1) ~ "u]" if FORM.table else "e4m3((four >> %du) & 255u)"
fn lifted(four: u32) -> vec4<f32> {
  return vec4<f32>({{ f % 0 }}, {{ f % 8 }}, {{ f % 16 }}, {{ f % 24 }});
}
#     else
// Codes of four inputs as floats, all larger by LIFT, which is exact: two for one operation on
// words, and no integer is converted, which has a quarter of the rate.
fn lifted(four: u32) -> vec4<f32> {
#       set field = "0x%08xu" % ((2 ** BITS - 1) * 2 ** SHIFT * 65537)
#       set begin = "0x%08xu" % ((25 - SHIFT) * 1024 * 65537)
  let even = four{{ " ^ 0x80808080u" if BITS == 8 }}{{ " << %du" % SHIFT if SHIFT }};
  let odd = {{ "even >> 8u" if BITS == 8 else "four >> %du" % (8 - SHIFT) }};
  let a = unpack2x16float((even & {{ field }}) | {{ begin }});
  let b = unpack2x16float((odd & {{ field }}) | {{ begin }});
  return vec4<f32>(a.x, b.x, a.y, b.y);
}
#     endif
// number - zero, but for zeros of groups.
fn codes(four: u32) -> vec4<f32> { return lifted(four){{ " - vec4<f32>(%.1f)" % LIFT if LIFT }}; }
// The codes that a load has for inputs from k on (a multiple of 4 · words), a byte each; bits above
// them are of no account, as `lifted` drops them.
fn bytes(q: {{ Q }}, {{ "h: %s, " % H if HIGH }}k: u32) -> {{ T }} {
#     if BITS == 8
  return q;
#     elif HIGH
  let low = {{ T }}({{ "0x%08xu" % ((2 ** LOW - 1) * 0x01010101) }});
  let high = {{ fields("h", HIGH, words, "k") }};
  return ({{ fields("q", LOW, words, "k") }} & low) | ((high << {{ T }}({{ LOW }}u)) & ~low);
#     else
  return {{ fields("q", LOW, words, "k") }};
#     endif
}
#   endif
// A load: codes, and as they lie in memory the scale and offset of the group of its first input.
struct Raw {
  q: {{ Q if words else "u32" if LOOKED_UP else "i32" }},
#   if HIGH
  h: {{ H }},
#   endif
#   if GROUPED
  scale: {{ "f32" if FORM.scale == "f32" else "u32" }},
#     if FORM.super
  super_scale: f32,
#     endif
#     if FORM.offsets
  offset: {{ "f32" if FORM.offsets == "f32" else "u32" }},
#     endif
#     if FORM.offsets == "u8"
  floor: f32,
#     endif
#   endif
}
# endmacro
// Opens an entry point, in uniform control flow; `thread` is one of at least 16.
# macro open_table(thread)
#   if FORM.table
  {
    const each = array<f32, {{ FORM.table | length }}>(
      {%- for v in FORM.table %}{{ v - FORM.zero }}, {% endfor %});
    if ({{ thread }} < {{ FORM.table | length }}u) {
      var all = each;
      numbers[{{ thread }}] = all[{{ thread }}];
    }
    workgroupBarrier();
  }
#   endif
# endmacro

// -- one weight ----------------------------------------------------------------------------------
// Bindings from `first` on, in the order of PLANES, and with rows of K inputs
//   NAME_raw(row, k)              a load, of inputs from k on
//   NAME_scale(raw, row, k)       the scale of k's group, which must be that of the load's first
//   NAME_offset(raw, row, k)      input, or the next one where groups are shorter than a load; with
//                                 ZEROS what is subtracted from numbers
//   NAME_values(raw, row, k)      with 1 word: four weights; with 0 words NAME_value: one
//   NAME_row_scale(row)           without GROUPED, what none of these is multiplied by
# macro planes(first, name, K, words)
#   set low, high = [words, LOW] | min, [words, HIGH] | min
// a load of packed codes has two groups of 16: of small scales both lie in one word
#   set TWO = words == 4 and BITS < 8 and FORM.group == 16
#   set n = namespace(at=first)
#   for plane in PLANES
#     set kind = {"_scales": FORM.scale, "_offsets": FORM.offsets}.get(plane, "f32")
#     if plane == ""
{{ read(n.at, name, "u32" if words else "u8" if LOOKED_UP else "i8", [low, 1] | max) }}
#     elif plane == "_high"
{{ read(n.at, name ~ plane, "u32", high) }}
#     else
{{ read(n.at, name ~ plane, "f32" if kind == "f32" else "u32") }}
#     endif
#     set n.at = n.at + 1
#   endfor
#   if GROUPED
fn {{ name }}_group(row: u32, k: u32) -> u32 {
  return row * {{ per_row(K, FORM.group) }}{{ " + k / %du" % FORM.group if FORM.group }};
}
#   else
fn {{ name }}_row_scale(row: u32) -> f32 { return {{ name }}_scales[p.{{ name }}_scales_base + row]; }
#   endif
#   macro load(plane, b, width)
{{ name ~ plane }}[p.{{ name ~ plane }}_base + row * {{ per_row(K, 32 * width // b) }} + k / 32u
    {{- " * %du + k %% %du / %du" % (b // width, 4 * b, 4 * width) if width < b }}]
{%- endmacro %}
#   macro element(plane, kind, g)
#     set each = PER_PLANE_WORD.get(kind, 4)
{{ name ~ plane }}[(p.{{ name ~ plane }}_base + {{ g }}){{ " / %du" % each if each > 1 }}]
{%- endmacro %}
fn {{ name }}_raw(row: u32, k: u32) -> Raw {
#   if GROUPED
  let g = {{ name }}_group(row, k);
#     if FORM.super
  let over = row * {{ per_row(K, FORM.super) }} + k / {{ FORM.super }}u;
#     endif
#   endif
  return Raw(
#   if not words
    {{ name }}_at(p.{{ name }}_base + row * {{ K }}{{ "u" if K is number }} + k),
#   elif BITS == 8
    {{ name }}[p.{{ name }}_base + row * {{ per_row(K, 4 * words) }} + k / {{ 4 * words }}u],
#   else
    {{ load("", LOW, low) }},
#   endif
#   if HIGH
    {{ load("_high", HIGH, high) }},
#   endif
#   if GROUPED
    {{ element("_scales", FORM.scale, "g") }},
#     if FORM.super
    {{ element("_supers", "f32", "over") }},
#     endif
#     if FORM.offsets
    {{ element("_offsets", FORM.offsets, "g") }},
#     endif
#     if FORM.offsets == "u8"
    {{ element("_floors", "f32", "over") }},
#     endif
#   endif
  );
}
#   macro of_group(plane, kind, word)
#     set g = "%s_group(row, k)" % name
#     if kind != "f32"
{{ number(kind, word, "(p.%s_base + %s)" % (name ~ plane, g)) }}
#     elif TWO
{{ element(plane, kind, g) }}
#     else
{{ word }}
#     endif
{%- endmacro %}
#   if GROUPED
fn {{ name }}_scale(raw: Raw, row: u32, k: u32) -> f32 {
  return {{ of_group("_scales", FORM.scale, "raw.scale") }}
         {{- " * %s" % FORM.factor if FORM.factor != 1 }}{{ " * raw.super_scale" if FORM.super }};
}
#     if FORM.offsets
fn {{ name }}_offset(raw: Raw, row: u32, k: u32) -> f32 {
  return {{ of_group("_offsets", FORM.offsets, "raw.offset") }}
         {{- " * raw.floor" if FORM.offsets == "u8" }};
}
#     endif
#   endif
#   if words < 2
#     set kind = "vec4<f32>" if words else "f32"
fn {{ name }}_value{{ "s" if words }}(raw: Raw, row: u32, k: u32) -> {{ kind }} {
#     if words
  let code = codes({{ bytes_of("raw", "k") }});
#     elif LOOKED_UP
  let code = e4m3(raw.q) - {{ LIFT }}.0;
#     else
  let code = f32(raw.q - {{ FORM.zero }});
#     endif
#     set offset = "%s(%s_offset(raw, row, k))" % (kind, name)
#     if GROUPED and ZEROS
  return {{ name }}_scale(raw, row, k) * (code - {{ offset }});
#     elif GROUPED
  return {{ name }}_scale(raw, row, k) * code{{ " + " ~ offset if FORM.offsets }};
#     else
  return code;
#     endif
}
#   endif
# endmacro
