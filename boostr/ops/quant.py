"""Quantizing weights, and reading them back. Layouts are in `boostr/quant/scheme.py`."""

from __future__ import annotations

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, ShapeError
from boostr.ops import core
from boostr.quant.scheme import QuantizedTensor, Scheme, parse_scheme
from boostr.tensor import Tensor


def quantize(w: Tensor, scheme: str) -> QuantizedTensor:
    """Round a weight to int8: scale = absmax / 127 of each row or group, values = rint(w / scale).

    Args:
        w: [N, K] float.   scheme: "int8" (a scale for each row), "int8-g32|g64|g128" (for each
            group of inputs; the last may be short), "w8a8" (as int8; `linear` rounds its input
            too).
    """
    chosen = parse_scheme(scheme)
    if w.ndim != 2 or not dtypes.is_float(w.dtype):
        raise ShapeError(f"quantize: w must be a float [N, K], got {w.dtype}{list(w.shape)}")
    N, K = w.shape
    values, scales = _quantize(w, chosen.group_size or max(K, 1))
    return QuantizedTensor(chosen, (N, K), {"values": values, "scales": scales})


def dequantize(w: QuantizedTensor, dtype: object = "float32") -> Tensor:
    """The weight [N, K] as floats of `dtype` (float32, float16 or bfloat16)."""
    wanted = dtypes.parse(dtype)
    if not dtypes.is_float(wanted):
        raise DTypeError(f"dequantize: dtype must be a float, got {wanted}")
    return _dequantize(w, wanted)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(values int8 as x, scales float32 [..., 1]): each row rounded by its own absmax / 127."""
    if x.ndim < 1 or not dtypes.is_float(x.dtype):
        raise ShapeError(f"quantize_rows: x must be float [..., K], got {x.dtype}{list(x.shape)}")
    flat = x.reshape(-1, x.shape[-1])
    values, scales = _quantize(flat, max(x.shape[-1], 1))
    return values.reshape(x.shape), scales.reshape(*x.shape[:-1], 1)


def _quantize_composite(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    N, K = w.shape
    h = core.cast(w, dtypes.float32)
    groups = [h[:, start : start + group] for start in range(0, K, group)]
    values, scales = [], []
    for part in groups:
        scale = core.max(core.abs(part), 1, keepdims=True) / 127
        rounded = core.round(part / core.where(scale > 0, scale, 1.0))
        clipped = core.minimum(core.maximum(rounded, -127.0), 127.0)
        values.append(core.cast(clipped, dtypes.int8))
        scales.append(scale)
    if not groups:
        empty = h.reshape(N, 0)
        return core.cast(empty, dtypes.int8), empty
    return core.concat(values, 1), core.concat(scales, 1)


def _dequantize_composite(w: QuantizedTensor, dtype) -> Tensor:
    if w.scheme.is_block:
        return core.cast(_BLOCKS[w.scheme.name](w), dtype)
    values = core.cast(w.parts["values"], dtypes.float32)
    return core.cast(values * _spread(w.parts["scales"], w.scheme, w.shape[1]), dtype)


def _spread(scales: Tensor, scheme: Scheme, K: int) -> Tensor:
    """Scales [N, G] repeated for each input of their group: [N, K] (or [N, 1] for a whole row)."""
    if not scheme.group_size:
        return scales
    N, G = scales.shape
    wide = scales.unsqueeze(2).broadcast_to(N, G, scheme.group_size)
    return wide.reshape(N, G * scheme.group_size)[:, :K]


def _blocks(w: QuantizedTensor) -> Tensor:
    """uint8 [N, K/32, bytes of a block]."""
    N, K = w.shape
    return w.parts["blocks"].reshape(N, K // 32, w.scheme.block_bytes)


def _half(blocks: Tensor, at: int) -> Tensor:
    """The f16 number at byte `at` of each block, as float32 [N, K/32, 1]."""
    two = core.contiguous(blocks[:, :, at : at + 2])
    return core.cast(core.bitcast(two, dtypes.float16), dtypes.float32)


def _q8_0(w: QuantizedTensor) -> Tensor:
    blocks = _blocks(w)
    q = core.bitcast(core.contiguous(blocks[:, :, 2:]), dtypes.int8)
    return (_half(blocks, 0) * core.cast(q, dtypes.float32)).reshape(w.shape)


def _q4_1(w: QuantizedTensor) -> Tensor:
    blocks = _blocks(w)
    packed = blocks[:, :, 4:]
    q = core.cast(core.concat([packed & 15, packed >> 4], 2), dtypes.float32)
    return (_half(blocks, 0) * q + _half(blocks, 2)).reshape(w.shape)


_BLOCKS = {"q8_0": _q8_0, "q4_1": _q4_1}
_quantize = Op("quantize", _quantize_composite)
_dequantize = Op("dequantize", _dequantize_composite)
