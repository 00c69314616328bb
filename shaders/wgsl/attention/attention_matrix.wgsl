// Attention forward on tensor cores (subgroup matrices): f16 products, f32 scores and sums. bf16 is
// made f16 before (keys and values by attention_halves.wgsl), exactly between 2^-14 and 65504; where
// a number is beyond, `flag` is set and attention.wgsl does the work again (smaller ones lose digits
// below 2^-24). PAGED: a sequence's keys are `capacity` rows, which wrap; `there`: 0 for holes.
//   out = softmax(scale q.k, masked) v and lse, packed or paged; shapes as in attention.wgsl.
// A workgroup takes 16 SUBGROUPS queries of one head (an entry of attention_plan.wgsl's list), each
// subgroup of 32 lanes 16 of them, against BN keys at a time. Its queries stay in matrices, and so
// do its sums of out. Scores go through shared memory, where two lanes share a row, back into
// matrices as f16 probabilities. `kv` holds a tile of keys, then of values; the next one is on its
// way to registers meanwhile.
// A matrix cannot be scaled by rows in registers, so the sums are only rescaled (through `scores`)
// when a row's maximum has risen by more than RISE: until then its probabilities are up to 2^RISE.
// In `kv` and `probs` a place counts vectors of 8 f16, in `scores` of 4 f32, also in matrix loads.
// SPLITS: as in attention.wgsl.
// WIDE heads leave their queries in shared memory, as registers do not hold them beside the sums, and
// fetch nothing ahead.
// Limits: D and DV multiples of 16, to 256; scale > 0; no softcap, no slopes.
// Source: Dao 2023, FlashAttention-2; lazy rescaling: FlashAttention-4.
# from "attention_parts.wgsl" import columns, put_columns, width with context
# set THREADS = 32 * SUBGROUPS
# set BM = 16 * SUBGROUPS
# set SP = BN // 4 + 1
# set PP = BN // 8 + 1
# set each = BN // 8
# set most = [D, DV] | max
# set LINE = most // 8 + 1
# set WIDE = most > 128
# set q_loads = BM * D // 8 // THREADS
# set k_loads = BN * D // 8 // THREADS
# set v_loads = BN * DV // 8 // THREADS
struct Params {
  q_at: u32, q_row: u32, q_head: u32, k_at: u32, k_row: u32, k_head: u32, v_at: u32, v_row: u32,
  v_head: u32, capacity: u32, heads: u32, group: u32, tiles: u32, together: u32, segments: i32,
  left: i32, right: i32, scale: f32,
}
{{ read(0, "q", "u32", 4) }}
{{ read(1, "k", "u32", 4) }}
{{ read(2, "v", "u32", 4) }}
{{ read(3, "plan", "i32") }}
# if PAGED
{{ read(4, "there", "u32") }}
# endif
# set at = 5 if PAGED else 4
# if SPLITS > 1
{{ write(at, "partials", "f32", 4) }}
#   set next = at + 1
# else
{{ write(at, "out", KIND, 2) }}
{{ write(at + 1, "lse", "f32") }}
{{ put_columns("out", KIND, DV) -}}
#   set next = at + 2
# endif
# if KIND == "bf16"
@group(0) @binding({{ next }}) var<storage, read_write> flag: array<atomic<u32>>;
# endif
{{ parameters(next + 1 if KIND == "bf16" else next) }}
# if WIDE
{{ workgroup("kv", "vec4<u32>", BN * LINE) }}
{{ workgroup("queries", "vec4<u32>", BM * LINE) }}
# else
{{ workgroup("kv", "vec4<u32>", [BN, BM] | max * LINE) }}
# endif
{{ workgroup("scores", "vec4<f32>", BM * SP) }}
{{ workgroup("probs", "vec4<u32>", BM * PP) }}
{{ workgroup("fades", "f32", BM) }}
var<workgroup> risen: u32;  // whether a row's maximum has
# if PAGED
var<workgroup> holes: u32;  // whether some of these keys are not there
# endif
const LOG2E = 1.4426950408889634;
const LOWEST = -1.0e30;
const HIDDEN = -3.0e38;  // of a key that is not seen: 0 under exp2 even beside LOWEST
const RISE = 8.0;
var<private> minus_infinity: u32 = 0xff800000u;
var<private> last_row: u32;
var<private> last_key: i32;
# if PAGED
var<private> first_slot: u32;
fn slot(j: u32) -> u32 { return select(j, j % p.capacity, j >= p.capacity); }
fn is_there(j: i32) -> bool { return there[first_slot + slot(u32(min(j, last_key)))] != 0u; }
# endif
# for name in "kv"
var<private> {{ name }}_base: u32;
fn {{ name }}_row(r: u32, start: i32) -> u32 {
  let j = u32(min(start + i32(r), last_key));
  return {{ name }}_base + {{ "slot(j)" if PAGED else "j" }} * p.{{ name }}_row;
}
# endfor

