// Rows of x for products with codes by instructions that add up four products of bytes
// (gemv_rows.wgsl imports it, whose values it sees): x = scale · q within 2^-16 of the largest of
// its chunk, where q = 256 high + low and both are signed bytes, so that sums of products with
// codes are exact. A workgroup makes them once, in shared memory, a thread eight at a time (EIGHTS
// turns); then each thread reads the chunks that it keeps.
# from "reduce_rows.wgsl" import reduction with context
# set EIGHTS = (K // 8 + THREADS - 1) // THREADS
# set RMS = NORM and not NORM.layer
# macro functions()
struct Digits {
  scale: f32, {% for i in range(SPANS) %}ones{{ i }}: i32, {% endfor %}
  {% for e in range(CHUNK // 8) %}e{{ e }}: vec4<u32>, {% endfor %}

}
// Of eight inputs: the low bytes in x and y, the high bytes in z and w.
{{ workgroup("digits", "vec4<u32>", M * K // 8) }}
{{ workgroup("digit_scales", "f32", M * CHUNKS) }}
#   if RMS
{{ reduction("all_squares", "f32", "add", THREADS) }}
#   endif
fn low_dots(b: vec4<u32>, e: vec4<u32>, f: vec4<u32>) -> i32 {
  return dot4I8Packed(b.x, e.x) + dot4I8Packed(b.y, e.y)
       + dot4I8Packed(b.z, f.x) + dot4I8Packed(b.w, f.y);
}
fn high_dots(b: vec4<u32>, e: vec4<u32>, f: vec4<u32>) -> i32 {
  return dot4I8Packed(b.x, e.z) + dot4I8Packed(b.y, e.w)
       + dot4I8Packed(b.z, f.z) + dot4I8Packed(b.w, f.w);
}
fn ones(e: vec4<u32>, f: vec4<u32>) -> i32 {
  const one = vec4<u32>(0x01010101u);
  return 256 * high_dots(one, e, f) + low_dots(one, e, f);
}
// The largest |x| of eight as its bits, among which those of a nan are the largest.
fn most8(x: Eight) -> u32 {
  let a = bitcast<vec4<u32>>(x.a) & vec4<u32>(0x7fffffffu);
  let b = bitcast<vec4<u32>>(x.b) & vec4<u32>(0x7fffffffu);
  let most = max(a, b);
  return max(max(most.x, most.y), max(most.z, most.w));
}
// q + 128 in the low 16 bits of each, as the number that is added has no other bits there.
fn whole(x: vec4<f32>, up: f32) -> vec4<u32> {
  return bitcast<vec4<u32>>(fma(x, vec4<f32>(up), vec4<f32>(12583040.0)));
}
// The low and the high bytes of four.
fn split(q: vec4<u32>) -> vec2<u32> {
  let even = (q.x & 0xffffu) | (q.z << 16u);
  let odd = (q.y & 0xffffu) | (q.w << 16u);
  let low = (even & 0x00ff00ffu) | ((odd << 8u) & 0xff00ff00u);
  return vec2<u32>(low ^ 0x80808080u, ((even >> 8u) & 0x00ff00ffu) | (odd & 0xff00ff00u));
}
// Chunk c of row m, its scale times a factor; of zeros unless `live`.
fn kept_digits(m: u32, c: u32, factor: f32, live: bool) -> Digits {
#   for e in range(CHUNK // 8)
  let e{{ e }} = digits[m * {{ K // 8 }}u + {{ CHUNK // 8 }}u * c + {{ e }}u];
#   endfor
  return Digits(
    select(0.0, digit_scales[m * {{ CHUNKS }}u + c] * factor, live),
#   set parts = CHUNK // 16 // SPANS
#   for i in range(SPANS)
#     if FORM.zero or FORM.offsets
    {% for j in range(parts * i, parts * (i + 1)) %}
      {{- " + " if not loop.first -}}
      ones(e{{ 2 * j }}, e{{ 2 * j + 1 }})
    {%- endfor %},
#     else
    0,
#     endif
#   endfor
    {% for e in range(CHUNK // 8) %}e{{ e }}, {% endfor %}

  );
}
# endmacro

# macro factor(m)
{{ "rms%d" % m if RMS else "1.0" }}
{%- endmacro %}
# macro row(m)
{{ "min(%du, p.M - 1u)" % m if m else "0u" }}
{%- endmacro %}
// Asks for x and what a norm multiplies it by, so that they arrive before the weights, which are
// asked for next. (Of attention's splits a thread reads too much to keep it that long.)
# macro ask()
#   for s in range(EIGHTS)
#     set edge = K // 8 % THREADS != 0 and s == EIGHTS - 1
  let i{{ s }} = thread + {{ s * THREADS }}u;
  let live{{ s }} = {{ "i%d < %du" % (s, K // 8) if edge else "true" }};
  let own{{ s }} = {{ "min(i%d, %du)" % (s, K // 8 - 1) if edge else "i%d" % s }};
#     if INPUT == "plain"
#       for m in range(M)
  let raw{{ s }}_{{ m }} = x[p.x_base + {{ row(m) }} * {{ K // 8 }}u + own{{ s }}];
#       endfor
#     endif
#     if NORM
  let gain{{ s }} = gains8(own{{ s }});
#     endif
#   endfor
# endmacro
// Fills shared memory from what `ask` has asked for.
# macro share()
#   for m in range(M)
  var squares{{ m }} = 0.0;
#     for s in range(EIGHTS)
  {
#       if INPUT == "plain"
    var x = eight_of(raw{{ s }}_{{ m }});
#       else
    var x = eight({{ row(m) }}, own{{ s }});
#       endif
#       if RMS
    squares{{ m }} += select(0.0, squares8(x), live{{ s }});
    x = scaled8(x, gain{{ s }});
#       elif NORM
    x = scaled8(centred8(x, mean{{ m }}, inverse{{ m }}), gain{{ s }});
#         if NORM.bias
    x = shifted8(x, shifts8(own{{ s }}));
#         endif
#       endif
    var bits = most8(x);
#       for d in (1, 2) if d < CHUNK // 8
    bits = max(bits, subgroupShuffleXor(bits, {{ d }}u));
#       endfor
    let most = bitcast<f32>(bits);
    let up = select(0.0, 32639.0 / most, most > 1e-30);
    let a = split(whole(x.a, up));
    let b = split(whole(x.b, up));
    if (live{{ s }}) {
      digits[{{ m * K // 8 }}u + i{{ s }}] = vec4<u32>(a.x, b.x, a.y, b.y);
      if (thread % {{ CHUNK // 8 }}u == 0u) {
        digit_scales[{{ m * CHUNKS }}u + i{{ s }} / {{ CHUNK // 8 }}u] = most / 32639.0;
      }
    }
  }
#     endfor
#   endfor
#   if RMS
#     set lanes = "%du" % LANES if LANES else "lanes"
#     for m in range(M)
  let total{{ m }} = all_squares(squares{{ m }}, {{ m % 2 }}u, thread, {{ lanes }});
  let rms{{ m }} = inverseSqrt(total{{ m }} / {{ K }}.0 + p.eps);
#     endfor
#   endif
#   if not RMS or THREADS <= caps.subgroup_min
  workgroupBarrier();  // else that of the sum is one
#   endif
# endmacro
