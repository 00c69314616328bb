// Attention forward on vector units: out = softmax(score) v, lse, over packed or paged sequences.
//   score = softcap tanh(scale q.k / softcap) - slope |distance|, masked by causal and window
// q [Tq, H, D], k, v [Tk, K, D | DV] with any strides of rows and heads, or caches
// [NB, BLOCK, K, D | DV] (-1: p.block_size) behind a table [B, columns]; out [Tq, H, DV], lse f32 [Tq, H].
// One workgroup takes TM TY queries of one head (an entry of attention_plan.wgsl's list) against
// TN TX keys at a time: thread (x, y) of TX x TY owns TM rows and TN keys of the scores, then TM
// rows and DV / TX columns of out, in registers. q, k (turned, BK columns at a time) and v (BKV
// keys) pass through `stage`, the probabilities through `probs`; with AHEAD the next piece is on its
// way to registers while one is multiplied, without the text is short. Softmax online, in base 2, sums in f32.
// SPLITS > 1: as many workgroups share the keys of a tile, and leave what attention_decode_parts.wgsl
// describes.
// Limits: D, DV <= 256. Source: Dao 2023, FlashAttention-2; the tiling is that of a plain GEMM.
# from "attention_parts.wgsl" import columns, put_columns, width, declare, fetch_turned, put_turned, copy_turned, copy_rows, product, zero, over_x, guard, blocks, tanh_of with context
# set THREADS = TX * TY
# set BM = TM * TY
# set BN = TN * TX
# set QP = BM // 4 + 1
# set KP = BN // 4 + 1
# set NC = (D + BK - 1) // BK
# set G = (DV + 4 * TX - 1) // (4 * TX)
# set VP = G * TX
# set NV = BN // BKV
# set block_size = "p.block_size" if BLOCK < 0 else BLOCK ~ "u"
# set q_stage = 0 if RESIDENT else BK * QP
# set v_loads = (BKV * VP + THREADS - 1) // THREADS
struct Params {
  q_at: u32, q_row: u32, q_head: u32, k_at: u32, k_row: u32, k_head: u32, v_at: u32, v_row: u32,
  v_head: u32, k_block: u32, v_block: u32, block_size: u32, table_at: u32, columns: u32,
  heads: u32, group: u32, tiles: u32, together: u32, segments: i32, left: i32, right: i32, scale: f32, cap: f32,
}
{{ read(0, "q", Q, width(Q, VECTOR) | int) }}
{{ read(1, "k", KV, width(KV, VECTOR) | int) }}
{{ read(2, "v", KV, width(KV, VECTOR) | int) }}
{{ read(3, "plan", "i32") }}
# if BLOCK
{{ read(4, "table", "i32") }}
# endif
# set at = 5 if BLOCK else 4
# if FLAG
{{ read(at, "flag", "u32") }}
#   set at = at + 1
# endif
# if SPLITS > 1
{{ write(at, "partials", "f32", 4) }}
{{ parameters(at + 1) }}
# else
{{ write(at, "out", OUT, width(OUT, DV % 4 == 0) | int) }}
{{ write(at + 1, "lse", "f32") }}
{{ parameters(at + 2) }}
# endif
{{ workgroup("stage", "vec4<f32>", [q_stage + BK * KP, BKV * VP] | max) }}
{{ workgroup("probs", "vec4<f32>", [BN, TX] | max * QP) }}
# if RESIDENT
{{ workgroup("queries", "vec4<f32>", NC * BK * QP) }}
# endif
const LOG2E = 1.4426950408889634;
const LOWEST = -1.0e30;   // of a row that has seen no key
const HIDDEN = -3.0e38;   // of a key that is not seen: 0 under exp2 even beside LOWEST
var<private> minus_infinity: u32 = 0xff800000u;
var<private> last_row: u32;  // of the tile
var<private> last_key: i32;  // that any of its rows sees
# if BLOCK
var<private> table_row: u32;
const NO_ROW = 0xffffffffu;
# endif

