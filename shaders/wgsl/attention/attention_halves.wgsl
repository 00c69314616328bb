// Keys and values as attention_matrix.wgsl reads them: f16, the rows of a paged cache side by side.
//
// k, v: rows [.., K, D] and [.., K, DV], BLOCK rows to a block of the cache (0: packed) -> k_half,
// v_half [rows, K, D or DV]. Paged, row r is slot r % capacity of sequence r / capacity, where
// capacity = columns BLOCK; there[r]: whether the table has its block, else it is zeros. Slots behind
// a sequence's end are left alone. bf16 beyond f16 sets `flag`. A thread takes 8 columns of one head.
# set W = (D + DV) // 8
struct Params {
  rows: u32, heads: u32, k_at: u32, k_row: u32, k_head: u32, v_at: u32, v_row: u32, v_head: u32,
  k_block: u32, v_block: u32, table_at: u32, columns: u32, lens_at: u32,
}
{{ read(0, "k", "u32", 4) }}
{{ read(1, "v", "u32", 4) }}
# if BLOCK
{{ read(2, "table", "i32") }}
{{ read(3, "lens", "i32") }}
# endif
# set at = 4 if BLOCK else 2
{{ write(at, "k_half", "u32", 4) }}
{{ write(at + 1, "v_half", "u32", 4) }}
# set next = at + 2
# if BLOCK
{{ write(next, "there", "u32") }}
#   set next = next + 1
# endif
# if KIND == "bf16"
@group(0) @binding({{ next }}) var<storage, read_write> flag: array<atomic<u32>>;
#   set next = next + 1
# endif
{{ parameters(next) }}

fn halves(w: vec4<u32>) -> vec4<u32> {
# if KIND == "bf16"
  let a = vec4<f32>(unpack_bf16(w.x), unpack_bf16(w.y));
  let b = vec4<f32>(unpack_bf16(w.z), unpack_bf16(w.w));
  let most = max(abs(a), abs(b));
  if (max(max(most.x, most.y), max(most.z, most.w)) > 65504.0) { atomicStore(&flag[0], 1u); }
  return vec4<u32>(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
# else
  return w;
# endif
}

@compute @workgroup_size(256)
fn halve(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) workgroup: vec3<u32>,
         @builtin(num_workgroups) workgroups: vec3<u32>) {
  let unit = flat_workgroup(workgroup, workgroups) * 256u + id;
  let column = unit % {{ W }}u;
  let head = unit / {{ W }}u % p.heads;
  let row = unit / {{ W }}u / p.heads;
  if (row >= p.rows) { return; }
# if BLOCK
  let capacity = p.columns * {{ BLOCK }}u;
  let slot = row % capacity;
  if (i32(slot) >= lens[p.lens_at + row / capacity]) { return; }
  let block = table[p.table_at + row / capacity * p.columns + slot / {{ BLOCK }}u];
  if (column + head == 0u) { there[row] = u32(block >= 0); }
  let exists = block >= 0;
  let k_from = p.k_at + u32(max(block, 0)) * p.k_block + slot % {{ BLOCK }}u * p.k_row;
  let v_from = p.v_at + u32(max(block, 0)) * p.v_block + slot % {{ BLOCK }}u * p.v_row;
# else
  let exists = true;
  let k_from = p.k_at + row * p.k_row;
  let v_from = p.v_at + row * p.v_row;
# endif
  let line = row * p.heads + head;
  var made = vec4<u32>();
  if (column < {{ D // 8 }}u) {
    if (exists) { made = halves(k[k_from + head * p.k_head + column]); }
    k_half[line * {{ D // 8 }}u + column] = made;
  } else {
    let c = column - {{ D // 8 }}u;
    if (exists) { made = halves(v[v_from + head * p.v_head + c]); }
    v_half[line * {{ DV // 8 }}u + c] = made;
  }
}
