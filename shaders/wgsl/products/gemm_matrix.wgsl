// y[M, N] = x · wᵀ on tensor cores (subgroup matrices), f16 products summed in f32.
//
// x: f16 [M, K], times x_scale[m] (gemm_matrix_rows.wgsl brings bf16 rows there by powers of two,
// exactly). w: f16, bf16, or planes (FORM, planes.wgsl). bf16 and codes with a scale of their group
// become f16 by way of w * W_UP (2^7): exact for bf16 between 2^-24 and 2^9, rounded to a multiple
// of 2^-31 below; where one is beyond, `flag` is set and gemm.wgsl makes the product again.
// W_ACROSS: w is K lines of N, 16 bits; X_ACROSS (then too): x is K lines of M, 16 bits. Columns of
// either become f16 on their way, by powers of two that x_scale takes back: [M] for x, behind them
// [N] for w (gemm_matrix_powers.wgsl). Lines and columns then lie in shared memory as in the arrays.
// X == "words": int8 in words, exact int32 sums. A workgroup of (BM / WM) (BN / WN) subgroups makes
// BM x BN, each WM x WN of it in matrices of MM x MN x MK. Both tiles lie in shared memory as lines
// of BK and 16 bytes that keep the lines of a matrix in different banks; the next tile's words
// travel behind this one's products. Results pass through the same memory in strips of MM rows.
// Offsets and strides of loads and stores count what the array holds, here 16 bytes, not numbers of
// the matrix.
// Grid: (tiles of M, tiles of N, splits); SPLIT, FULL and the end: gemm.wgsl. Limits: lines of
// whole 16 bytes (8 values; 16 for int8), and K as well but for X_ACROSS; N % 4 == 0.
# import "planes.wgsl" as planes with context
# set INTEGERS = X == "words"
# set RESULT = "i32" if INTEGERS else "f32"
# set COMPONENT = "i8" if INTEGERS else "f16"
# set EACH = 16 if INTEGERS else 8
# set X_LINE = (BM if X_ACROSS else BK) // EACH + 1
# set W_LINE = (BN if W_ACROSS else BK) // EACH + 1
# set X_SIZE = (BK if X_ACROSS else BM) * X_LINE
# set W_SIZE = (BK if W_ACROSS else BN) * W_LINE
# set THREADS = BM // WM * (BN // WN) * LANES
# set SUBGROUPS = THREADS // LANES
# set STRIP = WN // 4 + 1
# set SCALED_ROWS = INTEGERS or X_SCALED
# set IN_PLANES = planes.BITS and not INTEGERS
# set SCALED_COLUMNS = FORM.row_scaled
# set GUARDED = not W_ACROSS and (FORM.codes == "bf16" or planes.GROUPED or FORM.table)
# set W_UP = 128.0 if GUARDED else 1.0
# set X_UNITS = BM * BK // EACH // THREADS
# set W_UNITS = BN * BK // EACH // THREADS
struct Params {
  M: u32, N: u32, K: u32, units: u32, steps: u32, splits: u32,
  x_base: u32, x_line: u32, x_batch: u32,
  {{ planes.bases("w") }}w_line: u32, w_batch: u32,
  x_scale_offset: u32, bias_offset: u32, residual_offset: u32,
  out_line: u32, out_column: u32, out_offset: u32,
}
{{ read(0, "x", "u32", 4) }}
# if IN_PLANES
{{ planes.decoders(2) }}
{{ planes.planes(1, "w", "p.K", 2) }}
# else
{{ read(1, "w", "u32", 4) }}
#   if INTEGERS
{{ read(2, "w_scales", "f32") }}
#   endif
# endif
# set next = 1 + planes.PLANES | length
# if SCALED_ROWS and not (INTEGERS and SPLIT)
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
{{ write(next, "y", OUT, 4 // PER_WORD[OUT]) }}
#   set next = next + 1
# if GUARDED
@group(0) @binding({{next}}) var<storage, read_write> flag: array<atomic<u32>>;
#   set next = next + 1
# endif
{{ parameters(next) }}
# set OUT_WHOLE = true
# include "gemm_emit.wgsl"
alias left = subgroup_matrix_left<{{COMPONENT}}, {{MK}}, {{MM}}>;
alias right = subgroup_matrix_right<{{COMPONENT}}, {{MN}}, {{MK}}>;
{{ workgroup("tiles", "vec4<u32>", [X_SIZE + W_SIZE, SUBGROUPS * MM * STRIP] | max) }}
var<private> most: vec4<f32>;

fn pack8(a: vec4<f32>, b: vec4<f32>) -> vec4<u32> {
# if GUARDED
  most = max(most, max(abs(a), abs(b)));
# endif
  return vec4<u32>(pack2x16float(a.xy), pack2x16float(a.zw),
                   pack2x16float(b.xy), pack2x16float(b.zw));
}
# macro scaled(kind, raw, up)
vec4<u32>(
#   for i in "xyzw"
    pack2x16float(unpack_{{kind}}({{raw}}.{{i}}) * unpack_bf16({{up}}.{{i}})),
#   endfor
  );
# endmacro
# if W_ACROSS
// The powers of two, as bf16, for the 8 columns of x and of w that a thread brings.
var<private> x_up: vec4<u32>;
var<private> w_up: vec4<u32>;
fn power(m: u32) -> u32 {  // 2^e where 2^-e is stored
  return (254u - (bitcast<u32>(x_scale[p.x_scale_offset + m]) >> 23u)) << 7u;
}
fn two_powers(m: u32) -> u32 { return power(m) | (power(m + 1u) << 16u); }
fn powers(m: u32) -> vec4<u32> {
  return vec4<u32>(two_powers(m), two_powers(m + 2u), two_powers(m + 4u), two_powers(m + 6u));
}
# endif
// Raw words of EACH weights of row `row` from k on, and those as components of matrices.
# if IN_PLANES
fn w_load(row: u32, k: u32) -> Raw { return w_raw(row, k); }
fn w_pack(raw: Raw, row: u32, k: u32) -> vec4<u32> {
  let b = {{ planes.bytes_of("raw", "k") }};
#   if planes.GROUPED
  let scale = vec4<f32>(w_scale(raw, row, k) * {{ W_UP }});
#     if planes.ZEROS
  let zero = vec4<f32>(w_offset(raw, row, k));
  return pack8((codes(b.x) - zero) * scale, (codes(b.y) - zero) * scale);
#     else
  let offset = vec4<f32>({{ "w_offset(raw, row, k) * %f" % W_UP if FORM.offsets }});
  return pack8(fma(codes(b.x), scale, offset), fma(codes(b.y), scale, offset));
#     endif
#   else
  return pack8(codes(b.x){{ " * %.1f" % W_UP if GUARDED }}, codes(b.y){{ " * %.1f" % W_UP if GUARDED }});
#   endif
}
# else
alias Raw = vec4<u32>;
#   if W_ACROSS
fn w_load(column: u32, k: u32) -> Raw {
  return w[(p.w_base + k * p.w_line + column) / 8u];
}
#   else
fn w_load(row: u32, k: u32) -> Raw { return w[(p.w_base + row * p.w_line + k) / {{EACH}}u]; }
#   endif
fn w_pack(raw: Raw, row: u32, k: u32) -> vec4<u32> {
#   if W_ACROSS
  return {{ scaled(FORM.codes, "raw", "w_up") }}
#   elif FORM.codes == "bf16"
  return pack8(vec4<f32>(unpack_bf16(raw.x), unpack_bf16(raw.y)) * {{W_UP}},
               vec4<f32>(unpack_bf16(raw.z), unpack_bf16(raw.w)) * {{W_UP}});
#   else
  return raw;
#   endif
}
# endif

# macro x_words(i)
{%- if X_ACROSS -%} x[x_from_{{i}} + k * (p.x_line / 8u)]
{%- else -%} x[x_from_{{i}} + k / {{EACH}}u]
{%- endif -%}
# endmacro
# macro fetch()
#   if FULL
    if (k < last) {
#     for i in range(X_UNITS)
      x{{i}} = {{ x_words(i) }};
#     endfor
#     for i in range(W_UNITS)
      w{{i}} = w_load(w_row_{{i}}, k + w_k_{{i}});
#     endfor
    }
#   else
#     for i in range(X_UNITS)
    x{{i}} = vec4<u32>();
    if (k + x_k_{{i}} < last) { x{{i}} = {{ x_words(i) }}; }
#     endfor
#     for i in range(W_UNITS)
    w{{i}} = Raw();
    if (k + w_k_{{i}} < last) { w{{i}} = w_load(w_row_{{i}}, k + w_k_{{i}}); }
#     endfor
#   endif
# endmacro
# macro stash()
#   for i in range(X_UNITS)
#     if X_ACROSS
    tiles[x_to_{{i}}] = {{ scaled(X, "x%d" % i, "x_up") }}
#     else
    tiles[x_to_{{i}}] = x{{i}};
#     endif
#   endfor
#   for i in range(W_UNITS)
    tiles[w_to_{{i}}] = w_pack(w{{i}}, w_row_{{i}}, k + w_k_{{i}});
#   endfor
# endmacro
# macro multiply()
#   for k in range(BK // MK)
    {
#     for j in range(WN // MN)
#       if W_ACROSS
      let b{{j}} = subgroupMatrixLoad<right, row_major>(
        &tiles, b_from + {{j * MN // EACH + k * MK * W_LINE}}u, {{W_LINE}}u);
#       else
      let b{{j}} = subgroupMatrixLoad<right, col_major>(
        &tiles, b_from + {{j * MN * W_LINE + k * MK // EACH}}u, {{W_LINE}}u);
#       endif
#     endfor
#     for i in range(WM // MM)
#       if X_ACROSS
      let a{{i}} = subgroupMatrixLoad<left, col_major>(
        &tiles, a_from + {{i * MM // EACH + k * MK * X_LINE}}u, {{X_LINE}}u);
#       else
      let a{{i}} = subgroupMatrixLoad<left, row_major>(
        &tiles, a_from + {{i * MM * X_LINE + k * MK // EACH}}u, {{X_LINE}}u);
#       endif
#       for j in range(WN // MN)
      c{{i}}_{{j}} = subgroupMatrixMultiplyAccumulate(a{{i}}, b{{j}}, c{{i}}_{{j}});
#       endfor
#     endfor
    }
#   endfor
# endmacro

@compute @workgroup_size({{THREADS}})
fn gemm(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) t: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
{{ poison("t", THREADS) }}
{{ planes.open_table("t") }}
  let m0 = id.x * {{BM}}u;
  let n0 = id.y * {{BN}}u;
  var k = id.z * p.steps * {{BK}}u;
  let last = min(p.K, k + p.steps * {{BK}}u);
# if X_ACROSS
  // whole lines divide the threads, so that all units of a thread are of the same columns
  let x_column = min(m0 + t % {{BM // EACH}}u * {{EACH}}u, p.M - {{EACH}}u);
  x_up = powers(x_column);
# endif
# for i in range(X_UNITS)
  let x_unit_{{i}} = t + {{i * THREADS}}u;
#   if X_ACROSS
  let x_k_{{i}} = x_unit_{{i}} / {{BM // EACH}}u;
  let x_to_{{i}} = x_k_{{i}} * {{X_LINE}}u + x_unit_{{i}} % {{BM // EACH}}u;
  let x_from_{{i}} = (p.x_base + x_k_{{i}} * p.x_line + x_column) / {{EACH}}u;
#   else
  let x_k_{{i}} = x_unit_{{i}} % {{BK // EACH}}u * {{EACH}}u;
  let x_to_{{i}} = x_unit_{{i}} / {{BK // EACH}}u * {{X_LINE}}u + x_unit_{{i}} % {{BK // EACH}}u;
  let x_from_{{i}} = (p.x_base + min(m0 + x_unit_{{i}} / {{BK // EACH}}u, p.M - 1u) * p.x_line
                      + x_k_{{i}}) / {{EACH}}u;
#   endif
  var x{{i}}: vec4<u32>;
# endfor
# if W_ACROSS
  let w_column = min(n0 + t % {{BN // EACH}}u * {{EACH}}u, p.N - {{EACH}}u);
  w_up = powers(p.M + w_column);
# endif
# for i in range(W_UNITS)
  let w_unit_{{i}} = t + {{i * THREADS}}u;
#   if W_ACROSS
  let w_k_{{i}} = w_unit_{{i}} / {{BN // EACH}}u;
  let w_to_{{i}} = {{X_SIZE}}u + w_k_{{i}} * {{W_LINE}}u + w_unit_{{i}} % {{BN // EACH}}u;
  let w_row_{{i}} = w_column;
#   else
  let w_k_{{i}} = w_unit_{{i}} % {{BK // EACH}}u * {{EACH}}u;
  let w_to_{{i}} = {{X_SIZE}}u + w_unit_{{i}} / {{BK // EACH}}u * {{W_LINE}}u
                   + w_unit_{{i}} % {{BK // EACH}}u;
  let w_row_{{i}} = min(n0 + w_unit_{{i}} / {{BK // EACH}}u, p.N - 1u);
#   endif
  var w{{i}}: Raw;
# endfor
# for i in range(WM // MM)
#   for j in range(WN // MN)
  var c{{i}}_{{j}} = subgroup_matrix_result<{{RESULT}}, {{MN}}, {{MM}}>();
#   endfor
# endfor
  let row = subgroup / {{BN // WN}}u * {{WM}}u;
  let column = subgroup % {{BN // WN}}u * {{WN}}u;
  let a_from = {{ "row / %du" % EACH if X_ACROSS else "row * %du" % X_LINE }};
  let b_from = {{X_SIZE}}u + {{ "column / %du" % EACH if W_ACROSS else "column * %du" % W_LINE }};
{{ fetch() }}
  while (k < last) {
{{ stash() }}
    workgroupBarrier();
    k += {{BK}}u;
{{ fetch() }}
{{ multiply() }}
    workgroupBarrier();
  }
# if GUARDED
  if (max(max(most.x, most.y), max(most.z, most.w)) > 65000.0) { atomicStore(&flag[0], 1u); }
# endif
  let strip = subgroup * {{MM * STRIP}}u;
# for i in range(WM // MM)
#   for j in range(WN // MN)
  subgroupMatrixStore<row_major>(&tiles, strip + {{j * MN // 4}}u, c{{i}}_{{j}}, {{STRIP}}u);
#   endfor
  workgroupBarrier();
  for (var q = lane; q < {{MM * WN // 4}}u; q += {{LANES}}u) {
    let down = q / {{WN // 4}}u;
    let across = q % {{WN // 4}}u;
    let sums = bitcast<vec4<{{RESULT}}>>(tiles[strip + down * {{STRIP}}u + across]);
    let n = n0 + column + across * 4u;
#   if W_ACROSS
    let w_down = x_scale_at4(p.x_scale_offset + p.M + min(n, p.N - 4u));
#   endif
    emit(id.z, m0 + row + {{i * MM}}u + down, n,
         sums{{ " * w_down" if W_ACROSS else " * %.10f" % (1 / W_UP) if GUARDED else "" }});
  }
#   if not loop.last
  workgroupBarrier();
#   endif
# endfor
}
