"""Rows of a table by token id; a packed table is decoded only where it is read."""

from __future__ import annotations

from boostr import dtypes
from boostr.dispatch import Op, common_backend, tensors_in
from boostr.errors import DTypeError, ShapeError
from boostr.operands import LowRank, Ordered
from boostr.ops import core
from boostr.ops.linear import Weight
from boostr.ops.quant import dequantize, in_place
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor


def embedding(ids: Tensor, weight: Weight, dtype: object = None) -> Tensor:
    """weight[ids].

    Args:
        ids: integer [T], each in 0..V-1 (not checked on the device).   weight: [V, E], any stored
            form.
        dtype: of the result; default the weight's, float32 for a quantized one.
    Returns:
        [T, E].
    Gradient: weight, if it is a float tensor; an adapter.
    """
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise DTypeError(f"embedding: ids must be integers [T], got {ids.dtype}{list(ids.shape)}")
    if len(weight.shape) != 2:
        raise ShapeError(f"embedding: weight must be [V, E], got {list(weight.shape)}")
    common_backend("embedding", list(tensors_in((ids, weight))))
    if dtype is None:
        stored = weight.base if isinstance(weight, LowRank) else weight
        wanted = stored.dtype if isinstance(stored, Tensor) else dtypes.float32
    else:
        wanted = dtypes.parse(dtype)
    return _embedding(ids, weight, wanted)


def _composite(ids: Tensor, weight: Weight, dtype) -> Tensor:
    if isinstance(weight, LowRank):
        low = embedding(ids, weight.up, weight.down.dtype) @ weight.down
        return embedding(ids, weight.base, dtype) + core.cast(low * weight.scale, dtype)
    if isinstance(weight, Ordered):
        return in_place(embedding(ids, weight.base, dtype), weight.order)
    if isinstance(weight, Tensor):
        return core.cast(core.take(weight, ids), dtype)
    parts = {name: core.take(part, ids) for name, part in weight.parts.items()}
    return dequantize(QuantizedTensor(weight.scheme, (len(ids), weight.shape[1]), parts), dtype)


def _vjp(g, y, ids, weight, dtype):
    if isinstance(weight, QuantizedTensor):
        return None, None, None
    return None, _embedding_backward(g, ids, weight.shape[0], weight.dtype), None


def _backward_composite(g: Tensor, ids: Tensor, rows: int, dtype) -> Tensor:
    """dweight [rows, E]: row v is the sum of the g[t] with ids[t] = v, added up in float32."""
    return core.cast(core.scatter_add((rows, g.shape[1]), ids, g), dtype)


_embedding = Op("embedding", _composite, vjp=_vjp, saves=("ids",))
_embedding_backward = Op("embedding_backward", _backward_composite)
