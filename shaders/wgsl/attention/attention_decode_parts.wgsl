// Included by who reads what attention_decode.wgsl leaves: `partials`, vec4<f32> of [T * H rows, S
// splits, PARTS_DV / 4 + 1], in each split of a row o (not divided) and then (m, l, 0, 0): m in
// log2 units, l the sum of exp2(score - m). A split that no keys fell to has l = 0 and nothing of
// meaning in o. The source declares `partials` (read(n, "partials", "f32", 4)).
// Values: PARTS_S, the number of splits (few: all are read at once), PARTS_DV, a multiple of 4.
# set PARTS_PITCH = PARTS_DV // 4 + 1
// Elements 4 d4 .. 4 d4 + 3 of attention's row (token * H + head), from all of its splits.
fn combined4(row: u32, d4: u32) -> vec4<f32> {
  let at = row * {{ PARTS_S * PARTS_PITCH }}u;
# for s in range(PARTS_S)
  let e{{ s }} = partials[at + {{ s * PARTS_PITCH + PARTS_DV // 4 }}u];
  let o{{ s }} = partials[at + {{ s * PARTS_PITCH }}u + d4];
# endfor
  var m = e0.x;
# for s in range(1, PARTS_S)
  m = max(m, e{{ s }}.x);
# endfor
  var total = 0.0;
  var sum = vec4<f32>(0.0);
# for s in range(PARTS_S)
  let w{{ s }} = exp2(e{{ s }}.x - m);
  total += e{{ s }}.y * w{{ s }};
  sum += select(o{{ s }} * w{{ s }}, vec4<f32>(0.0), e{{ s }}.y == 0.0);
# endfor
  return select(sum / total, vec4<f32>(0.0), total == 0.0);
}
