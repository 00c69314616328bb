// Four results of row m from column n on: scaled, biased, rounded, stored.
# if OUT_WHOLE
fn emit(slab: u32, m: u32, n: u32, sums: vec4<{{RESULT}}>) {
  if (m >= p.M || n >= p.N) { return; }
  let at = (slab * p.M + m) * p.out_line + p.out_column + n;
#   if SPLIT and RESULT == "i32"
  y[(p.out_offset + at) / 4u] = sums;
#   else
  var v = vec4<f32>(sums);
#     if SCALED_ROWS
  v *= x_scale[p.x_scale_offset + m];
#     endif
#     if SCALED_COLUMNS
  v *= w_scales_at4(p.w_scales_base + n);
#     endif
#     if BIAS
  let b = p.bias_offset + n;
  v += vec4<f32>(bias_at(b), bias_at(b + 1u), bias_at(b + 2u), bias_at(b + 3u));
#     endif
#     if RESIDUAL
  v += residual_at4(p.residual_offset + at);
#     endif
#     if OUT == "f32"
  y[(p.out_offset + at) / 4u] = v;
#     else
  y[(p.out_offset + at) / 4u] = vec2<u32>(pack_{{OUT}}(v.xy), pack_{{OUT}}(v.zw));
#     endif
#   endif
}
# else
fn emit(slab: u32, m: u32, n: u32, sums: vec4<{{RESULT}}>) {
  if (m >= p.M) { return; }
  emit_one(slab, m, n, sums.x);
  emit_one(slab, m, n + 1u, sums.y);
  emit_one(slab, m, n + 2u, sums.z);
  emit_one(slab, m, n + 3u, sums.w);
}
fn emit_one(slab: u32, m: u32, n: u32, sum: {{RESULT}}) {
  if (n >= p.N) { return; }
  let at = (slab * p.M + m) * p.out_line + p.out_column + n;
#   if SPLIT and RESULT == "i32"
  y[p.out_offset + at] = sum;
#   else
  var v = f32(sum);
#     if SCALED_ROWS
  v *= x_scale[p.x_scale_offset + m];
#     endif
#     if SCALED_COLUMNS
  v *= w_scales[p.w_scales_base + n];
#     endif
#     if BIAS
  v += bias_at(p.bias_offset + n);
#     endif
#     if RESIDUAL
  v += residual_at(p.residual_offset + at);
#     endif
  y[p.out_offset + at] = v;
#   endif
}
# endif
