"""AdamW8bit: AdamW whose moments take a byte an element."""

from __future__ import annotations

from collections.abc import Iterable

from boostr import dtypes
from boostr.ops import core
from boostr.ops.optim import rest_of_power
from boostr.tensor import Tensor, full
from boostr.train.optimizers import ByParameter

BLOCK = 256  # elements that share a scale
_LEVELS = {"m": 127, "v": 255}


class AdamW8bit(ByParameter):
    """AdamW with moments of 8 bits: 2 bytes a parameter and 1/32 of a byte of scales, not 8.

    Blocks of 256 elements have a float32 scale, the largest magnitude in them. A code c of m stands
    for scale · sign(c) · (c / 127)², one of v for scale · (c / 255)⁴: roots keep what is small in
    a block, as the trees of Dettmers et al. do, in arithmetic alone. A step moves by its moments
    before they are rounded.

    Args:
        params: tensors; those that require no gradient are left out.
        weight_decay: of all parameters.
    Source: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        for name, kind in (("m", dtypes.int8), ("v", dtypes.uint8)):
            codes, scales = dict[int, Tensor](), dict[int, Tensor]()
            for i, p in enumerate(self.params):
                blocks = -(-p.size // BLOCK)
                codes[i] = full((blocks, BLOCK), 0, kind, p.backend)
                scales[i] = full((blocks, 1), 0, "float32", p.backend)
            self.state |= {name: codes, f"{name}_scale": scales}

    def _moved(self, i: int, p: Tensor, g: Tensor, rate: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        m, v = self._decoded("m", i, p), self._decoded("v", i, p)
        m = m + (g - m) * (1 - beta1)
        v = v + (g * g - v) * (1 - beta2)
        self._encode("m", i, m)
        self._encode("v", i, v)
        count = self.count.reshape(())
        root = core.sqrt(v / rest_of_power(beta2, count)) + self.eps
        return p * (1 - rate * self.weight_decay) - m / rest_of_power(beta1, count) / root * rate

    def _decoded(self, name: str, i: int, p: Tensor) -> Tensor:
        """A moment in p's shape and dtype."""
        ratio = core.cast(self.state[name][i], dtypes.float32) * (1 / _LEVELS[name])
        ratio = ratio * core.abs(ratio) if name == "m" else (ratio * ratio) * (ratio * ratio)
        values = (ratio * self.state[f"{name}_scale"][i]).reshape(-1)[: p.size]
        return core.cast(values.reshape(p.shape), p.dtype)

    def _encode(self, name: str, i: int, values: Tensor) -> None:
        codes, kept = self.state[name][i], self.state[f"{name}_scale"][i]
        flat = core.cast(values.reshape(-1), dtypes.float32)
        if codes.size > flat.size:
            rest = full((codes.size - flat.size,), 0, "float32", flat.backend)
            flat = core.concat([flat, rest])
        blocks = flat.reshape(codes.shape)
        scale = core.max(core.abs(blocks), -1, keepdims=True)
        ratio = core.sqrt(core.abs(blocks) / core.maximum(scale, 1e-38))
        level = core.floor((ratio if name == "m" else core.sqrt(ratio)) * _LEVELS[name] + 0.5)
        kept.assign(scale)
        codes.assign(core.cast(level * core.sign(blocks), codes.dtype))
