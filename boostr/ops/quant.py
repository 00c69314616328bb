"""Quantizing weights, and reading them back. Layouts are in `boostr/quant/scheme.py`."""

from __future__ import annotations

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, ShapeError
from boostr.ops import core
from boostr.quant.scheme import QuantizedTensor, parse_scheme
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
    codes, scales = _quantize(w, chosen.group_size or max(K, 1))
    return QuantizedTensor(chosen, (N, K), {"codes": codes, "scales": scales})


def dequantize(w: QuantizedTensor, dtype: object = "float32") -> Tensor:
    """The weight (of its own shape) as floats of `dtype` (float32, float16 or bfloat16)."""
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
    """w = scale · (code - zero) + offset: what every scheme means."""
    parts, K = w.parts, w.shape[-1]
    codes = core.cast(parts["codes"] if w.scheme.bits == 8 else _unpacked(w), dtypes.float32)
    if w.scheme.zero:
        codes = codes - w.scheme.zero
    scales = core.cast(parts["scales"], dtypes.float32)
    if "supers" in parts:
        scales = scales * _spread(parts["supers"], w.scheme.super_size // w.scheme.group_size)
    values = codes * _spread(scales, w.scheme.group_size, K)
    if "offsets" in parts:
        offsets = core.cast(parts["offsets"], dtypes.float32)
        values = values + _spread(offsets, w.scheme.group_size, K)
    return core.cast(values, dtype)


def _spread(scales: Tensor, group: int, K: int | None = None) -> Tensor:
    """[..., G] repeated for each of `group` columns, cut to K; as it is for a whole row (0)."""
    if not group:
        return scales
    *lead, G = scales.shape
    wide = scales.unsqueeze(-1).broadcast_to(*lead, G, group).reshape(*lead, G * group)
    return wide if K is None else wide[..., :K]


def _unpacked(w: QuantizedTensor) -> Tensor:
    """Codes uint8 of fewer than 8 bits, one an element, in w's shape."""
    codes = _plane(w.parts["codes"], 4)
    if "high" in w.parts:
        codes = codes | (_plane(w.parts["high"], w.scheme.bits - 4) << 4)
    return codes.reshape(*w.shape)


def _plane(plane: Tensor, bits: int) -> Tensor:
    """Byte i of the 4·bits that 32 inputs take holds inputs i, i + 4·bits, ... from its low bits
    up: uint8 [inputs / 32, 32]."""
    groups = plane.reshape(-1, 4 * bits)
    fields = [groups >> shift for shift in range(0, 8, bits)]
    return core.concat(fields, 1) & (1 << bits) - 1


_quantize = Op("quantize", _quantize_composite)
_dequantize = Op("dequantize", _dequantize_composite)
