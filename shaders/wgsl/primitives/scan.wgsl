// Y[o, i] = A[o, 0] + ... + A[o, i]: running sums of rows, by chunks of 8 * threads elements.
//
// A and Y are [O, R], dense. A workgroup takes one chunk of one row: eight neighbours a thread one
// after another, then the threads' sums by doubling distances in shared memory.
//   TOTALS   the chunks' sums alone: T [O, chunks]
//   else     Y, from S [O, chunks], the sums before each chunk, if rows have several (STARTED)
// EXCLUSIVE: each element gets the sum of those before it. VECTOR: rows of whole eights, aligned;
// then Y may be of 16 or 8 bits (OUT), else it is 32-bit. Sums are f32 (i32, u32 modulo 2^32); in
// blocks their error stays near that of a tree.
# import "lists.wgsl" as lists with context
# set V = VALUE[IN]
# set per = PER_WORD[IN]
# set to = PER_WORD[OUT]
struct Params {
  O: u32,
  R: u32,
  chunks: u32,
  oA: u32,
}
{{ parameters(3 if STARTED else 2) }}
{{ read(0, "A", IN, [8 // per, 4]|min if VECTOR else 1) }}
# if STARTED
{{ read(1, "S", V) }}
# endif
# if TOTALS
{{ write(1, "T", V) }}
# else
{{ write(2 if STARTED else 1, "Y", OUT, [8 // to, 4]|min if VECTOR else 1) }}
# endif
{{ workgroup("sums", V, 2 * threads) }}

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  {{ poison("lane", threads) }}
  let number = flat_workgroup(id, count);
  let o = number / p.chunks;
  if (o >= p.O) { return; }
  let chunk = number - o * p.chunks;
  let first = (chunk * {{ threads }}u + lane) * 8u;
# if VECTOR
  var head = vec4<{{ V }}>();
  var tail = vec4<{{ V }}>();
  if (first < p.R) {
    let at = (p.oA + o * p.R + first) / {{ 4 if per == 1 else 8 }}u;
    let w = A[at];
    head = {{ lists.four("w", IN, 8 // per, 0)|trim }};
# if per == 1
    tail = A[at + 1u];
# else
    tail = {{ lists.four("w", IN, 8 // per, 1)|trim }};
# endif
  }
# for j in range(8)
  let v{{ j }} = {{ "head" if j < 4 else "tail" }}.{{ "xyzw"[j % 4] }};
# endfor
# else
# for j in range(8)
  var v{{ j }} = {{ V }}(0);
  if (first + {{ j }}u < p.R) { v{{ j }} = A_at(p.oA + o * p.R + first + {{ j }}u); }
# endfor
# endif
# for j in range(8)
  let s{{ j }} = {{ "v0" if j == 0 else "s%d + v%d" % (j - 1, j) }};
# endfor
  sums[lane] = s7;
  workgroupBarrier();
  var side = 0u;
  for (var reach = 1u; reach < {{ threads }}u; reach *= 2u) {
    var sum = sums[side + lane];
    if (lane >= reach) { sum += sums[side + lane - reach]; }
    side = {{ threads }}u - side;
    sums[side + lane] = sum;
    workgroupBarrier();
  }
# if TOTALS
  if (lane == {{ threads - 1 }}u) { T[o * p.chunks + chunk] = sums[side + lane]; }
# else
  var before = {{ V }}(0);
  if (lane > 0u) { before = sums[side + lane - 1u]; }
# if STARTED
  before += S[o * p.chunks + chunk];
# endif
# for j in range(8)
  let y{{ j }} = before{{ " + s%d" % (j - 1 if EXCLUSIVE else j) if j or not EXCLUSIVE }};
# endfor
# if VECTOR
  if (first < p.R) {
    let place = (o * p.R + first) / {{ 4 if to == 1 else 8 }}u;
# if to == 1
    Y[place] = vec4<{{ V }}>(y0, y1, y2, y3);
    Y[place + 1u] = vec4<{{ V }}>(y4, y5, y6, y7);
# elif to == 2
    let head_words = vec2<u32>(pack_{{ OUT }}(vec2<f32>(y0, y1)), pack_{{ OUT }}(vec2<f32>(y2, y3)));
    let tail_words = vec2<u32>(pack_{{ OUT }}(vec2<f32>(y4, y5)), pack_{{ OUT }}(vec2<f32>(y6, y7)));
    Y[place] = vec4<u32>(head_words, tail_words);
# else
    let head_word = pack_{{ OUT }}(vec4<{{ V }}>(y0, y1, y2, y3));
    Y[place] = vec2<u32>(head_word, pack_{{ OUT }}(vec4<{{ V }}>(y4, y5, y6, y7)));
# endif
  }
# else
# for j in range(8)
  if (first + {{ j }}u < p.R) { Y[o * p.R + first + {{ j }}u] = y{{ j }}; }
# endfor
# endif
# endif
}
