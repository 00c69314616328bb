// Y[o, i] = A[o, 0] + ... + A[o, i] within chunks of 8 * threads elements, and each chunk's sum.
//
// A is [O, R], dense; a workgroup takes one chunk of one row: eight neighbours a thread one after
// another, then the threads' sums by doubling distances in shared memory. Y is [O, chunks * chunk],
// 32-bit (the host adds the chunks before and rounds); T is [O, chunks]. With EXCLUSIVE each
// element gets the sum of those before it. VECTOR: rows of whole eights, aligned. Sums in blocks
// keep the error near that of a tree.
# import "lists.wgsl" as lists with context
# set V = VALUE[IN]
struct Params {
  O: u32,
  R: u32,
  chunks: u32,
  oA: u32,
  row: u32,  // of Y
}
{{ parameters(3) }}
# set per = PER_WORD[IN]
{{ read(0, "A", IN, [8 // per, 4]|min if VECTOR else 1) }}
{{ write(1, "Y", V, 4 if VECTOR else 1) }}
{{ write(2, "T", V) }}
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
# if per == 1
    head = A[at];
    tail = A[at + 1u];
# else
    let w = A[at];
    head = {{ lists.four("w", IN, 8 // per, 0)|trim }};
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
  var before = {{ V }}(0);
  if (lane > 0u) { before = sums[side + lane - 1u]; }
# for j in range(8)
# if EXCLUSIVE
  let y{{ j }} = before{{ " + s%d" % (j - 1) if j }};
# else
  let y{{ j }} = before + s{{ j }};
# endif
# endfor
# if VECTOR
  if (first < p.row) {
    let to = (o * p.row + first) / 4u;
    Y[to] = vec4<{{ V }}>(y0, y1, y2, y3);
    Y[to + 1u] = vec4<{{ V }}>(y4, y5, y6, y7);
  }
# else
# for j in range(8)
  if (first + {{ j }}u < p.row) { Y[o * p.row + first + {{ j }}u] = y{{ j }}; }
# endfor
# endif
  if (lane == {{ threads - 1 }}u) { T[o * p.chunks + chunk] = sums[side + lane]; }
}
