// The activation of a gate, for gemv.wgsl and gemv_gated.wgsl. Value: ACT ("silu", "gelu",
// "gelu_tanh", "quick_gelu", "relu", "relu2").
# if ACT == "gelu"
// Abramowitz and Stegun 7.1.26 for |z| (error 1.5e-7), odd in z.
fn erf(z: f32) -> f32 {
  let t = 1.0 / fma(0.3275911, abs(z), 1.0);
  let q = t * fma(t, fma(t, fma(t, fma(t, 1.061405429, -1.453152027), 1.421413741), -0.284496736),
                  0.254829592);
  return sign(z) * (1.0 - q * exp(-z * z));
}
# endif
# if ACT in ("relu", "relu2")
// z, or 0 where it is negative, by its bits: a driver makes a comparison a max, which drops a nan.
fn positive(z: f32) -> f32 {
  let bits = bitcast<u32>(z);
  return select(z, 0.0, bits > 0x80000000u && bits <= 0xff800000u);
}
# endif
fn activated(z: f32) -> f32 {
# if ACT == "silu"
  return z / (1.0 + exp(-z));
# elif ACT == "gelu"
  return 0.5 * z * (1.0 + erf(z * 0.7071067811865476));
# elif ACT == "quick_gelu"
  return z / (1.0 + exp(-1.702 * z));
# elif ACT == "relu"
  return positive(z);
# elif ACT == "relu2"
  let t = positive(z);
  return t * t;
# else
  // tanh(t) = 1 - 2 / (exp(2t) + 1); its argument is held where exp has not overflowed
  let t = clamp(0.7978845608028654 * fma(0.044715 * z * z, z, z), -15.0, 15.0);
  return z * (1.0 - 1.0 / (exp(2.0 * t) + 1.0));
# endif
}
