// Attention of few queries per sequence over a paged cache, split over the keys.
//
//   score(i, p) = scale q[i].k[p]  (softcap tanh(. / softcap); - slope |p - position of i|)
//   partial: m = max score, l = sum exp(score - m), o = sum exp(score - m) v[p], over some keys
//
// Shapes: q [T, H, D]; caches [NB * bs rows, K, D or DV]; cu_seqlens [B + 1], kv_lens [B] and
// block_table [B, columns] as in ops/attention.py. Results: `partials`, described in
// attention_decode_parts.wgsl, or with FINISH (S = 1) out [T, H, DV] and lse [T, H].
//
// Mapping: workgroups (K * tiles, S, B), fixed; lengths are read here, and those that find no keys
// end at once. A workgroup takes one range of the keys that a tile's rows see, a row being a pair
// (query of the sequence, head of the kv head): all read the same keys. LANES threads share a key,
// 8 elements each at a time; THREADS / LANES groups of them take keys in turn, UNROLL at once while
// the next are on their way, each with sums of its own, which are merged at the end: JOIN of them
// by shuffles where subgroups are known to be that large, the rest in workgroup memory.
// CACHE i8 or u8: codes of 8 or 4 bits, and scales, as boostr/quant/kv.py has them, all as words.
// Values: Q, CACHE dtypes; D, DV <= 256; HEADS of q for each kv head; ROWS, LANES, THREADS,
//   UNROLL 2 | 4; VEC: rows are whole 16-byte words; SHIFT: log2 of the block size, -1 any, -2 for
//   one block for each sequence; SOFTCAP, ALIBI, FINISH, LSE; SUBGROUPS: LANES reach one another;
//   AT_ONCE: rows whose sums are in ROOM together.
// Limits: cache rows evenly spaced; FINISH needs DV % 4 == 0.
// Source: Dao et al. 2023, Flash-Decoding.
# set GROUPS = THREADS // LANES
# set MERGED = GROUPS // JOIN
# set K_PIECES = ((D + 7) // 8 + LANES - 1) // LANES
# set V_PIECES = ((DV + 7) // 8 + LANES - 1) // LANES
# set DV4 = (DV + 3) // 4
# set PITCH = DV4 + 1
# set WIDTH4 = V_PIECES * LANES * 2
# set VALUES = "vec" ~ UNROLL ~ "<f32>"
# set CODES = {"i8": 8, "u8": 4}.get(CACHE, 0)
# set PACKED = CACHE in ("bf16", "f16")
# set STEPS = "vec" ~ UNROLL ~ "<i32>(" ~ range(0, UNROLL * GROUPS, GROUPS) | join(", ") ~ ")"
struct Params {
  q_first: u32, q_row: u32, q_head: u32,  // q's first element, from token to token, head to head
  k_first: u32, k_row: u32, k_head: u32,  // elements; with VEC pieces of 8 elements
  v_first: u32, v_row: u32, v_head: u32,
  cu_first: u32, lens_first: u32, table_first: u32, alibi_first: u32,
# if CODES
  k_scales_first: u32, v_scales_first: u32,
# endif
  T: u32, K: u32, B: u32, S: u32, tiles: u32,
  bs: u32, columns: u32, capacity: i32,
  grain: u32,  // keys that a range has at least, if there is more than one
  left: i32, right: i32,  // without a limit: 2^29
  bottom_right: u32,
  scale: f32, softcap: f32,
}
{{ read(0, "q", Q) }}
# set LOAD = CODES // 4 or (4 if VEC else 1)
{{ read(1, "k_cache", CACHE, LOAD) }}
{{ read(2, "v_cache", CACHE, LOAD) }}
{{ read(3, "cu_seqlens", "i32") }}
{{ read(4, "block_table", "i32") }}
{{ read(5, "kv_lens", "i32") }}
# set next = 6
# if ALIBI
{{ read(next, "alibi", "f32") }}
# set next = next + 1
# endif
# if CODES
{{ read(next, "k_scales", "u32") }}
{{ read(next + 1, "v_scales", "u32") }}
# set next = next + 2
# endif
# if FINISH
{{ write(next, "out", Q) }}
# set next = next + 1
#   if LSE
{{ write(next, "lse", "f32") }}
#     set next = next + 1
#   endif
# else
{{ write(next, "partials", "f32", 4) }}
# set next = next + 1
# endif
{{ parameters(next) }}
{{ workgroup("room", "vec4<f32>", ROOM) }}
{{ workgroup("stats", "vec2<f32>", MERGED * ROWS) }}

