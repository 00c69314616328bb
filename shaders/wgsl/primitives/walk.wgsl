// Where the elements of strided operands lie: for each operand X its offset oX and strides X0..,
// as u32 modulo 2^32, and the sizes n1.. of all axes but the first, as fields of Params.
# import "lists.wgsl" as lists
# macro fields(rank, operands)
# for k in range(1, rank)
  n{{ k }}: u32,
# endfor
# for X in operands
  o{{ X }}: u32,
# for k in range(rank)
  {{ X }}{{ k }}: u32,
# endfor
# endfor
# endmacro
# macro vector(operands)
{{ "u32" if operands|length == 1 else "vec%d<u32>" % operands|length }}
# endmacro
# macro steps(operands, k)
{{ vector(operands)|trim }}({{ lists.joined(operands, "p.%s" ~ k)|trim }})
# endmacro
# macro place(rank, operands)
// Where place e of the iteration lies in {{ operands|join(", ") }}.
fn place(e: u32) -> {{ vector(operands)|trim }} {
  var rest = e;
  var at = {{ vector(operands)|trim }}({{ lists.joined(operands, "p.o%s")|trim }});
# for k in range(rank - 1, 0, -1)
  let q{{ k }} = rest / p.n{{ k }};
  at += (rest - q{{ k }} * p.n{{ k }}) * {{ steps(operands, k)|trim }};
  rest = q{{ k }};
# endfor
  return at + rest * {{ steps(operands, 0)|trim }};
}
# endmacro
