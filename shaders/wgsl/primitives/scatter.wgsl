// Y[r, q] = sum of A[i, q] over those i whose number rows[i] is r: zero where there is none.
//
// `order` sorts `rows`. STARTS finds by bisection where each row begins in it (one more entry ends
// the last). Then a thread makes one word of Y (VECTOR: four words of one row) and adds what belongs
// there, in the order of i: equal inputs give equal sums, without atomics. Sums in f32 (i32, u32),
// in blocks of 32 and over these, which keeps the error of long ones small.
# import "lists.wgsl" as lists with context
# set V = VALUE[KIND]
# set per = PER_WORD[KIND]
# if STARTS
struct Params {
  lines: u32,    // of Y
  numbers: u32,  // i
}
{{ parameters(3) }}
{{ read(0, "rows", INDEX) }}
{{ read(1, "order", "u32") }}
{{ write(2, "starts", "u32") }}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let line = flat_workgroup(id, count) * {{ threads }}u + lane;
  if (line > p.lines) { return; }
  var low = 0u;
  var high = p.numbers;
  while (low < high) {
    let middle = (low + high) / 2u;
    if (u32(rows_at(order[middle])) < line) { low = middle + 1u; } else { high = middle; }
  }
  starts[line] = low;
}
# else
struct Params {
  words: u32,     // of Y
  elements: u32,  // of Y
  inner: u32,     // elements of a row
  first: u32,     // row that is the first of those bound as Y
  oY: u32,        // in words
  oA: u32,
}
{{ parameters(4) }}
{{ read(0, "A", KIND, 4 if VECTOR else 1) }}
{{ read(1, "order", "u32") }}
{{ read(2, "starts", "u32") }}
{{ write(3, "Y", KIND, 4 if VECTOR else 1) }}
# if VECTOR

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  if (t >= p.words / 4u) { return; }
  let vectors = p.inner / {{ 4 * per }}u;
  let row = t / vectors;
  let q = p.oA / {{ 4 * per }}u + t - row * vectors;
  let end = starts[p.first + row + 1u];
# for g in range(per)
  var total{{ g }} = vec4<{{ V }}>();
# endfor
  for (var first = starts[p.first + row]; first < end; first += 32u) {
# for g in range(per)
    var block{{ g }} = vec4<{{ V }}>();
# endfor
    let stop = min(first + 32u, end);
    for (var i = first; i < stop; i += 1u) {
      let w = A[order[i] * vectors + q];
# for g in range(per)
      block{{ g }} += {{ lists.four("w", KIND, 4, g)|trim }};
# endfor
    }
# for g in range(per)
    total{{ g }} += block{{ g }};
# endfor
  }
# if per == 1
  Y[p.oY / 4u + t] = total0;
# elif per == 2
  let low = vec2<u32>(pack_{{ KIND }}(total0.xy), pack_{{ KIND }}(total0.zw));
  Y[p.oY / 4u + t] = vec4<u32>(low, pack_{{ KIND }}(total1.xy), pack_{{ KIND }}(total1.zw));
# else
  Y[p.oY / 4u + t] = vec4<u32>({{ lists.terms(4, "pack_" ~ KIND ~ "(total%d)")|trim }});
# endif
}
# else

fn element(e: u32) -> {{ V }} {
  let row = e / p.inner;
  let q = p.oA + e - row * p.inner;
  let end = starts[p.first + row + 1u];
  var total = {{ V }}(0);
  for (var first = starts[p.first + row]; first < end; first += 32u) {
    var block = {{ V }}(0);
    let stop = min(first + 32u, end);
    for (var i = first; i < stop; i += 1u) { block += A_at(order[i] * p.inner + q); }
    total += block;
  }
  return total;
}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  if (t >= p.words) { return; }
# if per == 1
  Y_put(p.oY + t, element(t));
# else
  let e = t * {{ per }}u;
  let last = p.elements - 1u;
  let each = vec{{ per }}<{{ V }}>({{ lists.terms(per, "element(min(e + %du, last))")|trim }});
  Y_put(p.oY + t, each);
# endif
}
# endif
# endif
