// Choosing tokens; the definition is in boostr/ops/sampling.py. No value is read on the host,
// nothing is sorted but what lies around a border.
//
// Weights are integers, W[i] = floor(2^40 exp((x[i] - x[0]) / temperature)) in two words, so that
// sums are exact: a row gives the same token whatever the order of the atomics that add.
//
// A workgroup for each row of V < 2^18 logits:
//   1. the first candidate, by a reduction;
//   2. a histogram over (x[0] - x) / temperature: BINS bins of 24 / BINS octaves of weight, the last
//      one open, of how many candidates and how much weight are in each;
//   3. in which bins the borders of top-k, top-p and min-p lie. If all that may matter fits in a
//      list, this is gathered and sorted; else each border's bin is, when it is needed. A bin with
//      more than LIST candidates is split by keys, and one of equal keys by ids: so this ends;
//   4. the draw is one more border: the first candidate at which the summed weight exceeds u times
//      the weight that is kept.
// Values: LOGIT, VEC, THREADS, LOADS, SUBGROUPS; BINS, LIST >= THREADS; DRAW: sample, else
//   filtered_probabilities.
struct Params {
  V: u32, logits_first: u32, temperature_first: u32, top_k_first: u32, top_p_first: u32,
  min_p_first: u32, seeds_first: u32, counters_first: u32,
  // bounds of loops, always 4, 13 and 4 (without the draw 3): as constants they would be unrolled,
  // and compiling take half a minute
  kinds: u32, turns: u32, borders: u32,
}
{{ read(0, "logits", LOGIT, 4 if VEC else 1) }}
{{ read(1, "temperature", "f32") }}
{{ read(2, "top_k", "i32") }}
{{ read(3, "top_p", "f32") }}
{{ read(4, "min_p", "f32") }}
# if DRAW
{{ read(5, "seeds", "u32") }}
{{ read(6, "counters", "u32") }}
{{ write(7, "out", "i32") }}
{{ parameters(8) }}
# else
{{ write(5, "out", "f32") }}
{{ parameters(6) }}
# endif
# include "philox.wgsl"
# include "sampling_order.wgsl"
# from "sampling_each.wgsl" import each with context

// -- a row -----------------------------------------------------------------------------------
const LOG2E = 1.4426950408889634;
const NONE = 0xffffffffu;
struct Options { top_k: u32, top_p: f32, min_p: f32, u: u32 }  // u: the draw, of 2^24
struct Row { first: u32, highest: f32, rate: f32 }             // x[0], log2(e) / temperature
struct Spot { key: u32, id: u32, count: u32, mass: vec2<u32> }  // sums up to and including it
// A run of candidates: bins low..high of the histogram, keys low..high, or ids low..high of a key.
struct Range { what: u32, low: u32, high: u32, key: u32 }
const IN_BINS = 0u;
const IN_KEYS = 1u;
const IN_IDS = 2u;

fn weight(r: Row, v: f32) -> f32 {
  return select(min(exp2((v - r.highest) * r.rate), 1.0), 1.0, v == r.highest);
}
fn bin_of(r: Row, v: f32) -> u32 {
  let at = min((r.highest - v) * (r.rate * {{ (BINS - 1) / 24 }}), {{ BINS - 1 }}.0);
  return select(min(u32(at), {{ BINS - 1 }}u), 0u, v == r.highest);
}
fn mass_of(w: f32) -> vec2<u32> {
  let high = floor(w * 65536.0);
  let low = u32((w * 65536.0 - high) * 16777216.0);
  let h = u32(high);
  return vec2<u32>((h << 24u) | low, h >> 8u);
}
fn inside(r: Row, range: Range, v: f32, id: u32) -> bool {
  if (range.what == IN_BINS) {
    let bin = bin_of(r, v);
    return bin >= range.low && bin <= range.high;
  }
  let key = key_of(v);
  if (range.what == IN_KEYS) { return key >= range.low && key <= range.high; }
  return key == range.key && id >= range.low && id <= range.high;
}

# include "sampling_sums.wgsl"

