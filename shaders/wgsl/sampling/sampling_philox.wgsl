// counters [B, 4], keys [B, 2] -> out [B, 4], uint32: random bits. A thread for each row.
struct Params { B: u32, counters_first: u32, keys_first: u32 }
{{ read(0, "counters", "u32") }}
{{ read(1, "keys", "u32") }}
{{ write(2, "out", "u32") }}
{{ parameters(3) }}
# include "philox.wgsl"

@compute @workgroup_size(64)
fn philox(
    @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32) {
  let b = flat_workgroup(id, count) * 64u + t;
  if (b >= p.B) { return; }
  let from_ = p.counters_first + 4u * b;
  let key = vec2<u32>(keys[p.keys_first + 2u * b], keys[p.keys_first + 2u * b + 1u]);
  let c = vec4<u32>(
    counters[from_], counters[from_ + 1u], counters[from_ + 2u], counters[from_ + 3u]);
  let made = philox4x32(c, key);
# for i in range(4)
  out[4u * b + {{ i }}u] = made[{{ i }}];
# endfor
}
