// The paged cache: where tokens lie, writing rows of keys and values, stepping a decode loop.
//
// slot_mapping: slot = block * bs + position mod bs, block = table[sequence, (position div bs) mod
//   columns], rounding down; -1 where the block or the sequence is negative. One thread a token.
// kv_write: row t of k and v, width elements, to row slots[t] of the caches [slots, width], which
//   are f32 or 16-bit of their own; rows out of range are dropped. A thread has RUN elements (8, 4,
//   2 or 1); COUNT 2: k and v at once, those of v behind those of k. RUN 1 with a 16-bit cache:
//   rows share words, of which a thread replaces its half by atomics.
// advance_rows: state [F, R], a column a sequence; see boostr/ops/rows.py. One thread a place.
//
// Values: ENTRY; of kv_write X, C (types of the rows and the caches), RUN, COUNT; of advance_rows
//   PLACES.
# if ENTRY == "slot_mapping"
struct Params { T: u32, columns: u32, block_size: u32, positions_at: u32, sequences_at: u32,
                table_at: u32 }
{{ read(0, "positions", "i32") }}
{{ read(1, "sequences", "i32") }}
{{ read(2, "table", "i32") }}
{{ write(3, "slots", "i32") }}
{{ parameters(4) }}
@compute @workgroup_size(64)
fn slot_mapping(@builtin(global_invocation_id) id: vec3<u32>,
                @builtin(num_workgroups) groups: vec3<u32>) {
  let t = id.x + id.y * groups.x * 64u;
  if (t >= p.T) { return; }
  let position = positions[p.positions_at + t];
  // unsigned division: the signed one of negative numbers is wrong on some drivers
  let below = position < 0;
  let size = select(u32(position), u32(-(position + 1)), below);
  let page = size / p.block_size;
  let offset = size - page * p.block_size;
  let column = page % p.columns;
  let at = select(column, p.columns - 1u - column, below);
  let sequence = sequences[p.sequences_at + t];
  var block = -1;
  if (sequence >= 0) { block = table[p.table_at + u32(sequence) * p.columns + at]; }
  let inner = select(offset, p.block_size - 1u - offset, below);
  slots[t] = select(block * i32(p.block_size) + i32(inner), -1, block < 0);
}
# elif ENTRY == "advance_rows"
struct Params { B: u32, R: u32, state_at: u32, chosen_at: u32, places_at: u32 }
{{ read(0, "chosen", "i32") }}
# if PLACES
{{ read(1, "places", "i32") }}
# endif
{{ write(1 + PLACES, "state", "i32") }}
{{ parameters(2 + PLACES) }}
# for name in ("IDS", "POSITIONS", "LENGTHS", "OWNERS", "DRAWS", "LIMITS", "ENDS")
const {{ name }} = {{ loop.index0 }}u;
# endfor
@compute @workgroup_size(64)
fn advance_rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) thread: u32) {
  let b = flat_workgroup(group, groups) * 64u + thread;
  if (b >= p.B) { return; }
  let r = {{ "places[p.places_at + b]" if PLACES else "i32(b)" }};
  if (r < 0 || u32(r) >= p.R) { return; }
  let at = p.state_at + u32(r);
  if (state[at + OWNERS * p.R] < 0) { return; }
  let token = chosen[p.chosen_at + b];
  let position = state[at + POSITIONS * p.R] + 1;
  var ended = token < 0 || position >= state[at + LIMITS * p.R];
  for (var i = 0u; i < 8u; i++) { ended = ended || state[at + (ENDS + i) * p.R] == token; }
  state[at + IDS * p.R] = token;
  state[at + POSITIONS * p.R] = position;
  state[at + LENGTHS * p.R] = select(state[at + LENGTHS * p.R] + 1, 0, ended);
  state[at + DRAWS * p.R] += 1;
  if (ended) { state[at + OWNERS * p.R] = -1; }
}
# else
struct Params {
  T: u32, total: u32, slots_at: u32,
# for n in range(COUNT)
  width{{ n }}: u32, stride{{ n }}: u32, x{{ n }}_at: u32, cache{{ n }}_at: u32,
# endfor
}
# if RUN >= 4
# from "runs.wgsl" import run_types, read_runs, write_runs with context
{{ run_types() }}
# endif
{{ read(0, "slots", "i32") }}
# for n in range(COUNT)
{{ read_runs(n + 1, "x" ~ n, X) if RUN >= 4 else read(n + 1, "x" ~ n, X) }}
# endfor
# for n in range(COUNT)
# if RUN >= 4
{{ write_runs(n + 1 + COUNT, "cache" ~ n, C) }}
# elif RUN == 1 and C != "f32"
@group(0) @binding({{ n + 1 + COUNT }}) var<storage, read_write> cache{{ n }}: array<atomic<u32>>;
# else
{{ write(n + 1 + COUNT, "cache" ~ n, C) }}
# endif
# endfor
{{ parameters(2 * COUNT + 1) }}
# for n in range(COUNT)
// Run i of row t of x to row `slot` of its cache.
fn move{{ n }}(t: u32, slot: u32, i: u32) {
  let x = p.x{{ n }}_at + t * p.stride{{ n }} + i;
  let at = p.cache{{ n }}_at + slot * p.width{{ n }} + i;
# if RUN >= 4
  cache{{ n }}_put_run(at, x{{ n }}_run(x));
# elif C == "f32"
  cache{{ n }}_put(at, x{{ n }}_at(x));
# elif RUN == 2
  cache{{ n }}_put(at, vec2<f32>(x{{ n }}_at(2u * x), x{{ n }}_at(2u * x + 1u)));
# else
  let bits = pack_{{ C }}(vec2<f32>(x{{ n }}_at(x), 0.0)) & 0xffffu;
  let shift = 16u * (at % 2u);
  atomicAnd(&cache{{ n }}[at / 2u], 0xffff0000u >> shift);
  atomicOr(&cache{{ n }}[at / 2u], bits << shift);
# endif
}
# endfor
@compute @workgroup_size(128)
fn kv_write(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) thread: u32) {
  let i = flat_workgroup(group, groups) * 128u + thread;
  let length = p.width0{{ " + p.width1" if COUNT == 2 else "" }};
  let t = i / length;
  if (t >= p.T) { return; }
  let slot = slots[p.slots_at + t];
  if (slot < 0 || u32(slot) >= p.total) { return; }
  let at = i - t * length;
# if COUNT == 2
  if (at >= p.width0) {
    move1(t, u32(slot), at - p.width0);
    return;
  }
# endif
  move0(t, u32(slot), at);
}
# endif
