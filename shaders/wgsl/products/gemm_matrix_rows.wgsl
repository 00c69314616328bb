// Rows of x [M, K] as f16 times a power of two each, for gemm_matrix.wgsl: scale[m] = 2^e brings
// them back. Exact for bf16 down to 2^-30 of a row's largest number, f16 to 2^-27; f32 is rounded.
//
// A workgroup to a row; y: [M, K] in words, K % 8 == 0. Clears `flag`.
struct Params { M: u32, K: u32, offset: u32, line: u32 }
{{ read(0, "x", X) }}
{{ write(1, "y", "u32", 2) }}
{{ write(2, "scale", "f32") }}
{{ write(3, "flag", "u32") }}
{{ parameters(4) }}
{{ workgroup("largest", "f32", 128) }}

@compute @workgroup_size(128)
fn rows(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
        @builtin(local_invocation_index) t: u32) {
{{ poison("t", 128) }}
  let m = flat_workgroup(id, grid);
  if (m >= p.M) { return; }
  let start = p.offset + m * p.line;
  var most = vec4<f32>();
  for (var k = t * 4u; k < p.K; k += 512u) { most = max(most, abs(x_at4(start + k))); }
  largest[t] = max(max(most.x, most.y), max(most.z, most.w));
  for (var step = 64u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (t < step) { largest[t] = max(largest[t], largest[t + step]); }
  }
  workgroupBarrier();
  // largest in [2^13, 2^14) afterwards; both powers stay normal numbers
  let exponent = clamp(267u - (bitcast<u32>(largest[0]) >> 23u), 1u, 253u);
  let up = bitcast<f32>(exponent << 23u);
  if (t == 0u) {
    scale[m] = bitcast<f32>((254u - exponent) << 23u);
    if (m == 0u) { flag[0] = 0u; }
  }
  for (var k = t * 4u; k < p.K; k += 512u) {
    let v = x_at4(start + k) * up;
    y[(m * p.K + k) / 4u] = vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
  }
}
