{# Macros of attention's kernels: pieces of products of tiles, as text, so that all registers have
   names. Tiles lie in shared memory as vec4<f32>. "Turned" tiles hold four rows of one column in a
   vector: [column][rows / 4], with one vector of padding a column against bank conflicts.
   A workgroup of TX x TY threads: thread (x, y) owns, of every 4 TY rows, the four at 4 y, and of
   every 4 TX columns the four at 4 x. #}
# macro row_of(i, TX, order)
{# Row number i (0..3) of the turned vector `rg`. order "rows": 4 rg + i; "spread": those of every
   4 TX columns that lie TX apart, so that thread x's four neighbours in memory are its own. #}
{% if order == "rows" %}rg * 4u + {{ i }}{% else -%}
rg / {{ TX }}u * {{ 4 * TX }}u + rg % {{ TX }}u + {{ i }} * {{ TX }}u{% endif %}
# endmacro
# macro blocks(rows, BK, threads)
{# How many 4 x 4 blocks of a turned chunk [BK][rows] each thread moves. #}
{{ (rows // 4 * (BK // 4) + threads - 1) // threads }}
# endmacro
# macro block_place(j, rows, BK, threads)
{# The vector of rows `rg` and the four columns `dg` of a thread's block j: eight neighbouring
   threads take 2 x 4 of them, whose stores do not meet in a bank. #}
  let b = id + {{ j * threads }}u;
  let dg = (b & 1u) | (((b >> 3u) & {{ BK // 8 - 1 }}u) << 1u);
  let rg = ((b >> 1u) & 3u) | ((b / {{ BK }}u) << 2u);
# endmacro
# macro guard(j, count, threads)
{% if (j + 1) * threads > count %}if (id + {{ j * threads }}u < {{ count }}u) {% endif %}
# endmacro
# macro declare(name, type, count)
# for j in range(count)
  var {{ name }}{{ j }}: {{ type }};
# endfor
# endmacro
# macro fetch_turned(regs, source, base, rows, BK, threads, TX, order, chunk)
{# Registers REGSj <- SOURCE_raw(SOURCE_row(row, base), column): the next chunk, on its way. #}
# for j in range(blocks(rows, BK, threads) | int)
{
{{ block_place(j, rows, BK, threads) -}}
  let column = ({{ chunk }}) * {{ BK // 4 }}u + dg;
# for i in range(4)
  {{ regs }}{{ 4 * j + i }} = {{ source }}_raw({{ source }}_row({{ row_of(i ~ "u", TX, order) | trim }}, {{ base }}), column);
# endfor
}
# endfor
# endmacro
# macro put_turned(regs, source, to, at, pitch, rows, BK, threads)
{# Shared memory <- the registers of fetch_turned, turned. #}
# for j in range(blocks(rows, BK, threads) | int)
{{ guard(j, rows // 4 * (BK // 4), threads) | trim }} {
{{ block_place(j, rows, BK, threads) -}}
# for i in range(4)
  let w{{ i }} = {{ source }}_wide({{ regs }}{{ 4 * j + i }});
# endfor
  let at = {{ at }} + dg * {{ 4 * pitch }}u + rg;
# for c in "xyzw"
  {{ to }}[at + {{ loop.index0 * pitch }}u] = vec4<f32>(w0.{{ c }}, w1.{{ c }}, w2.{{ c }}, w3.{{ c }});
# endfor
}
# endfor
# endmacro
# macro copy_turned(source, base, to, at, pitch, rows, BK, threads, TX, order, chunk)
{# Both at once, number by number: short, for where a CPU compiles every store into a loop. #}
  for (var e_ = id; e_ < {{ rows * BK }}u; e_ += {{ threads }}u) {
    let rg = e_ % {{ rows }}u / 4u;
    let row = {{ row_of("(e_ % 4u)", TX, order) | trim }};
    let down = e_ / {{ rows }}u;
    let from_row = {{ source }}_row(row, {{ base }});
    let number = {{ source }}_one(from_row, ({{ chunk }}) * {{ BK }}u + down);
    {{ to }}[{{ at }} + down * {{ pitch }}u + rg][e_ % 4u] = number;
  }
# endmacro
# macro copy_rows(source, base, first, to, rows, vectors, threads)
{# Rows first .. first + rows - 1 as they are, number by number. #}
  for (var e_ = id; e_ < {{ rows * vectors * 4 }}u; e_ += {{ threads }}u) {
    let from_row = {{ source }}_row({{ first }} + e_ / {{ 4 * vectors }}u, {{ base }});
    {{ to }}[e_ / 4u][e_ % 4u] = {{ source }}_one(from_row, e_ % {{ 4 * vectors }}u);
  }
# endmacro
# macro zero(name, rows, groups)
# for r in range(rows)
# for g in range(groups)
  var {{ name }}{{ r }}_{{ g }} = vec4<f32>();
# endfor
# endfor
# endmacro
# macro product(sum, left, left_at, left_pitch, right, right_at, right_pitch, depth, TM, groups, TX, TY, unroll)
{# sum[row][group of 4 columns] += left[k][row] right[k][column] over k < depth. #}
  for (var k_ = 0u; k_ < {{ depth }}u; k_ += {{ unroll }}u) {
    let l_ = {{ left_at }} + k_ * {{ left_pitch }}u + y;
    let r_ = {{ right_at }} + k_ * {{ right_pitch }}u + x;
# for u in range(unroll)
    {
# for a in range(TM // 4)
      let a{{ a }} = {{ left }}[l_ + {{ u * left_pitch + a * TY }}u];
# endfor
# for g in range(groups)
      let b{{ g }} = {{ right }}[r_ + {{ u * right_pitch + g * TX }}u];
# endfor
# for r in range(TM)
# for g in range(groups)
      {{ sum }}{{ r }}_{{ g }} = fma(vec4<f32>(a{{ r // 4 }}.{{ "xyzw"[r % 4] }}), b{{ g }}, {{ sum }}{{ r }}_{{ g }});
# endfor
# endfor
    }
# endfor
  }
# endmacro
# macro over_x(name, how, TM, TX, TY, pitch, shuffle, room)
{# Vectors NAMEa (four rows each) combined over the TX threads of a row, for all of them. #}
# if shuffle
# for step in [32, 16, 8, 4, 2, 1] if step < TX
# for a in range(TM // 4)
  {{ name }}{{ a }} = {{ how | replace("A", name ~ a) | replace("B", "subgroupShuffleXor(" ~ name ~ a ~ ", " ~ step ~ "u)") }};
# endfor
# endfor
# else
  workgroupBarrier();
# for a in range(TM // 4)
  {{ room }}[x * {{ pitch }}u + {{ a * TY }}u + y] = {{ name }}{{ a }};
# endfor
  workgroupBarrier();
# for a in range(TM // 4)
  {{ name }}{{ a }} = {{ room }}[{{ a * TY }}u + y];
# endfor
  for (var t_ = 1u; t_ < {{ TX }}u; t_++) {
# for a in range(TM // 4)
    {
      let other = {{ room }}[t_ * {{ pitch }}u + {{ a * TY }}u + y];
      {{ name }}{{ a }} = {{ how | replace("A", name ~ a) | replace("B", "other") }};
    }
# endfor
  }
  workgroupBarrier();
# endif
# endmacro
# macro columns(name, type, W, edge, gaps=0)
{# NAME_raw(row, c): columns 4 c .. 4 c + 3 of the row that starts at `row` (0 past the end, where
   there is an `edge`), as it lies in memory; NAME_wide: as f32. NAME_one(row, c): column c.
   gaps: a row may be NO_ROW, whose columns are 0. #}
# if not AHEAD
fn {{ name }}_one(row: u32, c: u32) -> f32 {
  if (c >= {{ W }}u{{ " || row == NO_ROW" if gaps }}) { return 0.0; }
  return {{ name }}_at(row + c);
}
# else
# set raw = "vec4<f32>" if type == "f32" or not VECTOR else "vec2<u32>"
alias {{ name }}_four = {{ raw }};
fn {{ name }}_raw(row: u32, c: u32) -> {{ raw }} {
# if gaps
  if (row == NO_ROW) { return {{ raw }}(); }
# endif
# if VECTOR
# if edge
  if (c >= {{ W // 4 }}u) { return {{ raw }}(); }
# endif
  return {{ name }}[row + c];
# else
  var found = vec4<f32>();
  for (var i = 0u; i < 4u; i++) {
    if (4u * c + i < {{ W }}u) { found[i] = {{ name }}_at(row + 4u * c + i); }
  }
  return found;
# endif
}
fn {{ name }}_wide(r: {{ raw }}) -> vec4<f32> {
# if raw == "vec4<f32>"
  return r;
# else
  return vec4<f32>(unpack_{{ type }}(r.x), unpack_{{ type }}(r.y));
# endif
}
# endif
# endmacro
# macro put_columns(name, type, W)
{# put_NAME(at, c, v): columns 4 c .. 4 c + 3 of row `at` of a dense array of rows of W. #}
fn put_{{ name }}(at: u32, c: u32, v: vec4<f32>) {
# if W % 4 == 0
  if (c >= {{ W // 4 }}u) { return; }
# if type == "f32"
  {{ name }}[at * {{ W // 4 }}u + c] = v;
# else
  {{ name }}[at * {{ W // 4 }}u + c] = vec2<u32>(pack_{{ type }}(v.xy), pack_{{ type }}(v.zw));
# endif
# elif type == "f32"
  for (var i = 0u; i < 4u; i++) {
    if (4u * c + i < {{ W }}u) { {{ name }}[at * {{ W }}u + 4u * c + i] = v[i]; }
  }
# else
  let word = (at * {{ W }}u + 4u * c) / 2u;
  if (4u * c < {{ W }}u) { {{ name }}[word] = pack_{{ type }}(v.xy); }
  if (4u * c + 2u < {{ W }}u) { {{ name }}[word + 1u] = pack_{{ type }}(v.zw); }
# endif
}
# endmacro
# macro width(type, fours)
{# Words of an array's element if it is read or written four numbers at a time. #}
{{ {"f32": 4, "f16": 2, "bf16": 2}[type] if fours else 1 }}
# endmacro
# macro tanh_of()
// In this form it cannot overflow.
fn tanh_of(x: vec4<f32>) -> vec4<f32> {
  return 1.0 - 2.0 / (exp2(clamp(x, vec4<f32>(-15.0), vec4<f32>(15.0)) * (2.0 * LOG2E)) + 1.0);
}
# endmacro
