"""Quantizing weights, and reading them back. Layouts are in `boostr/quant/scheme.py`."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, ShapeError
from boostr.ops import core
from boostr.quant.scheme import FIELDS, QuantizedTensor, parse_scheme
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
    """w = scale · (number - zero) + offset: what every scheme means."""
    scheme, parts, K = w.scheme, w.parts, w.shape[-1]
    numbers = _numbers(w)
    if scheme.zero:
        numbers = numbers - scheme.zero
    if "zeros" in parts:
        zeros = core.cast(parts["zeros"], dtypes.float32)
        numbers = numbers - _spread(zeros, scheme.group_size, K)
    values = numbers * _spread(_scales(w), scheme.group_size, K)
    if "offsets" in parts:
        values = values + _spread(_offsets(w), scheme.group_size, K)
    return core.cast(values, dtype)


def _numbers(w: QuantizedTensor) -> Tensor:
    """What the codes stand for, float32 in w's shape."""
    codes, values = w.parts["codes"], w.scheme.values
    if w.scheme.bits < 8:
        codes = _unpacked(w)
    return core.cast(codes, dtypes.float32) if not values else _looked_up(codes, values)


def _scales(w: QuantizedTensor) -> Tensor:
    """factor · scale · super-scale of each group, float32 [..., G]."""
    scheme, scales = w.scheme, w.parts["scales"]
    if scheme.scale in ("e8m0", "e4m3"):
        scales = _looked_up(scales, scheme.scale)
    scales = core.cast(scales, dtypes.float32)
    if scheme.factor != 1.0:
        scales = scales * scheme.factor
    return scales * _above(w, "supers") if "supers" in w.parts else scales


def _offsets(w: QuantizedTensor) -> Tensor:
    offsets = core.cast(w.parts["offsets"], dtypes.float32)
    return offsets * _above(w, "floors") if "floors" in w.parts else offsets


def _above(w: QuantizedTensor, name: str) -> Tensor:
    """A part that has a number for super_size inputs, for each group: [..., G]."""
    scheme, G = w.scheme, w.parts["scales"].shape[-1]
    return _spread(w.parts[name], scheme.super_size // scheme.group_size, G)


def _looked_up(codes: Tensor, values: tuple[float, ...] | str) -> Tensor:
    """The numbers, float32, that codes uint8 stand for."""
    if isinstance(values, str):
        values = _BYTES[values]
    table = Tensor(np.array(values, np.float32), backend=codes.backend)
    flat = core.cast(codes.reshape(-1), dtypes.int32)
    return core.take(table, flat).reshape(*codes.shape)


def _spread(scales: Tensor, group: int, K: int | None = None) -> Tensor:
    """[..., G] repeated for each of `group` columns, cut to K; as it is for a whole row (0)."""
    if not group:
        return scales
    *lead, G = scales.shape
    wide = scales.unsqueeze(-1).broadcast_to(*lead, G, group).reshape(*lead, G * group)
    return wide if K is None else wide[..., :K]


def _unpacked(w: QuantizedTensor) -> Tensor:
    """Codes uint8 of fewer than 8 bits, one an element, in w's shape."""
    low, *high = FIELDS[w.scheme.bits]
    codes = _plane(w.parts["codes"], low)
    if high:
        codes = codes | (_plane(w.parts["high"], high[0]) << low)
    return codes.reshape(*w.shape)


def _plane(plane: Tensor, bits: int) -> Tensor:
    """Byte i of the 4·bits that 32 inputs take holds inputs i, i + 4·bits, ... from its low bits
    up: uint8 [inputs / 32, 32]."""
    groups = plane.reshape(-1, 4 * bits)
    fields = [groups >> shift for shift in range(0, 8, bits)]
    return core.concat(fields, 1) & (1 << bits) - 1


_every_byte = np.arange(256, dtype=np.uint8)
_BYTES = {  # the 256 numbers of an 8-bit float
    "e4m3": tuple(_every_byte.view(dtypes.float8_e4m3).astype(np.float32).tolist()),
    "e8m0": (*np.ldexp(1.0, np.arange(255) - 127).tolist(), float("nan")),
}
_quantize = Op("quantize", _quantize_composite)
_dequantize = Op("dequantize", _dequantize_composite)
