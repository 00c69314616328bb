// q, k, v = h Wᵀ + bias, q and k with rope if there is one; h = x or norm(x). q [M, H, D] is written, k and v
// go to rows of the caches [.., KH, D] (SLOTS) or to [M, KH, D].
// W is heads of D rows: this launch has p.heads of them from head p.first of q, k, v end to end.
// A team's R rows are R/4 units of gemv_units.wgsl.
// More values: those of gemv_units.wgsl, BIAS (dtype or ""; of all three), XS (of a rounded x).
# import "gemv_rows.wgsl" as g with context
# import "gemv_units.wgsl" as units with context
struct Params {
  M: u32, heads: u32, first: u32, x_base: u32, {{ g.bases("w") }} q_bias_base: u32,
  k_bias_base: u32, v_bias_base: u32, {{ g.norm_bases() }} x_scales_base: u32,
  {{ units.bases() }} eps: f32,
}
# set b = namespace(n=1)
{{ g.declarations() }}
# if g.ROUNDED
{{ read(b.n, "x_scales", "f32") }}
#   set b.n = b.n + 1
# endif
{{ g.weight(b.n, "w") }}
# set b.n = b.n + g.PLANES | length
# if NORM
{{ g.norm(b.n) }}
#   set b.n = b.n + g.NORM_ARRAYS | length
# endif
# if BIAS
{{ read(b.n, "q_bias", BIAS) }}
{{ read(b.n + 1, "k_bias", BIAS) }}
{{ read(b.n + 2, "v_bias", BIAS) }}
#   set b.n = b.n + 3
# endif
{{ units.bindings(b.n) }}
{{ parameters(b.n + units.ARRAYS + 3) }}

{{ units.functions() }}
fn bias_of(head: u32, dim: u32) -> f32 {
# if BIAS
  if (head < {{ H }}u) { return q_bias_at(p.q_bias_base + head * {{ D }}u + dim); }
  if (head < {{ H + KH }}u) {
    return k_bias_at(p.k_bias_base + (head - {{ H }}u) * {{ D }}u + dim);
  }
  return v_bias_at(p.v_bias_base + (head - {{ H + KH }}u) * {{ D }}u + dim);
# else
  return 0.0;
# endif
}
// The row of W (from head p.first on) that row r of this launch's unit `unit` is.
fn row_of(unit: u32, r: u32) -> u32 {
  let real = min(unit, p.heads * {{ D // 4 }}u - 1u);
  return real / {{ D // 4 }}u * {{ D }}u + dim_of(real % {{ D // 4 }}u, r);
}

# set ITEMS = g.TEAMS * M * R // 4
// A unit's results: row of x, team, first sum, head and unit in it, whether there is such a unit;
// what the sums are multiplied by, what is added, and how they turn.
struct Item {
  m: u32, own: u32, i: u32, head: u32, j: u32, live: bool,
  factor: vec4<f32>, rest: vec4<f32>, turn: Turn,
}
fn item_of(group: u32, item: u32) -> Item {
  let local = item % {{ R // 4 }}u;
  let m = {{ "min(item / %du %% %du, p.M - 1u)" % (R // 4, M) if M > 1 else "0u" }};
  let own = item / {{ R // 4 * M }}u;
  let unit = (group * {{ g.TEAMS }}u + own) * {{ R // 4 }}u + local;
  let live = unit < p.heads * {{ D // 4 }}u && item / {{ R // 4 }}u % {{ M }}u < p.M;
  let known = min(unit, p.heads * {{ D // 4 }}u - 1u);
  let head = p.first + known / {{ D // 4 }}u;
  let j = known % {{ D // 4 }}u;
  var factor = vec4<f32>(w_scale_of(row_of(unit, 0u)), w_scale_of(row_of(unit, 1u)),
                         w_scale_of(row_of(unit, 2u)), w_scale_of(row_of(unit, 3u)));
# if g.ROUNDED
  factor *= x_scales[p.x_scales_base + m];
# endif
  let rest = vec4<f32>(bias_of(head, dim_of(j, 0u)), bias_of(head, dim_of(j, 1u)),
                       bias_of(head, dim_of(j, 2u)), bias_of(head, dim_of(j, 3u)));
  let i = 4u * local * {{ M }}u + m;
  return Item(m, own, i, head, j, live, factor, rest, row_of_turn(head, j, m));
}
fn finish(it: Item, shares: u32) {
  if (!it.live) { return; }
  var y = vec4<f32>(
# for r in range(4)
    f32(total(it.own, it.i + {{ r * M }}u, shares)),
# endfor
  );
# if g.LATE
  y *= inverse_rms(it.own, it.m, shares);
# endif
  settle(it.head, it.j, it.m, turned(fma(y, it.factor, it.rest), it.turn), it.turn.slot);
}

# macro rows(batch, name="row")
#   for r in range(BATCH)
  let {{ name }}{{ r }} = row_of(
    team * {{ R // 4 }}u + {{ batch }} * {{ BATCH // 4 }}u + {{ r // 4 }}u, {{ r % 4 }}u);
#   endfor
# endmacro
{{ g.entry() }}
  if (group * {{ g.TEAMS * R // 4 }}u >= p.heads * {{ D // 4 }}u) { return; }
# if ITEMS <= THREADS
  // read before the product, so that nobody waits for it behind the barrier; what hangs on a first
  // read is asked for when the weights are on their way
  var it: Item;
  if (thread < {{ ITEMS }}u) { it = item_of(group, thread); }
# set turn = "if (thread < %du) { it.turn = turn_of(it.turn, it.head, it.j); }" % ITEMS
{{ g.accumulate(rows, ["w"] * BATCH, turn) }}
{{ g.meet() }}
  if (thread < {{ ITEMS }}u) { finish(it, shares); }
# else
{{ g.accumulate(rows, ["w"] * BATCH) }}
{{ g.meet() }}
  for (var item = thread; item < {{ ITEMS }}u; item += {{ THREADS }}u) {
    var it = item_of(group, item);
    it.turn = turn_of(it.turn, it.head, it.j);
    finish(it, shares);
  }
# endif
}