# if KIND == "bf16"
var<private> largest: vec4<f32>;
fn halves(w: vec4<u32>) -> vec4<u32> {
  let a = vec4<f32>(unpack_bf16(w.x), unpack_bf16(w.y));
  let b = vec4<f32>(unpack_bf16(w.z), unpack_bf16(w.w));
  largest = max(largest, max(abs(a), abs(b)));
  return vec4<u32>(pack2x16float(a.xy), pack2x16float(a.zw), pack2x16float(b.xy), pack2x16float(b.zw));
}
# else
fn halves(w: vec4<u32>) -> vec4<u32> { return w; }
# endif

# macro fetch(name, start, count, W)
# for j in range(0 if WIDE else count)
  r{{ j }} = {{ name }}[{{ name }}_row((id + {{ j * THREADS }}u) / {{ W // 8 }}u, {{ start }}) + (id + {{ j * THREADS }}u) % {{ W // 8 }}u];
# endfor
# endmacro
# macro stash(name, start, count, W)
# for j in range(count)
  {
    let i = id + {{ j * THREADS }}u;
    kv[i / {{ W // 8 }}u * {{ LINE }}u + i % {{ W // 8 }}u] = {% if WIDE %}{{ name }}[{{ name }}_row(i / {{ W // 8 }}u, {{ start }}) + i % {{ W // 8 }}u]{% else %}r{{ j }}{% endif %};
  }
# endfor
# endmacro

@compute @workgroup_size({{ THREADS }})
fn attention(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) workgroup: vec3<u32>,
             @builtin(num_workgroups) workgroups: vec3<u32>, @builtin(subgroup_id) subgroup: u32,
             @builtin(subgroup_invocation_id) lane: u32) {
  let split = flat_workgroup(workgroup, workgroups) % {{ SPLITS }}u;
  let number = flat_workgroup(workgroup, workgroups) / {{ SPLITS }}u;
  if (number >= p.tiles * p.heads) { return; }
  let turn = p.tiles * p.together;
  let head = number / turn * p.together + number % p.together;
  let entry = 8u * (p.tiles - 1u - number % turn / p.together);
  let rows = plan[entry + 1u];
  if (rows == 0) { return; }
  let first = u32(plan[entry]);
# set keys = BN * SPLITS
  let share = (plan[entry + 7u] - plan[entry + 6u] + {{ keys - 1 }}) / {{ keys }} * {{ BN }};
  let begin = plan[entry + 6u] + i32(split) * share;
  let end = min(plan[entry + 7u], begin + share);
  {{ poison("id", THREADS) }}
  last_row = u32(rows) - 1u;
  last_key = end - 1;
# if PAGED
  first_slot = u32(plan[entry + 3u]) * p.capacity;
  let first_key = first_slot;
# else
  let first_key = u32(plan[entry + 4u]);
# endif
# for name in "kv"
  {{ name }}_base = p.{{ name }}_at + head / p.group * p.{{ name }}_head + first_key * p.{{ name }}_row;
# endfor
  // the lane's row and its half of the columns of scores
  let row = subgroup * 16u + lane / 2u;
  let half = lane % 2u;
  let position = plan[entry + 2u] + i32(row);
  var top = LOWEST;
  var sum = 0.0;
# for j in range(0 if WIDE else [k_loads, v_loads] | max)
  var r{{ j }}: vec4<u32>;
# endfor

# for j in range(q_loads)
  {
    let i = id + {{ j * THREADS }}u;
    let from_row = p.q_at + head * p.q_head + (first + min(i / {{ D // 8 }}u, last_row)) * p.q_row;
    {{ "queries" if WIDE else "kv" }}[i / {{ D // 8 }}u * {{ LINE }}u + i % {{ D // 8 }}u] = halves(q[from_row + i % {{ D // 8 }}u]);
  }
# endfor
  workgroupBarrier();
# for c in range(0 if WIDE else D // 16)
  let q{{ c }} = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(
    &kv, subgroup * {{ 16 * LINE }}u + {{ 2 * c }}u, {{ LINE }}u);
# endfor
# for c in range(DV // 16)
  var o{{ c }} = subgroup_matrix_result<f32, 16, 16>();
# endfor
  if (begin < end) {
{{ fetch("k", "begin", k_loads, D) -}}
  }
  for (var start = begin; start < end; start += {{ BN }}) {
    workgroupBarrier();
{{ stash("k", "start", k_loads, D) -}}
    if (id == 0u) { risen = 0u; }
# if PAGED
    if (id == 0u) { holes = 0u; }
# endif
    workgroupBarrier();
# if PAGED
    if (id < {{ BN }}u && !is_there(start + i32(id))) { holes = 1u; }
# endif
{{ fetch("v", "start", v_loads, DV) -}}
# if WIDE
    {
# for n in range(BN // 16)
      var t{{ n }} = subgroup_matrix_result<f32, 16, 16>();
# endfor
# for c in range(D // 16)
      let q{{ c }} = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(
        &queries, subgroup * {{ 16 * LINE }}u + {{ 2 * c }}u, {{ LINE }}u);
# for n in range(BN // 16)
      t{{ n }} = subgroupMatrixMultiplyAccumulate(q{{ c }}, subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, col_major>(
        &kv, {{ 16 * n * LINE + 2 * c }}u, {{ LINE }}u), t{{ n }});
# endfor
# endfor
# for n in range(BN // 16)
      subgroupMatrixStore<row_major>(&scores, subgroup * {{ 16 * SP }}u + {{ 4 * n }}u, t{{ n }}, {{ SP }}u);
# endfor
    }
# endif
# for n in range(0 if WIDE else BN // 16)
    {
      var s = subgroup_matrix_result<f32, 16, 16>();
# for c in range(D // 16)
      s = subgroupMatrixMultiplyAccumulate(q{{ c }}, subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, col_major>(
        &kv, {{ 16 * n * LINE + 2 * c }}u, {{ LINE }}u), s);
# endfor
      subgroupMatrixStore<row_major>(&scores, subgroup * {{ 16 * SP }}u + {{ 4 * n }}u, s, {{ SP }}u);
    }
# endfor
    workgroupBarrier();
{{ stash("v", "start", v_loads, DV) -}}
    let whole = start >= position - p.left && start + {{ BN - 1 }} <= position + p.right && start + {{ BN }} <= end{{ " && holes == 0u" if PAGED }};
    var best = vec4<f32>(HIDDEN);
# for i in range(each)
    var s{{ i }}: vec4<f32>;
    {
      var near = scores[row * {{ SP }}u + {{ i }}u] * p.scale;
      var far = scores[row * {{ SP }}u + {{ each + i }}u] * p.scale;
      if (!whole) {
        let key = start + {{ 4 * i }} + vec4<i32>(0, 1, 2, 3);
        near = select(vec4<f32>(HIDDEN), near, seen(key, position, end));
        far = select(vec4<f32>(HIDDEN), far, seen(key + {{ BN // 2 }}, position, end));
      }
      best = max(best, max(near, far));
      s{{ i }} = select(near, far, half == 1u);
    }
# endfor
    let peak = max(max(best.x, best.y), max(best.z, best.w));
    if (peak > top + RISE) { risen = 1u; }
    if (workgroupUniformLoad(&risen) != 0u) {
      let next = max(top, peak);
      let fade = exp2(top - next);
      top = next;
      sum *= fade;
      if (half == 0u) { fades[row] = fade; }
# for group in range((DV + BN - 1) // BN)
# set here = [BN // 16, DV // 16 - BN // 16 * group] | min
# for c in range(here)
      subgroupMatrixStore<row_major>(&scores, subgroup * {{ 16 * SP }}u + {{ 4 * c }}u, o{{ BN // 16 * group + c }}, {{ SP }}u);
# endfor
      workgroupBarrier();
      for (var i = 0u; i < {{ 2 * here }}u; i++) { scores[row * {{ SP }}u + 2u * i + half] *= fades[row]; }
      workgroupBarrier();
# for c in range(here)
      o{{ BN // 16 * group + c }} = subgroupMatrixLoad<subgroup_matrix_result<f32, 16, 16>, row_major>(
        &scores, subgroup * {{ 16 * SP }}u + {{ 4 * c }}u, {{ SP }}u);
# endfor
      workgroupBarrier();
# endfor
    }
# for i in range(each)
    s{{ i }} = exp2(s{{ i }} - vec4<f32>(top));
    sum += s{{ i }}.x + s{{ i }}.y + s{{ i }}.z + s{{ i }}.w;
# endfor
# for i in range(each // 2)
    probs[row * {{ PP }}u + half * {{ each // 2 }}u + {{ i }}u] = vec4<u32>(
      pack2x16float(s{{ 2 * i }}.xy), pack2x16float(s{{ 2 * i }}.zw),
      pack2x16float(s{{ 2 * i + 1 }}.xy), pack2x16float(s{{ 2 * i + 1 }}.zw));
# endfor
    workgroupBarrier();
    if (start + {{ BN }} < end) {
{{ fetch("k", "start + " ~ BN, k_loads, D) -}}
    }
# for n in range(BN // 16)
    {
      let w = subgroupMatrixLoad<subgroup_matrix_left<f16, 16, 16>, row_major>(
        &probs, subgroup * {{ 16 * PP }}u + {{ 2 * n }}u, {{ PP }}u);
# for c in range(DV // 16)
      o{{ c }} = subgroupMatrixMultiplyAccumulate(w, subgroupMatrixLoad<subgroup_matrix_right<f16, 16, 16>, row_major>(
        &kv, {{ 16 * n * LINE + 2 * c }}u, {{ LINE }}u), o{{ c }});
# endfor
    }
# endfor
  }

  // the other half of the row's sum, by way of `fades`; then out, 64 columns at a time
  workgroupBarrier();
  if (half == 1u) { fades[row] = sum; }
  workgroupBarrier();
# if SPLITS > 1
  let at = (((first + row) * p.heads + head) * {{ SPLITS }}u + split) * {{ DV // 4 + 1 }}u;
  if (half == 0u && row <= last_row) {
    partials[at + {{ DV // 4 }}u] = vec4<f32>(top, sum + fades[row], 0.0, 0.0);
  }
# else
  let at = (first + row) * p.heads + head;
  if (half == 0u) {
    var total = sum + fades[row];
    var base = top;
    var share = 1.0;
# if SINKS
    let in_segment = plan[entry + 3u] < p.segments;
    let sink = select(HIDDEN, bitcast<f32>(plan[8u * p.tiles + p.heads + head]) * LOG2E, in_segment);
    base = max(base, sink);
    share = exp2(top - base);
    total = total * share + exp2(sink - base);
# endif
    let none = total == 0.0;  // and not total > 0, which nan is not either
    let divisor = select(total, 1.0, none);
    fades[row] = select(share / divisor, 0.0, none);
    if (row <= last_row) {
      lse[at] = select((base + log2(divisor)) / LOG2E, bitcast<f32>(minus_infinity), none);
    }
  }
# endif
# for group in range((DV + BN - 1) // BN)
# set here = [BN // 16, DV // 16 - BN // 16 * group] | min
  workgroupBarrier();
# for c in range(here)
  subgroupMatrixStore<row_major>(&scores, subgroup * {{ 16 * SP }}u + {{ 4 * c }}u, o{{ BN // 16 * group + c }}, {{ SP }}u);
# endfor
  workgroupBarrier();
  if (row <= last_row) {
    for (var i = 0u; i < {{ 2 * here }}u; i++) {
      let four = scores[row * {{ SP }}u + 2u * i + half];
# if SPLITS > 1
      partials[at + {{ BN // 4 * group }}u + 2u * i + half] = four;
# else
      put_out(at, {{ BN // 4 * group }}u + 2u * i + half, four * fades[row]);
# endif
    }
  }
# endfor
# if KIND == "bf16"
  if (max(max(largest.x, largest.y), max(largest.z, largest.w)) > 65504.0) { atomicStore(&flag[0], 1u); }
# endif
}

fn seen(key: vec4<i32>, position: i32, end: i32) -> vec4<bool> {
# if PAGED
  var kept = vec4<bool>(true);
  if (holes != 0u) { kept = vec4<bool>({% for c in "xyzw" %}is_there(key.{{ c }}){{ ", " if c != "w" }}{% endfor %}); }
# else
  let kept = vec4<bool>(true);
# endif
  return kept & (key >= vec4<i32>(position - p.left)) & (key <= vec4<i32>(position + p.right)) & (key < vec4<i32>(end));
}
