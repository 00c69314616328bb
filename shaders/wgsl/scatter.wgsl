// Y[r, q] = sum of A[i, q] over those i whose number rows[i] is r: zero where there is none.
//
// `order` sorts `rows`; a thread makes one word of Y: it finds the first of its row by bisection and
// adds what follows, in the order of i. So equal inputs give equal sums, without atomics.
// Sums in f32 (i32, u32), in blocks of 32 and over these, which halves the digits of the error.
# set V = VALUE[KIND]
# set per = PER_WORD[KIND]
struct Params {
  words: u32,     // of Y
  elements: u32,  // of Y
  inner: u32,     // elements of a row
  numbers: u32,
  oA: u32,
}
{{ parameters(4) }}
{{ read(0, "A", KIND) }}
{{ read(1, "rows", INDEX) }}
{{ read(2, "order", "u32") }}
{{ write(3, "Y", KIND) }}

fn element(e: u32) -> {{ V }} {
  let row = e / p.inner;
  let q = e - row * p.inner;
  var low = 0u;
  var high = p.numbers;
  while (low < high) {
    let middle = (low + high) / 2u;
    if (u32(rows_at(order[middle])) < row) { low = middle + 1u; } else { high = middle; }
  }
  var total = {{ V }}(0);
  var block = {{ V }}(0);
  for (var i = low; i < p.numbers; i += 1u) {
    let number = order[i];
    if (u32(rows_at(number)) != row) { break; }
    block += A_at(p.oA + number * p.inner + q);
    if ((i - low) % 32u == 31u) { total += block; block = {{ V }}(0); }
  }
  return total + block;
}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  if (t >= p.words) { return; }
# if per == 1
  Y_put(t, element(t));
# else
  let e = t * {{ per }}u;
  let last = p.elements - 1u;
  Y_put(t, vec{{ per }}<{{ V }}>({% for j in range(per) %}element(min(e + {{ j }}u, last)){{ ", " if not loop.last }}{% endfor %}));
# endif
}