const LOWEST = -3.0e38;
const LOG2E = 1.4426950408889634;
const LN2 = 0.6931471805599453;

# include "attention_decode_loads.wgsl"

struct Sequence {
  first: u32,  // its first query
  queries: u32,
  rows: u32,
  length: i32,
  shift: i32,  // where its first query stands
  low: i32,    // the first position that is still there
  block: i32,  // its first
}

fn sequence(b: u32) -> Sequence {
  var s: Sequence;
  s.first = u32(cu_seqlens[p.cu_first + b]);
  s.queries = u32(cu_seqlens[p.cu_first + b + 1u]) - s.first;
  s.rows = s.queries * {{ HEADS }}u;
  s.length = kv_lens[p.lens_first + b];
  s.block = block_table[p.table_first + b * p.columns];
  s.shift = select(0, s.length - i32(s.queries), p.bottom_right != 0u);
  s.low = max(0, s.length - p.capacity);
  return s;
}

// The row of out, partials and lse of row R of a sequence whose queries begin at `first`.
fn result_of(first: u32, R: u32, kv: u32) -> u32 {
  let query = R / {{ HEADS }}u;
  return ((first + query) * p.K + kv) * {{ HEADS }}u + R - query * {{ HEADS }}u;
}

fn write_result(row: u32, split: u32, d4: u32, sum: vec4<f32>, m: f32, l: f32) {
# if FINISH
  let y = select(sum / l, vec4<f32>(0.0), l == 0.0);  // nan is not > 0
#   if Q == "f32"
#     for i in range(4)
  out_put(row * {{ DV }}u + 4u * d4 + {{ i }}u, y[{{ i }}]);
#     endfor
#   else
  out_put((row * {{ DV }}u + 4u * d4) / 2u, y.xy);
  out_put((row * {{ DV }}u + 4u * d4) / 2u + 1u, y.zw);
#   endif
#   if LSE
  var nothing = 0xff800000u;  // -inf, which a constant must not be
  if (d4 == 0u) { lse[row] = select((m + log2(l)) * LN2, bitcast<f32>(nothing), l == 0.0); }
#   endif
# else
  let at = (row * p.S + split) * {{ PITCH }}u;
  partials[at + d4] = sum;
  if (d4 == 0u) { partials[at + {{ DV4 }}u] = vec4<f32>(m, l, 0.0, 0.0); }
# endif
}

// Rows that no keys fell to.
fn write_nothing(t: u32, first: u32, from_row: u32, to_row: u32, kv: u32, split: u32) {
# if FINISH
  for (var i = from_row * {{ DV4 }}u + t; i < to_row * {{ DV4 }}u; i += {{ THREADS }}u) {
    let row = result_of(first, i / {{ DV4 }}u, kv);
    write_result(row, 0u, i % {{ DV4 }}u, vec4<f32>(0.0), LOWEST, 0.0);
  }
# else
  for (var R = from_row + t; R < to_row; R += {{ THREADS }}u) {
    let at = (result_of(first, R, kv) * p.S + split) * {{ PITCH }}u;
    partials[at + {{ DV4 }}u] = vec4<f32>(LOWEST, 0.0, 0.0, 0.0);
  }
# endif
}

# macro set_out()
#   for u in range(UNROLL)
    here{{ u }} = next{{ u }} >= 0;
    {
      let k_at = p.k_first + u32(max(next{{ u }}, 0)) * p.k_row + kv * p.k_head;
      let v_at = p.v_first + u32(max(next{{ u }}, 0)) * p.v_row + kv * p.v_head;
#     for j in range(K_PIECES)
      next_k{{ u }}_{{ j }} = k_piece(k_at, lane + {{ j * LANES }}u, here{{ u }});
#     endfor
#     for j in range(V_PIECES)
      next_v{{ u }}_{{ j }} = v_piece(v_at, lane + {{ j * LANES }}u, here{{ u }});
#     endfor
    }
