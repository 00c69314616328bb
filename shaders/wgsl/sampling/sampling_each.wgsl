// Imported: each(first, from, to), a loop over elements from..to-1 of the row of logits that begins
// at `first`, shared out over the threads t. Its body takes text for the element and its index.
// loads: vectors on their way at once, each of which repeats the body.
// Values: VEC (f32 in whole vec4s: first, from and to are multiples of 4), THREADS.
# macro each(first, from, to, loads=1)
#   if VEC
  for (var i_ = {{ from }} / 4u + t; i_ < {{ to }} / 4u; i_ += {{ loads * THREADS }}u) {
#     for n in range(loads)
    let x{{ n }}_ = logits[{{ first }} / 4u + min(i_ + {{ n * THREADS }}u, {{ to }} / 4u - 1u)];
#     endfor
#     for n in range(loads)
    if (i_ + {{ n * THREADS }}u < {{ to }} / 4u) {
      let id_ = 4u * (i_ + {{ n * THREADS }}u);
#       for e in "xyzw"
      { {{ caller("x%d_.%s" % (n, e), "(id_ + %du)" % loop.index0) }} }
#       endfor
    }
#     endfor
  }
#   else
  for (var i_ = {{ from }} + t; i_ < {{ to }}; i_ += {{ THREADS }}u) {
    let x_ = logits_at({{ first }} + i_);
    { {{ caller("x_", "i_") }} }
  }
#   endif
# endmacro
