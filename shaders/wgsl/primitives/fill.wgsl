// Y[...] = one number, or start + i step. A thread of `fill` writes a vector of four words; `word`
// holds the number's bits, repeated over the elements of a word, so that one pipeline serves all.
# import "lists.wgsl" as lists with context
# if COUNT
struct Params {
  words: u32,
  start: {{ VALUE[OUT] }},
  step: {{ VALUE[OUT] }},
}
# else
struct Params {
  vectors: u32,
  oY: u32,  // in vectors
  word: u32,
}
# endif
{{ parameters(1) }}
{{ write(0, "Y", OUT, 1 if COUNT else 4) }}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
# if COUNT
  if (t >= p.words) { return; }
# set V = VALUE[OUT]
# set per = PER_WORD[OUT]
# if per == 1
  Y_put(t, p.start + {{ V }}(t) * p.step);
# else
  let first = {{ V }}(t * {{ per }}u);
  let at = vec{{ per }}<{{ V }}>(first) + vec{{ per }}<{{ V }}>({{ lists.terms(per, "%d")|trim }});
  Y_put(t, vec{{ per }}<{{ V }}>(p.start) + at * p.step);
# endif
# else
  if (t >= p.vectors) { return; }
  Y[p.oY + t] = vec4<u32>(p.word);
# endif
}
