// The gradient of varlen attention without atomics, in an order that never changes.
//   p = exp(score - lse); ds = p (g.v - delta) slack, with delta = rowsum(g out) - g_lse and slack
//   = 1 - tanh^2 under a softcap; dq = scale ds k; dk = scale ds^T q; dv = p^T g.
// One kernel, twice: its tile of "a" rows stays, and it walks over the "b" rows that these see.
//   KEYS 0: a = queries (q, g), b = keys (k, v), writes dq.
//   KEYS 1: a = keys (k, v), b = queries (q, g) of every query head of the group, writes dk, dv.
// Shapes: q [Tq, H, D], g, out [Tq, H, DV], k [Tk, K, D], v [Tk, K, DV]; g, out, lse dense, stats
// f32 [Tq, H, 2] = (lse log2(e), delta) from attention_delta. Threads, tiles and the work list are
// those of attention.wgsl; the four or five products are of the same form (attention_parts.wgsl).
// Limits: D, DV <= 256. Source: Dao 2023, FlashAttention-2, without its atomic sums.
# from "attention_parts.wgsl" import columns, put_columns, width, declare, fetch_turned, put_turned, copy_turned, copy_rows, product, zero, guard, blocks, tanh_of with context
# set THREADS = TX * TY
# set BM = TM * TY
# set BN = TN * TX
# set AP = BM // 4 + 1
# set BP = BN // 4 + 1
# set NV = BN // BKV
# set G1 = (D + 4 * TX - 1) // (4 * TX)
# set G2 = (DV + 4 * TX - 1) // (4 * TX)
# set most = [G1, G2] | max * TX
# set a1, a2, b1, b2 = ("k", "v", "q", "g") if KEYS else ("q", "g", "k", "v")
struct Params {
  q_at: u32, q_row: u32, q_head: u32, k_at: u32, k_row: u32, k_head: u32, v_at: u32, v_row: u32,
  v_head: u32, g_at: u32, g_row: u32, g_head: u32, heads: u32, group: u32, tiles: u32,
  together: u32, left: i32, right: i32, scale: f32, cap: f32, factor: f32,
}
{{ read(0, "q", Q, width(Q, VECTOR) | int) }}
{{ read(1, "k", KV, width(KV, VECTOR) | int) }}
{{ read(2, "v", KV, width(KV, VECTOR) | int) }}
{{ read(3, "g", Q, width(Q, VECTOR) | int) }}
{{ read(4, "stats", "f32", 2) }}
{{ read(5, "plan", "i32") }}
# if KEYS
{{ write(6, "dk", OUT_K, width(OUT_K, D % 4 == 0) | int) }}
{{ write(7, "dv", OUT_V, width(OUT_V, DV % 4 == 0) | int) }}
{{ put_columns("dk", OUT_K, D) -}}
{{ put_columns("dv", OUT_V, DV) -}}
# else
{{ write(6, "dq", OUT_Q, width(OUT_Q, D % 4 == 0) | int) }}
{{ put_columns("dq", OUT_Q, D) -}}
# endif
{{ parameters(8 if KEYS else 7) }}
{{ workgroup("stage", "vec4<f32>", [BK * (AP + BP), BKV * most] | max) }}
{{ workgroup("weights", "vec4<f32>", BN * AP) }}
const LOG2E = 1.4426950408889634;
var<private> last_a: u32;  // row of the tile
var<private> last_b: i32;  // row that any of the tile's rows sees
# if SOFTCAP
{{ tanh_of() -}}
# endif

// -- rows, and four columns of them; the last row stands in for those past the end ----------------
{{ columns("q", Q, D, D % BK + (D - 4 * TX * G1)) -}}
{{ columns("k", KV, D, D % BK + (D - 4 * TX * G1)) -}}
{{ columns("v", KV, DV, DV % BK + (DV - 4 * TX * G2)) -}}
{{ columns("g", Q, DV, DV % BK + (DV - 4 * TX * G2)) -}}
# for name in (a1, a2)
var<private> {{ name }}_base: u32;
fn {{ name }}_row(r: u32, base: u32) -> u32 { return base + min(r, last_a) * p.{{ name }}_row; }
# endfor
# for name in (b1, b2)
var<private> {{ name }}_base: u32;
fn {{ name }}_row(r: u32, start: i32) -> u32 {
  return {{ name }}_base + u32(min(start + i32(r), last_b)) * p.{{ name }}_row;
}
# endfor

