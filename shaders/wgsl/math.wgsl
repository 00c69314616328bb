// Functions of f32 to a few ulp. WGSL's own are looser (sin and cos may be off by 2^-11, log near 1
// by 2^-21 absolute, exp by 3 + 2|x| ulp) and promise nothing at infinities, which come from bits
// here. Polynomials: Cephes (sin, cos, tanh, exp, log), N. Juffa (erf).
var<private> inf_bits: u32 = 0x7f800000u;
var<private> nan_bits: u32 = 0x7fc00000u;
fn inf() -> f32 { return bitcast<f32>(inf_bits); }
fn nan() -> f32 { return bitcast<f32>(nan_bits); }
fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }

// 2^n for n in -126..127.
fn power_of_two(n: i32) -> f32 { return bitcast<f32>(u32(n + 127) << 23u); }

// e^(x + low), |low| far below |x|.
fn exp_of(x: f32, low: f32) -> f32 {
  let y = clamp(x, -104.0, 90.0);
  let n = round(y * 1.44269504);
  let r = fma(n, 1.90465432e-9, fma(n, -0.693147182, y)) + select(0.0, low, y == x);
  var e = fma(r, 1.9875691500e-4, 1.3981999507e-3);
  e = fma(r, e, 8.3334519073e-3);
  e = fma(r, e, 4.1665795894e-2);
  e = fma(r, e, 1.6666665459e-1);
  e = fma(r, e, 5.0000001201e-1);
  e = fma(r * r, e, r) + 1.0;
  let half = i32(n) / 2;  // 2^n itself may lie outside of f32 where the product does not
  e = e * power_of_two(half) * power_of_two(i32(n) - half);
  return select(select(e, inf(), y > 89.0), x, is_nan(x));
}
fn exp_f32(x: f32) -> f32 { return exp_of(x, 0.0); }

fn log_f32(x: f32) -> f32 {
  let u = bitcast<u32>(x);
  if ((u << 1u) == 0u) { return -inf(); }
  if (u >= 0x80000000u) { return nan(); }
  if (u >= 0x7f800000u) { return x; }
  var e = f32(i32(u >> 23u) - 126);
  var m = bitcast<f32>((u & 0x7fffffu) | 0x3f000000u);
  if (m < 0.707106781) { e -= 1.0; m = m + m; }
  m -= 1.0;
  let z = m * m;
  var y = fma(m, 7.0376836292e-2, -1.1514610310e-1);
  y = fma(m, y, 1.1676998740e-1);
  y = fma(m, y, -1.2420140846e-1);
  y = fma(m, y, 1.4249322787e-1);
  y = fma(m, y, -1.6668057665e-1);
  y = fma(m, y, 2.0000714765e-1);
  y = fma(m, y, -2.4999993993e-1);
  y = fma(m, y, 3.3333331174e-1);
  y = fma(z, -0.5, fma(e, -2.12194440e-4, y * m * z));
  return fma(e, 0.693359375, m + y);
}

fn sqrt_f32(x: f32) -> f32 {
  let u = bitcast<u32>(x);
  if ((u << 1u) == 0u || (u & 0x7fffffffu) >= 0x7f800000u) { return select(x, nan(), u == 0xff800000u); }
  return select(sqrt(x), nan(), x < 0.0);
}
fn rsqrt_f32(x: f32) -> f32 {
  let u = bitcast<u32>(x);
  if ((u << 1u) == 0u) { return bitcast<f32>(inf_bits | u); }
  if (u == 0x7f800000u) { return 0.0; }
  return select(inverseSqrt(x), nan(), u > 0x7f800000u);
}

// x less the nearest multiple of pi/2, and which quarter that is: for |x| up to 1e5 or so.
fn quarter(x: f32) -> vec2<f32> {
  let n = round(x * 0.636619772);
  let r = fma(n, 1.71512451e-15, fma(n, 4.37113883e-8, fma(n, -1.57079637, x)));
  return vec2<f32>(r, n);
}
fn sine_of(x: f32, turn: i32) -> f32 {
  let place = quarter(x);
  let r = place.x;
  let z = r * r;
  let q = (i32(place.y) + turn) & 3;
  let s = fma(fma(fma(z, -1.9515295891e-4, 8.3321608736e-3), z, -1.6666654611e-1) * z, r, r);
  let c = fma(fma(fma(z, 2.443315711809948e-5, -1.388731625493765e-3), z, 4.166664568298827e-2),
              z * z, fma(z, -0.5, 1.0));
  let y = select(s, c, (q & 1) == 1);
  let signed = select(y, -y, q >= 2);
  return select(signed, nan(), (bitcast<u32>(x) & 0x7fffffffu) >= 0x7f800000u);
}
fn sin_f32(x: f32) -> f32 { return sine_of(x, 0); }
fn cos_f32(x: f32) -> f32 { return sine_of(x, 1); }

