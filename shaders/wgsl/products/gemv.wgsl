// y [M, N] = factor (h Wᵀ + bias) + residual, h = x, norm(x), or the splits of attention combined.
// W [N, K] in its stored form (boostr/quant/scheme.py); see gemv_rows.wgsl for threads and values.
// Workgroup g has rows g·TEAMS·R.. of this launch; p.first is added to them in bias, residual, y.
// A word of 16-bit results is two rows of W, so p.out_N is even unless there is one row of x.
// With ACT y = act(h Wᵀ + bias), times the residual if there is one: of a gate, whose other half is
// stored otherwise.
// More values: OUT, BIAS, RESIDUAL (dtypes, or ""), ACT (of gemv_activation.wgsl, or ""), XS (of a
//   rounded x), PARTS_S, PARTS_DV (combine), SCALED (whether there is a factor; not with ACT).
# import "gemv_rows.wgsl" as g with context
struct Params {
  M: u32, N: u32, first: u32, out_N: u32, x_base: u32, {{ g.bases("w") }}
  bias_base: u32, residual_base: u32, {{ g.norm_bases() }} x_scales_base: u32, eps: f32,
  {{ "factor: f32," if SCALED }}
}
# set b = namespace(n=1)
{{ g.declarations() }}
# if g.ROUNDED
{{ read(b.n, "x_scales", "f32") }}
#   set b.n = b.n + 1
# endif
{{ g.weight(b.n, "w") }}
# set b.n = b.n + g.PLANES | length
# if NORM
{{ g.norm(b.n) }}
#   set b.n = b.n + g.NORM_ARRAYS | length
# endif
# if BIAS
{{ read(b.n, "bias", BIAS) }}
#   set b.n = b.n + 1
# endif
# if RESIDUAL
{{ read(b.n, "residual", RESIDUAL) }}
#   set b.n = b.n + 1
# endif
{{ write(b.n, "y", OUT) }}
{{ parameters(b.n + 1) }}

# if ACT
# include "gemv_activation.wgsl"
# endif
# set ITEMS = g.TEAMS * M * R // 2
// Two neighbouring results: their row of x, team, first sum and first row of W; what their sums are
// multiplied by, the bias, the residual.
struct Item {
  m: u32, own: u32, i: u32, n: u32, factor: vec2<f32>, bias: vec2<f32>, residual: vec2<f32>,
}
fn item_of(group: u32, item: u32) -> Item {
  let pair = item % {{ R // 2 }}u;
  let m = item / {{ R // 2 }}u % {{ M }}u;
  let own = item / {{ R // 2 * M }}u;
  let n = (group * {{ g.TEAMS }}u + own) * {{ R }}u + 2u * pair;
  let n0 = min(n, p.N - 1u);
  let n1 = min(n + 1u, p.N - 1u);
  var factor = vec2<f32>(w_scale_of(n0), w_scale_of(n1));
# if g.ROUNDED
  factor *= x_scales[p.x_scales_base + {{ "min(m, p.M - 1u)" if M > 1 else "0u" }}];
# endif
  var bias = vec2<f32>();
# if BIAS
  bias += vec2<f32>(bias_at(p.bias_base + p.first + n0), bias_at(p.bias_base + p.first + n1));
# endif
  var residual = vec2<f32>();
# if RESIDUAL
  let at = p.residual_base + {{ "min(m, p.M - 1u)" if M > 1 else "0u" }} * p.out_N + p.first;
  residual += vec2<f32>(residual_at(at + n0), residual_at(at + n1));
# endif
  return Item(m, own, 2u * pair * {{ M }}u + m, n, factor, bias, residual);
}
fn finish(it: Item, shares: u32) {
  if (it.m >= p.M || it.n >= p.N) { return; }
  var y = vec2<f32>(f32(total(it.own, it.i, shares)), f32(total(it.own, it.i + {{ M }}u, shares)));
# if g.LATE
  y *= inverse_rms(it.own, it.m, shares);
# endif
# if ACT
  y = fma(y, it.factor, it.bias);
  y = vec2<f32>(activated(y.x), activated(y.y)){{ " * it.residual" if RESIDUAL }};
# elif SCALED
  y = fma(vec2<f32>(p.factor), fma(y, it.factor, it.bias), it.residual);
# else
  y = fma(y, it.factor, it.bias + it.residual);
# endif
  let at = it.m * p.out_N + p.first + it.n;
# if OUT == "f32"
  y_put(at, y.x);
  if (it.n + 1u < p.N) { y_put(at + 1u, y.y); }
# else
  y_put(at / 2u, y);
# endif
}

# macro rows(batch, name="row")
#   for r in range(BATCH)
  let {{ name }}{{ r }} = min(team * {{ R }}u + {{ batch }} * {{ BATCH }}u + {{ r }}u, p.N - 1u);
#   endfor
# endmacro
{{ g.entry() }}
  if (group * {{ g.TEAMS * R }}u >= p.N) { return; }
# if ITEMS <= THREADS
  // read before the product, so that nobody waits for it behind the barrier
  var it: Item;
  if (thread < {{ ITEMS }}u) { it = item_of(group, thread); }
{{ g.accumulate(rows, ["w"] * BATCH) }}
{{ g.meet() }}
  if (thread < {{ ITEMS }}u) { finish(it, shares); }
# else
{{ g.accumulate(rows, ["w"] * BATCH) }}
{{ g.meet() }}
  for (var item = thread; item < {{ ITEMS }}u; item += {{ THREADS }}u) {
    finish(item_of(group, item), shares);
  }
# endif
}
