// Log probabilities of a chosen token and of the k likeliest of each row; see
// boostr/ops/logprobs.py.
//
// logits [rows, V], ids [rows] -> chosen f32 [rows], best i32 [rows, k], logs f32 [rows, k].
// Mapping: a workgroup for each row. Each thread knows the first of its elements that has not been
// taken; k times the first of all is taken, and its thread looks for its next one.
// Values: LOGIT, VEC, THREADS a power of 2, LOADS, SUBGROUPS; RANKED: whether k > 0.
struct Params { rows: u32, V: u32, logits_first: u32, ids_first: u32, k: u32 }
{{ read(0, "logits", LOGIT, 4 if VEC else 1) }}
{{ read(1, "ids", "i32") }}
{{ write(2, "chosen", "f32") }}
# if RANKED
{{ write(3, "best", "i32") }}
{{ write(4, "logs", "f32") }}
# endif
{{ parameters(5 if RANKED else 3) }}
# from "sampling_each.wgsl" import each with context
# include "sampling_order.wgsl"
{{ workgroup("sums", "f32", THREADS) }}
const LOG2E = 1.4426950408889634;
const PART = 64u;  // terms that a thread adds up at once: sums of many lose digits
const MINUS_INFINITY = 0xff800000u;  // its key, and its bits
var<private> minus_infinity: u32 = MINUS_INFINITY;
var<private> not_a_number: u32 = 0x7fc00000u;

// What every thread of a row knows.
struct Row { first: u32, finite: bool, top: f32, away: f32 }

fn logprob(r: Row, key: u32) -> f32 {
  if (!r.finite) { return bitcast<f32>(not_a_number); }
  if (key >= MINUS_INFINITY) { return bitcast<f32>(minus_infinity); }
  return logit_of(key) - r.top - r.away;
}

// The first of this thread's elements.
fn first_of_own(t: u32, row: u32) -> vec2<u32> {
  var first = vec2<u32>(0xffffffffu);
# call(v, id) each("row", "0u", "p.V", LOADS)
  let key = key_of({{ v }});
  if (key < first.x) { first = vec2<u32>(key, {{ id }}); }
# endcall
  return first;
}

// log of the sum of exp(x - top).
fn log_sum(t: u32, row: u32, top: f32) -> f32 {
  var sum = 0.0;
  var part = 0.0;
  var n = 0u;
# call(v, id) each("row", "0u", "p.V", LOADS)
  part += exp2(max(({{ v }} - top) * LOG2E, -150.0));
  n += 1u;
  if (n == PART) {
    sum += part;
    part = 0.0;
    n = 0u;
  }
# endcall
  sums[t] = sum + part;
  workgroupBarrier();
  for (var d = {{ THREADS // 2 }}u; d > 0u; d /= 2u) {
    if (t < d) { sums[t] += sums[t + d]; }
    workgroupBarrier();
  }
  return log(sums[0]);
}

# if RANKED
// The first of this thread's elements behind `last`.
fn next_of_own(t: u32, row: u32, last: vec2<u32>) -> vec2<u32> {
  var next = vec2<u32>(0xffffffffu);
# call(v, id) each("row", "0u", "p.V", LOADS)
  let one = vec2<u32>(key_of({{ v }}), {{ id }});
  if (before(last, one) && before(one, next)) { next = one; }
# endcall
  return next;
}
# endif

@compute @workgroup_size({{ THREADS }})
fn top_logprobs(
    @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32) {
  {{ poison("t", THREADS) }}
  let b = flat_workgroup(id, count);
  if (b >= p.rows) { return; }
  let row = p.logits_first + b * p.V;
  var own = first_of_own(t, row);
  let first = first_of_all(t, own);
  let top = logit_of(first.x);
  let r = Row(row, is_finite(first.x), top, log_sum(t, row, top));
  if (t == 0u) {
    let token = ids[p.ids_first + b];
    let known = token >= 0 && u32(token) < p.V;
    let at = row + select(0u, u32(token), known);
# if VEC
    let key = key_of(logits[at / 4u][at % 4u]);
# else
    let key = key_of(logits_at(at));
# endif
    chosen[b] = select(bitcast<f32>(not_a_number), logprob(r, key), known);
  }
# if RANKED
  for (var i = 0u; i < p.k; i++) {
    workgroupBarrier();  // the firsts have been read
    let taken = first_of_all(t, own);
    if (t == 0u) {
      best[b * p.k + i] = select(-1, i32(taken.y), r.finite);
      logs[b * p.k + i] = logprob(r, taken.x);
    }
    if (all(own == taken)) { own = next_of_own(t, row, taken); }
  }
# endif
}
