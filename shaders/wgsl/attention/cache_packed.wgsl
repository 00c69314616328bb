// Packed keys and values: rows rounded into a cache, and blocks of a cache as floats again.
//
//   int8: scale f32 = absmax / 127 of a row, code = round(x / scale); x = scale code
//   int4: (scale, floor) bf16 of each 32 numbers, 16 steps; x = scale code + floor
// A scale is nan where a number of its group is none. Planes are those of boostr/quant/kv.py, as
// words; a thread has one word of codes, of 4 numbers d .. d + 3, or of 8: these and those 16 on.
//
// kv_pack: row t of x [T, K, D], to row slots[t] of the planes; rows out of range are dropped.
//   COUNT 2: k and v at once, the rows of v behind those of k. LANES threads a head.
// kv_unpack: the rows that table [B, columns] names, of all sequences one after the other, to
//   made [B columns, bs, K, D], zeros behind kv_lens and where there is no block; and the table
//   that names these.
// Values: ENTRY, BITS 8 | 4, X, the type of floats, WIDTHS: D of each x. Limits: D % 4 == 0, of
//   BITS 4 D % 32 == 0; of kv_pack D / 4 or D / 8 threads are a workgroup at most.
# if ENTRY == "kv_pack"
#   set COUNT = WIDTHS | length
#   set SPAN = LANES if BITS == 8 else 4
struct Params {
  rows: u32, K: u32, total: u32, slots_at: u32,
#   for n in range(COUNT)
  stride{{ n }}: u32, x{{ n }}_at: u32, codes{{ n }}_at: u32, scales{{ n }}_at: u32,
#   endfor
}
{{ read(0, "slots", "i32") }}
#   for n in range(COUNT)
{{ read(n + 1, "x" ~ n, X) }}
#   endfor
#   for n in range(COUNT)
{{ write(1 + COUNT + 2 * n, "codes" ~ n, "u32") }}
{{ write(2 + COUNT + 2 * n, "scales" ~ n, "u32") }}
#   endfor
{{ parameters(1 + 3 * COUNT) }}
{{ workgroup("sizes", "u32", 64) }}
#   if BITS == 4
{{ workgroup("ends", "vec2<f32>", 64) }}
#   endif

// |x| as bits: an order in which nan is above infinity, which is not below INFINITE.
const INFINITE = 0x7f800000u;
fn size_of(x: vec4<f32>) -> u32 {
  let bits = bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu);
  return max(max(bits.x, bits.y), max(bits.z, bits.w));
}
fn codes_of(x: vec4<f32>, scale: f32, least: f32, most: f32) -> vec4<i32> {
  if (!(scale > 0.0)) { return vec4<i32>(0); }
  return vec4<i32>(clamp(round(x / scale), vec4<f32>(least), vec4<f32>(most)));
}