#   endfor
# endmacro
// Positions begin..end-1 against the rows of one tile.
fn attend(t: u32, b: u32, kv: u32, split: u32, s: Sequence, tile: u32, begin: i32, end: i32) {
  let lane = t % {{ LANES }}u;
  let group = t / {{ LANES }}u;
  let base = s.low - s.low % i32(p.bs);  // of the ring's turn that the first key is in
# for u in range(UNROLL)
  var next{{ u }} = lookup(b, s.block, base, begin + i32(group) + {{ u * GROUPS }}, end);
  var here{{ u }} = false;
#   for j in range(K_PIECES)
  var next_k{{ u }}_{{ j }}: Raw;
#   endfor
#   for j in range(V_PIECES)
  var next_v{{ u }}_{{ j }}: Raw;
#   endfor
# endfor
{{ set_out() -}}
# for u in range(UNROLL)
  next{{ u }} = lookup(b, s.block, base, begin + i32(group) + {{ (u + UNROLL) * GROUPS }}, end);
# endfor
# for r in range(ROWS)
  // row {{ r }}
  let R{{ r }} = min(tile * {{ ROWS }}u + {{ r }}u, s.rows - 1u);
  let at{{ r }} = s.shift + i32(R{{ r }} / {{ HEADS }}u);
  let low{{ r }} = vec{{ UNROLL }}<i32>(max(begin, at{{ r }} - p.left));
  let high{{ r }} = vec{{ UNROLL }}<i32>(min(end - 1, at{{ r }} + p.right));
#   for j in range(K_PIECES)
  let q{{ r }}_{{ j }} = q_piece(s.first, R{{ r }}, kv, lane + {{ j * LANES }}u);
#   endfor
#   for j in range(V_PIECES)
  var a{{ r }}_{{ j }} = vec4<f32>(0.0);
  var b{{ r }}_{{ j }} = vec4<f32>(0.0);
#   endfor
#   if ALIBI
  let slope{{ r }} = alibi[p.alibi_first + kv * {{ HEADS }}u + R{{ r }} % {{ HEADS }}u] * LOG2E;
#   endif
  var m{{ r }} = LOWEST;
  var l{{ r }} = 0.0;
# endfor
  for (var first = begin; first < end; first += {{ UNROLL * GROUPS }}) {
    let position = vec{{ UNROLL }}<i32>(first + i32(group)) + {{ STEPS }};
    let seen = vec{{ UNROLL }}<bool>({% for u in range(UNROLL) %}{{ ", " if u }}here{{ u }}{% endfor %});
# for u in range(UNROLL)
#   for j in range(K_PIECES)
    let k{{ u }}_{{ j }} = next_k{{ u }}_{{ j }};
#   endfor
#   for j in range(V_PIECES)
    let v{{ u }}_{{ j }} = next_v{{ u }}_{{ j }};
#   endfor
# endfor
    // the next ones set out
{{ set_out() -}}
# for u in range(UNROLL)
    next{{ u }} = lookup(b, s.block, base, first + i32(group) + {{ (u + 2 * UNROLL) * GROUPS }}, end);
# endfor
# for r in range(ROWS)
    var s{{ r }} = {{ VALUES }}(0.0);
# endfor
# for u in range(UNROLL)
    {
#   for j in range(K_PIECES)
      let x{{ j }} = floats(k{{ u }}_{{ j }});
#     for r in range(ROWS)
      s{{ r }}[{{ u }}] += dot(q{{ r }}_{{ j }}.a, x{{ j }}.a) + dot(q{{ r }}_{{ j }}.b, x{{ j }}.b);
#     endfor
#   endfor
    }
# endfor
# if SUBGROUPS
#   set ns = namespace(d=1)
#   for _ in range(8)
#     if ns.d < LANES
#       for r in range(ROWS)
    s{{ r }} += subgroupShuffleXor(s{{ r }}, {{ ns.d }}u);
#       endfor
#       set ns.d = ns.d * 2
#     endif
#   endfor
# elif LANES > 1
#   for r in range(ROWS)
    room[{{ r * THREADS }}u + t] = vec4<f32>(s{{ r }}{{ ", 0.0, 0.0" if UNROLL == 2 }});
    s{{ r }} = {{ VALUES }}(0.0);
#   endfor
    workgroupBarrier();
    for (var i = group * {{ LANES }}u; i < (group + 1u) * {{ LANES }}u; i++) {
#   for r in range(ROWS)
      s{{ r }} += room[{{ r * THREADS }}u + i]{{ ".xy" if UNROLL == 2 }};
#   endfor
    }
    workgroupBarrier();
# endif
# for r in range(ROWS)
    {
#   if SOFTCAP
      // tanh overflows on some drivers beyond 44
      var x = clamp(s{{ r }} * (p.scale / p.softcap), {{ VALUES }}(-15.0), {{ VALUES }}(15.0));
      x = tanh(x) * (p.softcap * LOG2E);
#   else
      var x = s{{ r }};
#   endif
#   if ALIBI
      x -= slope{{ r }} * {{ VALUES }}(abs(position - vec{{ UNROLL }}<i32>(at{{ r }})));
#   endif
      let mine = seen & (position >= low{{ r }}) & (position <= high{{ r }});
      x = select({{ VALUES }}(LOWEST), x, mine);
#   if UNROLL == 4
      let top = max(m{{ r }}, max(max(x.x, x.y), max(x.z, x.w)));
#   else
      let top = max(m{{ r }}, max(x.x, x.y));
#   endif
      let keep = exp2(m{{ r }} - top);
      let w = select({{ VALUES }}(0.0), exp2(x - {{ VALUES }}(top)), mine);
      m{{ r }} = top;
      l{{ r }} = l{{ r }} * keep + dot(w, {{ VALUES }}(1.0));
#   for j in range(V_PIECES)
      a{{ r }}_{{ j }} *= keep;
      b{{ r }}_{{ j }} *= keep;
#   endfor
      s{{ r }} = w;
    }
# endfor
# for u in range(UNROLL)
    {
#   for j in range(V_PIECES)
      let x{{ j }} = floats(v{{ u }}_{{ j }});
#     for r in range(ROWS)
      a{{ r }}_{{ j }} = fma(x{{ j }}.a, vec4<f32>(s{{ r }}[{{ u }}]), a{{ r }}_{{ j }});
      b{{ r }}_{{ j }} = fma(x{{ j }}.b, vec4<f32>(s{{ r }}[{{ u }}]), b{{ r }}_{{ j }});
#     endfor
#   endfor
    }
# endfor
  }
  // The groups' sums, made one.
# if JOIN > 1
#   for r in range(ROWS)
  {
    var top = m{{ r }};
#     for d in JOINED
    top = max(top, subgroupShuffleXor(top, {{ d }}u));
#     endfor
    let factor = exp2(m{{ r }} - top);
    m{{ r }} = top;
    l{{ r }} *= factor;
#     for j in range(V_PIECES)
    a{{ r }}_{{ j }} *= factor;
    b{{ r }}_{{ j }} *= factor;
#     endfor
#     for d in JOINED
    l{{ r }} += subgroupShuffleXor(l{{ r }}, {{ d }}u);
#       for j in range(V_PIECES)
    a{{ r }}_{{ j }} += subgroupShuffleXor(a{{ r }}_{{ j }}, {{ d }}u);
    b{{ r }}_{{ j }} += subgroupShuffleXor(b{{ r }}_{{ j }}, {{ d }}u);
#       endfor
#     endfor
  }
#   endfor
# endif
  let writes = group % {{ JOIN }}u == 0u;
  let slot = group / {{ JOIN }}u;
  if (lane == 0u && writes) {
# for r in range(ROWS)
    stats[slot * {{ ROWS }}u + {{ r }}u] = vec2<f32>(m{{ r }}, l{{ r }});
# endfor
  }
# for r0 in range(0, ROWS, AT_ONCE)
#   set count = [AT_ONCE, ROWS - r0] | min
  if (writes) {
#   for r in range(r0, r0 + count)
    {
      let at = ({{ (r - r0) * MERGED }}u + slot) * {{ WIDTH4 }}u;
#     for j in range(V_PIECES)
      {
        let piece = lane + {{ j * LANES }}u;
#       if CODES == 4
        let first = at + piece / 4u * 8u + piece % 4u;
        room[first] = a{{ r }}_{{ j }};
        room[first + 4u] = b{{ r }}_{{ j }};
#       else
        room[at + 2u * piece] = a{{ r }}_{{ j }};
        room[at + 2u * piece + 1u] = b{{ r }}_{{ j }};
#       endif
      }
#     endfor
    }
#   endfor
  }
  workgroupBarrier();
  for (var i = t; i < {{ count * DV4 }}u; i += {{ THREADS }}u) {
    let r = i / {{ DV4 }}u;
    let from_ = r * {{ MERGED * WIDTH4 }}u + i - r * {{ DV4 }}u;
    var m = LOWEST;
    var l = 0.0;
    var sum = vec4<f32>(0.0);
#   if MERGED <= 8
#     for g in range(MERGED)
    let e{{ g }} = stats[{{ g * ROWS + r0 }}u + r];
    let o{{ g }} = room[from_ + {{ g * WIDTH4 }}u];
    m = max(m, e{{ g }}.x);
#     endfor
#     for g in range(MERGED)
    {
      let w = exp2(e{{ g }}.x - m);
      l += w * e{{ g }}.y;
      sum += w * o{{ g }};
    }
#     endfor
#   else
    for (var g = 0u; g < {{ MERGED }}u; g++) { m = max(m, stats[g * {{ ROWS }}u + {{ r0 }}u + r].x); }
    for (var g = 0u; g < {{ MERGED }}u; g++) {
      let e = stats[g * {{ ROWS }}u + {{ r0 }}u + r];
      let w = exp2(e.x - m);
      l += w * e.y;
      sum += w * room[from_ + g * {{ WIDTH4 }}u];
    }
#   endif
    let R = tile * {{ ROWS }}u + {{ r0 }}u + r;
    if (R < s.rows) {
      write_result(result_of(s.first, R, kv), split, i - r * {{ DV4 }}u, sum, m, l);
    }
  }
#   if r0 + AT_ONCE < ROWS
  workgroupBarrier();  // the room is used again
#   endif
# endfor
}

