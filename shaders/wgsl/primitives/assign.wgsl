// Y[place] = A[place] into memory that others share: strided targets, rows by number.
//
// A thread moves one unit: four words, one word, or (RAW u16, u8: targets whose words are not
// whole) one element, whose bits alone are changed, by atomics. With INDEX the first axis of Y is
// taken from I: row i of A goes to row I[i] - first; one that is not in 0..rows-1 is skipped.
// Limits: 8 collapsed axes.
# import "walk.wgsl" as walk
struct Params {
  size: u32,  // units
# if INDEX
  inner: u32,    // units of a row
  rows: u32,     // of Y
  row_step: u32, // of Y, in units
  oI: u32,
  first: u32,    // row of Y that is bound as its first
# endif
{{ walk.fields(rank, ["Y", "A"]) }}
}
{{ parameters(3 if INDEX else 2) }}
{{ read(0, "A", RAW, width) }}
# if INDEX
{{ read(1, "I", INDEX) }}
# endif
# if RAW == "u32"
{{ write(2 if INDEX else 1, "Y", "u32", width) }}
# else
@group(0) @binding({{ 2 if INDEX else 1 }}) var<storage, read_write> Y: array<atomic<u32>>;
# endif
{{ walk.place(rank, ["Y", "A"]) }}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  if (t >= p.size) { return; }
  let at = place(t);
  var target_at = at.x;
# if INDEX
  let row = i32(I_at(p.oI + t / p.inner)) - i32(p.first);
  if (row < 0 || u32(row) >= p.rows) { return; }
  target_at += u32(row) * p.row_step;
# endif
# if RAW == "u32"
  Y[target_at] = A[at.y];
# else
# set per = PER_WORD[RAW]
# set bits = 32 // per
  let shift = target_at % {{ per }}u * {{ bits }}u;
  let value = A_at(at.y) & {{ 2 ** bits - 1 }}u;
  atomicAnd(&Y[target_at / {{ per }}u], ~({{ 2 ** bits - 1 }}u << shift));
  atomicOr(&Y[target_at / {{ per }}u], value << shift);
# endif
}
