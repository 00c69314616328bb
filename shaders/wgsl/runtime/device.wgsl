// What the device layer needs itself: words filled with one value, words copied.
// Thread mapping: one thread for each vector of four words, workgroups folded into x and y.
struct Params {
  count: u32,  // vectors
  first: u32,  // vector of the target
  value: u32,
}
# if COPY
{{ read(0, "source", "u32", 4) }}
{{ write(1, "target_words", "u32", 4) }}
{{ parameters(2) }}
# else
{{ write(0, "target_words", "u32", 4) }}
{{ parameters(1) }}
# endif

@compute @workgroup_size(256)
# if COPY
fn copy(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 256u + lane;
  if (i < p.count) { target_words[p.first + i] = source[i]; }
}
# else
fn fill(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let i = flat_workgroup(id, count) * 256u + lane;
  if (i < p.count) { target_words[p.first + i] = vec4<u32>(p.value); }
}
# endif
