// Indices that sort rows ascending, equal ones in their order: a bitonic network over pairs
// (key, index), which are all different, so that its result is the stable one.
//
// Keys are u32 that order like the numbers (a nan last, -0 equal to 0). Rows are padded to a power
// of two with pairs behind all others.
//   local    loads and sorts blocks of 4 * threads pairs in shared memory (A is [O, n], dense), two
//            steps of distances between barriers where a merge has them
//   global   the STEPS steps of distances `distance`, `distance` / 2, ... of the merges of length
//            `merge`, in place: a thread keeps 2^STEPS pairs in registers
//   finish   the last steps of a merge, of distances below a block, in shared memory
# set block = 4 * threads
# if STAGE == "local"
# set V = VALUE[IN]
struct Params {
  n: u32,
  blocks: u32,  // of a row
  rows: u32,
  oA: u32,
}
{{ parameters(3) }}
{{ read(0, "A", IN) }}
{{ write(1, "K", "u32") }}
{{ write(2, "I", "u32") }}
fn key_of(v: {{ V }}) -> u32 {
# if V == "f32"
  let u = bitcast<u32>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) { return 0xffffffffu; }
  if (u == 0x80000000u) { return u; }
  return select(u | 0x80000000u, ~u, (u >> 31u) == 1u);
# elif V == "i32"
  return u32(v) ^ 0x80000000u;
# else
  return v;
# endif
}
# else
struct Params {
  pairs: u32,  // of all rows: half of their elements
  merge: u32,
  distance: u32,
}
{{ parameters(2) }}
{{ write(0, "K", "u32") }}
{{ write(1, "I", "u32") }}
# endif
fn behind(a: vec2<u32>, b: vec2<u32>) -> bool { return a.x > b.x || (a.x == b.x && a.y > b.y); }
# if STAGE == "global"

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  if (t >= p.pairs{{ " >> %du" % (STEPS - 1) if STEPS > 1 }}) { return; }
  let step = p.distance >> {{ STEPS - 1 }}u;
  let base = t / step * (step << {{ STEPS }}u) + t % step;
  let ascending = (base & p.merge) == 0u;
# for i in range(2 ** STEPS)
  var e{{ i }} = vec2<u32>(K[base + {{ i }}u * step], I[base + {{ i }}u * step]);
# endfor
# for s in range(STEPS - 1, -1, -1)
# for i in range(2 ** STEPS)
# if (i // 2 ** s) % 2 == 0
# set a, b = "e%d" % i, "e%d" % (i + 2 ** s)
  if (behind({{ a }}, {{ b }}) == ascending) { let c = {{ a }}; {{ a }} = {{ b }}; {{ b }} = c; }
# endif
# endfor
# endfor
# for i in range(2 ** STEPS)
  K[base + {{ i }}u * step] = e{{ i }}.x;
  I[base + {{ i }}u * step] = e{{ i }}.y;
# endfor
}
# else
{{ workgroup("keys", "u32", block) }}
{{ workgroup("places", "u32", block) }}

fn pair(e: u32) -> vec2<u32> { return vec2<u32>(keys[e], places[e]); }
fn put(e: u32, v: vec2<u32>) { keys[e] = v.x; places[e] = v.y; }

// The steps of one merge from `distance` on; `first` is the block's place in its row.
fn steps(lane: u32, first: u32, merge: u32, start: u32) {
  var distance = start;
  if ((countTrailingZeros(distance) & 1u) == 0u) {  // an odd number of steps: one alone
    workgroupBarrier();
    for (var q = lane; q < {{ 2 * threads }}u; q += {{ threads }}u) {
      let low = q / distance * 2u * distance + q % distance;
      let a = pair(low);
      let b = pair(low + distance);
      if (behind(a, b) == (((first + low) & merge) == 0u)) { put(low, b); put(low + distance, a); }
    }
    distance /= 2u;
  }
  for (; distance > 0u; distance /= 4u) {
    workgroupBarrier();
    let step = distance / 2u;
    let base = lane / step * 4u * step + lane % step;
    let ascending = ((first + base) & merge) == 0u;
    var e0 = pair(base);
    var e1 = pair(base + step);
    var e2 = pair(base + 2u * step);
    var e3 = pair(base + 3u * step);
    var c = e0;
# for a, b in (("e0", "e2"), ("e1", "e3"), ("e0", "e1"), ("e2", "e3"))
    if (behind({{ a }}, {{ b }}) == ascending) { c = {{ a }}; {{ a }} = {{ b }}; {{ b }} = c; }
# endfor
    put(base, e0);
    put(base + step, e1);
    put(base + 2u * step, e2);
    put(base + 3u * step, e3);
  }
}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  {{ poison("lane", threads) }}
  let number = flat_workgroup(id, count);
  let start = number * {{ block }}u;
# if STAGE == "local"
  let row = number / p.blocks;
  if (row >= p.rows) { return; }
  let first = (number - row * p.blocks) * {{ block }}u;
  for (var e = lane; e < {{ block }}u; e += {{ threads }}u) {
    let i = first + e;
    keys[e] = 0xffffffffu;
    if (i < p.n) { keys[e] = key_of(A_at(p.oA + row * p.n + i)); }
    places[e] = i;
  }
  for (var merge = 2u; merge <= {{ block }}u; merge *= 2u) { steps(lane, first, merge, merge / 2u); }
# else
  if (start >= 2u * p.pairs) { return; }
  for (var e = lane; e < {{ block }}u; e += {{ threads }}u) {
    keys[e] = K[start + e];
    places[e] = I[start + e];
  }
  steps(lane, start, p.merge, {{ block // 2 }}u);
# endif
  workgroupBarrier();
  for (var e = lane; e < {{ block }}u; e += {{ threads }}u) {
    K[start + e] = keys[e];
    I[start + e] = places[e];
  }
}
# endif
