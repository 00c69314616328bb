// operation(a, b, c): the formula that `elementwise` is rendered with, on values of WORK.
# set R = VALUE[OUT]
fn operation({{ lists.joined(names, "%s: " ~ WORK)|trim }}) -> {{ R }} {
# if OP == "cast"
# if WORK == "f32" and R == "i32"
  return i32(a);
# elif WORK == "f32" and R == "u32"
  return select(u32(a), u32(i32(a)), a < 0.0);  // below zero modulo 2^32, as numpy on x86
# else
  return {{ R }}(a);
# endif
# elif OP == "copy"
  return a;
# elif OP == "nonzero"
  return select(1u, 0u, a == {{ WORK }}(0));
# elif OP == "logical_not"
  return select(0u, 1u, a == {{ WORK }}(0));
# elif OP == "neg"
  return {{ "0u - a" if WORK == "u32" else "-a" }};
# elif OP in ("abs", "floor", "round")
  return {{ OP }}(a);
# elif OP in ("exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf", "sigmoid")
  return {{ OP }}_f32(a);
# elif OP == "div" and not QUICK
  return div_f32(a, b);
# elif OP in ("add", "sub", "mul", "div", "bitwise_and", "bitwise_or", "bitwise_xor")
# set bitwise = dict(bitwise_and="&", bitwise_or="|", bitwise_xor="^")
# set sign = dict(add="+", sub="-", mul="*", div="/", **bitwise)
  return a {{ sign[OP] }} b;
# elif OP in ("maximum", "minimum")
  return {{ OP[:3] ~ ("_f32" if WORK == "f32" else "") }}(a, b);
# elif OP in ("pow", "floor_div", "mod")
# if OP == "pow" and WORK == "u32"
  return u32(pow_i32(i32(a), i32(b)));
# else
  return {{ OP }}_{{ WORK }}(a, b);
# endif
# elif OP == "left_shift"
  return select(a << (u32(b) & 31u), {{ WORK }}(0), u32(b) > 31u);
# elif OP == "right_shift"
# if WORK == "i32"
  return a >> min(u32(b), 31u);
# else
  return select(a >> (b & 31u), 0u, b > 31u);
# endif
# elif OP == "ne"
  return select(1u, 0u, a == b);  // a nan differs from everything
# elif OP in ("eq", "lt", "le", "gt", "ge")
# set sign = dict(eq="==", lt="<", le="<=", gt=">", ge=">=")
  return select(0u, 1u, a {{ sign[OP] }} b);
# elif OP == "where"
  return select(c, b, u32(a) != 0u);
# endif
}
