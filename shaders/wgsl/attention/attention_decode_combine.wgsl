// Joins the splits that attention_decode.wgsl leaves in `partials` (attention_decode_parts.wgsl).
//
//   m = max m_s; l = sum l_s exp2(m_s - m) (+ exp2(sink - m)); out = sum o_s exp2(m_s - m) / l
//
// partials [T * H, S, DV4 + 1] vec4 -> out [T * H, DV], lse f32 [T * H]; sinks f32 [H]: not for
// tokens of no sequence, which lie behind cu_seqlens[B].
// Mapping: a workgroup for each row; COLUMNS threads for its DV4 vectors of four, THREADS / COLUMNS
// parts of the splits, UNROLL splits on their way at once.
// Values: OUT dtype (f32 if DV is odd), DV, COLUMNS (a power of 2 >= DV4), THREADS, SINKS.
# set DV4 = (DV + 3) // 4
# set PITCH = DV4 + 1
# set PARTS = THREADS // COLUMNS
# set UNROLL = 4
struct Params { rows: u32, H: u32, S: u32, B: u32, cu_first: u32, sinks_first: u32 }
{{ read(0, "partials", "f32", 4) }}
# if SINKS
{{ read(1, "sinks", "f32") }}
{{ read(2, "cu_seqlens", "i32") }}
{{ write(3, "out", OUT) }}
{{ write(4, "lse", "f32") }}
{{ parameters(5) }}
# else
{{ write(1, "out", OUT) }}
{{ write(2, "lse", "f32") }}
{{ parameters(3) }}
# endif
{{ workgroup("sums", "vec4<f32>", THREADS) }}
{{ workgroup("stats", "vec2<f32>", THREADS) }}
const LOWEST = -3.0e38;
const LOG2E = 1.4426950408889634;
const LN2 = 0.6931471805599453;

fn put(row: u32, d4: u32, y: vec4<f32>) {
  let at = row * {{ DV }}u + 4u * d4;
# for i in range(0, 4, PER_WORD[OUT])
#   if OUT == "f32"
  if (4u * d4 + {{ i }}u < {{ DV }}u) { out_put(at + {{ i }}u, y[{{ i }}]); }
#   else
  if (4u * d4 + {{ i }}u < {{ DV }}u) { out_put((at + {{ i }}u) / 2u, y.{{ "xyzw"[i : i + 2] }}); }
#   endif
# endfor
}

@compute @workgroup_size({{ THREADS }})
fn attention_combine(
    @builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
    @builtin(local_invocation_index) t: u32) {
  {{ poison("t", THREADS) }}
  let row = flat_workgroup(id, count);
  if (row >= p.rows) { return; }
  let d4 = t % {{ COLUMNS }}u;
  let column = min(d4, {{ DV4 - 1 }}u);
  let first = row * p.S * {{ PITCH }}u;
  var m = LOWEST;
  var l = 0.0;
  var sum = vec4<f32>(0.0);
  for (var s = t / {{ COLUMNS }}u; s < p.S; s += {{ PARTS * UNROLL }}u) {
# for u in range(UNROLL)
    let at{{ u }} = first + min(s + {{ u * PARTS }}u, p.S - 1u) * {{ PITCH }}u;
    let e{{ u }} = partials[at{{ u }} + {{ DV4 }}u];
    let o{{ u }} = partials[at{{ u }} + column];
# endfor
# for u in range(UNROLL)
    let l{{ u }} = select(0.0, e{{ u }}.y, s + {{ u * PARTS }}u < p.S);
# endfor
    let top = max(m, max(max(e0.x, e1.x), max(e2.x, e3.x)));
    let keep = exp2(m - top);
    l *= keep;
    sum *= keep;
    m = top;
# for u in range(UNROLL)
    {
      let w = exp2(e{{ u }}.x - top);
      l += l{{ u }} * w;
      sum += select(o{{ u }} * w, vec4<f32>(0.0), l{{ u }} == 0.0);
    }
# endfor
  }
  sums[t] = sum;
  stats[t] = vec2<f32>(m, l);
  workgroupBarrier();
  if (t >= {{ DV4 }}u) { return; }
# if SINKS
  let token = row / p.H;
  var sink = sinks[p.sinks_first + row - token * p.H] * LOG2E;
  if (i32(token) >= cu_seqlens[p.cu_first + p.B]) { sink = LOWEST; }
  m = max(m, sink);
# endif
# for i in range(1, PARTS)
  m = max(m, stats[t + {{ i * COLUMNS }}u].x);
# endfor
  l = 0.0;
  sum = vec4<f32>(0.0);
  for (var i = t; i < {{ THREADS }}u; i += {{ COLUMNS }}u) {
    let w = exp2(stats[i].x - m);
    l += stats[i].y * w;
    sum += sums[i] * w;
  }
# if SINKS
  l += select(0.0, exp2(sink - m), sink > LOWEST);
# endif
  put(row, t, select(sum / l, vec4<f32>(0.0), l == 0.0));
  var nothing = 0xff800000u;  // -inf, which a constant must not be
  if (t == 0u) { lse[row] = select((m + log2(l)) * LN2, bitcast<f32>(nothing), l == 0.0); }
}
