// y [M, N] = h Wᵀ + bias + residual, h = x, rms_norm(x), or the splits of attention combined.
// W [N, K] in its stored form (boostr/quant/scheme.py); see gemv_rows.wgsl for threads and values.
// Workgroup g has rows g·TEAMS·R.. of this launch; p.first is added to them in bias, residual and y.
// A word of 16-bit results is two rows of W, so p.out_N is even unless there is one row of x.
// More values: OUT, BIAS, RESIDUAL (dtypes, or ""), XS (w8a8), PARTS_S, PARTS_DV (combine).
# import "gemv_rows.wgsl" as g with context
struct Params {
  M: u32, N: u32, first: u32, out_N: u32, x_base: u32, w_base: u32, w_scales_base: u32,
  bias_base: u32, residual_base: u32, norm_base: u32, x_scales_base: u32, eps: f32,
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
{{ read(b.n, "bias", BIAS) }}
#   set b.n = b.n + 1
# endif
# if RESIDUAL
{{ read(b.n, "residual", RESIDUAL) }}
#   set b.n = b.n + 1
# endif
{{ write(b.n, "y", OUT) }}
{{ parameters(b.n + 1) }}

// Row n of W, row m of x: the sum, finished.
fn finished(sum: {{ g.SUM }}, n: u32, m: u32) -> f32 {
  var y = f32(sum) * w_scale(n);
# if FORM == "w8a8"
  y *= x_scales[p.x_scales_base + m];
# endif
# if BIAS
  y += bias_at(p.bias_base + p.first + n);
# endif
# if RESIDUAL
  y += residual_at(p.residual_base + m * p.out_N + p.first + n);
# endif
  return y;
}

{{ g.entry() }}
  if (group * {{ g.TEAMS * R }}u >= p.N) { return; }
# for r in range(R)
  let row{{ r }} = min(team * {{ R }}u + {{ r }}u, p.N - 1u);
# endfor
{{ g.accumulate(["w"] * R) }}
{{ g.meet() }}
  for (var item = thread; item < {{ g.TEAMS * M * R // 2 }}u; item += {{ THREADS }}u) {
    let pair = item % {{ R // 2 }}u;
    let m = item / {{ R // 2 }}u % {{ M }}u;
    let own = item / {{ R // 2 * M }}u;
    let n = (group * {{ g.TEAMS }}u + own) * {{ R }}u + 2u * pair;
    if (m < p.M && n < p.N) {
      let i = 2u * pair * {{ M }}u + m;
# if NORM
      let f = inverse_rms(own, m, shares);
# else
      let f = {{ g.SUM }}(1);
# endif
      let y0 = finished(total(own, i, shares) * f, n, m);
      let y1 = finished(total(own, i + {{ M }}u, shares) * f, min(n + 1u, p.N - 1u), m);
      let at = m * p.out_N + p.first + n;
# if OUT == "f32"
      y_put(at, y0);
      if (n + 1u < p.N) { y_put(at + 1u, y1); }
# else
      y_put(at / 2u, vec2<f32>(y0, y1));
# endif
    }
  }
}
