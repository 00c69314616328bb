// y [M, F] = act(h Gᵀ) · (h Uᵀ), h = x or rms_norm(x): the gated half of a feed-forward layer.
// Threads and values: gemv_rows.wgsl. A team's R rows are R/2 of G and the same of U, so that a
// thread that finishes two results has all four sums; two results are a word of 16-bit ones.
// More values: OUT, BIAS, UP_BIAS (dtypes, or ""), ACT ("silu", "gelu", "gelu_tanh"), XS (w8a8).
# import "gemv_rows.wgsl" as g with context
struct Params {
  M: u32, N: u32, first: u32, out_N: u32, x_base: u32, w_base: u32, w_scales_base: u32,
  up_base: u32, up_scales_base: u32, bias_base: u32, up_bias_base: u32, norm_base: u32,
  x_scales_base: u32, eps: f32,
}
# set b = namespace(n=1)
{{ g.declarations() }}
# if FORM == "w8a8"
{{ read(b.n, "x_scales", "f32") }}
#   set b.n = b.n + 1
# endif
{{ g.weight(b.n, "w") }}
# set b.n = b.n + (2 if FORM in ("i8", "w8a8") else 1)
{{ g.weight(b.n, "up") }}
# set b.n = b.n + (2 if FORM in ("i8", "w8a8") else 1)
# if NORM
{{ g.norm(b.n) }}
#   set b.n = b.n + 1
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

# if ACT == "gelu"
// Abramowitz and Stegun 7.1.26 for |z| (error 1.5e-7), odd in z.
fn erf(z: f32) -> f32 {
  let t = 1.0 / fma(0.3275911, abs(z), 1.0);
  let q = t * fma(t, fma(t, fma(t, fma(t, 1.061405429, -1.453152027), 1.421413741), -0.284496736),
                  0.254829592);
  return sign(z) * (1.0 - q * exp(-z * z));
}
# endif
fn activated(z: f32) -> f32 {
# if ACT == "silu"
  return z / (1.0 + exp(-z));
# elif ACT == "gelu"
  return 0.5 * z * (1.0 + erf(z * 0.7071067811865476));
# else
  // tanh(t) = 1 - 2 / (exp(2t) + 1); its argument is held where exp has not overflowed
  let t = clamp(0.7978845608028654 * fma(0.044715 * z * z, z, z), -15.0, 15.0);
  return z * (1.0 - 1.0 / (exp(2.0 * t) + 1.0));
# endif
}

// Result n of row m from the sums of its row of G and of U.
fn finished(gate: {{ g.SUM }}, up: {{ g.SUM }}, n: u32, m: u32, factor: f32) -> f32 {
  var z = f32(gate) * (w_scale(n) * factor);
  var u = f32(up) * (up_scale(n) * factor);
# if BIAS
  z += bias_at(p.bias_base + p.first + n);
# endif
# if UP_BIAS
  u += up_bias_at(p.up_bias_base + p.first + n);
# endif
  return activated(z) * u;
}

{{ g.entry() }}
  if (group * {{ g.TEAMS * R // 2 }}u >= p.N) { return; }
# for r in range(R // 2)
  let row{{ r }} = min(team * {{ R // 2 }}u + {{ r }}u, p.N - 1u);
  let row{{ R // 2 + r }} = row{{ r }};
# endfor
{{ g.accumulate(["w"] * (R // 2) + ["up"] * (R // 2)) }}
{{ g.meet() }}
  for (var item = thread; item < {{ g.TEAMS * M * R // 4 }}u; item += {{ THREADS }}u) {
    let pair = item % {{ R // 4 }}u;
    let m = item / {{ R // 4 }}u % {{ M }}u;
    let own = item / {{ R // 4 * M }}u;
    let n = (group * {{ g.TEAMS }}u + own) * {{ R // 2 }}u + 2u * pair;
    if (m < p.M && n < p.N) {
      let i = 2u * pair * {{ M }}u + m;
      let j = i + {{ R // 2 * M }}u;
# if NORM
      let f = inverse_rms(own, m, shares);
# elif FORM == "w8a8"
      let f = x_scales[p.x_scales_base + m];
# else
      let f = 1.0;
# endif
      let y0 = finished(total(own, i, shares), total(own, j, shares), n, m, f);
      let y1 = finished(total(own, i + {{ M }}u, shares), total(own, j + {{ M }}u, shares),
                        min(n + 1u, p.N - 1u), m, f);
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
