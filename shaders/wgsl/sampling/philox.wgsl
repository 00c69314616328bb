// Included: Philox4x32-10, four random words from a counter of four and a key of two.
// Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3.

// (low, high) words of a * b, from halves: there are no 64-bit integers.
fn product(a: u32, b: u32) -> vec2<u32> {
  let a0 = a & 0xffffu;
  let a1 = a >> 16u;
  let b0 = b & 0xffffu;
  let b1 = b >> 16u;
  let middle = a1 * b0 + ((a0 * b0) >> 16u);
  let high = a1 * b1 + (middle >> 16u) + ((a0 * b1 + (middle & 0xffffu)) >> 16u);
  return vec2<u32>(a * b, high);
}

fn philox4x32(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
  var c = counter;
  var k = key;
  for (var i = 0u; i < 10u; i++) {
    let x = product(0xD2511F53u, c.x);
    let z = product(0xCD9E8D57u, c.z);
    c = vec4<u32>(z.y ^ c.y ^ k.x, z.x, x.y ^ c.w ^ k.y, x.x);
    k += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
  }
  return c;
}
