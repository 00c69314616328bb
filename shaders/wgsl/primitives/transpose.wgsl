// Y[batch, r, c] = A[batch, c, r]: copies whose memory order turns, by tiles in shared memory.
//
// A's elements lie side by side along r, Y's along c; elements are moved as bits of 32, 16 or 8
// (RAW). A workgroup turns 32 words along r by COLUMNS columns c: reads run along r, writes along c.
// A thread takes words at as many columns as a word has elements, and writes that square of elements
// turned. A tile's rows have 33 words, so that both ways spread over the banks.
// Without WORDS (A's words are not whole) elements are read one by one, 32 along r.
// Limits: rows of Y of whole words; two collapsed batch axes.
# import "lists.wgsl" as lists with context
# import "walk.wgsl" as walk
# set per = PER_WORD[RAW]
# set columns = 32 * [per, 2]|min
# set square = per if WORDS else 1
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
{{ read(0, "A", "u32" if WORDS else RAW) }}
{{ write(1, "Y", RAW) }}
{{ workgroup("tile", "u32", 33 * columns) }}
{{ walk.place(2, ["A", "Y"]) }}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  {{ poison("lane", threads) }}
  let number = flat_workgroup(id, count);
  let across = (p.columns + {{ columns - 1 }}u) / {{ columns }}u;
  let down = (p.rows + {{ 32 * square - 1 }}u) / {{ 32 * square }}u;
  let batch = number / (across * down);
  if (batch >= p.batches) { return; }
  let first_column = number % across * {{ columns }}u;
  let first_row = number / across % down * {{ 32 * square }}u;
  let at = place(batch);
  for (var e = lane; e < {{ 32 * columns }}u; e += {{ threads }}u) {
    let row = first_row + e % 32u * {{ square }}u;
    let column = first_column + e / 32u;
    if (row < p.rows && column < p.columns) {
      let from_a = at.x + row + column * p.stepA;
      tile[e / 32u * 33u + e % 32u] = A_at(from_a{{ " / %du" % per if WORDS }});
    }
  }
  workgroupBarrier();
  for (var e = lane; e < {{ 32 * row_words }}u; e += {{ threads }}u) {
    let line = e / {{ row_words }}u;
    let row = first_row + line * {{ square }}u;
    let part = e % {{ row_words }}u * {{ per }}u;
    let column = first_column + part;
    if (row < p.rows && column < p.columns) {
      let w = (at.y + row * p.stepY + column) / {{ per }}u;
# for j in range(per)
      let t{{ j }} = tile[(part + {{ j }}u) * 33u + line];
# endfor
# if per == 1
      Y[w] = t0;
# elif WORDS
# for j in range(per)
      let v{{ j }} = unpack_{{ RAW }}(t{{ j }});
# endfor
# for i in range(per)
# set turned = lists.terms(per, "v%d[" ~ i ~ "]")|trim
      Y_put(w + {{ i }}u * (p.stepY / {{ per }}u), vec{{ per }}<u32>({{ turned }}));
# endfor
# else
      Y_put(w, vec{{ per }}<u32>({{ lists.terms(per, "t%d")|trim }}));
# endif
    }
  }
}
