// What products of all shapes share: parameters, operands, and the end of a tile (`emit`).
# import "gemm_operand.wgsl" as o with context
struct Params {
  M: u32, N: u32, K: u32, units: u32, steps: u32, splits: u32,
  x_base: u32, x_line: u32, x_batch: u32,
  {{ o.bases("w") }}w_line: u32, w_batch: u32,
  x_scale_offset: u32, bias_offset: u32, residual_offset: u32,
  out_line: u32, out_column: u32, out_offset: u32,
}
{{ o.operand(0, "x", X, X_WHOLE, FULL and not X_ACROSS) }}
# if o.IN_PLANES
{{ o.planes_operand(1, "w", W_WHOLE, FULL) }}
# else
{{ o.operand(1, "w", o.W, W_WHOLE, FULL and not W_ACROSS) }}
#   if DOT4
{{ read(2, "w_scales", "f32") }}
#   endif
# endif
# set next = 1 + o.PLANES | length
# if SCALED_ROWS and not (DOT4 and SPLIT)
{{ read(next, "x_scale", "f32") }}
#   set next = next + 1
# endif
# if BIAS
{{ read(next, "bias", BIAS) }}
#   set next = next + 1
# endif
# if RESIDUAL
{{ read(next, "residual", RESIDUAL) }}
#   set next = next + 1
# endif
# if GUARD
{{ read(next, "flag", "u32") }}
#   set next = next + 1
# endif
{{ write(next, "y", OUT, 4 // PER_WORD[OUT] if OUT_WHOLE else 1) }}
{{ parameters(next + 1) }}

# if DOT4
fn dot_words(a: u32, b: u32) -> i32 {
#   if caps.dot4
  return dot4I8Packed(a, b);
#   else
  let terms = unpack_i8(a) * unpack_i8(b);
  return terms.x + terms.y + terms.z + terms.w;
#   endif
}
# endif
# include "gemm_emit.wgsl"