# macro scores(sum, a, b, W)
{{ zero(sum, TM, TN // 4) -}}
    for (var c = 0u; c < {{ (W + BK - 1) // BK }}u; c++) {
      workgroupBarrier();
# if AHEAD
{{ fetch_turned("ra", a, a ~ "_base", BM, BK, THREADS, TX, "rows", "c") -}}
{{ fetch_turned("rb", b, "start", BN, BK, THREADS, TX, "spread", "c") -}}
{{ put_turned("ra", a, "stage", "0u", AP, BM, BK, THREADS) -}}
{{ put_turned("rb", b, "stage", BK * AP ~ "u", BP, BN, BK, THREADS) -}}
# else
{{ copy_turned(a, a ~ "_base", "stage", "0u", AP, BM, BK, THREADS, TX, "rows", "c") -}}
{{ copy_turned(b, "start", "stage", BK * AP ~ "u", BP, BN, BK, THREADS, TX, "spread", "c") -}}
# endif
      workgroupBarrier();
{{ product(sum, "stage", "0u", AP, "stage", BK * AP ~ "u", BP, BK, TM, TN // 4, TX, TY, UNROLL) -}}
    }
# endmacro
# macro accumulate(sum, b, G)
    for (var e = 0u; e < {{ NV }}u; e++) {
      workgroupBarrier();
# if AHEAD
# for j in range((BKV * G * TX + THREADS - 1) // THREADS)
      {{ guard(j, BKV * G * TX, THREADS) | trim }} {
        let i = id + {{ j * THREADS }}u;
        let row = {{ b }}_row(e * {{ BKV }}u + i / {{ G * TX }}u, start);
        stage[i] = {{ b }}_wide({{ b }}_raw(row, i % {{ G * TX }}u));
      }
# endfor
# else
{{ copy_rows(b, "start", "e * " ~ BKV ~ "u", "stage", BKV, G * TX, THREADS) -}}
# endif
      workgroupBarrier();
{{ product(sum, "weights", "e * " ~ BKV * AP ~ "u", AP, "stage", "0u", G * TX, BKV, TM, G, TX, TY, UNROLL) -}}
    }
# endmacro
# macro share(sum)
# for a in range(TM // 4)
# for g in range(TN // 4)
# for c in "xyzw"
    weights[(x + {{ (4 * g + loop.index0) * TX }}u) * {{ AP }}u + {{ a * TY }}u + y] =
      vec4<f32>({% for r in range(4 * a, 4 * a + 4) %}{{ sum }}{{ r }}_{{ g }}.{{ c }}{{ ", " if not loop.last }}{% endfor %});
# endfor
# endfor
# endfor
# endmacro

@compute @workgroup_size({{ THREADS }})
fn attention_backward(@builtin(local_invocation_index) id: u32,
                      @builtin(workgroup_id) workgroup: vec3<u32>,
                      @builtin(num_workgroups) workgroups: vec3<u32>) {
  let number = flat_workgroup(workgroup, workgroups);
  if (number >= p.tiles * p.heads) { return; }
  let turn = p.tiles * p.together;
  let own = number / turn * p.together + number % p.together;  // query head; with KEYS kv head
  let place = number % turn / p.together;  // the tiles with the most work first
  let entry = 8u * {{ "place" if KEYS else "(p.tiles - 1u - place)" }};
  let rows = plan[entry + 1u];
  if (rows == 0) { return; }
  let first = u32(plan[entry]);
  let position = plan[entry + 2u];
  let first_b = u32(plan[entry + 4u]);
  let begin = plan[entry + 6u];
  let end = plan[entry + 7u];
  {{ poison("id", THREADS) }}
  let x = id % {{ TX }}u;
  let y = id / {{ TX }}u;
  last_a = u32(rows) - 1u;
  last_b = end - 1;
{{ zero("one", TM, G1) -}}
# if KEYS
{{ zero("two", TM, G2) -}}
# endif
# if AHEAD
{{ declare("ra", ("k" if KEYS else "q") ~ "_four", (blocks(BM, BK, THREADS) | int) * 4) -}}
{{ declare("rb", ("q" if KEYS else "k") ~ "_four", (blocks(BN, BK, THREADS) | int) * 4) -}}
# endif
# if KEYS
  k_base = p.k_at + own * p.k_head + first * p.k_row;
  v_base = p.v_at + own * p.v_head + first * p.v_row;
  for (var head = own * p.group; head < (own + 1u) * p.group; head++) {
    q_base = p.q_at + head * p.q_head + first_b * p.q_row;
    g_base = p.g_at + head * p.g_head + first_b * p.g_row;
# else
  {
    let head = own;
    q_base = p.q_at + head * p.q_head + first * p.q_row;
    g_base = p.g_at + head * p.g_head + first * p.g_row;
    k_base = p.k_at + head / p.group * p.k_head + first_b * p.k_row;
    v_base = p.v_at + head / p.group * p.v_head + first_b * p.v_row;
# for r in range(TM)
    let stat{{ r }} = stats[(first + min({{ r // 4 * 4 * TY + r % 4 }}u + 4u * y, last_a)) * p.heads + head];
# endfor
# endif
# if ALIBI
    let slope = bitcast<f32>(plan[8u * p.tiles + head]) * LOG2E;
# endif
    for (var start = begin; start < end; start += {{ BN }}) {
{{ scores("s", a1, b1, D) -}}
{{ scores("d", a2, b2, DV) -}}
# for g in range(TN // 4)
      let other{{ g }} = start + i32(x) + vec4<i32>({% for i in range(4) %}{{ (4 * g + i) * TX }}{{ ", " if i < 3 }}{% endfor %});
# if KEYS
# for c in "xyzw"
      let at{{ g }}{{ c }} = stats[(first_b + u32(min(other{{ g }}.{{ c }}, last_b))) * p.heads * p.group + head];
# endfor
      let norm{{ g }} = vec4<f32>({% for c in "xyzw" %}at{{ g }}{{ c }}.x{{ ", " if not loop.last }}{% endfor %});
      let delta{{ g }} = vec4<f32>({% for c in "xyzw" %}at{{ g }}{{ c }}.y{{ ", " if not loop.last }}{% endfor %});
# endif
# endfor
# for r in range(TM)
# for g in range(TN // 4)
# set s, d = "s" ~ r ~ "_" ~ g, "d" ~ r ~ "_" ~ g
# set norm, delta = ("norm" ~ g, "delta" ~ g) if KEYS else ("stat" ~ r ~ ".x", "stat" ~ r ~ ".y")
      {
        let away = other{{ g }} - (position + {{ r // 4 * 4 * TY + r % 4 }} + 4 * i32(y));
        let seen = (away >= vec4<i32>(-p.left)) & (away <= vec4<i32>(p.right)) & (other{{ g }} < vec4<i32>(end));
        {{ s }} *= p.scale;
        {{ d }} -= {{ delta }};
# if SOFTCAP
        if (p.cap > 0.0) {
          let t = tanh_of({{ s }});
          {{ s }} = p.cap * t;
          {{ d }} *= 1.0 - t * t;
        }
# endif
# if ALIBI
        {{ s }} -= slope * abs(vec4<f32>(away));
# endif
        {{ s }} = select(vec4<f32>(), exp2({{ s }} - {{ norm }}), seen);
        {{ d }} *= {{ s }};
      }
# endfor
# endfor
# if KEYS
{{ share("s") -}}
{{ accumulate("two", b2, G2) -}}
      workgroupBarrier();
# endif
{{ share("d") -}}
{{ accumulate("one", b1, G1) -}}
    }
  }
# for r in range(TM)
  if ({{ r // 4 * 4 * TY + r % 4 }}u + 4u * y <= last_a) {
    let at = (first + {{ r // 4 * 4 * TY + r % 4 }}u + 4u * y) * p.heads + own;
# for g in range(G1)
    put_d{{ a1 }}(at, {{ g * TX }}u + x, one{{ r }}_{{ g }} * p.factor);
# endfor
# if KEYS
# for g in range(G2)
    put_dv(at, {{ g * TX }}u + x, two{{ r }}_{{ g }});
# endfor
# endif
  }
# endfor
}