fn tanh_f32(x: f32) -> f32 {
  let size = abs(x);
  let z = x * x;
  var p = fma(z, -5.70498872745e-3, 2.06390887954e-2);
  p = fma(z, p, -5.37397155531e-2);
  p = fma(z, p, 1.33314422036e-1);
  p = fma(z, p, -3.33332819422e-1);
  let large = 1.0 - 2.0 / (exp_f32(2.0 * min(size, 20.0)) + 1.0);
  let y = select(select(large, -large, x < 0.0), fma(p * z, x, x), size < 0.625);
  return select(y, x, is_nan(x));
}

fn erf_f32(x: f32) -> f32 {
  let t = min(abs(x), 4.0);
  let s = t * t;
  var far = fma(-1.72853470e-5, t, 3.83197126e-4);
  far = fma(far, s, fma(-3.88396438e-3, t, 2.42546219e-2));
  far = fma(far, t, -1.06777877e-1);
  far = fma(far, t, -6.34846687e-1);
  far = fma(far, t, -1.28717512e-1);
  far = 1.0 - exp_f32(fma(far, t, -t));
  var near = fma(-5.96761703e-4, s, 4.99119423e-3);
  near = fma(near, s, -2.67681349e-2);
  near = fma(near, s, 1.12819925e-1);
  near = fma(near, s, -3.76125336e-1);
  near = fma(near, s, 1.28379166e-1);
  let y = select(select(far, -far, x < 0.0), fma(near, x, x), t <= 0.927734375);
  return select(y, x, is_nan(x));
}

fn sigmoid_f32(x: f32) -> f32 {
  let e = exp_f32(-abs(x));
  return select(1.0 / (1.0 + e), e / (1.0 + e), x < 0.0);
}

// |a|^b from a logarithm in two parts: log m = 2 s + s^3 P(s^2), s = (m - 1) / (m + 1).
fn magnitude_power(a: f32, b: f32) -> f32 {
  let u = bitcast<u32>(a) & 0x7fffffffu;
  var e = f32(i32(u >> 23u) - 126);
  var m = bitcast<f32>((u & 0x7fffffu) | 0x3f000000u);
  if (m < 0.707106781) { e -= 1.0; m = m + m; }
  let f = m - 1.0;
  let d = 2.0 + f;
  let s = f / d;
  let rest = (fma(-s, d, f) - s * (f - (d - 2.0))) / d;  // what the quotient lost
  let z = s * s;
  let p = fma(z, fma(z, fma(z, 0.2222222, 0.28571430), 0.4), 0.66666666);
  let low = fma(2.0, rest, s * z * p);
  // e ln2 + 2 s + low, the large terms first, each with what its rounding lost
  let high = e * 0.693359375;
  let top = high + 2.0 * s;
  // where high is not 0 it is the larger of the two
  let tail = fma(e, -2.12194440e-4, low) + select(2.0 * s - (top - high), 0.0, e == 0.0);
  let log_hi = top + tail;
  let log_lo = tail - (log_hi - top);
  let y = log_hi * b;
  return exp_of(y, fma(log_hi, b, -y) + log_lo * b);
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

// The remainder with b's sign, as Python has it, and the quotient that belongs to it. One Newton
// step puts right a division that may be off by 2.5 ulp.
fn mod_f32(a: f32, b: f32) -> f32 {
  let n = floor_div_f32(a, b);
  let r = fma(-n, b, a);
  return select(r, b * 0.0, r == 0.0);
}
fn floor_div_f32(a: f32, b: f32) -> f32 {
  var n = floor(a / b);
  let r = fma(-n, b, a);
  if (r != 0.0 && (r < 0.0) != (b < 0.0)) { n -= 1.0; }
  else if (abs(r) >= abs(b) && b != 0.0) { n += 1.0; }
  return n;
}
// Integers: 0 for a division by 0. By way of u32: some drivers get signed remainders wrong.
fn floor_div_u32(a: u32, b: u32) -> u32 { return select(a / max(b, 1u), 0u, b == 0u); }
fn mod_u32(a: u32, b: u32) -> u32 { return select(a % max(b, 1u), 0u, b == 0u); }
fn floor_div_i32(a: i32, b: i32) -> i32 {
  let size = max(u32(select(b, 0 - b, b < 0)), 1u);
  let top = u32(select(a, 0 - a, a < 0));
  let n = i32(top / size);
  let down = select(0, 1, u32(n) * size != top);
  let q = select(n, -n - down, (a < 0) != (b < 0));
  return select(q, 0, b == 0);
}
fn mod_i32(a: i32, b: i32) -> i32 { return select(a - floor_div_i32(a, b) * b, 0, b == 0); }

fn max_f32(a: f32, b: f32) -> f32 { return select(select(max(a, b), b, is_nan(b)), a, is_nan(a)); }
fn min_f32(a: f32, b: f32) -> f32 { return select(select(min(a, b), b, is_nan(b)), a, is_nan(a)); }
