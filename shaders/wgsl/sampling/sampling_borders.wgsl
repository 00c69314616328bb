// Included by sampling.wgsl: the borders of a row one after the other, and its entry point.
const TOP_K = 0u;
const TOP_P = 1u;  // the odd ones are of weight
const MIN_P = 2u;
const LAST = 3u;   // the draw

// The weight that the candidates up to the border of top-p reach: its share, rounded up.
fn share(part: f32, mass: vec2<u32>) -> vec2<u32> {
  let bits = bitcast<u32>(part);
  if (bits < 0x00800000u) { return vec2<u32>(1u, 0u); }
  let wanted = scaled64(mass, (bits & 0x7fffffu) | 0x800000u, 150u - (bits >> 23u), true);
  return select(wanted, mass, less64(mass, wanted));
}
// What the count (or for odd steps the mass) is to reach at this border; 0 if there is none.
fn border_of(q: Options, likely: u32, last: Spot, step: u32) -> vec2<u32> {
  let k = select(p.V, q.top_k, q.top_k > 0u && q.top_k < p.V);
  if (step == TOP_K) {
    let needless = q.top_p >= 1.0 && q.min_p > 0.0 && likely < k;
    return vec2<u32>(select(k, 0u, k == p.V || needless), 0u);
  }
  if (step == TOP_P) { return select(vec2<u32>(0u), share(q.top_p, last.mass), q.top_p < 1.0); }
  if (step == MIN_P) {
    return vec2<u32>(select(0u, likely, q.min_p > 0.0 && likely < last.count), 0u);
  }
  return add64(scaled64(last.mass, q.u, 24u, false), vec2<u32>(1u, 0u));
}
// The farthest bin in which a border can lie: where the k-th is, where top-p's share of all ends,
// where min_p falls; `at` of it has the sums. In one loop, as the compiler copies what is called.
struct Far { bin: u32, count: u32, total: vec2<u32> }
fn farthest(t: u32, q: Options, likely: u32) -> Far {
  let ranked = q.top_k > 0u && q.top_k < p.V;
  var far = Far(0u, 0u, vec2<u32>(0u));
  for (var i = 0u; i < p.kinds; i++) {
    var border = vec2<u32>(NONE, 0u);  // that is nowhere: of all bins
    if (i == 1u) { border.x = select(0u, q.top_k, ranked); }
    if (i == 2u) {
      // behind top-k it is a share of the first k's weight, which needs them all
      if (q.top_p >= 1.0 || ranked) { continue; }
      border = share(q.top_p, far.total);
    }
    if (i == 3u) { border.x = select(0u, likely, q.min_p > 0.0 && !(q.top_p < 1.0 && ranked)); }
    if (border.x == 0u && border.y == 0u) { continue; }
    let other = find_bin(t, 0u, i == 2u, border);
    if (i == 0u) { far.total = other.at.mass; }
    if (i == 0u || other.bin < far.bin) {
      far.bin = other.bin;
      far.count = other.at.count;
    }
  }
  return far;
}

// What the list holds: n candidates, behind `count` ones of weight `mass`, up to weight `reach`.
struct Held { n: u32, count: u32, mass: vec2<u32>, reach: vec2<u32> }
fn holds(h: Held, by_mass: bool, border: vec2<u32>) -> bool {
  let start = select(vec2<u32>(h.count, 0u), h.mass, by_mass);
  let end = select(vec2<u32>(h.count + h.n, 0u), h.reach, by_mass);
  return h.n > 0u && less64(start, border) && !less64(end, border);
}

// The range around a border that no list had, and the sums before it: of its bin, or of so small a
// part of the bin that it fits the list.
struct Place { range: Range, count: u32, mass: vec2<u32> }
fn place_of(t: u32, r: Row, by_mass: bool, border: vec2<u32>) -> Place {
  var range = Range(IN_BINS, 0u, 0u, 0u);
  var shift = 0u;
  var count = 0u;
  var mass = vec2<u32>(0u);
  for (var turn = 0u; turn < p.turns; turn++) {
    if (turn > 0u) {
      let width = 32u - countLeadingZeros(range.high - range.low);  // of its numbers, in bits
      shift = u32(max(i32(width) - {{ BINS.bit_length() - 1 }}, 0));
      split(t, r, range, shift);
    }
    let start = select(vec2<u32>(count, 0u), mass, by_mass);
    let base = select({{ BINS }}u, 0u, turn == 0u);
    let part = find_bin(t, base, by_mass, sub64(border, start));
    range.low += part.bin << shift;
    range.high = select(min(range.high, range.low + (1u << shift) - 1u), part.bin, turn == 0u);
    count += part.count;
    mass = add64(mass, part.mass);
    if (part.held <= {{ LIST }}u) { break; }
    if (turn == 0u) {
      let keys = keys_of_bin(t, r, part.bin);
      range = Range(IN_KEYS, keys.x, keys.y, 0u);
    }
    if (range.what == IN_KEYS && range.low >= range.high) {
      range = Range(IN_IDS, 0u, p.V - 1u, range.low);
    }
  }
  return Place(range, count, mass);
}

