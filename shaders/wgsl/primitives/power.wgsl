// a^b, and what it takes; included by sources whose parameter `size` is not 0.

// x, in a way that compilers do not see through: they may take (x + y) - x for y otherwise, and
// with it goes what a sum's rounding has lost.
fn opaque(x: f32) -> f32 { return select(x, 0.0, p.size == 0u); }

// |a|^b from a logarithm in two parts: log m = 2 s + s^3 P(s^2), s = (m - 1) / (m + 1).
fn magnitude_power(a: f32, b: f32) -> f32 {
  let u = bitcast<u32>(a) & 0x7fffffffu;
  var e = f32(i32(u >> 23u) - 126);
  var m = bitcast<f32>((u & 0x7fffffu) | 0x3f000000u);
  if (m < 0.707106781) { e -= 1.0; m = m + m; }
  let f = m - 1.0;
  let d = opaque(2.0 + f);
  let s = f / d;
  let rest = (residue(f, s, d) - s * (f - (d - 2.0))) / d;  // what the quotient lost
  let z = s * s;
  let p = fma(z, fma(z, fma(z, 0.2222222, 0.28571430), 0.4), 0.66666666);
  let low = 2.0 * rest + s * z * p;
  // e ln2 + 2 s + low, the large terms first, each with what its rounding lost
  let high = e * 0.693359375;
  let top = opaque(high + 2.0 * s);
  // where high is not 0 it is the larger of the two
  let tail = (low - e * 2.12194440e-4) + select(2.0 * s - (top - high), 0.0, e == 0.0);
  let log_hi = opaque(top + tail);
  let log_lo = tail - (log_hi - top);
  let y = log_hi * b;
  return exp_of(y, log_lo * b - residue(y, log_hi, b));
}
fn pow_f32(a: f32, b: f32) -> f32 {
  let size = abs(b);
  if (size <= 4.0 && size == floor(size)) {  // squares and cubes exactly as products
    let square = a * a;
    var y = select(1.0, a, size == 1.0 || size == 3.0);
    y *= select(1.0, square, size >= 2.0);
    y *= select(1.0, square, size == 4.0);
    return select(y, 1.0 / y, b < 0.0);
  }
  let whole = b == floor(b);
  let odd = whole && size < 16777216.0 && (i32(size) & 1) == 1;
  let v = bitcast<u32>(a);
  var y = magnitude_power(a, b);
  if ((v << 1u) == 0u || (v & 0x7fffffffu) == 0x7f800000u) {
    y = select(0.0, inf(), ((v << 1u) == 0u) == (b < 0.0));
  }
  if (v == 0x3f800000u) { y = 1.0; }
  y = select(y, -y, odd && v >= 0x80000000u);
  if (is_nan(a) || is_nan(b)) { return select(nan(), 1.0, v == 0x3f800000u); }
  return select(y, nan(), !whole && v > 0x80000000u && v != 0xff800000u);
}
fn pow_i32(a: i32, b: i32) -> i32 {
  var y = 1;
  var base = a;
  for (var n = u32(max(b, 0)); n > 0u; n >>= 1u) {
    if ((n & 1u) == 1u) { y *= base; }
    base *= base;
  }
  return y;
}
