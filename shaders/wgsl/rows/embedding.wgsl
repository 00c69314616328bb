// Rows of a table by token id, decoded from their stored form: out[t] = table[ids[t]].
//
// Ids out of range read the nearest row. FORM of the table (layouts: boostr/quant/scheme.py):
//   "float"  floats W [V, E]
//   "int8"   int8 [V, E] with f32 scales [V, G], one for each 2^shift columns (30: for the row)
//   "q8_0"   blocks of 34 bytes: f16 d, 32 int8; w = d q
//   "q4_1"   blocks of 20 bytes: f16 d, f16 m, 16 bytes of nibbles (low: elements 0..15);
//            w = d q + m
// The table may be a part of the whole, rows `first` .. `first + rows` of V, as a binding ends
// somewhere: tokens of other rows are left as they are.
//
// A thread decodes RUN elements of a token (8 or 4; lengths and places of floats in runs), or with
// RUN 1 one word of the result, of rows of any length.
// Values: FORM, W, O type of out, ID type of ids, RUN.
# from "runs.wgsl" import Q, run_types, read_runs, write_runs with context
{% set PER = PER_WORD[O] %}
struct Params {
  tokens: u32, length: u32, V: u32, first: u32, rows: u32, scales: u32, shift: u32,
  ids_at: u32, table_at: u32, scales_at: u32, out_at: u32,
}
{{ read(0, "ids", ID) }}
# if RUN > 1
{{ run_types() }}
# endif
# if FORM == "float"
{{ read_runs(1, "table", W) if RUN > 1 else read(1, "table", W) }}
# elif FORM == "int8"
{{ read(1, "table", "i8") }}
{{ read(2, "scales", "f32") }}
# else
{{ read(1, "table", "u32") }}
# endif
{% set n = 3 if FORM == "int8" else 2 %}
{{ write_runs(n, "out", O) if RUN > 1 else write(n, "out", O) }}
{{ parameters(n + 1) }}

// Row of this table of token t; at least p.rows if it is not among them.
fn row_of(t: u32) -> u32 {
  return u32(clamp(i32(ids_at(p.ids_at + t)), 0, i32(p.V) - 1)) - p.first;
}

# if RUN > 1
# if FORM == "float"
fn decode(row: u32, run: u32) -> Run { return table_run(p.table_at + row * p.length + run); }
# else
# if FORM == "int8"
fn quad(row: u32, at: u32) -> vec4<f32> {
  let scale = scales[p.scales_at + row * p.scales + ((4u * at) >> p.shift)];
  return scale * vec4<f32>(unpack_i8(table[p.table_at / 4u + row * {{ Q }}u * p.length + at]));
}
# elif FORM == "q8_0"
fn quad(row: u32, at: u32) -> vec4<f32> {
  let block = p.table_at + (row * ({{ Q }}u * p.length / 8u) + at / 8u) * 34u;  // in bytes, even
  let d = unpack2x16float(table[block / 4u] >> (8u * (block % 4u))).x;
  let q = block + 2u + 4u * (at % 8u);
  var w = table[q / 4u];
  if (q % 4u != 0u) { w = (w >> 16u) | (table[q / 4u + 1u] << 16u); }
  return d * vec4<f32>(unpack_i8(w));
}
# else
fn quad(row: u32, at: u32) -> vec4<f32> {
  let block = p.table_at / 4u + (row * ({{ Q }}u * p.length / 8u) + at / 8u) * 5u;  // in words
  let dm = unpack2x16float(table[block]);
  let w = table[block + 1u + at % 4u] >> select(0u, 4u, at % 8u >= 4u);
  return dm.x * vec4<f32>(unpack_u8(w & 0x0f0f0f0fu)) + dm.y;
}
# endif
fn decode(row: u32, run: u32) -> Run {
  var v = Run();
# for k in range(Q)
  v[{{ k }}] = quad(row, {{ Q }}u * run + {{ k }}u);
# endfor
  return v;
}
# endif

@compute @workgroup_size(256)
fn embedding(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) thread: u32) {
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
# if FORM == "float"
  return table_at(p.table_at + row * p.length + column);
# else
  return scales[p.scales_at + row * p.scales + (column >> p.shift)]
       * f32(table_at(p.table_at + row * p.length + column));
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
