// What the gradient of attention needs of each row of out: stats[row] = (lse log2(e), delta) with
// delta = sum_c g[row, c] out[row, c] - g_lse[row], rows [Tq, H], all dense.
// A row that sees no key has lse -inf: it gets a norm under which every p is 0, and delta 0.
// SHARE threads a row, THREADS / SHARE rows a workgroup; f32 sums.
struct Params { rows: u32, g_at: u32, out_at: u32, lse_at: u32, g_lse_at: u32 }
{{ read(0, "g", Q) }}
{{ read(1, "out", Q) }}
{{ read(2, "lse", "f32") }}
{{ read(3, "g_lse", "f32") }}
{{ write(4, "stats", "f32", 2) }}
{{ parameters(5) }}
{{ workgroup("parts", "f32", THREADS) }}

@compute @workgroup_size({{ THREADS }})
fn attention_delta(@builtin(local_invocation_index) id: u32,
                   @builtin(workgroup_id) workgroup: vec3<u32>,
                   @builtin(num_workgroups) workgroups: vec3<u32>) {
  let share = id % {{ SHARE }}u;
  let row = flat_workgroup(workgroup, workgroups) * {{ THREADS // SHARE }}u + id / {{ SHARE }}u;
  {{ poison("id", THREADS) }}
  var sum = 0.0;
  if (row < p.rows) {
# if DV % 4 == 0
    for (var c = 4u * share; c < {{ DV }}u; c += {{ 4 * SHARE }}u) {
      sum += dot(g_at4(p.g_at + row * {{ DV }}u + c), out_at4(p.out_at + row * {{ DV }}u + c));
    }
# else
    for (var c = share; c < {{ DV }}u; c += {{ SHARE }}u) {
      sum = fma(g_at(p.g_at + row * {{ DV }}u + c), out_at(p.out_at + row * {{ DV }}u + c), sum);
    }
# endif
  }
  parts[id] = sum;
  workgroupBarrier();
  if (share == 0u && row < p.rows) {
    var total = 0.0;
    for (var i = 0u; i < {{ SHARE }}u; i++) { total += parts[id + i]; }
    let blind = bitcast<u32>(lse[p.lse_at + row]) == 0xff800000u;
    let norm = select(lse[p.lse_at + row] * 1.4426950408889634, 3.0e38, blind);
    stats[row] = vec2<f32>(norm, select(total - g_lse[p.g_lse_at + row], 0.0, blind));
  }
}
