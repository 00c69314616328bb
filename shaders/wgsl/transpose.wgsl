// Y[batch, r, c] = A[batch, c, r]: copies whose memory order turns, by tiles in shared memory.
//
// A's elements lie side by side along r, Y's along c. A workgroup turns 32 rows r by COLUMNS
// columns c: reads run along r, writes of whole words along c. A tile's rows have 33 words, so that
// both ways spread over the banks. Elements are moved as bits of 32, 16 or 8 (RAW).
// Limits: rows of Y of whole words; two collapsed batch axes.
# import "lists.wgsl" as lists with context
# import "walk.wgsl" as walk
# set per = PER_WORD[RAW]
# set columns = 32 * [per, 2]|min
# set row_words = columns // per
struct Params {
  rows: u32,
  columns: u32,
  batches: u32,
  stepA: u32,  // of A along c
  stepY: u32,  // of Y along r
{{ walk.fields(2, ["A", "Y"]) }}
}
{{ parameters(2) }}
{{ read(0, "A", RAW) }}
{{ write(1, "Y", RAW) }}
{{ workgroup("tile", "u32", 33 * columns) }}
{{ walk.place(2, ["A", "Y"]) }}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  {{ poison("lane", threads) }}
  let number = flat_workgroup(id, count);
  let across = (p.columns + {{ columns - 1 }}u) / {{ columns }}u;
  let down = (p.rows + 31u) / 32u;
  let batch = number / (across * down);
  if (batch >= p.batches) { return; }
  let first_column = number % across * {{ columns }}u;
  let first_row = number / across % down * 32u;
  let at = place(batch);
  for (var e = lane; e < {{ 32 * columns }}u; e += {{ threads }}u) {
    let row = first_row + e % 32u;
    let column = first_column + e / 32u;
    if (row < p.rows && column < p.columns) {
      tile[e / 32u * 33u + e % 32u] = A_at(at.x + row + column * p.stepA);
    }
  }
  workgroupBarrier();
  for (var e = lane; e < {{ 32 * row_words }}u; e += {{ threads }}u) {
    let row = first_row + e / {{ row_words }}u;
    let part = e % {{ row_words }}u * {{ per }}u;
    let column = first_column + part;
    let from_row = e / {{ row_words }}u;
    if (row < p.rows && column < p.columns) {
      let w = (at.y + row * p.stepY + column) / {{ per }}u;
# if per == 1
      Y_put(w, tile[part * 33u + from_row]);
# else
# set elements = lists.terms(per, "tile[(part + %du) * 33u + from_row]")|trim
      Y_put(w, vec{{ per }}<u32>({{ elements }}));
# endif
    }
  }
}
