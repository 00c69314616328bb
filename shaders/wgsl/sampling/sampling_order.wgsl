// Included by the kernels that choose tokens: the order of candidates, falling logit then rising
// id, as unsigned words that rise; and the first of a workgroup's candidates.
// Values: THREADS (a power of 2), SUBGROUPS.

// A nan counts as largest, as numpy's argmax has it. Bits decide: compilers assume there is none.
fn key_of(v: f32) -> u32 {
  var u = bitcast<u32>(v);
  if (u == 0x80000000u) { u = 0u; }
  if ((u & 0x7fffffffu) > 0x7f800000u) { return 0u; }
  return select(~(u | 0x80000000u), u, u >= 0x80000000u);
}
fn is_finite(key: u32) -> bool { return key > 0x7fffffu && key < 0xff800000u; }  // inf, -inf
fn logit_of(key: u32) -> f32 {
  return bitcast<f32>(select(~key & 0x7fffffffu, key, key >= 0x80000000u));
}

fn before(a: vec2<u32>, b: vec2<u32>) -> bool { return a.x < b.x || (a.x == b.x && a.y < b.y); }

# set SIZE = caps.subgroup_min if caps.subgroup_min == caps.subgroup_max else 0
# if SUBGROUPS
fn first_of_lanes(mine: vec2<u32>) -> vec2<u32> {
  let key = subgroupMin(mine.x);
  return vec2<u32>(key, subgroupMin(select(0xffffffffu, mine.y, mine.x == key)));
}
# endif
# set TEAMS = SUBGROUPS and SIZE and THREADS <= SIZE * SIZE
{{ workgroup("firsts", "vec2<u32>", [THREADS // SIZE, 1] | max if TEAMS else THREADS) }}
// The first of all threads' (key, id); every thread gets it.
fn first_of_all(t: u32, mine: vec2<u32>) -> vec2<u32> {
# if SUBGROUPS
  var found = first_of_lanes(mine);
#   if SIZE == THREADS
  return found;
#   elif TEAMS
  if (t % {{ SIZE }}u == 0u) { firsts[t / {{ SIZE }}u] = found; }
  workgroupBarrier();
  let other = min(t % {{ SIZE }}u, {{ THREADS // SIZE - 1 }}u);
  return first_of_lanes(firsts[other]);
#   else
  firsts[t] = found;
  workgroupBarrier();
  found = vec2<u32>(0xffffffffu);
  for (var i = 0u; i < {{ THREADS }}u; i += {{ caps.subgroup_min }}u) {
    let other = firsts[i];
    if (before(other, found)) { found = other; }
  }
  return found;
#   endif
# else
  firsts[t] = mine;
  workgroupBarrier();
#   set half = namespace(d=THREADS // 2)
#   for _ in range(10)
#     if half.d > 0
  if (t < {{ half.d }}u) {
    let other = firsts[t + {{ half.d }}u];
    if (before(other, firsts[t])) { firsts[t] = other; }
  }
  workgroupBarrier();
#       set half.d = half.d // 2
#     endif
#   endfor
  return firsts[0];
# endif
}
