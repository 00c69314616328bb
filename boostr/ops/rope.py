"""Rotary position embedding of packed heads, from tables of cosines and sines."""

from __future__ import annotations

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, OptionError, ShapeError
from boostr.ops import core
from boostr.ops.norm import wide
from boostr.tensor import Tensor

LAYOUTS = ("split-half", "interleaved")


def rope(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, layout: str = "split-half"
) -> Tensor:
    """Rotate pairs of x's head dimensions by position · frequency.

    (a, b) becomes (a·cos - b·sin, b·cos + a·sin). The pairs are (i, i + R/2) in "split-half"
    (Hugging Face checkpoints) and (2i, 2i + 1) in "interleaved" (GGUF llama). Where R < D (partial
    rotary), dimensions R.. pass through.

    Args:
        x: [T, H, D] float.   cos, sin: [S, R/2] float32 tables, R <= D even; R is twice
            their width.
        positions: [T] int32, each in 0..S-1: the row of the tables for each token.
    Returns:
        [T, H, D] in x's dtype.
    Source: Su et al. 2021, RoFormer.
    """
    if layout not in LAYOUTS:
        raise OptionError(f"rope: layout must be one of {LAYOUTS}, got {layout!r}")
    if x.ndim != 3 or not dtypes.is_float(x.dtype):
        raise ShapeError(f"rope: x must be float [T, H, D], got {x.dtype}{list(x.shape)}")
    if cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > x.shape[2]:
        raise ShapeError(
            f"rope: cos and sin must be [S, R/2] with R <= D = {x.shape[2]}, "
            f"got {list(cos.shape)} and {list(sin.shape)}"
        )
    if positions.shape != x.shape[:1]:
        raise ShapeError(
            f"rope: positions must be [T] = [{x.shape[0]}], got {list(positions.shape)}"
        )
    if positions.dtype != dtypes.int32:
        raise DTypeError(f"rope: positions must be int32, got {positions.dtype}")
    return _rope(x, cos, sin, positions, layout)


def _composite(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str) -> Tensor:
    T, H, D = x.shape
    half = cos.shape[1]
    c = core.take(cos, positions, 0).reshape(T, 1, half)
    s = core.take(sin, positions, 0).reshape(T, 1, half)
    h = wide(x[:, :, : 2 * half])
    if layout == "split-half":
        a, b = h[:, :, :half], h[:, :, half:]
        turned = core.concat([a * c - b * s, b * c + a * s], 2)
    else:
        pairs = h.reshape(T, H, half, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        both = [(a * c - b * s).unsqueeze(-1), (b * c + a * s).unsqueeze(-1)]
        turned = core.concat(both, 3).reshape(T, H, 2 * half)
    turned = core.cast(turned, x.dtype)
    return turned if 2 * half == D else core.concat([turned, x[:, :, 2 * half :]], 2)


def _vjp(g: Tensor, y: Tensor, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str):
    return _rope_backward(g, cos, sin, positions, layout), None, None, None, None


def _back(g: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, layout: str) -> Tensor:
    """The same rotation by the opposite angles."""
    return _rope(g, cos, -sin, positions, layout)


_rope = Op("rope", _composite, vjp=_vjp, saves=("cos", "sin", "positions"))
_rope_backward = Op("rope_backward", _back, fusion=True)
