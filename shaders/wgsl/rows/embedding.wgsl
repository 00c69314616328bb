// Rows of a table by token id, decoded from their stored form: out[t] = table[ids[t]].
//
// Ids out of range read the nearest row. FORM of the table: floats, or planes (planes.wgsl).
// The table may be a part of the whole, rows `first` .. `first + rows` of V, as a binding ends
// somewhere: tokens of other rows are left as they are.
//
// A thread decodes RUN elements of a token (8 or 4; lengths and places of floats in runs), or with
// RUN 1 one word of the result, of rows of any length.
// Values: FORM, O type of out, ID type of ids, RUN (4 or 1 for planes).
# from "runs.wgsl" import Q, run_types, read_runs, write_runs with context
# import "planes.wgsl" as planes with context
{% set PER = PER_WORD[O] %}
struct Params {
  tokens: u32, length: u32, V: u32, first: u32, rows: u32,
  ids_at: u32, {{ planes.bases("table") }}out_at: u32,
}
{{ read(0, "ids", ID) }}
# if RUN > 1
{{ run_types() }}
# endif
# if planes.BITS
{{ planes.decoders(1 if RUN > 1 else 0) }}
{{ planes.planes(1, "table", "(p.length * %du)" % RUN, 1 if RUN > 1 else 0) }}
// What is left to multiply with: the scale of the row.
fn factor(row: u32) -> f32 {
  return {{ "1.0" if planes.GROUPED else "table_row_scale(row)" }};
}
# else
{{ read_runs(1, "table", FORM.codes) if RUN > 1 else read(1, "table", FORM.codes) }}
# endif
{% set n = 1 + planes.PLANES | length %}
{{ write_runs(n, "out", O) if RUN > 1 else write(n, "out", O) }}
{{ parameters(n + 1) }}

// Row of this table of token t; at least p.rows if it is not among them.
fn row_of(t: u32) -> u32 {
  return u32(clamp(i32(ids_at(p.ids_at + t)), 0, i32(p.V) - 1)) - p.first;
}

# if RUN > 1
# if planes.BITS
fn decode(row: u32, run: u32) -> Run {
  return Run(table_values(table_raw(row, 4u * run), row, 4u * run) * factor(row));
}
# else
fn decode(row: u32, run: u32) -> Run { return table_run(p.table_base + row * p.length + run); }
# endif

@compute @workgroup_size(256)
fn embedding(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) thread: u32) {
{{ poison("thread", 256) }}
{{ planes.open_table("thread") }}
  let i = flat_workgroup(group, groups) * 256u + thread;
  let t = i / p.length;
  if (t >= p.tokens) { return; }
  let row = row_of(t);
  if (row >= p.rows) { return; }
  out_put_run(p.out_at + i, decode(row, i - t * p.length));
}
# else
fn element(i: u32) -> f32 {
  let t = i / p.length;
  let column = i - t * p.length;
  let row = row_of(t);
  if (row >= p.rows) { return out_at(p.out_at + i); }
# if planes.BITS
  return table_value(table_raw(row, column), row, column) * factor(row);
# else
  return table_at(p.table_base + row * p.length + column);
# endif
}

@compute @workgroup_size(256)
fn embedding(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) thread: u32) {
  let w = flat_workgroup(group, groups) * 256u + thread;
  let i = w * {{ PER }}u;
  let count = p.tokens * p.length;
  if (i >= count) { return; }
# if PER == 1
  out_put(p.out_at + w, element(i));
# else
  var second = 0.0;
  if (i + 1u < count) { second = element(i + 1u); }
  out_put(p.out_at / 2u + w, vec2<f32>(element(i), second));
# endif
}
# endif
