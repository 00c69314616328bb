// The gradient of a table whose rows were read by id: dtable[v] = sum of g[t] over ids[t] = v.
//
// Deterministic: `count` numbers the tokens of each id (in any order), `place` gives each id that
// occurs a stretch of `list` (in any order), `fill` writes the tokens there; `gather` (a workgroup
// a row of the table) sorts the stretch, adds its rows of g up in the order of tokens, in f32, and
// writes, zeros where an id does not occur. Ids that more than FEW tokens have are left to
// `gather_hot`: a workgroup for 32 runs of columns, whose 8 teams take every eighth token; beyond
// CAP tokens it searches all ids in order instead of sorting. Ids out of range give no gradient.
// dtable may be a part of the whole, from row `first`.
//
// Shapes: g [T, E], E = RUN * length; counts, starts u32 [rows]; number, list u32 [T]; hot u32
// [T / FEW + 1]; totals u32 [2]: tokens placed, hot ids.
// Values: STEP, ID type of ids, X type of g, O type of dtable, RUN 8, 4 or 1 (any E; O f32).
# from "runs.wgsl" import Q, run_types, read_runs, write_runs with context
const FEW = 64u;
const CAP = 1024u;
const NONE = 0xffffffffu;
struct Params { T: u32, rows: u32, first: u32, length: u32, ids_at: u32, g_at: u32, table_at: u32 }
{% macro gradient(n) %}
# if RUN > 1
{{ run_types() }}
{{ read_runs(n, "g", X) }}
# else
alias Run = f32;
{{ read(n, "g", X) }}
fn g_run(i: u32) -> Run { return g_at(i); }
# endif
{% endmacro %}
{% macro gradient_of_table(n) %}
{{ write_runs(n, "table", O) if RUN > 1 else write(n, "table", O) }}
# if RUN == 1
fn table_put_run(i: u32, v: f32) { table_put(i, v); }
# endif
fn add(a: Run, b: Run) -> Run {
# if RUN > 1
  var v = a;
# for k in range(Q)
  v[{{ k }}] += b[{{ k }}];
# endfor
  return v;
# else
  return a + b;
# endif
}
{% endmacro %}
{% macro head(name, threads=256) %}
@compute @workgroup_size({{ threads }})
fn {{ name }}(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32)
{%- endmacro %}

# if STEP == "clear"
{{ write(0, "counts", "u32") }}
{{ write(1, "totals", "u32") }}
{{ parameters(2) }}
{{ head("clear") }} {
  let i = flat_workgroup(group, groups) * 256u + thread;
  if (i < 2u) { totals[i] = 0u; }
  if (i < p.rows) { counts[i] = 0u; }
}
# elif STEP == "count"
{{ read(0, "ids", ID) }}
@group(0) @binding(1) var<storage, read_write> counts: array<atomic<u32>>;
{{ write(2, "number", "u32") }}
{{ parameters(3) }}
{{ head("count") }} {
  let t = flat_workgroup(group, groups) * 256u + thread;
  if (t >= p.T) { return; }
  let id = u32(ids_at(p.ids_at + t)) - p.first;
  var n = NONE;
  if (id < p.rows) { n = atomicAdd(&counts[id], 1u); }
  number[t] = n;
}
# elif STEP == "place"
{{ read(0, "ids", ID) }}
{{ read(1, "counts", "u32") }}
{{ read(2, "number", "u32") }}
{{ write(3, "starts", "u32") }}
{{ write(4, "hot", "u32") }}
@group(0) @binding(5) var<storage, read_write> totals: array<atomic<u32>>;
{{ parameters(6) }}
var<workgroup> length_here: atomic<u32>;
var<workgroup> start_here: u32;
{{ head("place") }} {
  if (thread == 0u) { atomicStore(&length_here, 0u); }
  workgroupBarrier();
  let t = flat_workgroup(group, groups) * 256u + thread;
  var first = false;
  if (t < p.T) { first = number[t] == 0u; }
  var id = 0u;
  var n = 0u;
  var at = 0u;
  if (first) {  // the token that counts its id's first takes the stretch
    id = u32(ids_at(p.ids_at + t)) - p.first;
    n = counts[id];
    at = atomicAdd(&length_here, n);
  }
  workgroupBarrier();
  if (thread == 0u) { start_here = atomicAdd(&totals[0], atomicLoad(&length_here)); }
  workgroupBarrier();
  if (first) {
    starts[id] = start_here + at;
    if (n > FEW) { hot[atomicAdd(&totals[1], 1u)] = id; }
  }
}
# elif STEP == "fill"
{{ read(0, "ids", ID) }}
{{ read(1, "number", "u32") }}
{{ read(2, "starts", "u32") }}
{{ write(3, "list", "u32") }}
{{ parameters(4) }}
{{ head("fill") }} {
  let t = flat_workgroup(group, groups) * 256u + thread;
  if (t >= p.T) { return; }
  let n = number[t];
  if (n != NONE) { list[starts[u32(ids_at(p.ids_at + t)) - p.first] + n] = t; }
}
# elif STEP == "gather"
{{ read(0, "counts", "u32") }}
{{ read(1, "starts", "u32") }}
{{ read(2, "list", "u32") }}
{{ gradient(3) }}
{{ gradient_of_table(4) }}
{{ parameters(5) }}
{{ workgroup("sorted", "u32", 64) }}
{{ head("gather", 128) }} {
  let row = flat_workgroup(group, groups);
  if (row >= p.rows) { return; }
  let n = counts[row];
  if (n > FEW) { return; }
  {{ poison("thread", 128) }}
  if (thread < n) {  // its rank is its place
    let start = starts[row];
    let own = list[start + thread];
    var rank = 0u;
    for (var k = 0u; k < n; k++) { rank += u32(list[start + k] < own); }
    sorted[rank] = own;
  }
  workgroupBarrier();
  for (var c = thread; c < p.length; c += 128u) {
    var sum = Run();
    for (var k = 0u; k < n; k++) { sum = add(sum, g_run(p.g_at + sorted[k] * p.length + c)); }
    table_put_run(p.table_at + row * p.length + c, sum);
  }
}
# else
{{ read(0, "ids", ID) }}
{{ read(1, "counts", "u32") }}
{{ read(2, "starts", "u32") }}
{{ read(3, "list", "u32") }}
{{ read(4, "hot", "u32") }}
{{ read(5, "totals", "u32") }}
{{ gradient(6) }}
{{ gradient_of_table(7) }}
{{ parameters(8) }}
{{ workgroup("tokens", "u32", 1024) }}
{{ workgroup("sorted", "u32", 1024) }}
var<workgroup> room: array<Run, 128>;

