// The index of the first largest element of each row; a nan is largest. finite 1: -1 for a row with
// a nan, or whose largest element is infinite.
//
// Mapping: a workgroup for each row, or (PARTS 1) for each of `parts` equal pieces of a row, whose
// (key, id) go to found [rows, parts]; then PAIRS 1 takes a row's pairs in place of its elements.
// Values: LOGIT, VEC, THREADS a power of 2, LOADS, SUBGROUPS, PARTS, PAIRS.
struct Params { rows: u32, V: u32, first: u32, parts: u32, piece: u32, finite: u32 }
# if PAIRS
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
# else
{{ read(0, "logits", LOGIT, 4 if VEC else 1) }}
# endif
# if PARTS
@group(0) @binding(1) var<storage, read_write> found: array<vec2<u32>>;
# else
{{ write(1, "out", "i32") }}
# endif
{{ parameters(2) }}
# from "sampling_each.wgsl" import each with context
# include "sampling_order.wgsl"

@compute @workgroup_size({{ THREADS }})
fn argmax(
    @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32) {
  {{ poison("t", THREADS) }}
  let n = flat_workgroup(id, count);
  if (n >= p.rows * p.parts) { return; }
  var best = vec2<u32>(0xffffffffu);
# if PAIRS
  for (var i = t; i < p.V; i += {{ THREADS }}u) {
    let one = pairs[n * p.V + i];
    if (before(one, best)) { best = one; }
  }
# else
  let row = n / p.parts;
  let from_ = (n - row * p.parts) * p.piece;
  let to_ = min(from_ + p.piece, p.V);
  let first = p.first + row * p.V;
#   call(v, id) each("first", "from_", "to_", LOADS)
  let key = key_of({{ v }});
  if (key < best.x) { best = vec2<u32>(key, {{ id }}); }
#   endcall
# endif
  best = first_of_all(t, best);
# if PARTS
  if (t == 0u) { found[n] = best; }
# else
  if (t == 0u) { out[n] = select(-1, i32(best.y), p.finite == 0u || is_finite(best.x)); }
# endif
}