// -- histograms: the first one, and at BINS the parts of one of its bins ------------------------
var<workgroup> counts: array<atomic<u32>, {{ 2 * BINS }}>;
var<workgroup> lows: array<atomic<u32>, {{ 2 * BINS }}>;
var<workgroup> highs: array<atomic<u32>, {{ 2 * BINS }}>;
var<workgroup> words: array<atomic<u32>, 4>;
struct Found { bin: u32, held: u32, count: u32, mass: vec2<u32>, at: Spot }
var<workgroup> found: Found;
{{ workgroup("shared_words", "u32", 4) }}
{{ workgroup("room", "vec4<u32>", THREADS) }}
{{ workgroup("list", "vec4<u32>", LIST) }}  // key, id, mass up to and including it

fn clear(t: u32, base: u32) {
  for (var i = t; i < {{ BINS }}u; i += {{ THREADS }}u) {
    atomicStore(&counts[base + i], 0u);
    atomicStore(&lows[base + i], 0u);
    atomicStore(&highs[base + i], 0u);
  }
  if (t < 4u) { atomicStore(&words[t], select(0u, NONE, t == 1u)); }
  workgroupBarrier();
}
fn add_to_bin(i: u32, count: u32, mass: vec2<u32>) {
  atomicAdd(&counts[i], count);
  let carry = u32(atomicAdd(&lows[i], mass.x) > ~mass.x);
  if (mass.y + carry > 0u) { atomicAdd(&highs[i], mass.y + carry); }
}
# set SIZE = caps.subgroup_min if caps.subgroup_min == caps.subgroup_max else 0
# if SUBGROUPS and SIZE and THREADS <= SIZE * SIZE
// Sums over this and all earlier lanes: masses in three parts of 20 bits, whose sums are words.
fn running_lanes(x: vec4<u32>) -> vec4<u32> {
  let count = subgroupInclusiveAdd(x.x);
  let low = subgroupInclusiveAdd(x.z & 0xfffffu);
  let middle = subgroupInclusiveAdd((x.z >> 20u) | ((x.w & 255u) << 12u));
  let high = subgroupInclusiveAdd(x.w >> 8u);
  let upper = vec2<u32>(middle << 20u, (middle >> 12u) + (high << 8u));
  return vec4<u32>(count, 0u, add64(vec2<u32>(low, 0u), upper));
}
// Sums over this and all earlier threads; uses the room.
fn running(t: u32, mine: vec4<u32>) -> vec4<u32> {
  let sum = running_lanes(mine);
  let lane = t % {{ SIZE }}u;
  if (lane == {{ SIZE - 1 }}u) { room[t / {{ SIZE }}u] = sum; }
  workgroupBarrier();
  var other = vec4<u32>(0u);
  if (lane < {{ THREADS // SIZE }}u) { other = room[lane]; }
  other = subgroupShuffle(running_lanes(other), max(t / {{ SIZE }}u, 1u) - 1u);
  if (t < {{ SIZE }}u) { return sum; }
  return vec4<u32>(sum.x + other.x, 0u, add64(sum.zw, other.zw));
}
# else
// Sums over this and all earlier threads; uses the room.
fn running(t: u32, mine: vec4<u32>) -> vec4<u32> {
  var sum = mine;
  room[t] = sum;
  workgroupBarrier();
  for (var d = 1u; d < {{ THREADS }}u; d *= 2u) {
    var other = vec4<u32>(0u);
    if (t >= d) { other = room[t - d]; }
    workgroupBarrier();
    sum = vec4<u32>(sum.x + other.x, 0u, add64(sum.zw, other.zw));
    room[t] = sum;
    workgroupBarrier();
  }
  return sum;
}
# endif

// Each bin's sums become those up to and including it.
fn sum_up(t: u32, base: u32) {
# set EACH = (BINS + THREADS - 1) // THREADS
  workgroupBarrier();
  var own = vec4<u32>(0u);
  let from_ = min(t * {{ EACH }}u, {{ BINS }}u);
  let to_ = min(from_ + {{ EACH }}u, {{ BINS }}u);
  for (var i = base + from_; i < base + to_; i++) {
    let mass = vec2<u32>(atomicLoad(&lows[i]), atomicLoad(&highs[i]));
    own = vec4<u32>(own.x + atomicLoad(&counts[i]), 0u, add64(own.zw, mass));
  }
  let all = running(t, own);
  var sum = vec4<u32>(all.x - own.x, 0u, sub64(all.zw, own.zw));
  for (var i = base + from_; i < base + to_; i++) {
    let mass = vec2<u32>(atomicLoad(&lows[i]), atomicLoad(&highs[i]));
    sum = vec4<u32>(sum.x + atomicLoad(&counts[i]), 0u, add64(sum.zw, mass));
    atomicStore(&counts[i], sum.x);
    atomicStore(&lows[i], sum.z);
    atomicStore(&highs[i], sum.w);
  }
  workgroupBarrier();
}
fn mass_at(i: u32) -> vec2<u32> { return vec2<u32>(atomicLoad(&lows[i]), atomicLoad(&highs[i])); }

// The bin at which the count (or mass) reaches `border`: the last one if none does.
fn find_bin(t: u32, base: u32, by_mass: bool, border: vec2<u32>) -> Found {
  for (var i = t; i < {{ BINS }}u; i += {{ THREADS }}u) {
    let at = base + i;
    let count = atomicLoad(&counts[at]);
    let mass = mass_at(at);
    var count_before = 0u;
    var mass_before = vec2<u32>(0u);
    if (i > 0u) {
      count_before = atomicLoad(&counts[at - 1u]);
      mass_before = mass_at(at - 1u);
    }
    let reached = select(vec2<u32>(count, 0u), mass, by_mass);
    let earlier = select(vec2<u32>(count_before, 0u), mass_before, by_mass);
    let never = i == {{ BINS - 1 }}u && less64(reached, border);
    if (never || (less64(earlier, border) && !less64(reached, border))) {
      found = Found(i, count - count_before, count_before, mass_before,
                    Spot(0u, 0u, count, mass));
    }
  }
  return workgroupUniformLoad(&found);
}

// -- passes over the row -------------------------------------------------------------------------
// The first histogram; most of a vocabulary is in the last bin. Returns how many weigh min_p.
fn fill_bins(t: u32, r: Row, min_p: f32) -> u32 {
  clear(t, 0u);
  var rest = 0u;
  var rest_mass = vec2<u32>(0u);
  var likely = 0u;
# call(v, id) each("r.first", "0u", "p.V", LOADS)
      let w = weight(r, {{ v }});
      let bin = bin_of(r, {{ v }});
      likely += u32(w >= min_p);
      if (bin == {{ BINS - 1 }}u) {
        rest += 1u;
        rest_mass = add64(rest_mass, mass_of(w));
      } else {
        add_to_bin(bin, 1u, mass_of(w));
      }
# endcall
  if (rest > 0u) { add_to_bin({{ BINS - 1 }}u, rest, rest_mass); }
  atomicAdd(&words[0], likely);
  sum_up(t, 0u);
  if (t == 0u) { shared_words[0] = atomicLoad(&words[0]); }
  return workgroupUniformLoad(&shared_words[0]);
}
// The least and the largest key of a bin of the first histogram.
fn keys_of_bin(t: u32, r: Row, bin: u32) -> vec2<u32> {
  if (t < 2u) { atomicStore(&words[1u + t], select(0u, NONE, t == 0u)); }
  workgroupBarrier();
# call(v, id) each("r.first", "0u", "p.V")
      if (bin_of(r, {{ v }}) == bin) {
        atomicMin(&words[1], key_of({{ v }}));
        atomicMax(&words[2], key_of({{ v }}));
      }
# endcall
  workgroupBarrier();
  if (t < 2u) { shared_words[t] = atomicLoad(&words[1u + t]); }
  let low = workgroupUniformLoad(&shared_words[0]);
  return vec2<u32>(low, workgroupUniformLoad(&shared_words[1]));
}
// The histogram of a range's keys or ids, 2^shift in a bin.
fn split(t: u32, r: Row, range: Range, shift: u32) {
  clear(t, {{ BINS }}u);
# call(v, id) each("r.first", "0u", "p.V")
      if (inside(r, range, {{ v }}, {{ id }})) {
        let place = select({{ id }}, key_of({{ v }}), range.what == IN_KEYS) - range.low;
        add_to_bin({{ BINS }}u + (place >> shift), 1u, mass_of(weight(r, {{ v }})));
      }
# endcall
  sum_up(t, {{ BINS }}u);
}
// A range's candidates in the list, in order, with the masses up to each, on top of `mass`.
// Returns how many there are, or 0 if they are too many.
fn gather(t: u32, r: Row, range: Range, mass: vec2<u32>) -> u32 {
  if (t == 0u) { atomicStore(&words[3], 0u); }
  workgroupBarrier();
# call(v, id) each("r.first", "0u", "p.V", LOADS)
      if (inside(r, range, {{ v }}, {{ id }})) {
        let at = atomicAdd(&words[3], 1u);
        if (at < {{ LIST }}u) { list[at] = vec4<u32>(key_of({{ v }}), {{ id }}, 0u, 0u); }
      }
# endcall
  workgroupBarrier();
  if (t == 0u) { shared_words[3] = atomicLoad(&words[3]); }
  let n = workgroupUniformLoad(&shared_words[3]);
  if (n == 0u || n > {{ LIST }}u) { return 0u; }
  sort_list(t, n);
  weigh_list(t, r, n, mass);
  return n;
}

// -- the list -----------------------------------------------------------------------------------
fn sort_list(t: u32, n: u32) {
  if (n <= {{ [THREADS, 256] | min }}u) {  // each one's place is how many come before it
    var own = vec4<u32>(NONE);
    var place = 0u;
    if (t < n) {
      own = list[t];
      for (var i = 0u; i < n; i++) { place += u32(before(list[i].xy, own.xy)); }
    }
    workgroupBarrier();
    if (t < n) { list[place] = own; }
    workgroupBarrier();
    return;
  }
  let size = 1u << (32u - countLeadingZeros(n - 1u));  // LIST is a power of 2
  for (var i = n + t; i < size; i += {{ THREADS }}u) { list[i] = vec4<u32>(NONE); }
  workgroupBarrier();
  for (var run = 2u; run <= size; run *= 2u) {  // a bitonic network
    for (var d = run / 2u; d > 0u; d /= 2u) {
      for (var k = t; k < size / 2u; k += {{ THREADS }}u) {
        let i = (k / d) * 2u * d + k % d;
        let a = list[i];
        let b = list[i + d];
        if (before(b.xy, a.xy) == ((i & run) == 0u)) {
          list[i] = b;
          list[i + d] = a;
        }
      }
      workgroupBarrier();
    }
  }
}
fn weigh_list(t: u32, r: Row, n: u32, mass: vec2<u32>) {
# set EACH = (LIST + THREADS - 1) // THREADS
  let from_ = min(t * {{ EACH }}u, n);
  let to_ = min(from_ + {{ EACH }}u, n);
  var own = vec2<u32>(0u);
  for (var i = from_; i < to_; i++) { own = add64(own, mass_of(weight(r, logit_of(list[i].x)))); }
  let all = running(t, vec4<u32>(0u, 0u, own));
  var sum = add64(sub64(all.zw, own), mass);
  for (var i = from_; i < to_; i++) {
    sum = add64(sum, mass_of(weight(r, logit_of(list[i].x))));
    list[i] = vec4<u32>(list[i].xy, sum);
  }
  workgroupBarrier();
}
// The first of the list at which the count (or mass) reaches the border; key NONE if none does.
fn find_in_list(
    t: u32, n: u32, count: u32, mass: vec2<u32>, by_mass: bool, border: vec2<u32>) -> Spot {
  if (t == 0u) { found.at = Spot(NONE, NONE, 0u, vec2<u32>(0u)); }
  workgroupBarrier();
  for (var i = t; i < n; i += {{ THREADS }}u) {
    let one = list[i];
    var earlier = mass;
    if (i > 0u) { earlier = list[i - 1u].zw; }
    let reached = select(vec2<u32>(count + i + 1u, 0u), one.zw, by_mass);
    earlier = select(vec2<u32>(count + i, 0u), earlier, by_mass);
    if (less64(earlier, border) && !less64(reached, border)) {
      found.at = Spot(one.x, one.y, count + i + 1u, one.zw);
    }
  }
  return workgroupUniformLoad(&found).at;
}

# include "sampling_borders.wgsl"
