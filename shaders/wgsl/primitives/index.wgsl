// Entries by number. Elements are moved as bits; a negative number counts from the end, and one
// outside of the axis is drawn to its border.
//
// take: Y[b, i, q] = X[b, I[i], q]; Y is dense. A thread moves one unit of `width` words, or (RAW
// u16, u8: rows that are not whole words) one word of Y from elements that lie anywhere.
// With WINDOW only rows first..first+rows-1 are bound and the others are left as they are.
// take_along: Y[e] = X[place(e) + I[place(e)] step]; a thread makes one word.
# import "lists.wgsl" as lists with context
# import "walk.wgsl" as walk
# set per = PER_WORD[RAW]
struct Params {
  size: u32,  // units of Y
  elements: u32,  // of Y
  n: u32,     // entries of X along the axis
  step: u32,  // of X along the axis
# if ALONG
{{ walk.fields(rank, ["X", "I"]) }}
# else
  oX: u32,
  oI: u32,
  inner: u32,    // q
  numbers: u32,  // i
  step_b: u32,
  step_q: u32,
# if WINDOW
  first: u32,
  rows: u32,
# endif
# endif
}
{{ parameters(3) }}
{{ read(0, "X", RAW, width) }}
{{ read(1, "I", INDEX) }}
{{ write(2, "Y", RAW, width) }}

fn entry(i: {{ VALUE[INDEX] }}) -> u32 {
  let signed = i32(i);
  return min(select(u32(signed), u32(signed) + p.n, signed < 0), p.n - 1u);
}
# if ALONG
{{ walk.place(rank, ["X", "I"]) }}
fn element(e: u32) -> u32 {
  let at = place(min(e, p.elements - 1u));
  return X_at(at.x + entry(I_at(at.y)) * p.step);
}
# else
// Where place e of Y, in units, comes from.
fn source(e: u32) -> u32 {
  let row = e / p.inner;
  let batch = row / p.numbers;
  var number = entry(I_at(p.oI + row - batch * p.numbers));
# if WINDOW
  number -= p.first;
# endif
  return p.oX + batch * p.step_b + number * p.step + (e - row * p.inner) * p.step_q;
}
# if width == 1
fn element(e: u32) -> u32 { return X_at(source(min(e, p.elements - 1u))); }
# endif
# endif

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  if (t >= p.size) { return; }
# if not ALONG and WINDOW
  let line = t / p.inner;
  if (entry(I_at(p.oI + line % p.numbers)) - p.first >= p.rows) { return; }
# endif
# if not ALONG and per == 1
  Y[t] = X[source(t)];
# elif per == 1
  Y[t] = element(t);
# else
  let e = t * {{ per }}u;
  Y[t] = pack_{{ RAW }}(vec{{ per }}<u32>({{ lists.terms(per, "element(e + %du)")|trim }}));
# endif
}
