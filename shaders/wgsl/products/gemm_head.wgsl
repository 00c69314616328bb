// What products of all shapes share: parameters, operands, and the end of a tile (`emit`).
# from "gemm_operand.wgsl" import operand with context
struct Params {
  M: u32, N: u32, K: u32, units: u32, steps: u32, splits: u32,
  x_offset: u32, x_line: u32, x_batch: u32,
  w_offset: u32, w_line: u32, w_batch: u32,
  groups: u32, scale_offset: u32, x_scale_offset: u32, bias_offset: u32, residual_offset: u32,
  out_line: u32, out_column: u32, out_offset: u32,
}
{{ operand(0, "x", X, X_WHOLE, FULL and not X_ACROSS) }}
{{ operand(1, "w", W, W_WHOLE, FULL and not W_ACROSS) }}
# set next = 3 if W == "i8g" else 2
# if W == "i8" or DOT4 and not SPLIT
{{ read(next, "w_scale", "f32") }}
#   set next = next + 1
# endif
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
