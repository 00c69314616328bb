// What every source begins with: numbers below 32 bits in u32 words, and places in folded grids.
# if caps.f16
enable f16;
# endif
# if caps.subgroup_max and caps.provider == "wgpudawn"
enable subgroups;
# endif
# if caps.matrices
enable chromium_experimental_subgroup_matrix;
# endif
# if caps.dot4
requires packed_4x8_integer_dot_product;
# endif

// Elements of a word, the first in its low bits.
fn unpack_bf16(w: u32) -> vec2<f32> { return bitcast<vec2<f32>>(vec2<u32>(w << 16u, w & 0xffff0000u)); }
fn unpack_f16(w: u32) -> vec2<f32> { return unpack2x16float(w); }
fn unpack_u16(w: u32) -> vec2<u32> { return vec2<u32>(w & 0xffffu, w >> 16u); }
fn unpack_i8(w: u32) -> vec4<i32> { return bitcast<vec4<i32>>(vec4<u32>(w << 24u, w << 16u, w << 8u, w)) >> vec4<u32>(24u); }
fn unpack_u8(w: u32) -> vec4<u32> { return (vec4<u32>(w) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u); }

// The bf16 next to v, ties to even; a nan stays one.
fn bf16_bits(v: f32) -> u32 {
  let u = bitcast<u32>(v);
  let rounded = (u + 0x7fffu + ((u >> 16u) & 1u)) >> 16u;
  return select(rounded, (u >> 16u) | 0x40u, (u & 0x7fffffffu) > 0x7f800000u);
}
fn pack_bf16(v: vec2<f32>) -> u32 { return bf16_bits(v.x) | (bf16_bits(v.y) << 16u); }
fn pack_f16(v: vec2<f32>) -> u32 { return pack2x16float(v); }
fn pack_u16(v: vec2<u32>) -> u32 { return (v.x & 0xffffu) | (v.y << 16u); }
fn pack_i8(v: vec4<i32>) -> u32 { return pack_u8(bitcast<vec4<u32>>(v)); }
fn pack_u8(v: vec4<u32>) -> u32 {
  let b = v & vec4<u32>(255u);
  return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}

// Number of this workgroup in a grid that `launch` has folded into two dimensions.
fn flat_workgroup(id: vec3<u32>, count: vec3<u32>) -> u32 { return id.x + id.y * count.x; }

var<private> poison_word: u32 = 0x7fc00000u;
fn poison_f32() -> f32 { return bitcast<f32>(poison_word); }
