// Y[o] = sum, max or min of A[o, r] over r; argmax: where the first maximum of a row lies.
//
// The kept axes and the reduced axes of A are two each at most, of any strides. Long reductions are
// cut into chunks: each gives a partial result, which a second launch reduces.
//   rows     LANES threads stride over a row's chunk, several rows a workgroup, and meet in shared
//            memory; with VECTOR a thread reads aligned vectors of E elements (r side by side).
//            Partial results lie at Y[o * chunks + chunk].
//   columns  a thread per E kept neighbours walks down its chunk; at Y[chunk * O + o].
// Sums are f32 (i32, u32 modulo 2^32), four accumulators a lane; the host keeps a lane's share of a
// chunk below some hundred terms, so that the error grows like a tree's. A nan is the result of max
// and min as in numpy. `init` comes from the host, as WGSL has no infinities.
// argmax compares u32 keys that order like the numbers, a nan first; equal keys: the lower index.
# import "lists.wgsl" as lists with context
# set V = VALUE[IN]
# set per = PER_WORD[IN]
# set vectors = E // per if E > 1 else 1
struct Params {
  O: u32,
  R: u32,
  chunk: u32,   // of r, a multiple of E for rows of vectors
  chunks: u32,
  init: {{ "u32" if OP == "argmax" else V }},
  oA: u32,      // this and the strides: in vectors where vectors are read
  kept1: u32, step_kept0: u32, step_kept1: u32,
  cut1: u32, step_cut0: u32, step_cut1: u32,
}
{{ parameters(4 if OP == "argmax" and PARTIAL else 3 if OP == "argmax" else 2) }}
{{ read(0, "A", IN, vectors) }}
# if OP == "argmax"
# if PARTIAL
{{ read(1, "places", "u32") }}
# endif
{{ write(2 if PARTIAL else 1, "Y", "u32") }}
{{ write(3 if PARTIAL else 2, "Z", "u32") }}
# else
{{ write(1, "Y", V, 4 if COLUMNS and E > 1 else 1) }}
# endif
# include "math.wgsl"

fn kept_place(o: u32) -> u32 {
  let q = o / p.kept1;
  return p.oA + q * p.step_kept0 + (o - q * p.kept1) * p.step_kept1;
}
fn cut_place(r: u32) -> u32 {
  let q = r / p.cut1;
  return q * p.step_cut0 + (r - q * p.cut1) * p.step_cut1;
}
# if OP == "argmax"
fn key_of(v: {{ V }}) -> u32 {
# if PARTIAL
  return v;
# elif V == "f32"
  let u = bitcast<u32>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) { return 0xffffffffu; }
  if (u == 0x80000000u) { return u; }  // -0 equals 0
  return select(u | 0x80000000u, ~u, (u >> 31u) == 1u);
# elif V == "i32"
  return u32(v) ^ 0x80000000u;
# else
  return v;
# endif
}
# else
# set T = V if E == 1 else "vec4<%s>" % V
fn join(a: {{ V }}, b: {{ V }}) -> {{ V }} {
# if OP == "sum"
  return a + b;
# elif V == "f32"
  return {{ OP }}_f32(a, b);
# else
  return {{ OP }}(a, b);
# endif
}
# if E > 1
fn join4(a: {{ T }}, b: {{ T }}) -> {{ T }} {
  return {{ T }}(join(a.x, b.x), join(a.y, b.y), join(a.z, b.z), join(a.w, b.w));
}
# macro load4(total, w)
# for g in range(E // 4)
{{ total }} = join4({{ total }}, {{ lists.four(w, IN, vectors, g)|trim }});
# endfor
# endmacro
# endif
# endif
# if COLUMNS

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  let lines = p.O{{ " / %du" % E if E > 1 }};
  let chunk = t / lines;
  if (chunk >= p.chunks) { return; }
  let o = t - chunk * lines;
  let at = kept_place(o);
  let end = min((chunk + 1u) * p.chunk, p.R);
  var r = chunk * p.chunk;
# if E == 1
  var a = p.init; var b = p.init; var c = p.init; var d = p.init;
  for (; r + 4u <= end; r += 4u) {
    a = join(a, A_at(at + cut_place(r)));
    b = join(b, A_at(at + cut_place(r + 1u)));
    c = join(c, A_at(at + cut_place(r + 2u)));
    d = join(d, A_at(at + cut_place(r + 3u)));
  }
  for (; r < end; r += 1u) { a = join(a, A_at(at + cut_place(r))); }
  Y[chunk * p.O + o] = join(join(a, b), join(c, d));
# else
# for g in range(E // 4)
  var a{{ g }} = {{ T }}(p.init);
  var b{{ g }} = {{ T }}(p.init);
# endfor
# macro take(x, w)
# for g in range(E // 4)
    {{ x }}{{ g }} = join4({{ x }}{{ g }}, {{ lists.four(w, IN, vectors, g)|trim }});