// -- rows, and four columns of them ---------------------------------------------------------------
{{ columns("q", Q, D, D % BK) -}}
{{ columns("k", KV, D, D % BK) -}}
{{ columns("v", KV, DV, DV - 4 * VP, BLOCK) -}}
// Where row r of the tile's queries starts, and row r of k and v behind key `start`; the last one
// that there is stands in for those past the end. Values of blocks that are not there are zeros, as
// 0 times what another sequence left may be nan.
fn q_row(r: u32, base: u32) -> u32 { return base + min(r, last_row) * p.q_row; }
# if BLOCK
fn block_of(j: u32) -> i32 {
  var column = j / {{ block_size }};
  if (column >= p.columns) { column %= p.columns; }
  return table[table_row + column];
}
# endif
# for name in "kv"
var<private> {{ name }}_base: u32;
fn {{ name }}_row(r: u32, start: i32) -> u32 {
  let j = u32(min(start + i32(r), last_key));
# if BLOCK
  let block = block_of(j);
#   if name == "v"
  if (block < 0) { return NO_ROW; }
#   endif
  return {{ name }}_base + u32(max(block, 0)) * p.{{ name }}_block + j % {{ block_size }} * p.{{ name }}_row;
# else
  return {{ name }}_base + j * p.{{ name }}_row;
# endif
}
# endfor

# macro fetch_qk(start, chunk)
# if not RESIDENT
{{ fetch_turned("rq", "q", "q_base", BM, BK, THREADS, TX, "rows", chunk) -}}
# endif
{{ fetch_turned("rk", "k", start, BN, BK, THREADS, TX, "spread", chunk) -}}
# endmacro
# macro put_qk()
# if not RESIDENT
{{ put_turned("rq", "q", "stage", "0u", QP, BM, BK, THREADS) -}}
# endif
{{ put_turned("rk", "k", "stage", q_stage ~ "u", KP, BN, BK, THREADS) -}}
# endmacro
# macro copy_qk(start, chunk)
# if not RESIDENT
{{ copy_turned("q", "q_base", "stage", "0u", QP, BM, BK, THREADS, TX, "rows", chunk) -}}
# endif
{{ copy_turned("k", start, "stage", q_stage ~ "u", KP, BN, BK, THREADS, TX, "spread", chunk) -}}
# endmacro
# macro fetch_v(start)
# for j in range(v_loads)
  {
    let i = id + {{ j * THREADS }}u;
    rv{{ j }} = v_raw(v_row(i / {{ VP }}u, {{ start }}), i % {{ VP }}u);
  }
# endfor
# endmacro
# macro put_v()
# for j in range(v_loads)
  {{ guard(j, BKV * VP, THREADS) | trim }} { stage[id + {{ j * THREADS }}u] = v_wide(rv{{ j }}); }
# endfor
# endmacro

