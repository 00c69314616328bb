// Included by sampling.wgsl: numbers of two words (low, high), and their products by fractions.
fn add64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  let low = a.x + b.x;
  return vec2<u32>(low, a.y + b.y + u32(low < a.x));
}
fn sub64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
  return vec2<u32>(a.x - b.x, a.y - b.y - u32(a.x < b.x));
}
fn less64(a: vec2<u32>, b: vec2<u32>) -> bool { return a.y < b.y || (a.y == b.y && a.x < b.x); }

// a * b >> shift of a 64-bit a, rounded up or down.
fn scaled64(a: vec2<u32>, b: u32, shift: u32, up: bool) -> vec2<u32> {
  let low = product(a.x, b);
  let high = product(a.y, b);
  let middle = low.y + high.x;
  var w = vec3<u32>(low.x, middle, high.y + u32(middle < low.y));
  var lost = 0u;
  var s = min(shift, 127u);
  for (; s >= 32u; s -= 32u) {
    lost |= w.x;
    w = vec3<u32>(w.y, w.z, 0u);
  }
  if (s > 0u) {
    lost |= w.x & ((1u << s) - 1u);
    w = vec3<u32>((w.x >> s) | (w.y << (32u - s)), (w.y >> s) | (w.z << (32u - s)), w.z >> s);
  }
  return add64(w.xy, vec2<u32>(u32(up && lost != 0u), 0u));
}
