// Units of a head, for gemv_qkv.wgsl and gemv_heads.wgsl: four rows whose results are pairs that
// rope turns and, together, whole words of 16-bit numbers. Unit j has dims (2j, 2j + 1, ROT/2 + 2j,
// ROT/2 + 2j + 1) where rope is split-half, else (4j .. 4j + 3), as behind the ROT dims that turn.
// The source binds cosines, sines and rows (ROT), factors (FACTORS: of queries, by row), slots
// (SLOTS), q, keys and values, and has their places in its parameters.
// Values: H, KH, D, ROT (multiples of 4; 0: no rope), INTERLEAVED, X, CACHE, SLOTS, FACTORS.
# macro bases()
  {{ "cos_base: u32, sin_base: u32, rows_base: u32," if ROT }} {{ "factors_base: u32," if FACTORS }}
  {{ "slots_base: u32," if SLOTS }} k_base: u32, v_base: u32,
# endmacro
# set ARRAYS = (3 if ROT else 0) + (1 if FACTORS else 0) + (1 if SLOTS else 0)
# macro bindings(first)
#   if ROT
{{ read(first, "cosines", "f32") }}
{{ read(first + 1, "sines", "f32") }}
{{ read(first + 2, "rows", "i32") }}
#   endif
#   if FACTORS
{{ read(first + 3, "factors", "f32") }}
#   endif
#   if SLOTS
{{ read(first + ARRAYS - 1, "slots", "i32") }}
#   endif
{{ write(first + ARRAYS, "q", X) }}
{{ write(first + ARRAYS + 1, "keys", CACHE) }}
{{ write(first + ARRAYS + 2, "values", CACHE) }}
# endmacro
# macro functions()

// The dim of row r of unit j of a head.
fn dim_of(j: u32, r: u32) -> u32 {
# if INTERLEAVED or not ROT
  return 4u * j + r;
# else
  return select(4u * j + r, 2u * j + (r & 1u) + (r >> 1u) * {{ ROT // 2 }}u, j < {{ ROT // 4 }}u);
# endif
}
// What a unit of a head of token m needs beside its results: cosines and sines of its two pairs,
// and the row of the caches, negative where nothing is written.
struct Turn { row: i32, slot: i32, c: vec2<f32>, s: vec2<f32> }
// With the row of the tables, or -1 where nothing turns, for `turn_of` to read.
fn row_of_turn(head: u32, j: u32, m: u32) -> Turn {
  var turn = Turn(-1, i32(m), vec2<f32>(1.0), vec2<f32>());
# if SLOTS
  if (head >= {{ H }}u) { turn.slot = slots[p.slots_base + m]; }
# endif
# if ROT
  if ((head < {{ H + KH }}u && j < {{ ROT // 4 }}u){{ " || head < %du" % H if FACTORS }}) {
    turn.row = rows[p.rows_base + m];
  }
# endif
  return turn;
}
fn turn_of(begun: Turn, head: u32, j: u32) -> Turn {
  var turn = begun;
# if ROT
  if (turn.row >= 0{{ " && j < %du" % (ROT // 4) if FACTORS }}) {
    let at = u32(turn.row) * {{ ROT // 2 }}u + 2u * j;
    turn.c = vec2<f32>(cosines[p.cos_base + at], cosines[p.cos_base + at + 1u]);
    turn.s = vec2<f32>(sines[p.sin_base + at], sines[p.sin_base + at + 1u]);
  }
# endif
# if FACTORS
  if (head < {{ H }}u) {
    let f = factors[p.factors_base + u32(turn.row)];
    turn.c *= f;
    turn.s *= f;
  }
# endif
  return turn;
}
# for name, dtype in (("q", X), ("keys", CACHE), ("values", CACHE))
fn put_{{ name }}(at: u32, pair: vec2<f32>) {
#   if PER_WORD[dtype] == 1
  {{ name }}_put(at, pair.x);
  {{ name }}_put(at + 1u, pair.y);
#   else
  {{ name }}_put(at / 2u, pair);
#   endif
}
# endfor
// Two neighbouring dims of a head of token m, where they belong.
fn place(head: u32, dim: u32, m: u32, slot: i32, pair: vec2<f32>) {
  if (head < {{ H }}u) {
    put_q((m * {{ H }}u + head) * {{ D }}u + dim, pair);
    return;
  }
  if (slot < 0) { return; }
  let row = u32(slot) * {{ KH }}u;
  if (head < {{ H + KH }}u) {
    put_keys(p.k_base + (row + head - {{ H }}u) * {{ D }}u + dim, pair);
  } else {
    put_values(p.v_base + (row + head - {{ H + KH }}u) * {{ D }}u + dim, pair);
  }
}
// The results of a unit, turned. Where nothing turns, c = 1 and s = 0; pairs are then no pairs, but
// in one order again in the end.
fn turned(y: vec4<f32>, turn: Turn) -> vec4<f32> {
# if not ROT and not FACTORS
  return y;
# elif INTERLEAVED
  let first = y.xz * turn.c - y.yw * turn.s;
  let second = y.yw * turn.c + y.xz * turn.s;
  return vec4<f32>(first.x, second.x, first.y, second.y);
# else
  return vec4<f32>(y.xy * turn.c - y.zw * turn.s, y.zw * turn.c + y.xy * turn.s);
# endif
}
// The results of unit j of a head of token m put in their place.
fn settle(head: u32, j: u32, m: u32, y: vec4<f32>, slot: i32) {
  place(head, dim_of(j, 0u), m, slot, y.xy);
  place(head, dim_of(j, 2u), m, slot, y.zw);
}
# endmacro