// The first p.borders borders: the last candidate that is kept, and the one at the last border.
struct Both { last: Spot, spot: Spot }
fn filter_row(t: u32, r: Row, q: Options) -> Both {
  let counted = fill_bins(t, r, q.min_p);
  let likely = max(counted, 1u);
  let far = farthest(t, q, likely);
  var last = Spot(NONE, NONE, p.V, far.total);
  var spot = last;
  var held = Held(0u, 0u, vec2<u32>(0u), vec2<u32>(0u));
  for (var i = 0u; i <= p.borders; i++) {
    let step = max(i, 1u) - 1u;
    let by_mass = step % 2u == 1u;
    let border = border_of(q, likely, last, step);
    var place = Place(Range(IN_BINS, 0u, far.bin, 0u), 0u, vec2<u32>(0u));
    if (i == 0u) {
      if (far.count > {{ LIST }}u) { continue; }  // else one list is for all
    } else {
      if (border.x == 0u && border.y == 0u) { continue; }
      if (!holds(held, by_mass, border)) { place = place_of(t, r, by_mass, border); }
    }
    if (i == 0u || !holds(held, by_mass, border)) {
      let n = gather(t, r, place.range, place.mass);
      let reach = workgroupUniformLoad(&list[max(n, 1u) - 1u]).zw;
      held = Held(n, place.count, place.mass, reach);
    }
    if (i == 0u) { continue; }
    let next = find_in_list(t, held.n, held.count, held.mass, by_mass, border);
    if (next.id == NONE) { continue; }  // only nan logits can do that
    spot = next;
    if (step != LAST && spot.count < last.count) { last = spot; }
  }
  return Both(last, spot);
}

# set ENTRY = "sample" if DRAW else "filtered_probabilities"
@compute @workgroup_size({{ THREADS }})
fn {{ ENTRY }}(
    @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  {{ poison("t", THREADS) }}
  let b = group.x;
  let heat = temperature[p.temperature_first + b];
  var q = Options(
    u32(max(top_k[p.top_k_first + b], 0)), top_p[p.top_p_first + b], min_p[p.min_p_first + b], 0u);
  var r = Row(p.logits_first + b * p.V, 0.0, 0.0);
  var best = vec2<u32>(NONE);
# call(v, id) each("r.first", "0u", "p.V", LOADS)
      let key = key_of({{ v }});
      if (key < best.x) { best = vec2<u32>(key, {{ id }}); }
# endcall
  best = first_of_all(t, best);
  // one candidate is kept, whatever the weights
  let only_first = !(heat > 0.0) || q.top_k == 1u || q.top_p <= 0.0 || q.min_p > 1.0;
# if DRAW
  if (only_first) {
    if (t == 0u) { out[b] = select(-1, i32(best.y), is_finite(best.x)); }
    return;
  }
  let key = vec2<u32>(seeds[p.seeds_first + 2u * b], seeds[p.seeds_first + 2u * b + 1u]);
  q.u = philox4x32(vec4<u32>(counters[p.counters_first + b], 0u, 0u, 0u), key).x >> 8u;
  r.highest = logit_of(best.x);
  r.rate = LOG2E / heat;
  let id = filter_row(t, r, q).spot.id;
  if (t == 0u) { out[b] = select(-1, i32(select(best.y, id, id < p.V)), is_finite(best.x)); }
# else
  r.highest = logit_of(best.x);
  r.rate = LOG2E / select(1.0, heat, heat > 0.0);
  var last = best;
  var total = 1.0;
  if (!only_first) {
    let kept = filter_row(t, r, q).last;
    last = vec2<u32>(kept.key, kept.id);
    total = (f32(kept.mass.y) * 4294967296.0 + f32(kept.mass.x)) * {{ 2.0 ** -40 }};
  }
#   call(v, id) each("r.first", "0u", "p.V")
      let kept = !before(last, vec2<u32>(key_of({{ v }}), {{ id }}));
      out[b * p.V + {{ id }}] = select(0.0, weight(r, {{ v }}) / total, kept);
#   endcall
# endif
}
