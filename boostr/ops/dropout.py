"""Dropout whose mask is a function of a key and a step, so that backward makes it again."""

from __future__ import annotations

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, OptionError
from boostr.ops import core
from boostr.ops.sampling import philox
from boostr.tensor import Tensor, arange, full


def dropout(x: Tensor, rate: float, key: tuple[int, int], step: Tensor) -> Tensor:
    """x / (1 - rate), or 0 with probability `rate`, each element by itself.

    Element i is kept where word i mod 4 of Philox4x32-10 of (i // 4, step, 0, 0) under `key`, its
    24 high bits as a fraction, is `rate` or more: the same on every backend, and nothing of the
    mask is kept for backward.

    Args:
        x: float, of any shape.   rate: 0 or more, below 1.   key: two words of 32 bits.
        step: int32 [1].
    Gradient: x.
    Source: Srivastava et al. 2014; Salmon et al. 2011.
    """
    if not dtypes.is_float(x.dtype) or step.dtype != dtypes.int32 or step.shape != (1,):
        raise DTypeError(
            f"dropout: expected float x and step int32[1], got {x.dtype} and "
            f"{step.dtype}{list(step.shape)}"
        )
    if not 0 <= rate < 1:
        raise OptionError(f"dropout: rate must be in 0..1 (less than 1), got {rate}")
    # a copy: the step of the next pass is written before this one's backward may run
    return x if rate == 0 or not x.size else _dropout(x, step + 0, rate, key)


def _composite(x: Tensor, step: Tensor, rate: float, key: tuple[int, int]) -> Tensor:
    B = -(-x.size // 4)
    zeros = full((B, 1), 0, dtypes.uint32, x.backend)
    index = core.cast(arange(B, backend=x.backend), dtypes.uint32).unsqueeze(1)
    which = zeros + core.cast(step, dtypes.uint32)
    keys = core.concat([full((B, 1), word, dtypes.uint32, x.backend) for word in key], 1)
    words = philox(core.concat([index, which, zeros, zeros], 1), keys)
    uniform = core.cast(words.reshape(-1)[: x.size] >> 8, dtypes.float32) * 2.0**-24
    kept = core.cast(uniform >= rate, x.dtype).reshape(x.shape)
    return x * (kept * (1 / (1 - rate)))


def _vjp(g: Tensor, y: Tensor, x: Tensor, step: Tensor, rate: float, key: tuple[int, int]):
    return _dropout(g, step, rate, key), None, None, None


_dropout = Op("dropout", _composite, vjp=_vjp, saves=("step",), fusion=True)
