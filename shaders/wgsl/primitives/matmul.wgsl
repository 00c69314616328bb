// Y[b, m, n] = sum over k of A[b, m, k] B[b, k, n], any strides: the product that is always there.
//
// TILED: a workgroup of 256 threads makes 64 x 64 of Y from tiles of A [16 k][64 m] and B
// [16 k][64 n] in shared memory, 4 x 4 a thread. Else (small products, software devices): a thread
// makes four neighbours n of one row from memory. Y is 32-bit: f32 sums of f32, f16, bf16;
// i32, u32 modulo 2^32. Terms are summed in blocks of 16 k, and the blocks' sums in another
// accumulator, which keeps long sums near a tree's error.
// Limits: two collapsed batch axes.
# import "lists.wgsl" as lists with context
# import "walk.wgsl" as walk
# set V = VALUE[IN]
struct Params {
  batches: u32,
  M: u32,
  N: u32,
  K: u32,
  A_m: u32, A_k: u32,
  B_k: u32, B_n: u32,
  size: u32,  // of one product
{{ walk.fields(2, ["A", "B"]) }}
}
{{ parameters(3) }}
{{ read(0, "A", IN) }}
{{ read(1, "B", IN) }}
{{ write(2, "Y", V) }}
{{ walk.place(2, ["A", "B"]) }}
# if TILED
{{ workgroup("tile_a", V, 16 * 65) }}
{{ workgroup("tile_b", V, 16 * 65) }}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  {{ poison("lane", 256) }}
  let number = flat_workgroup(id, count);
  let across = (p.N + 63u) / 64u;
  let down = (p.M + 63u) / 64u;
  let batch = number / (across * down);
  if (batch >= p.batches) { return; }
  let n0 = number % across * 64u;
  let m0 = number / across % down * 64u;
  let at = place(batch);
  let tm = lane / 16u;  // rows m0 + tm + 16 i, columns n0 + tn + 16 j
  let tn = lane % 16u;
# for i in range(4)
  var y{{ i }} = vec4<{{ V }}>();
# endfor
  for (var k0 = 0u; k0 < p.K; k0 += 16u) {
    workgroupBarrier();
    for (var e = lane; e < 1024u; e += 256u) {
      // the side by side axis of A by neighbouring threads, whichever it is
      let k = select(e / 64u, e % 16u, p.A_k == 1u);
      let m = select(e % 64u, e / 16u, p.A_k == 1u);
      var a = {{ V }}(0);
      if (m0 + m < p.M && k0 + k < p.K) { a = A_at(at.x + (m0 + m) * p.A_m + (k0 + k) * p.A_k); }
      tile_a[k * 65u + m] = a;
      let kb = select(e / 64u, e % 16u, p.B_k == 1u);
      let n = select(e % 64u, e / 16u, p.B_k == 1u);
      var b = {{ V }}(0);
      if (n0 + n < p.N && k0 + kb < p.K) { b = B_at(at.y + (k0 + kb) * p.B_k + (n0 + n) * p.B_n); }
      tile_b[kb * 65u + n] = b;
    }
    workgroupBarrier();
# for i in range(4)
    var s{{ i }} = vec4<{{ V }}>();
# endfor
    for (var k = 0u; k < 16u; k += 1u) {
      let row = k * 65u;
      let b = vec4<{{ V }}>({{ lists.terms(4, "tile_b[row + tn + 16u * %du]")|trim }});
# for i in range(4)
      s{{ i }} += tile_a[row + tm + {{ 16 * i }}u] * b;
# endfor
    }
# for i in range(4)
    y{{ i }} += s{{ i }};
# endfor
  }
# for i in range(4)
  if (m0 + tm + {{ 16 * i }}u < p.M) {
    let at_y = batch * p.size + (m0 + tm + {{ 16 * i }}u) * p.N + n0 + tn;
# for j in range(4)
    if (n0 + tn + {{ 16 * j }}u < p.N) { Y[at_y + {{ 16 * j }}u] = y{{ i }}[{{ j }}]; }
# endfor
  }
# endfor
}
# else

@compute @workgroup_size({{ threads }})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) lane: u32) {
  let t = flat_workgroup(id, count) * {{ threads }}u + lane;
  let across = (p.N + 3u) / 4u;
  let n = t % across * 4u;
  let m = t / across % p.M;
  let batch = t / (across * p.M);
  if (batch >= p.batches) { return; }
  let at = place(batch) + vec2<u32>(m * p.A_m, n * p.B_n);
  // columns behind the last are computed from the last and not written
  let step = min(vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.N - 1u - n)) * p.B_n;
  var y = vec4<{{ V }}>();
  for (var k0 = 0u; k0 < p.K; k0 += 16u) {
    var s = vec4<{{ V }}>();
    let end = min(k0 + 16u, p.K);
    for (var k = k0; k < end; k += 1u) {
      let b = vec4<u32>(at.y + k * p.B_k) + step;
      s += A_at(at.x + k * p.A_k) * vec4<{{ V }}>(B_at(b.x), B_at(b.y), B_at(b.z), B_at(b.w));
    }
    y += s;
  }
  let at_y = batch * p.size + m * p.N + n;
# for j in range(4)
  if (n + {{ j }}u < p.N) { Y[at_y + {{ j }}u] = y[{{ j }}]; }
# endfor
}
# endif
