// y [M, F] = act(h Gᵀ) · (h Uᵀ), h = x or norm(x): the gated half of a feed-forward layer.
// Threads and values: gemv_rows.wgsl. A team's R rows are R/2 of G and the same of U, half and half
// in every batch, so that a thread that finishes two results has all four sums; two results are a
// word of 16-bit ones.
// More values: OUT, BIAS, UP_BIAS (dtypes, or ""), ACT (of gemv_activation.wgsl), XS (of a
// rounded x).
# import "gemv_rows.wgsl" as g with context
struct Params {
  M: u32, N: u32, first: u32, out_N: u32, x_base: u32, {{ g.bases("w") }}
  {{ g.bases("up") }} bias_base: u32, up_bias_base: u32, {{ g.norm_bases() }}
  x_scales_base: u32, eps: f32,
}
# set b = namespace(n=1)
{{ g.declarations() }}
# if g.ROUNDED
{{ read(b.n, "x_scales", "f32") }}
#   set b.n = b.n + 1
# endif
{{ g.weight(b.n, "w") }}
# set b.n = b.n + g.PLANES | length
{{ g.weight(b.n, "up") }}
# set b.n = b.n + g.PLANES | length
# if NORM
{{ g.norm(b.n) }}
#   set b.n = b.n + g.NORM_ARRAYS | length
# endif
# if BIAS
{{ read(b.n, "bias", BIAS) }}
#   set b.n = b.n + 1
# endif
# if UP_BIAS
{{ read(b.n, "up_bias", UP_BIAS) }}
#   set b.n = b.n + 1
# endif
{{ write(b.n, "y", OUT) }}
{{ parameters(b.n + 1) }}

# include "gemv_activation.wgsl"
# set ITEMS = g.TEAMS * M * R // 4
# macro pair_of(name, base)
vec2<f32>({{ name }}_at(p.{{ base }} + p.first + n0), {{ name }}_at(p.{{ base }} + p.first + n1))
# endmacro
// Two neighbouring results: their row of x, team, first sums and place; for G and U what their sums
// are multiplied by, and the biases.
struct Item {
  m: u32, own: u32, i: u32, n: u32,
  gate: vec2<f32>, gate_bias: vec2<f32>, up: vec2<f32>, up_bias: vec2<f32>,
}
fn item_of(group: u32, item: u32) -> Item {
  let pair = item % {{ R // 4 }}u;
  let m = item / {{ R // 4 }}u % {{ M }}u;
  let own = item / {{ R // 4 * M }}u;
  let n = (group * {{ g.TEAMS }}u + own) * {{ R // 2 }}u + 2u * pair;
  let n0 = min(n, p.N - 1u);
  let n1 = min(n + 1u, p.N - 1u);
  var gate = vec2<f32>(w_scale_of(n0), w_scale_of(n1));
  var up = vec2<f32>(up_scale_of(n0), up_scale_of(n1));
# if g.ROUNDED
  let f = x_scales[p.x_scales_base + {{ "min(m, p.M - 1u)" if M > 1 else "0u" }}];
  gate *= f;
  up *= f;
# endif
# if BIAS
  let gate_bias = {{ pair_of("bias", "bias_base") }};
# else
  let gate_bias = vec2<f32>();
# endif
# if UP_BIAS
  let up_bias_pair = {{ pair_of("up_bias", "up_bias_base") }};
# else
  let up_bias_pair = vec2<f32>();
# endif
  let batch = 2u * pair / {{ BATCH // 2 }}u;
  let i = (batch * {{ BATCH }}u + 2u * pair % {{ BATCH // 2 }}u) * {{ M }}u + m;
  return Item(m, own, i, n, gate, gate_bias, up, up_bias_pair);
}
fn finish(it: Item, shares: u32) {
  if (it.m >= p.M || it.n >= p.N) { return; }
  let j = it.i + {{ BATCH // 2 * M }}u;
  var z = vec2<f32>(f32(total(it.own, it.i, shares)), f32(total(it.own, it.i + {{ M }}u, shares)));
  var u = vec2<f32>(f32(total(it.own, j, shares)), f32(total(it.own, j + {{ M }}u, shares)));
# if g.LATE
  let f = inverse_rms(it.own, it.m, shares);
  z *= f;
  u *= f;
# endif
  z = fma(z, it.gate, it.gate_bias);
  u = fma(u, it.up, it.up_bias);
  let y = vec2<f32>(activated(z.x) * u.x, activated(z.y) * u.y);
  let at = it.m * p.out_N + p.first + it.n;
# if OUT == "f32"
  y_put(at, y.x);
  if (it.n + 1u < p.N) { y_put(at + 1u, y.y); }
# else
  y_put(at / 2u, y);
# endif
}

# macro rows(batch, name="row")
#   set half = BATCH // 2
#   for r in range(half)
#     set row = "team * %du + %s * %du + %du" % (R // 2, batch, half, r)
  let {{ name }}{{ r }} = min({{ row }}, p.N - 1u);
  let {{ name }}{{ half + r }} = {{ name }}{{ r }};
#   endfor
# endmacro
{{ g.entry() }}
  if (group * {{ g.TEAMS * R // 2 }}u >= p.N) { return; }
# if ITEMS <= THREADS
  // read before the product, so that nobody waits for it behind the barrier
  var it: Item;
  if (thread < {{ ITEMS }}u) { it = item_of(group, thread); }
{{ g.accumulate(rows, ["w"] * (BATCH // 2) + ["up"] * (BATCH // 2)) }}
{{ g.meet() }}
  if (thread < {{ ITEMS }}u) { finish(it, shares); }
# else
{{ g.accumulate(rows, ["w"] * (BATCH // 2) + ["up"] * (BATCH // 2)) }}
{{ g.meet() }}
  for (var item = thread; item < {{ ITEMS }}u; item += {{ THREADS }}u) {
    finish(item_of(group, item), shares);
  }
# endif
}
