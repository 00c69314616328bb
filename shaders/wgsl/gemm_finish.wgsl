// y[i] = sum over splits of part[split][i] (+ bias[i % N] + residual[i]): the end of a product
// whose K was shared out, or whose rows do not end at whole words.
//
// i: flat over [batches, M, N], four to a thread. DOT4: int32 parts, exact, then times the scales
// of the row and the column.
# set DOT4 = PART == "i32"
struct Params {
  size: u32, N: u32, splits: u32,
  scale_offset: u32, x_scale_offset: u32, bias_offset: u32, residual_offset: u32, out_offset: u32,
}
{{ read(0, "part", PART) }}
# set next = 1
# if DOT4
{{ read(1, "w_scale", "f32") }}
{{ read(2, "x_scale", "f32") }}
#   set next = 3
# endif
# if BIAS
{{ read(next, "bias", BIAS) }}
#   set next = next + 1
# endif
# if RESIDUAL
{{ read(next, "residual", RESIDUAL) }}
#   set next = next + 1
# endif
{{ write(next, "y", OUT) }}
{{ parameters(next + 1) }}

fn value(i: u32) -> f32 {
  if (i >= p.size) { return 0.0; }
  var sum = part[i];
  for (var s = 1u; s < p.splits; s++) { sum += part[s * p.size + i]; }
# if DOT4
  var v = f32(sum) * x_scale[p.x_scale_offset + i / p.N] * w_scale[p.scale_offset + i % p.N];
# else
  var v = sum;
# endif
# if BIAS
  v += bias_at(p.bias_offset + i % p.N);
# endif
# if RESIDUAL
  v += residual_at(p.residual_offset + i);
# endif
  return v;
}

@compute @workgroup_size(256)
fn finish(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
          @builtin(local_invocation_index) t: u32) {
  let i = (flat_workgroup(id, grid) * 256u + t) * 4u;
  if (i >= p.size) { return; }
  let v = vec4<f32>(value(i), value(i + 1u), value(i + 2u), value(i + 3u));
  let at = p.out_offset + i;
# if OUT == "f32"
  y[at] = v.x;
  if (i + 1u < p.size) { y[at + 1u] = v.y; }
  if (i + 2u < p.size) { y[at + 2u] = v.z; }
  if (i + 3u < p.size) { y[at + 3u] = v.w; }
# else
  y_put(at / 2u, v.xy);
  if (i + 2u < p.size) { y_put(at / 2u + 1u, v.zw); }
# endif
}
