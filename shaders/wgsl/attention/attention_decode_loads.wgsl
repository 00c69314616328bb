// Included by attention_decode.wgsl: 8 elements ("a piece") of a row, and where rows are.
// With CODES 4 a piece is a word of nibbles: 4 elements, and the 4 that lie 16 behind these.
struct Piece { a: vec4<f32>, b: vec4<f32> }

# if VEC and PACKED
alias Raw = vec4<u32>;  // as it lies in memory, so that many are on their way in few registers
fn floats(w: Raw) -> Piece {
  return Piece(
    vec4<f32>(unpack_{{ CACHE }}(w.x), unpack_{{ CACHE }}(w.y)),
    vec4<f32>(unpack_{{ CACHE }}(w.z), unpack_{{ CACHE }}(w.w)));
}
# elif CODES == 8
alias Raw = vec3<u32>;  // codes, scale
fn floats(w: Raw) -> Piece {
  let scale = bitcast<f32>(w.z);
  return Piece(vec4<f32>(unpack_i8(w.x)) * scale, vec4<f32>(unpack_i8(w.y)) * scale);
}
# elif CODES == 4
alias Raw = vec2<u32>;  // codes, scale and floor
fn floats(w: Raw) -> Piece {
  let line = unpack_bf16(w.y);
  return Piece(vec4<f32>(unpack_u8(w.x & 0x0f0f0f0fu)) * line.x + line.y,
               vec4<f32>(unpack_u8((w.x >> 4u) & 0x0f0f0f0fu)) * line.x + line.y);
}
# else
alias Raw = Piece;
fn floats(w: Raw) -> Piece { return w; }
# endif

# for name, WIDTH in (("k", D), ("v", DV))
// Piece `piece` of the row that begins at `at`; zeros where there is none.
fn {{ name }}_piece(at: u32, piece: u32, row_exists: bool) -> Raw {
  let here = row_exists && piece < {{ (WIDTH + 7) // 8 }}u;
  let i = select(0u, at + piece{{ "" if VEC else " * 8u" }}, here);
#   if CODES
  let scale = {{ name }}_scales[p.{{ name }}_scales_first
      + select(0u, i - p.{{ name }}_first, here) / {{ WIDTH // 8 if CODES == 8 else 4 }}u];
  return select(Raw(), Raw({{ name }}_cache[i], scale), here);
#   elif VEC and PACKED
  return select(vec4<u32>(0u), {{ name }}_cache[i], here);
#   elif VEC
  let zero = vec4<f32>(0.0);
  let a = {{ name }}_cache[2u * i];
  let b = {{ name }}_cache[2u * i + 1u];
  return Piece(select(zero, a, here), select(zero, b, here));
#   else
  var x: array<f32, 8> = array<f32, 8>();
#     for e in range(8)
  if (here && piece * 8u + {{ e }}u < {{ WIDTH }}u) { x[{{ e }}] = {{ name }}_cache_at(i + {{ e }}u); }
#     endfor
  return Piece(vec4<f32>(x[0], x[1], x[2], x[3]), vec4<f32>(x[4], x[5], x[6], x[7]));
#   endif
}
# endfor

// A piece of q, in units that make exp2 of the scores right.
fn q_piece(first: u32, R: u32, kv: u32, piece: u32) -> Piece {
  let query = R / {{ HEADS }}u;
  let head = kv * {{ HEADS }}u + R - query * {{ HEADS }}u;
  let at = p.q_first + (first + query) * p.q_row + head * p.q_head
      + {{ "piece / 4u * 32u + piece % 4u * 4u" if CODES == 4 else "piece * 8u" }};
  var x = Piece(vec4<f32>(0.0), vec4<f32>(0.0));
# if VEC
  if (piece < {{ D // 8 }}u) { x = Piece(q_at4(at), q_at4(at + {{ 16 if CODES == 4 else 4 }}u)); }
# else
#   for e in range(8)
  if (piece * 8u + {{ e }}u < {{ D }}u) { x.{{ "ab"[e // 4] }}[{{ e % 4 }}] = q_at(at + {{ e }}u); }
#   endfor
# endif
# if not SOFTCAP
  let factor = p.scale * LOG2E;
  x.a *= factor;
  x.b *= factor;
# endif
  return x;
}

// The row of the caches that position n of sequence b is in, or -1. `block`: the sequence's first.
fn lookup(b: u32, block: i32, base: i32, n: i32, end: i32) -> i32 {
  if (n >= end) { return -1; }
# if SHIFT == -2
  let turned = n - base;  // the keys of one ring: at most one turn more
  let offset = select(turned, turned - i32(p.bs), turned >= i32(p.bs));
  return select(-1, block * i32(p.bs) + offset, block >= 0);
# else
#   if SHIFT >= 0
  var column = u32(n) >> {{ SHIFT }}u;
  let offset = u32(n) & {{ 2 ** SHIFT - 1 }}u;
#   else
  var column = u32(n) / p.bs;
  let offset = u32(n) - column * p.bs;
#   endif
  if (column >= p.columns) { column %= p.columns; }
  var found = block;
  if (column > 0u) { found = block_table[p.table_first + b * p.columns + column]; }
  return select(-1, found * i32(p.bs) + i32(offset), found >= 0);
# endif
}