# endfor
# endmacro
  for (; r + 4u <= end; r += 4u) {
# for u in range(4)
    let w{{ u }} = A[at + cut_place(r + {{ u }}u)];
# endfor
{{ take("a", "w0") }}{{ take("b", "w1") }}{{ take("a", "w2") }}{{ take("b", "w3") }}
  }
  for (; r < end; r += 1u) {
    let w = A[at + cut_place(r)];
{{ take("a", "w") }}
  }
  let to = (chunk * p.O) / 4u + o * {{ E // 4 }}u;
# for g in range(E // 4)
  Y[to + {{ g }}u] = join4(a{{ g }}, b{{ g }});
# endfor
# endif
}
# else
# set shared_type = "u32" if OP == "argmax" else V
{{ workgroup("partial", shared_type, threads) }}
# if OP == "argmax"
{{ workgroup("partial_place", "u32", threads) }}
# endif

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  {{ poison("lane", threads) }}
  let number = flat_workgroup(id, count);
  let chunk = number % p.chunks;
  let o = number / p.chunks * {{ threads // LANES }}u + lane / {{ LANES }}u;
  let at = kept_place(min(o, p.O - 1u));
  let end = min((chunk + 1u) * p.chunk, p.R);
  let first = chunk * p.chunk + lane % {{ LANES }}u;
# if OP == "argmax"
  var best = 0u;
  var place = 0xffffffffu;
  var r = first;
  for (; r + {{ 3 * LANES }}u < end; r += {{ 4 * LANES }}u) {
# for u in range(4)
    let i{{ u }} = at + cut_place(r + {{ u * LANES }}u);
    let key{{ u }} = key_of(A_at(i{{ u }}));
# endfor
# for u in range(4)
    let here{{ u }} = {{ "places[i%d]" % u if PARTIAL else "r + %du" % (u * LANES) }};
# set k, h = "key%d" % u, "here%d" % u
    if ({{ k }} > best || ({{ k }} == best && {{ h }} < place)) { best = {{ k }}; place = {{ h }}; }
# endfor
  }
  for (; r < end; r += {{ LANES }}u) {
    let i = at + cut_place(r);
    let key = key_of(A_at(i));
    let here = {{ "places[i]" if PARTIAL else "r" }};
    if (key > best || (key == best && here < place)) { best = key; place = here; }
  }
  partial[lane] = best;
  partial_place[lane] = place;
  workgroupBarrier();
  for (var half = {{ LANES // 2 }}u; half > 0u; half /= 2u) {
    if (lane % {{ LANES }}u < half) {
      let key = partial[lane + half];
      let here = partial_place[lane + half];
      if (key > best || (key == best && here < place)) { best = key; place = here; }
      partial[lane] = best;
      partial_place[lane] = place;
    }
    workgroupBarrier();
  }
  if (lane % {{ LANES }}u == 0u && o < p.O) {
    Y[o * p.chunks + chunk] = best;
    Z[o * p.chunks + chunk] = place;
  }
# else
# if E == 1
  var a = p.init; var b = p.init; var c = p.init; var d = p.init;
  var r = first;
  for (; r + {{ 3 * LANES }}u < end; r += {{ 4 * LANES }}u) {
    a = join(a, A_at(at + cut_place(r)));
    b = join(b, A_at(at + cut_place(r + {{ LANES }}u)));
    c = join(c, A_at(at + cut_place(r + {{ 2 * LANES }}u)));
    d = join(d, A_at(at + cut_place(r + {{ 3 * LANES }}u)));
  }
  for (; r < end; r += {{ LANES }}u) { a = join(a, A_at(at + cut_place(r))); }
  var mine = join(join(a, b), join(c, d));
# else
# for u in range(UNROLL)
  var a{{ u }} = {{ T }}(p.init);
# endfor
  var v = at + chunk * (p.chunk / {{ E }}u) + lane % {{ LANES }}u;
  let stop = at + end / {{ E }}u;
  for (; v + {{ (UNROLL - 1) * LANES }}u < stop; v += {{ UNROLL * LANES }}u) {
# for u in range(UNROLL)
    let w{{ u }} = A[v + {{ u * LANES }}u];
# endfor
# for u in range(UNROLL)
    {{ load4("a%d" % u, "w%d" % u) }}
# endfor
  }
  for (; v < stop; v += {{ LANES }}u) {
    let w0 = A[v];
    {{ load4("a0", "w0") }}
  }
# for u in range(1, UNROLL)
  a0 = join4(a0, a{{ u }});
# endfor
  var mine = join(join(a0.x, a0.y), join(a0.z, a0.w));
# endif
  partial[lane] = mine;
  workgroupBarrier();
  for (var half = {{ LANES // 2 }}u; half > 0u; half /= 2u) {
    if (lane % {{ LANES }}u < half) {
      mine = join(mine, partial[lane + half]);
      partial[lane] = mine;
    }
    workgroupBarrier();
  }
  if (lane % {{ LANES }}u == 0u && o < p.O) { Y[o * p.chunks + chunk] = mine; }
# endif
}
# endif