@compute @workgroup_size({{ THREADS }})
fn attention(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) workgroup: vec3<u32>,
             @builtin(num_workgroups) workgroups: vec3<u32>) {
  // `together` heads side by side, whose keys the cache holds; last queries, the most work, first
# if FLAG
  if (flag[0] == 0u) { return; }  // tensor cores have done it
# endif
# if SPLITS > 1
  let split = flat_workgroup(workgroup, workgroups) % {{ SPLITS }}u;
  let number = flat_workgroup(workgroup, workgroups) / {{ SPLITS }}u;
# else
  let number = flat_workgroup(workgroup, workgroups);
# endif
  if (number >= p.tiles * p.heads) { return; }
  let turn = p.tiles * p.together;
  let head = number / turn * p.together + number % p.together;
  let entry = 8u * (p.tiles - 1u - number % turn / p.together);
  let rows = plan[entry + 1u];
  if (rows == 0) { return; }
  let first = u32(plan[entry]);
  let position = plan[entry + 2u];
# if SPLITS > 1
  let share = (plan[entry + 7u] - plan[entry + 6u] + {{ BN * SPLITS - 1 }}) / {{ BN * SPLITS }} * {{ BN }};
  let begin = plan[entry + 6u] + i32(split) * share;
  let end = min(plan[entry + 7u], begin + share);
# else
  let begin = plan[entry + 6u];
  let end = plan[entry + 7u];
# endif
  {{ poison("id", THREADS) }}
  let x = id % {{ TX }}u;
  let y = id / {{ TX }}u;
  last_row = u32(rows) - 1u;
  last_key = end - 1;
  let q_base = p.q_at + head * p.q_head + first * p.q_row;
# if BLOCK
  table_row = p.table_at + u32(plan[entry + 3u]) * p.columns;
# endif
# for name in "kv"
  {{ name }}_base = p.{{ name }}_at + head / p.group * p.{{ name }}_head{% if not BLOCK %} + u32(plan[entry + 4u]) * p.{{ name }}_row{% endif %};
# endfor
# if ALIBI
  let slope = bitcast<f32>(plan[8u * p.tiles + head]) * LOG2E;
# endif

{{ zero("o", TM, G) -}}
# for a in range(TM // 4)
  var top{{ a }} = vec4<f32>(LOWEST);
  var sum{{ a }} = vec4<f32>();
# endfor
# if AHEAD
# set q_loads = (blocks(BM, BK, THREADS) | int) * 4
# set k_loads = (blocks(BN, BK, THREADS) | int) * 4
{{ declare("rq", "q_four", q_loads) -}}
{{ declare("rk", "k_four", k_loads) -}}
{{ declare("rv", "v_four", v_loads) -}}
# endif
# if RESIDENT
  for (var c = 0u; c < {{ NC }}u; c++) {
{{ fetch_turned("rq", "q", "q_base", BM, BK, THREADS, TX, "rows", "c") -}}
{{ put_turned("rq", "q", "queries", "c * " ~ BK * QP ~ "u", QP, BM, BK, THREADS) -}}
  }
# endif
# if AHEAD
  if (begin < end) {
{{ fetch_qk("begin", "0u") -}}
  }
# endif
  for (var start = begin; start < end; start += {{ BN }}) {
{{ zero("s", TM, TN // 4) -}}
    for (var c = 0u; c < {{ NC }}u; c++) {
      workgroupBarrier();
# if AHEAD
{{ put_qk() -}}
# else
{{ copy_qk("start", "c") -}}
# endif
      workgroupBarrier();
# if AHEAD
      if (c < {{ NC - 1 }}u) {
{{ fetch_qk("start", "c + 1u") -}}
      } else {
{{ fetch_v("start") -}}
      }
# endif
# if RESIDENT
{{ product("s", "queries", "c * " ~ BK * QP ~ "u", QP, "stage", "0u", KP, BK, TM, TN // 4, TX, TY, UNROLL) -}}
# else
{{ product("s", "stage", "0u", QP, "stage", q_stage ~ "u", KP, BK, TM, TN // 4, TX, TY, UNROLL) -}}
# endif
    }

    // scores, in base 2
    let whole = start >= position + {{ BM - 1 }} - p.left && start + {{ BN - 1 }} <= position + p.right
      && start + {{ BN }} <= end;
# for g in range(TN // 4)
    let key{{ g }} = start + i32(x) + vec4<i32>({% for i in range(4) %}{{ (4 * g + i) * TX }}{{ ", " if i < 3 }}{% endfor %});
# if BLOCK
    let there{{ g }} = vec4<bool>({% for c in "xyzw" %}block_of(u32(min(key{{ g }}.{{ c }}, last_key))) >= 0{{ ", " if c != "w" }}{% endfor %});
# endif
# endfor
# for r in range(TM)
# set row = r // 4 * 4 * TY + r % 4
# for g in range(TN // 4)
# set s = "s" ~ r ~ "_" ~ g
    {{ s }} *= p.scale;
# if SOFTCAP
    if (p.cap > 0.0) { {{ s }} = p.cap * tanh_of({{ s }}); }
# endif
# if ALIBI
    {{ s }} -= slope * abs(vec4<f32>(key{{ g }} - (position + {{ row }} + 4 * i32(y))));
# endif
# if BLOCK
    {{ s }} = select(vec4<f32>(HIDDEN), {{ s }}, there{{ g }});
# endif
# endfor
# endfor
    if (!whole) {
# for r in range(TM)
# set row = r // 4 * 4 * TY + r % 4
# for g in range(TN // 4)
# set s = "s" ~ r ~ "_" ~ g
      {
        let away = key{{ g }} - (position + {{ row }} + 4 * i32(y));
        let seen = (away >= vec4<i32>(-p.left)) & (away <= vec4<i32>(p.right)) & (key{{ g }} < vec4<i32>(end));
        {{ s }} = select(vec4<f32>(HIDDEN), {{ s }}, seen);
      }
# endfor
# endfor
    }

    // the online softmax
# for a in range(TM // 4)
# for r in range(4 * a, 4 * a + 4)
    var best{{ r }} = {% for g in range(TN // 4 - 1) %}max({% endfor %}s{{ r }}_0{% for g in range(1, TN // 4) %}, s{{ r }}_{{ g }}){% endfor %};
# endfor
    var next{{ a }} = vec4<f32>({% for r in range(4 * a, 4 * a + 4) %}max(max(best{{ r }}.x, best{{ r }}.y), max(best{{ r }}.z, best{{ r }}.w)){{ ", " if not loop.last }}{% endfor %});
# endfor
{{ over_x("next", "max(A, B)", TM, TX, TY, QP, SHUFFLE, "probs") -}}
# for a in range(TM // 4)
    next{{ a }} = max(next{{ a }}, top{{ a }});
    let fade{{ a }} = exp2(top{{ a }} - next{{ a }});
    top{{ a }} = next{{ a }};
    sum{{ a }} *= fade{{ a }};
# for r in range(4 * a, 4 * a + 4)
# set c = "xyzw"[r % 4]
# for g in range(TN // 4)
    s{{ r }}_{{ g }} = exp2(s{{ r }}_{{ g }} - vec4<f32>(next{{ a }}.{{ c }}));
# endfor
# for g in range(G)
    o{{ r }}_{{ g }} *= fade{{ a }}.{{ c }};
# endfor
# endfor
# for g in range(TN // 4)
# for c in "xyzw"
    {
      let four = vec4<f32>({% for r in range(4 * a, 4 * a + 4) %}s{{ r }}_{{ g }}.{{ c }}{{ ", " if not loop.last }}{% endfor %});
      sum{{ a }} += four;
      probs[(x + {{ (4 * g + loop.index0) * TX }}u) * {{ QP }}u + {{ a * TY }}u + y] = four;
    }
# endfor
# endfor
# endfor

    for (var e = 0u; e < {{ NV }}u; e++) {
      workgroupBarrier();
# if AHEAD
{{ put_v() -}}
# else
{{ copy_rows("v", "start", "e * " ~ BKV ~ "u", "stage", BKV, VP, THREADS) -}}
# endif
      workgroupBarrier();
# if AHEAD
      if (e < {{ NV - 1 }}u) {
{{ fetch_v("start + i32(e + 1u) * " ~ BKV) -}}
      } else if (start + {{ BN }} < end) {
{{ fetch_qk("start + " ~ BN, "0u") -}}
      }
# endif
{{ product("o", "probs", "e * " ~ BKV * QP ~ "u", QP, "stage", "0u", VP, BKV, TM, G, TX, TY, UNROLL) -}}
    }
  }

# if SINKS and SPLITS == 1
  let in_segment = plan[entry + 3u] < p.segments;
  let sink = select(HIDDEN, bitcast<f32>(plan[8u * p.tiles + p.heads + head]) * LOG2E, in_segment);
# endif
{{ over_x("sum", "A + B", TM, TX, TY, QP, SHUFFLE, "probs") -}}
# for r in range(TM)
# set a, c = r // 4, "xyzw"[r % 4]
  {
    let r = {{ r // 4 * 4 * TY + r % 4 }}u + 4u * y;
# if SPLITS > 1
    if (r <= last_row) {
      let at = (((first + r) * p.heads + head) * {{ SPLITS }}u + split) * {{ (DV + 3) // 4 + 1 }}u;
      if (x == 0u) { partials[at + {{ (DV + 3) // 4 }}u] = vec4<f32>(top{{ a }}.{{ c }}, sum{{ a }}.{{ c }}, 0.0, 0.0); }
# for g in range(G)
      if ({{ g * TX }}u + x < {{ (DV + 3) // 4 }}u) { partials[at + {{ g * TX }}u + x] = o{{ r }}_{{ g }}; }
# endfor
    }
# else
    var total = sum{{ a }}.{{ c }};
    var base = top{{ a }}.{{ c }};
    var share = 1.0;
# if SINKS
    base = max(base, sink);
    share = exp2(top{{ a }}.{{ c }} - base);
    total = total * share + exp2(sink - base);
# endif
    let none = total == 0.0;  // and not total > 0, which nan is not either
    let divisor = select(total, 1.0, none);
    let inverse = select(share / divisor, 0.0, none);
    if (r <= last_row) {
      let at = (first + r) * p.heads + head;
      if (x == 0u) {
        lse[at] = select((base + log2(divisor)) / LOG2E, bitcast<f32>(minus_infinity), none);
      }
# for g in range(G)
      put_out(at, {{ g * TX }}u + x, o{{ r }}_{{ g }} * inverse);
# endfor
    }
# endif
  }
# endfor
}

# if SOFTCAP
{{ tanh_of() -}}
# endif
# if SPLITS == 1
{{ put_columns("out", OUT, DV) -}}
# endif
