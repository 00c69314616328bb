// Around the draw: penalties on logits before it, notes of what was chosen after it.
//
// penalize: y = x / r or x r if seen; - presence if counts - counts * frequency.
//   logits, counts, seen [B, V]; the others [B] -> out float32 [B, V]. A thread for 4 elements of the
//   flat tensors; grid (workgroups of 256).
// add_bias: logits[b, ids[b, n]] += values[b, n], ids distinct in a row; those out of range are
//   skipped. ids, values [B, N], `size` = B N. A thread for each.
// record_tokens: seen[b, ids[b]] = 1, counts[b, ids[b]] += 1; a negative id is skipped. A thread for
//   each row; rows may share a word of `seen`, so that it is written by an atomic.
// Values: ENTRY; of penalize LOGIT.
# if ENTRY == "record_tokens"
struct Params { B: u32, V: u32, ids_first: u32, seen_first: u32, counts_first: u32 }
{{ read(0, "ids", "i32") }}
@group(0) @binding(1) var<storage, read_write> seen: array<atomic<u32>>;
{{ write(2, "counts", "i32") }}
{{ parameters(3) }}

@compute @workgroup_size(64)
fn record_tokens(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32) {
  let b = flat_workgroup(group, count) * 64u + t;
  if (b >= p.B) { return; }
  let id = ids[p.ids_first + b];
  if (id < 0 || u32(id) >= p.V) { return; }
  let at = b * p.V + u32(id);
  let byte = p.seen_first + at;
  let shift = 8u * (byte % 4u);
  atomicAnd(&seen[byte / 4u], ~(255u << shift));
  atomicOr(&seen[byte / 4u], 1u << shift);
  counts[p.counts_first + at] += 1;
}
# elif ENTRY == "add_bias"
struct Params { size: u32, N: u32, V: u32, ids_first: u32, values_first: u32, logits_first: u32 }
{{ read(0, "ids", "i32") }}
{{ read(1, "values", "f32") }}
{{ write(2, "logits", "f32") }}
{{ parameters(3) }}

@compute @workgroup_size(64)
fn add_bias(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32) {
  let i = flat_workgroup(group, count) * 64u + t;
  if (i >= p.size) { return; }
  let id = ids[p.ids_first + i];
  if (id < 0 || u32(id) >= p.V) { return; }
  logits[p.logits_first + i / p.N * p.V + u32(id)] += values[p.values_first + i];
}
# else
struct Params {
  V: u32, size: u32, logits_first: u32, seen_first: u32, counts_first: u32,
  repetition_first: u32, presence_first: u32, frequency_first: u32,
}
{{ read(0, "logits", LOGIT) }}
{{ read(1, "seen", "u8") }}
{{ read(2, "counts", "i32") }}
{{ read(3, "repetition", "f32") }}
{{ read(4, "presence", "f32") }}
{{ read(5, "frequency", "f32") }}
{{ write(6, "out", "f32") }}
{{ parameters(7) }}

@compute @workgroup_size(256)
fn penalize(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32) {
  let first = (flat_workgroup(group, count) * 256u + t) * 4u;
  let end = min(first + 4u, p.size);
  for (var i = first; i < end; i++) {
    let b = i / p.V;
    var x = f32(logits_at(p.logits_first + i));
    let n = counts[p.counts_first + i];
    let r = repetition[p.repetition_first + b];
    if (seen_at(p.seen_first + i) != 0u) { x = select(x * r, x / r, x > 0.0); }
    let used = select(0.0, presence[p.presence_first + b], n > 0);
    x -= used + f32(n) * frequency[p.frequency_first + b];
    out[i] = x;
  }
}
# endif
