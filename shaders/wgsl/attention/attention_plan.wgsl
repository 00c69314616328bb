// The work list of attention: which rows of which segment each tile has, and what they may see.
//   tiles of segment b: ceil(len_a[b] / tile); entry = (first row, rows, position of its first row
//   among the other side's, segment, the other side's first row, its length, begin, end)
// begin .. end are the rows of the other side that any row of the tile sees. Side a has the tiles:
// the queries for the forward pass and dq, the keys for dk and dv (whose window is mirrored).
// Rows behind the last segment are one more segment, B, that sees nothing. Entries that are left
// over have 0 rows. Behind the list lie the slopes and the sinks of the heads (without: 0, -1e30), so
// that the kernels need no bindings for them.
// FLAG: also clears the first word of `flag`.
// One workgroup: a scan of the numbers of tiles of THREADS segments at a time, then a search in it
// for every tile. PAGED: b holds lengths, not cumulated; else both are cu_seqlens.
struct Params {
  T: i32, B: i32, tile: i32, tiles: u32, left: i32, right: i32, bottom_right: u32, capacity: i32,
  heads: u32, a_at: u32, b_at: u32, slopes_at: u32, sinks_at: u32,
}
{{ read(0, "cu_a", "i32") }}
{{ read(1, "cu_b", "i32") }}
{{ read(2, "slopes", "f32") }}
{{ read(3, "sinks", "f32") }}
{{ write(4, "plan", "i32") }}
# if FLAG
{{ write(5, "flag", "u32") }}
# endif
{{ parameters(6 if FLAG else 5) }}
{{ workgroup("ends", "i32", THREADS) }}

fn length_a(b: i32) -> i32 {
  if (b > p.B) { return 0; }
  let at = p.a_at + u32(b);
  if (b == p.B) { return max(p.T - cu_a[at], 0); }
  return max(cu_a[at + 1u] - cu_a[at], 0);
}

fn put_entry(t: u32, b: i32, r0: i32) {
  let rows = min(p.tile, length_a(b) - r0);
  var first_b = 0;
  var length_b = 0;
  if (b < p.B) {
# if PAGED
    length_b = cu_b[p.b_at + u32(b)];
# else
    first_b = cu_b[p.b_at + u32(b)];
    length_b = cu_b[p.b_at + u32(b) + 1u] - first_b;
# endif
  }
  let position = r0 + select(0, length_b - length_a(b), p.bottom_right != 0u);
  let begin = max(max(0, position - p.left), length_b - p.capacity);
  let end = min(length_b, position + rows + p.right);
  let at = 8u * t;
  plan[at] = cu_a[p.a_at + u32(b)] + r0;
  plan[at + 1u] = rows;
  plan[at + 2u] = position;
  plan[at + 3u] = b;
  plan[at + 4u] = first_b;
  plan[at + 5u] = length_b;
  plan[at + 6u] = min(begin, max(end, 0));
  plan[at + 7u] = max(end, 0);
}

@compute @workgroup_size({{ THREADS }})
fn attention_plan(@builtin(local_invocation_index) id: u32) {
  {{ poison("id", THREADS) }}
# if FLAG
  if (id == 0u) { flag[0] = 0u; }
# endif
  var done = 0;  // tiles of the segments before
  for (var base = 0; base <= p.B; base += {{ THREADS }}) {
    workgroupBarrier();
    ends[id] = (length_a(base + i32(id)) + p.tile - 1) / p.tile;
    workgroupBarrier();
# for step in STEPS
    let before{{ step }} = select(0, ends[max(id, {{ step }}u) - {{ step }}u], id >= {{ step }}u);
    workgroupBarrier();
    ends[id] += before{{ step }};
    workgroupBarrier();
# endfor
    let count = ends[{{ THREADS - 1 }}u];
    for (var t = i32(id); t < count; t += {{ THREADS }}) {
      var low = 0u;  // how many segments end at or before tile t
# for step in STEPS | reverse
      if (ends[low + {{ step - 1 }}u] <= t) { low += {{ step }}u; }
# endfor
      let start = select(0, ends[max(low, 1u) - 1u], low > 0u);
      if (u32(done + t) < p.tiles) {
        put_entry(u32(done + t), base + i32(low), (t - start) * p.tile);
      }
    }
    done += count;
  }
  for (var t = u32(done) + id; t < p.tiles; t += {{ THREADS }}u) { plan[8u * t + 1u] = 0; }
  let at = 8u * p.tiles;
  for (var h = id; h < p.heads; h += {{ THREADS }}u) {
    plan[at + h] = bitcast<i32>({{ "slopes[p.slopes_at + h]" if ALIBI else "0.0" }});
    plan[at + p.heads + h] = bitcast<i32>({{ "sinks[p.sinks_at + h]" if SINKS else "-1.0e30" }});
  }
}
