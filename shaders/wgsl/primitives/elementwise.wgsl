// Y[i] = OP(A[i], B[i], C[i]), broadcasting: unary and binary operations, comparisons, where, cast.
//
// Y is dense; a thread writes one vector of words: E elements. LOADS names how operands come:
//   flat    dense like Y: one aligned vector a thread, number t like Y's
//   vector  E neighbours, aligned: the vector at place(t)
//   one     the same element for all E
//   any     E elements that lie step_X apart
//   each    every element has a place of its own (rows of odd length in 16 and 8 bits)
//   scalar  a parameter: a new value needs no new pipeline
// Numbers are computed as f32, i32 or u32 (WORK) and rounded when they are packed.
// Limits: 2^32 - 1 elements, 8 collapsed axes (6 with three operands).
# import "lists.wgsl" as lists with context
# import "walk.wgsl" as walk
# set names = LOADS|map(attribute=0)|map("lower")|list
# set arrays = LOADS|rejectattr(2, "equalto", "scalar")|list
# set placed = arrays|rejectattr(2, "equalto", "flat")|map(attribute=0)|list
# set each = arrays|selectattr(2, "equalto", "each")|list|length > 0
# set per = E // PER_WORD[OUT]
struct Params {
  size: u32,    // elements of Y
  groups: u32,  // of E elements
  oY: u32,      // in groups
# for X, dtype, load in LOADS
# if load == "scalar"
  scalar_{{ X }}: {{ WORK }},
# elif load == "flat"
  o{{ X }}: u32,  // in groups
# elif load == "any"
  step_{{ X }}: u32,
# endif
# endfor
# if placed
{{ walk.fields(rank, placed) }}
# endif
}
{{ parameters(arrays|length + 1) }}
# for X, dtype, load in arrays
{{ read(loop.index0, X, dtype, E // PER_WORD[dtype] if load in ("flat", "vector") else 1) }}
# endfor
{{ write(arrays|length, "Y", OUT, per) }}
# if placed
{{ walk.place(rank, placed) }}
# endif
# set QUICK = OUT in ("f16", "bf16")
# include "math.wgsl"
# if OP == "pow"
# include "power.wgsl"
# endif
# include "operations.wgsl"
# macro value(X, dtype, index)
{{ WORK }}({{ X }}_at({{ index }}))
# endmacro
// Elements 4 g .. 4 g + 3 of a thread, from what it has read.
# macro four(X, dtype, load, g, u)
# set w = "w" ~ X ~ u
# if load in ("flat", "vector")
vec4<{{ WORK }}>({{ lists.four(w, dtype, E // PER_WORD[dtype], g)|trim }})
# elif load == "one"
vec4<{{ WORK }}>({{ w }})
# elif load == "scalar"
vec4<{{ WORK }}>(p.scalar_{{ X }})
# else
# set each_place = "%s + (%du + %%du) * p.step_%s" % (w, 4 * g, X)
vec4<{{ WORK }}>({{ lists.terms(4, value(X, dtype, each_place)|trim)|trim }})
# endif
# endmacro
# macro at(X, j)
at{{ j }}{{ "." ~ "xyz"[placed.index(X)] if placed|length > 1 }}
# endmacro
# macro packed(g)
# if PER_WORD[OUT] == 2
pack_{{ OUT }}(y{{ g }}.xy), pack_{{ OUT }}(y{{ g }}.zw)
# else
pack_{{ OUT }}(y{{ g }})
# endif
# endmacro
# macro result(u)
# if PER_WORD[OUT] == 1
y0{{ u }}
# else
{{ "vec%d<u32>" % per if per > 1 else "u32" }}(
# for g in range(E // 4)
{{ packed("%d%s" % (g, u))|trim }}{{ "," if not loop.last }}
# endfor
)
# endif
# endmacro
# macro compute(u)
# for g in range(E // 4)
# for X, dtype, load in LOADS
  let {{ X|lower }}{{ g }}{{ u }} = {{ four(X, dtype, load, g, u)|trim }};
# endfor
  let y{{ g }}{{ u }} = vec4<{{ VALUE[OUT] }}>(
# for c in "xyzw"
    operation({{ lists.joined(names, "%s" ~ g ~ u ~ "." ~ c)|trim }}){{ "," if c != "w" }}
# endfor
  );
# endfor
# endmacro

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
# if not placed
  let first = flat_workgroup(id, count) * {{ threads * UNROLL }}u + lane;
  if (first >= p.groups) { return; }
# for u in range(UNROLL)
  let t_{{ u }} = {{ "first" if u == 0 else "min(first + %du, p.groups - 1u)" % (u * threads) }};
# for X, dtype, load in arrays
  let w{{ X }}_{{ u }} = {{ X }}[p.o{{ X }} + t_{{ u }}];
# endfor
# endfor
# for u in range(UNROLL)
{{ compute("_%d" % u) }}
  Y[p.oY + t_{{ u }}] = {{ result("_%d" % u)|trim }};
# endfor
# elif each or E < 4
  // {{ E }} elements, each at a place of its own
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  if (t >= p.groups) { return; }
# for j in range(E)
  let at{{ j }} = place(min(t * {{ E }}u + {{ j }}u, p.size - 1u));
# for X, dtype, load in LOADS
# if load == "scalar"
  let {{ X|lower }}{{ j }} = p.scalar_{{ X }};
# else
  let {{ X|lower }}{{ j }} = {{ value(X, dtype, at(X, j)|trim)|trim }};
# endif
# endfor
  let y{{ j }} = operation({{ lists.joined(names, "%s" ~ j)|trim }});
# endfor
# if E == 1
  Y[p.oY + t] = y0;
# else
  Y[p.oY + t] = pack_{{ OUT }}(vec{{ E }}<{{ VALUE[OUT] }}>({{ lists.terms(E, "y%d")|trim }}));
# endif
# else
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  if (t >= p.groups) { return; }
  let at = place(t);
# for X, dtype, load in arrays
# if load == "flat"
  let w{{ X }} = {{ X }}[p.o{{ X }} + t];
# elif load == "vector"
  let w{{ X }} = {{ X }}[{{ at(X, "")|trim }}];
# elif load == "one"
  let w{{ X }} = {{ value(X, dtype, at(X, "")|trim)|trim }};
# else
  let w{{ X }} = {{ at(X, "")|trim }};
# endif
# endfor
{{ compute("") }}
  Y[p.oY + t] = {{ result("")|trim }};
# endif
}
