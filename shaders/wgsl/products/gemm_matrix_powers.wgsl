// scale[m] = 2^-e of column m of x [K, M], where 2^e brings its largest number into [2^13, 2^14):
// what gemm_matrix.wgsl multiplies columns by. Exact for bf16 and f16 as in gemm_matrix_rows.wgsl.
//
// A workgroup to 16 columns, 8 of a line a thread, 8 lines of it on their way at once.
// Limits: lines, `offset` and M of whole 8 numbers.
# set AHEAD = 8
struct Params { M: u32, K: u32, offset: u32, line: u32, scale_offset: u32 }
{{ read(0, "x", X, 4) }}
{{ write(1, "scale", "f32") }}
{{ parameters(2) }}
{{ workgroup("largest", "vec4<f32>", 512) }}

@compute @workgroup_size(256)
fn powers(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
          @builtin(local_invocation_index) t: u32) {
{{ poison("t", 256) }}
  let first = flat_workgroup(id, grid) * 16u;
  if (first >= p.M) { return; }
  let column = min(first + t % 2u * 8u, p.M - 8u);
  var low = vec4<f32>();
  var high = vec4<f32>();
  for (var k = t / 2u; k < p.K; k += {{128 * AHEAD}}u) {
# for i in range(AHEAD)
    // beyond the end the last line again, which changes nothing
    let v{{i}} = x[(p.offset + min(k + {{128 * i}}u, p.K - 1u) * p.line + column) / 8u];
# endfor
# for i in range(AHEAD)
    low = max(low, abs(vec4<f32>(unpack_{{X}}(v{{i}}.x), unpack_{{X}}(v{{i}}.y))));
    high = max(high, abs(vec4<f32>(unpack_{{X}}(v{{i}}.z), unpack_{{X}}(v{{i}}.w))));
# endfor
  }
  largest[t * 2u] = low;
  largest[t * 2u + 1u] = high;
  for (var step = 256u; step > 2u; step /= 2u) {
    workgroupBarrier();
    // two numbers a thread: those of `t`, and of as many again behind half of what is left
    if (t < step) { largest[t] = max(largest[t], largest[t + step]); }
  }
  workgroupBarrier();
  let m = first + t;
  if (t < 16u && m < p.M) {
    // as in gemm_matrix_rows.wgsl
    let bits = bitcast<u32>(largest[t / 4u][t % 4u]) >> 23u;
    scale[p.scale_offset + m] = bitcast<f32>((254u - clamp(267u - bits, 1u, 253u)) << 23u);
  }
}
