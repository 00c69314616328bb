{#- Runs of RUN elements (4 or 8; Q = RUN / 4 vectors) that a thread loads and stores at once: 16
    bytes of f32 a vector, 8 or 16 bytes of a 16-bit type a run. Import this part `with context`;
    render run_types() once, then a declaration for each array: NAME_run(i) and, of those that are
    written, NAME_put_run(i, v), i in runs from the start of what is bound. #}
{% set Q = RUN // 4 %}
{% macro run_types() %}
alias Run = array<vec4<f32>, {{ Q }}>;
{% endmacro %}
{% macro raw_type(dtype) %}
{{ "Run" if dtype == "f32" else "vec%d<u32>" % (RUN // 2) }}
{%- endmacro %}
{% macro _width(dtype) %}{{ 4 if dtype == "f32" else RUN // 2 }}{% endmacro %}
{#- NAME_raw(i) as it lies in memory, in fewer registers; NAME_unpacked(raw). #}
{% macro _load(name, dtype) %}
# if dtype == "f32"
fn {{ name }}_raw(i: u32) -> Run {
  var v = Run();
# for k in range(Q)
  v[{{ k }}] = {{ name }}[{{ Q }}u * i + {{ k }}u];
# endfor
  return v;
}
fn {{ name }}_unpacked(w: Run) -> Run { return w; }
# else
fn {{ name }}_raw(i: u32) -> {{ raw_type(dtype) }} { return {{ name }}[i]; }
fn {{ name }}_unpacked(w: {{ raw_type(dtype) }}) -> Run {
  var v = Run();
# for k in range(Q)
{% set two = "unpack_%s(w[%d]), unpack_%s(w[%d])" % (dtype, 2 * k, dtype, 2 * k + 1) %}
  v[{{ k }}] = vec4<f32>({{ two }});
# endfor
  return v;
}
# endif
fn {{ name }}_run(i: u32) -> Run { return {{ name }}_unpacked({{ name }}_raw(i)); }
{% endmacro %}
{% macro read_runs(binding, name, dtype) %}
{{ read(binding, name, dtype, _width(dtype) | int) }}
{{ _load(name, dtype) }}
{%- endmacro %}
{% macro write_runs(binding, name, dtype) %}
{{ write(binding, name, dtype, _width(dtype) | int) }}
{{ _load(name, dtype) }}
fn {{ name }}_put_run(i: u32, v: Run) {
# if dtype == "f32"
# for k in range(Q)
  {{ name }}[{{ Q }}u * i + {{ k }}u] = v[{{ k }}];
# endfor
# else
  var w = vec{{ RUN // 2 }}<u32>();
# for k in range(Q)
  w[{{ 2 * k }}] = pack_{{ dtype }}(v[{{ k }}].xy);
  w[{{ 2 * k + 1 }}] = pack_{{ dtype }}(v[{{ k }}].zw);
# endfor
  {{ name }}[i] = w;
# endif
}
{% endmacro %}
{#- The bindings of `reads` and `writes`, lists of (name, dtype), and then of the parameters: as
    runs, or with RUN 1 as single elements (NAME_at, NAME_put). #}
{% macro bindings(reads, writes) %}
# if RUN > 1
{{ run_types() }}
# endif
# for name, dtype in reads
{{ read_runs(loop.index0, name, dtype) if RUN > 1 else read(loop.index0, name, dtype) }}
# endfor
# for name, dtype in writes
{% set n = loop.index0 + reads | length %}
{{ write_runs(n, name, dtype) if RUN > 1 else write(n, name, dtype) }}
# endfor
{{ parameters(reads | length + writes | length) }}
{% endmacro %}
{#- rounded(v) is v as an array of `dtype` holds it. #}
{% macro rounding(dtype) %}
# if dtype == "f32"
fn rounded1(v: f32) -> f32 { return v; }
fn rounded(v: vec4<f32>) -> vec4<f32> { return v; }
# else
fn rounded2(v: vec2<f32>) -> vec2<f32> { return unpack_{{ dtype }}(pack_{{ dtype }}(v)); }
fn rounded1(v: f32) -> f32 { return rounded2(vec2<f32>(v, 0.0)).x; }
fn rounded(v: vec4<f32>) -> vec4<f32> { return vec4<f32>(rounded2(v.xy), rounded2(v.zw)); }
# endif
{% endmacro %}
{#- lifted(v): logits that may be -inf as finite numbers: what is below LOWEST becomes LOWEST. By
    bits, as a comparison may be compiled to a maximum, which loses nan. #}
{% macro lifting() %}
const LOWEST = -1.0e38;
fn lifted(v: vec4<f32>) -> vec4<f32> {
  let below = bitcast<vec4<u32>>(v) - vec4<u32>(0xfe967699u);  // bits of LOWEST
  return select(v, vec4<f32>(LOWEST), below <= vec4<u32>(0xff800000u - 0xfe967699u));
}
fn lifted1(v: f32) -> f32 {
  let below = bitcast<u32>(v) - 0xfe967699u;
  return select(v, LOWEST, below <= 0xff800000u - 0xfe967699u);
}
{% endmacro %}
