// q, k, v = h Wᵀ + bias with rope on q and k; h = x or rms_norm(x). q [M, H, D] is written, k and v
// go to rows of the caches [.., KH, D] (SLOTS) or to [M, KH, D].
// W is heads of D rows: this launch has p.heads of them from head p.first of q, k, v end to end.
// A unit is four rows of a head: pairs that rope turns and, together, whole words of 16-bit
// numbers. Unit j of a head has dims (2j, 2j + 1, ROT/2 + 2j, ROT/2 + 2j + 1) where rope is
// split-half, else (4j .. 4j + 3), as behind the ROT dims that turn. A team's R rows are R/4 units.
// More values: H, KH, D, ROT (multiples of 4), INTERLEAVED, CACHE (dtype of caches), SLOTS,
//   BIAS (dtype or ""; of all three), XS (w8a8).
# import "gemv_rows.wgsl" as g with context
struct Params {
  M: u32, heads: u32, first: u32, x_base: u32, w_base: u32, w_scales_base: u32, q_bias_base: u32,
  k_bias_base: u32, v_bias_base: u32, norm_base: u32, x_scales_base: u32, cos_base: u32,
  sin_base: u32, rows_base: u32, slots_base: u32, k_base: u32, v_base: u32, eps: f32,
}
# set b = namespace(n=1)
{{ g.declarations() }}
# if FORM == "w8a8"
{{ read(b.n, "x_scales", "f32") }}
#   set b.n = b.n + 1
# endif
{{ g.weight(b.n, "w") }}
# set b.n = b.n + (2 if FORM in ("i8", "w8a8") else 1)
# if NORM
{{ g.norm(b.n) }}
#   set b.n = b.n + 1
# endif
# if BIAS
{{ read(b.n, "q_bias", BIAS) }}
{{ read(b.n + 1, "k_bias", BIAS) }}
{{ read(b.n + 2, "v_bias", BIAS) }}
#   set b.n = b.n + 3
# endif
{{ read(b.n, "cosines", "f32") }}
{{ read(b.n + 1, "sines", "f32") }}
{{ read(b.n + 2, "rows", "i32") }}
# set b.n = b.n + 3
# if SLOTS
{{ read(b.n, "slots", "i32") }}
#   set b.n = b.n + 1
# endif
{{ write(b.n, "q", X) }}
{{ write(b.n + 1, "keys", CACHE) }}
{{ write(b.n + 2, "values", CACHE) }}
{{ parameters(b.n + 3) }}

// The dim of row r of unit j of a head.
fn dim_of(j: u32, r: u32) -> u32 {
# if INTERLEAVED
  return 4u * j + r;
# else
  return select(4u * j + r, 2u * j + (r & 1u) + (r >> 1u) * {{ ROT // 2 }}u, j < {{ ROT // 4 }}u);
# endif
}
fn bias_of(head: u32, dim: u32) -> f32 {
# if BIAS
  if (head < {{ H }}u) { return q_bias_at(p.q_bias_base + head * {{ D }}u + dim); }
  if (head < {{ H + KH }}u) {
    return k_bias_at(p.k_bias_base + (head - {{ H }}u) * {{ D }}u + dim);
  }
  return v_bias_at(p.v_bias_base + (head - {{ H + KH }}u) * {{ D }}u + dim);
# else
  return 0.0;
# endif
}
// (a, b) turned by the angle of pair i of token m.
fn turned(a: f32, b: f32, i: u32, m: u32) -> vec2<f32> {
  let at = u32(rows[p.rows_base + m]) * {{ ROT // 2 }}u + i;
  let c = cosines[p.cos_base + at];
  let s = sines[p.sin_base + at];
  return vec2<f32>(a * c - b * s, b * c + a * s);
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
fn place(head: u32, dim: u32, m: u32, pair: vec2<f32>) {
  if (head < {{ H }}u) {
    put_q((m * {{ H }}u + head) * {{ D }}u + dim, pair);
    return;
  }
# if SLOTS
  let slot = slots[p.slots_base + m];
  if (slot < 0) { return; }
# else
  let slot = m;
# endif
  let row = u32(slot) * {{ KH }}u;
  if (head < {{ H + KH }}u) {
    put_keys(p.k_base + (row + head - {{ H }}u) * {{ D }}u + dim, pair);
  } else {
    put_values(p.v_base + (row + head - {{ H + KH }}u) * {{ D }}u + dim, pair);
  }
}
// The row of W (from head p.first on) that row r of this launch's unit `unit` is.
fn row_of(unit: u32, r: u32) -> u32 {
  let real = min(unit, p.heads * {{ D // 4 }}u - 1u);
  return real / {{ D // 4 }}u * {{ D }}u + dim_of(real % {{ D // 4 }}u, r);
}

{{ g.entry() }}
  if (group * {{ g.TEAMS * R // 4 }}u >= p.heads * {{ D // 4 }}u) { return; }
# for r in range(R)
  let row{{ r }} = row_of(team * {{ R // 4 }}u + {{ r // 4 }}u, {{ r % 4 }}u);
# endfor
{{ g.accumulate(["w"] * R) }}
{{ g.meet() }}
  for (var item = thread; item < {{ g.TEAMS * M * R // 4 }}u; item += {{ THREADS }}u) {
    let local = item % {{ R // 4 }}u;
    let m = item / {{ R // 4 }}u % {{ M }}u;
    let own = item / {{ R // 4 * M }}u;
    let unit = (group * {{ g.TEAMS }}u + own) * {{ R // 4 }}u + local;
    if (m < p.M && unit < p.heads * {{ D // 4 }}u) {
      let head = p.first + unit / {{ D // 4 }}u;
      let j = unit % {{ D // 4 }}u;
# if NORM
      let f = inverse_rms(own, m, shares);
# elif FORM == "w8a8"
      let f = x_scales[p.x_scales_base + m];
# else
      let f = 1.0;
# endif
# for r in range(4)
      let y{{ r }} = f32(total(own, (4u * local + {{ r }}u) * {{ M }}u + m, shares)) *
                     (f * w_scale(row_of(unit, {{ r }}u))) + bias_of(head, dim_of(j, {{ r }}u));
# endfor
      var first = vec2<f32>(y0, y1);
      var second = vec2<f32>(y2, y3);
      if (head < {{ H + KH }}u && j < {{ ROT // 4 }}u) {
# if INTERLEAVED
        first = turned(y0, y1, 2u * j, m);
        second = turned(y2, y3, 2u * j + 1u, m);
# else
        let a = turned(y0, y2, 2u * j, m);
        let b = turned(y1, y3, 2u * j + 1u, m);
        first = vec2<f32>(a.x, b.x);
        second = vec2<f32>(a.y, b.y);
# endif
      }
      place(head, dim_of(j, 0u), m, first);
      place(head, dim_of(j, 2u), m, second);
    }
  }
}