@compute @workgroup_size({{ THREADS }})
fn attention_partials(
    @builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) t: u32) {
  {{ poison("t", THREADS) }}
  let kv = id.x % p.K;
  let split = id.y;
  let b = id.z;
  let s = sequence(b);
  if (b + 1u == p.B && id.x < p.K) {  // tokens of no sequence
    let end = s.first + s.queries;
    write_nothing(t, end, 0u, (p.T - end) * {{ HEADS }}u, kv, split);
  }
  for (var tile = id.x / p.K; tile * {{ ROWS }}u < s.rows; tile += p.tiles) {
    let last = min(tile * {{ ROWS }}u + {{ ROWS }}u, s.rows) - 1u;
    let low = max(s.low, s.shift + i32(tile * {{ ROWS }}u / {{ HEADS }}u) - p.left);
    let high = min(s.length - 1, s.shift + i32(last / {{ HEADS }}u) + p.right);
    let count = u32(max(high - low + 1, 0));
    let used = clamp((count + p.grain - 1u) / p.grain, 1u, p.S);
    let share = (count + used - 1u) / used;
    let begin = low + i32(split * share);
    let end = min(begin + i32(share), high + 1);
    if (split < used && begin < end) {
      if (tile != id.x / p.K) { workgroupBarrier(); }  // the room is used again
      attend(t, b, kv, split, s, tile, begin, end);
    } else {
      write_nothing(t, s.first, tile * {{ ROWS }}u, last + 1u, kv, split);
    }
  }
}
