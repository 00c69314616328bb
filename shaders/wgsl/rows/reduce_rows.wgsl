{#- Sums and maxima over the threads of a row. Import this part `with context`:

      # from "reduce_rows.wgsl" import reduction, lanes_parameter, lanes_value with context
      {{ reduction("row_sum", "f32", "add", LANES) }}
      @compute @workgroup_size({{ LANES * ROWS }}) fn entry(
          @builtin(local_invocation_index) thread: u32{{ lanes_parameter() }}) {
        {{ lanes_value() }}
        let total = row_sum(value, 0u, thread, lanes);   // the same in every thread of the row

    A row has `threads` threads (a power of two) and a 1-D workgroup has `rows` rows (1 where it is
    one reduction over the workgroup). `kind` is "add", "max" or "min", `type` a scalar or vector.
    Calls must be in uniform control flow. One barrier a call with subgroups, a tree in shared
    memory without; none where a row lies within a subgroup. `slot` (0 .. slots - 1) names a part of
    shared memory: it may be used again only after a call with another slot, or after a barrier.
    Subgroups: their size is a builtin, 8 on lavapipe, 32 on NVIDIA; their threads lie side by
    side. #}
{% macro lanes_parameter() %}
{{ ", @builtin(subgroup_size) lanes: u32" if caps.subgroup_max else "" }}
{%- endmacro %}
{% macro lanes_value() %}
{{ "" if caps.subgroup_max else "let lanes = 1u;" }}
{%- endmacro %}
{% macro _both(kind, a, b) %}
{{ a ~ " + " ~ b if kind == "add" else kind ~ "(" ~ a ~ ", " ~ b ~ ")" }}
{%- endmacro %}
{% macro reduction(name, type, kind, threads, rows=1, slots=2) %}
{% set all = {"add": "subgroupAdd", "max": "subgroupMax", "min": "subgroupMin"}[kind] %}
{% set known = caps.subgroup_min == caps.subgroup_max %}
# if threads == 1
fn {{ name }}(value: {{ type }}, slot: u32, thread: u32, lanes: u32) -> {{ type }} { return value; }
# elif caps.subgroup_max and known and threads == caps.subgroup_min
fn {{ name }}(value: {{ type }}, slot: u32, thread: u32, lanes: u32) -> {{ type }} {
  return {{ all }}(value);
}
# elif caps.subgroup_max and threads <= caps.subgroup_min
fn {{ name }}(value: {{ type }}, slot: u32, thread: u32, lanes: u32) -> {{ type }} {
  var v = value;
# for d in (64, 32, 16, 8, 4, 2, 1) if d < threads
  v = {{ _both(kind, "v", "subgroupShuffleXor(v, " ~ d ~ "u)") }};
# endfor
  return v;
}
# elif caps.subgroup_max and rows == 1
{% set parts = [1, threads // [caps.subgroup_min, 1] | max] | max %}
{{ workgroup(name ~ "_room", type, slots * parts) }}
fn {{ name }}(value: {{ type }}, slot: u32, thread: u32, lanes: u32) -> {{ type }} {
  let part = {{ all }}(value);
  let start = slot * {{ parts }}u;
  if (thread % lanes == 0u) { {{ name }}_room[start + thread / lanes] = part; }
  workgroupBarrier();
# if known and parts <= 8
  var whole = {{ name }}_room[start];
# for i in range(1, parts)
  whole = {{ _both(kind, "whole", name ~ "_room[start + " ~ i ~ "u]") }};
# endfor
  return whole;
# else
  var rest = {{ type ~ "()" if kind == "add" else "part" }};
  let count = ({{ threads }}u + lanes - 1u) / lanes;
  for (var i = thread % lanes; i < count; i += lanes) {
    rest = {{ _both(kind, "rest", name ~ "_room[start + i]") }};
  }
  return {{ all }}(rest);
# endif
}
# else
{{ workgroup(name ~ "_room", type, slots * threads * rows) }}
fn {{ name }}(value: {{ type }}, slot: u32, thread: u32, lanes: u32) -> {{ type }} {
  let at = slot * {{ threads * rows }}u + thread;
  let lane = thread % {{ threads }}u;
  {{ name }}_room[at] = value;
# for d in (512, 256, 128, 64, 32, 16, 8, 4, 2, 1) if d < threads
  workgroupBarrier();
  if (lane < {{ d }}u) {
    {{ name }}_room[at] = {{ _both(kind, name ~ "_room[at]", name ~ "_room[at + " ~ d ~ "u]") }};
  }
# endfor
  workgroupBarrier();
  return {{ name }}_room[at - lane];
}
# endif
{% endmacro %}
