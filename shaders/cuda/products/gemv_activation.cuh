// The activation of an MLP. Macro: ACT, one of those below; GELU is by erf.
#define SILU 0
#define GELU 1
#define GELU_TANH 2
#define QUICK_GELU 3
#define RELU 4
#define RELU2 5
#ifndef ACT
#define ACT SILU
#endif

DEVICE float activated(float g) {
  if (ACT == SILU) return __fdividef(g, 1.f + __expf(-g));
  if (ACT == QUICK_GELU) return __fdividef(g, 1.f + __expf(-1.702f * g));
  if (ACT == RELU || ACT == RELU2) {
    const float positive = g < 0.f ? 0.f : g;  // a nan stays one
    return ACT == RELU ? positive : positive * positive;
  }
  if (ACT == GELU) return 0.5f * g * (1.f + erff(g * 0.70710678f));
  return 0.5f * g * (1.f + tanhf(0.79788456f * (g + 0.044715f * g * g * g)));
}
