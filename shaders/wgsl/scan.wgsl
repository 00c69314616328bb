// Y[o, i] = A[o, 0] + ... + A[o, i] within chunks of {{ threads }} x 8 elements, and each chunk's sum.
//
// A is [O, R], dense; a workgroup takes one chunk of one row: eight neighbours a thread one after
// another, then the threads' sums by doubling distances in shared memory. Y is [O, chunks * chunk],
// 32-bit (the host adds the chunks before and rounds); T is [O, chunks]. With EXCLUSIVE each element
// gets the sum of those before it. Sums in blocks keep the error near that of a tree.
# set V = VALUE[IN]
struct Params {
  O: u32,
  R: u32,
  chunks: u32,
  oA: u32,
  row: u32,  // of Y
}
{{ parameters(3) }}
{{ read(0, "A", IN) }}
{{ write(1, "Y", V) }}
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
# for j in range(8)
  var v{{ j }} = {{ V }}(0);
  if (first + {{ j }}u < p.R) { v{{ j }} = A_at(p.oA + o * p.R + first + {{ j }}u); }
# endfor
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
  if (first + {{ j }}u < p.row) { Y[o * p.row + first + {{ j }}u] = before{{ " + s%d" % (j - 1) if j }}; }
# else
  if (first + {{ j }}u < p.row) { Y[o * p.row + first + {{ j }}u] = before + s{{ j }}; }
# endif
# endfor
  if (lane == {{ threads - 1 }}u) { T[o * p.chunks + chunk] = sums[side + lane]; }
}