@compute @workgroup_size(64)
fn kv_pack(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) thread: u32) {
  {{ poison("thread", 64) }}
  let i = flat_workgroup(group, groups) * {{ 64 // LANES }}u + thread / {{ LANES }}u;
  let lane = thread % {{ LANES }}u;
  let n = i / p.rows;
  let t = (i - n * p.rows) / p.K;
  let head = i - n * p.rows - t * p.K;
  var slot = -1;
  if (n < {{ COUNT }}u) { slot = slots[p.slots_at + t]; }
  let live = slot >= 0 && u32(slot) < p.total;
  let row = u32(slot) * p.K + head;
#   if BITS == 4
  let d = lane / 4u * 32u + lane % 4u * 4u;
  var b = vec4<f32>(0.0);
#   else
  let d = lane * 4u;
#   endif
  var a = vec4<f32>(0.0);
#   for n in range(COUNT)
  let own{{ n }} = live && n == {{ n }}u && d < {{ WIDTHS[n] }}u;
  if (own{{ n }}) {
    let at = p.x{{ n }}_at + t * p.stride{{ n }} + head * {{ WIDTHS[n] }}u + d;
    a = x{{ n }}_at4(at);
#     if BITS == 4
    b = x{{ n }}_at4(at + 16u);
#     endif
  }
#   endfor
  let first = thread - thread % {{ SPAN }}u;
  var top = 0u;
#   if BITS == 8
  sizes[thread] = size_of(a);
  workgroupBarrier();
  for (var j = 0u; j < {{ SPAN }}u; j++) { top = max(top, sizes[first + j]); }
  var kept = 0x7fc00000u;
  var scale = 0.0;
  if (top < INFINITE) {
    scale = bitcast<f32>(top) / 127.0;
    kept = bitcast<u32>(scale);
  }
  let codes = pack_i8(codes_of(a, scale, -127.0, 127.0));
#   else
  sizes[thread] = max(size_of(a), size_of(b));
  let low4 = min(a, b);
  let high4 = max(a, b);
  ends[thread] = vec2<f32>(min(min(low4.x, low4.y), min(low4.z, low4.w)),
                           max(max(high4.x, high4.y), max(high4.z, high4.w)));
  workgroupBarrier();
  var low = ends[first].x;
  var high = ends[first].y;
  for (var j = 0u; j < 4u; j++) {
    top = max(top, sizes[first + j]);
    low = min(low, ends[first + j].x);
    high = max(high, ends[first + j].y);
  }
  var kept = 0x7fc0u;
  var scale = 0.0;
  var above = 0.0;
  if (top < INFINITE) {
    kept = bf16_bits(low) << 16u;
    above = bitcast<f32>(kept);
    let step = bf16_bits(max(high - above, 0.0) / 15.0);
    scale = bitcast<f32>(step << 16u);
    kept |= step;
  }
  let codes = pack_i8(codes_of(a - above, scale, 0.0, 15.0)
                      | (codes_of(b - above, scale, 0.0, 15.0) << vec4<u32>(4u)));
#   endif
#   for n in range(COUNT)
  if (own{{ n }}) {
#     if BITS == 8
    codes{{ n }}[p.codes{{ n }}_at + row * {{ WIDTHS[n] // 4 }}u + lane] = codes;
    if (lane == 0u) { scales{{ n }}[p.scales{{ n }}_at + row] = kept; }
#     else
    codes{{ n }}[p.codes{{ n }}_at + row * {{ WIDTHS[n] // 8 }}u + lane] = codes;
    if (lane % 4u == 0u) {
      scales{{ n }}[p.scales{{ n }}_at + row * {{ WIDTHS[n] // 32 }}u + lane / 4u] = kept;
    }
#     endif
  }
#   endfor
}
# else
#   set D = WIDTHS[0]
#   set WORDS = D * BITS // 32
struct Params {
  count: u32, columns: u32, bs: u32, K: u32, codes_at: u32, scales_at: u32, table_at: u32,
  lens_at: u32,
}
{{ read(0, "codes", "u32") }}
{{ read(1, "scales", "u32") }}
{{ read(2, "table", "i32") }}
{{ read(3, "lens", "i32") }}
{{ write(4, "made", X) }}
{{ write(5, "named", "i32") }}
{{ parameters(6) }}
fn put(at: u32, x: vec4<f32>) {
#   if X == "f32"
#     for e in range(4)
  made_put(at + {{ e }}u, x[{{ e }}]);
#     endfor
#   else
  made_put(at / 2u, x.xy);
  made_put(at / 2u + 1u, x.zw);
#   endif
}
@compute @workgroup_size(64)
fn kv_unpack(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) thread: u32) {
  let i = flat_workgroup(group, groups) * 64u + thread;
  if (i >= p.count) { return; }
  let head_row = i / {{ WORDS }}u;
  let word = i - head_row * {{ WORDS }}u;
  let row = head_row / p.K;
  let block = row / p.bs;
  let offset = row - block * p.bs;
  let found = table[p.table_at + block];
  if (i == block * p.bs * p.K * {{ WORDS }}u) { named[block] = select(i32(block), -1, found < 0); }
  let b = block / p.columns;
  // of a ring that has turned every row is taken
  let position = i32((block - b * p.columns) * p.bs + offset);
  let here = found >= 0 && position < lens[p.lens_at + b];
  let from_ = (u32(max(found, 0)) * p.bs + offset) * p.K + head_row - row * p.K;
  var w = 0u;
  var scale = 0u;
  if (here) {
    w = codes[p.codes_at + from_ * {{ WORDS }}u + word];
    scale = scales[p.scales_at + {{ "from_" if BITS == 8 else "from_ * %du + word / 4u" % (D // 32) }}];
  }
#   if BITS == 8
  put(head_row * {{ D }}u + 4u * word, vec4<f32>(unpack_i8(w)) * bitcast<f32>(scale));
#   else
  let line = unpack_bf16(scale);
  let at = head_row * {{ D }}u + word / 4u * 32u + word % 4u * 4u;
  put(at, vec4<f32>(unpack_u8(w & 0x0f0f0f0fu)) * line.x + line.y);
  put(at + 16u, vec4<f32>(unpack_u8((w >> 4u) & 0x0f0f0f0fu)) * line.x + line.y);
#   endif
}
# endif
