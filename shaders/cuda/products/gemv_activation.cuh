// The activation of a gated MLP's gate. Macro: ACT, SILU, GELU (by erf) or GELU_TANH.
#define SILU 0
#define GELU 1
#define GELU_TANH 2
#ifndef ACT
#define ACT SILU
#endif

DEVICE float activated(float g) {
  if (ACT == SILU) return __fdividef(g, 1.f + __expf(-g));
  if (ACT == GELU) return 0.5f * g * (1.f + erff(g * 0.70710678f));
  return 0.5f * g * (1.f + tanhf(0.79788456f * (g + 0.044715f * g * g * g)));
}
