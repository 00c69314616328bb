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

// `fma` may round its product. So where every bit counts, numbers are split into 12 leading bits
// and a rest, whose products are exact.
fn leading(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) & 0xfffff000u); }
// z - x y with one rounding or little more, where z is close to x y.
fn residue(z: f32, x: f32, y: f32) -> f32 {
  let a = leading(x);
  let b = leading(y);
  return (((z - a * b) - a * (y - b)) - (x - a) * b) - (x - a) * (y - b);
}

// a / b to the nearest number but for one case in a million: WGSL's own may be off by 2.5 ulp, which
// makes 6 / 3 less than 2. What it is off by comes from whole numbers, since compilers see through
// sums that would find it; far from the ends of f32.
fn div_f32(a: f32, b: f32) -> f32 {
  let q = a / b;
  let bits = bitcast<vec3<u32>>(vec3<f32>(a, b, q));
  let e = (bits >> vec3<u32>(23u)) & vec3<u32>(255u);
  let m = (bits & vec3<u32>(0x7fffffu)) | vec3<u32>(0x800000u);
  let rest = f32(bitcast<i32>((m.x << (e.x + 150u - e.y - e.z)) - m.y * m.z));  // a - b q
  let ulp = bitcast<f32>((bits.z & 0x80000000u) | ((max(e.z, 24u) - 23u) << 23u));  // of q, signed
  let inside = all(e > vec3<u32>(40u)) && all(e < vec3<u32>(214u));
  return select(q, q + rest / f32(m.y) * ulp, inside);
}

// e^(x + low), |low| far below |x|.
fn exp_of(x: f32, low: f32) -> f32 {
  let y = clamp(x, -104.0, 90.0);
  let n = round(y * 1.44269504);
  let r = ((y - n * 0.693359375) + n * 2.12194440e-4) + select(0.0, low, y == x);
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
# if QUICK is defined and QUICK
// For results of 16 bits.
fn exp_f32(x: f32) -> f32 { return select(exp2(x * 1.44269504), inf(), x > 89.0); }
# else
fn exp_f32(x: f32) -> f32 { return exp_of(x, 0.0); }
# endif

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
  y = (y * m * z - e * 2.12194440e-4) - 0.5 * z;
  return (m + y) + e * 0.693359375;
}

fn sqrt_f32(x: f32) -> f32 {
  let u = bitcast<u32>(x);
  if ((u << 1u) == 0u) { return x; }
  if ((u & 0x7fffffffu) >= 0x7f800000u) { return select(x, nan(), u == 0xff800000u); }
  return select(sqrt(x), nan(), x < 0.0);
}
fn rsqrt_f32(x: f32) -> f32 {
  let u = bitcast<u32>(x);
  if ((u << 1u) == 0u) { return bitcast<f32>(inf_bits | u); }
  if (u == 0x7f800000u) { return 0.0; }
  return select(inverseSqrt(x), nan(), u > 0x7f800000u);
}

// x less the nearest multiple of pi/2, and which one that is: pi/2 in parts whose products with
// whole numbers are exact, for |x| up to 10^4 or so.
fn quarter(x: f32) -> vec2<f32> {
  let n = round(x * 0.636619772);
  let r = ((x - n * 1.5703125) - n * 4.837512969970703125e-4) - n * 7.54978995489188216e-8;
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

# if QUICK is defined and QUICK
fn erf_f32(x: f32) -> f32 {  // the fit of Eigen and XLA
  let t = select(clamp(x, -4.0, 4.0), x, is_nan(x));
  let z = t * t;
  var above = fma(z, -2.72614225801306e-10, 2.77068142495902e-8);
  above = fma(z, above, -2.10102402082508e-6);
  above = fma(z, above, -5.69250639462346e-5);
  above = fma(z, above, -7.34990630326855e-4);
  above = fma(z, above, -2.95459980854025e-3);
  above = fma(z, above, -1.60960333262415e-2);
  var below = fma(z, -1.45660718464996e-5, -2.13374055278905e-4);
  below = fma(z, below, -1.68282697438203e-3);
  below = fma(z, below, -7.37332916720468e-3);
  below = fma(z, below, -1.42647390514189e-2);
  return t * above / below;
}
# else
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
# endif

fn sigmoid_f32(x: f32) -> f32 {
  let e = exp_f32(-abs(x));
  return select(1.0 / (1.0 + e), e / (1.0 + e), x < 0.0);
}

// The remainder with b's sign, as Python has it, and the quotient that belongs to it, put right
// after a division that may be off by 2.5 ulp.
fn mod_f32(a: f32, b: f32) -> f32 {
  let n = floor_div_f32(a, b);
  let r = residue(a, n, b);
  return select(r, b * 0.0, r == 0.0);
}
fn floor_div_f32(a: f32, b: f32) -> f32 {
  var n = floor(div_f32(a, b));
  let r = residue(a, n, b);
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
