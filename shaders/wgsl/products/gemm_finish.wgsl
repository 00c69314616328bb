// y[i] = sum over splits of part[split][i] (+ bias[i % N] + residual[i]): the end of a product
// whose K was shared out, or whose rows do not end at whole words.
//
// i: flat over [batches, M, N], four to a thread. DOT4: int32 parts, exact, then times the scales
// of the row and the column. WHOLE: rows and arrays begin at whole vectors; then SPLITS is a
// constant, so that the loads of all parts are on their way at once (else 0).
# set DOT4 = PART == "i32"
struct Params {
  size: u32, N: u32, splits: u32,
  scale_offset: u32, x_scale_offset: u32, bias_offset: u32, residual_offset: u32, out_offset: u32,
}
{{ read(0, "part", PART, 4 if WHOLE else 1) }}
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
{{ write(next, "y", OUT, 4 // PER_WORD[OUT] if WHOLE else 1) }}
{{ parameters(next + 1) }}

# if WHOLE
fn four(i: u32) -> vec4<f32> {
  let n = i % p.N;
#   for s in range(SPLITS)
  let sum{{s}} = part[({{s}}u * p.size + i) / 4u]{{ " + sum%d" % (s - 1) if s else "" }};
#   endfor
  var v = vec4<f32>(sum{{SPLITS - 1}});
#   if DOT4
  v *= x_scale[p.x_scale_offset + i / p.N] * w_scale_at4(p.scale_offset + n);
#   endif
#   if BIAS
  v += bias_at4(p.bias_offset + n);
#   endif
#   if RESIDUAL
  v += residual_at4(p.residual_offset + i);
#   endif
  return v;
}
# else
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
# endif

@compute @workgroup_size(256)
fn finish(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) grid: vec3<u32>,
          @builtin(local_invocation_index) t: u32) {
  let i = (flat_workgroup(id, grid) * 256u + t) * 4u;
  if (i >= p.size) { return; }
  let at = p.out_offset + i;
# if WHOLE
  let v = four(i);
#   if OUT == "f32"
  y[at / 4u] = v;
#   else
  y[at / 4u] = vec2<u32>(pack_{{OUT}}(v.xy), pack_{{OUT}}(v.zw));
#   endif
# else
  let v = vec4<f32>(value(i), value(i + 1u), value(i + 2u), value(i + 3u));
#   if OUT == "f32"
  y[at] = v.x;
  if (i + 1u < p.size) { y[at + 1u] = v.y; }
  if (i + 2u < p.size) { y[at + 2u] = v.z; }
  if (i + 3u < p.size) { y[at + 3u] = v.w; }
#   else
  y_put(at / 2u, v.xy);
  if (i + 2u < p.size) { y_put(at / 2u + 1u, v.zw); }
#   endif
# endif
}