// Numbers of this thread's four flags among all, in order; `tokens` is the scratch of the scan.
fn before(count: u32, thread: u32) -> u32 {
  tokens[thread] = count;
  workgroupBarrier();
# for d in (1, 2, 4, 8, 16, 32, 64, 128)
  {
    var more = 0u;
    if (thread >= {{ d }}u) { more = tokens[thread - {{ d }}u]; }
    workgroupBarrier();
    tokens[thread] += more;
    workgroupBarrier();
  }
# endfor
  return tokens[thread] - count;
}

@compute @workgroup_size(256)
fn gather_hot(@builtin(workgroup_id) group: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
  if (group.x >= totals[1]) { return; }
  {{ poison("thread", 256) }}
  let row = hot[group.x];
  let n = counts[row];
  let team = thread / 32u;
  let lane = thread % 32u;
  let column = group.y * 32u + lane;
  var sum = Run();
  if (n <= CAP) {
    let start = starts[row];
    for (var i = thread; i < n; i += 256u) { tokens[i] = list[start + i]; }
    workgroupBarrier();
    for (var i = thread; i < n; i += 256u) {
      let own = tokens[i];
      var rank = 0u;
      for (var k = 0u; k < n; k++) { rank += u32(tokens[k] < own); }
      sorted[rank] = own;
    }
    workgroupBarrier();
    if (column < p.length) {
      for (var i = team; i < n; i += 8u) {
        sum = add(sum, g_run(p.g_at + sorted[i] * p.length + column));
      }
    }
  } else {
    for (var base = 0u; base < p.T; base += CAP) {
      var hits = vec4<u32>();
      for (var k = 0u; k < 4u; k++) {
        let t = base + 4u * thread + k;
        if (t < p.T) { hits[k] = u32(u32(ids_at(p.ids_at + t)) - p.first == row); }
      }
      let here = hits.x + hits.y + hits.z + hits.w;
      var place = before(here, thread);
      for (var k = 0u; k < 4u; k++) {
        if (hits[k] == 1u) {
          sorted[place] = base + 4u * thread + k;
          place++;
        }
      }
      let found = tokens[255];
      workgroupBarrier();
      if (column < p.length) {
        for (var i = team; i < found; i += 8u) {
          sum = add(sum, g_run(p.g_at + sorted[i] * p.length + column));
        }
      }
      workgroupBarrier();
    }
  }
  // the teams' sums, a half of them onto the other
# for d in (4, 2, 1)
  if (team >= {{ d }}u && team < {{ 2 * d }}u) { room[thread - {{ 32 * d }}u] = sum; }
  workgroupBarrier();
  if (team < {{ d }}u) { sum = add(sum, room[thread]); }
  workgroupBarrier();
# endfor
  if (team == 0u && column < p.length) {
    table_put_run(p.table_at + row * p.length + column, sum);
  }
}
# endif
