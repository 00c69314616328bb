"""Quantizing weights, and reading them back. Layouts are in `boostr/quant/scheme.py`."""

from __future__ import annotations

import numpy as np

from boostr import dtypes
from boostr.dispatch import Op
from boostr.errors import DTypeError, NumericsError, ShapeError
from boostr.operands import Ordered
from boostr.ops import core
from boostr.quant.scheme import FIELDS, OFFSETS, PACK, QuantizedTensor, Scheme, parse_scheme
from boostr.tensor import Tensor, full


def quantize(w: Tensor, scheme: str | Scheme) -> QuantizedTensor:
    """Round a weight to the nearest numbers that a scheme has; at most scale / 2 away (nf4 and fp8:
    half of the distance between two of their numbers).

    Args:
        w: [N, K] float.
        scheme: "int8" (a scale for each row, absmax / 127), "int8-g32|g64|g128" (for each group of
            inputs; the last may be short), "w8a8" (as int8; `linear` rounds its input too),
            "int4-g32|g64|g128" (codes -8..7 as compressed-tensors has them: absmax / 7.5, rounded
            up to bf16), "nf4" (bitsandbytes': absmax of 64 inputs), "fp8" (e4m3, absmax / 448 of
            a row); or `affine_scheme(bits, group)`, as MLX quantizes.
    Raises:
        ShapeError: K is no multiple of 32 (int4, nf4).   NumericsError: nan or infinite w.
    """
    chosen = scheme if isinstance(scheme, Scheme) else parse_scheme(scheme)
    if w.ndim != 2 or not dtypes.is_float(w.dtype):
        raise ShapeError(f"quantize: w must be a float [N, K], got {w.dtype}{list(w.shape)}")
    N, K = w.shape
    if K % chosen.multiple:
        raise ShapeError(
            f"quantize: {chosen.name} needs a multiple of {chosen.multiple} inputs, got {K}; int8 "
            "and int8-g32 take any number"
        )
    _check_finite(w)
    group = chosen.group_size or max(K, 1)
    plain = chosen.bits == 8 and not (chosen.values or chosen.offsets)
    planes = _quantize(w, group) if plain else _quantize_codes(w, group, chosen)
    parts = dict(zip(chosen.parts, planes, strict=True))
    return QuantizedTensor(chosen, (N, K), parts)


def dequantize(w: QuantizedTensor | Ordered, dtype: object = "float32") -> Tensor:
    """The weight (of its own shape) as floats of `dtype` (float32, float16 or bfloat16)."""
    if isinstance(w, Ordered):
        return in_place(dequantize(w.base, dtype), w.order)
    wanted = dtypes.parse(dtype)
    if not dtypes.is_float(wanted):
        raise DTypeError(f"dequantize: dtype must be a float, got {wanted}")
    return _dequantize(w, wanted)


def in_place(columns: Tensor, order: Tensor) -> Tensor:
    """[..., K] whose column j is that of input order[j], with all columns in their own places."""
    places = Tensor(np.argsort(order.numpy()).astype(np.int32), backend=order.backend)
    return core.take(columns, places, -1)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(values int8 as x, scales float32 [..., 1]): each row rounded by its own absmax / 127."""
    if x.ndim < 1 or not dtypes.is_float(x.dtype):
        raise ShapeError(f"quantize_rows: x must be float [..., K], got {x.dtype}{list(x.shape)}")
    flat = x.reshape(-1, x.shape[-1])
    values, scales = _quantize(flat, max(x.shape[-1], 1))
    return values.reshape(x.shape), scales.reshape(*x.shape[:-1], 1)


def _check_finite(w: Tensor) -> None:
    """By the bits of the numbers: devices may take comparisons with nan for whatever they like."""
    bits = core.bitcast(core.cast(w, dtypes.float32), dtypes.int32) & 0x7FFFFFFF
    if w.size and core.max(bits).item() >= 0x7F800000:
        raise NumericsError("quantize: w has elements that are nan or infinite")


def _quantize_composite(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    groups, top = _groups(w, group)
    scales = top / 127
    codes = core.round(groups / _divisor(scales))
    codes = core.minimum(core.maximum(codes, -127.0), 127.0)
    return _ungrouped(core.cast(codes, dtypes.int8), w.shape[1]), scales.squeeze(2)


def _quantize_codes_composite(w: Tensor, group: int, scheme: Scheme) -> tuple[Tensor, ...]:
    """The parts of all schemes but plain int8, in their order."""
    groups, top = _groups(w, group)
    if scheme.offsets:
        codes, scales, *offsets = _affine(groups, scheme)
    elif not scheme.values:
        scales, offsets = _rounded_up(top / 7.5, dtypes.bfloat16), []
        numbers = core.round(groups / _divisor(core.cast(scales, dtypes.float32)))
        codes = core.minimum(core.maximum(numbers, -8.0), 7.0) + 8
    elif scheme.values == "e4m3":
        scales, offsets = top / 448, []
        numbers = groups / _divisor(scales)
        codes = _rank(core.abs(numbers), _E4M3_ABOVE)
        codes = core.where(numbers < 0, codes + 128, codes)
    else:
        scales, offsets = top, []
        codes = _rank(groups / _divisor(top), _midpoints(np.array(scheme.values, np.float32)))
    codes = _ungrouped(core.cast(codes, scheme.parts["codes"].dtype), w.shape[1])
    planes = _packed(codes, scheme) if scheme.bits < 8 else [codes]
    return (*planes, *(part.squeeze(2) for part in (scales, *offsets)))


def _affine(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor, Tensor]:
    """Codes from the least number of a group, in equal steps to its greatest."""
    last, stored = (1 << scheme.bits) - 1, OFFSETS[scheme.offsets]
    offsets = core.cast(core.min(groups, 2, keepdims=True), stored)
    numbers = groups - core.cast(offsets, dtypes.float32)
    scales = _rounded_up(core.maximum(core.max(numbers, 2, keepdims=True), 0.0) / last, stored)
    codes = core.round(numbers / _divisor(core.cast(scales, dtypes.float32)))
    return core.minimum(core.maximum(codes, 0.0), float(last)) + scheme.zero, scales, offsets


def _groups(w: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(w as float32 [N, G, group], zeros behind its end; the largest magnitudes [N, G, 1])."""
    N, K = w.shape
    G = -(-K // group)
    h = core.cast(w, dtypes.float32)
    if G * group != K:
        h = core.concat([h, full((N, G * group - K), 0.0, backend=w.backend)], 1)
    groups = h.reshape(N, G, group)
    return groups, core.max(core.abs(groups), 2, keepdims=True)


def _ungrouped(codes: Tensor, K: int) -> Tensor:
    N, G, group = codes.shape
    return core.contiguous(codes.reshape(N, G * group)[:, :K])


def _divisor(scales: Tensor) -> Tensor:
    """A group of zeros has scale 0; its codes are those of 0."""
    return core.where(scales > 0, scales, 1.0)


def _rounded_up(x: Tensor, dtype: np.dtype) -> Tensor:
    """A number of `dtype` just above x >= 0, or x: no quotient by it is larger than that by x."""
    near = core.cast(x, dtype)
    above = core.cast(x * (1 + dtypes.eps(dtype)), dtype)
    return core.where(core.cast(near, dtypes.float32) < x, above, near)


def _rank(x: Tensor, thresholds: np.ndarray) -> Tensor:
    """How many of 2^b - 1 ascending thresholds are below each x, int32: a search in b steps."""
    table = Tensor(thresholds.astype(np.float32), backend=x.backend)
    flat = x.reshape(-1)
    found = core.cast(flat * 0, dtypes.int32)
    step = (len(thresholds) + 1) // 2
    while step:
        above = flat > core.take(table, found + (step - 1))
        found = found + core.cast(above, dtypes.int32) * step
        step //= 2
    return found.reshape(*x.shape)


def _packed(codes: Tensor, scheme: Scheme) -> list[Tensor]:
    """The planes of codes uint8 [N, K]; see `quant/scheme.py`."""
    low, *high = FIELDS[scheme.bits]
    return [_fields(codes & (1 << low) - 1, low), *(_fields(codes >> low, bits) for bits in high)]


def _fields(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `_plane`, of [N, K]."""
    N, K = codes.shape
    groups = codes.reshape(N * K // PACK, 8 // bits, 4 * bits)
    plane = groups[:, 0]
    for place in range(1, 8 // bits):
        plane = plane | (groups[:, place] << bits * place)
    return plane.reshape(N, K * bits // 8)


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


def _midpoints(numbers: np.ndarray) -> np.ndarray:
    return (numbers[1:] + numbers[:-1]) / 2


def _e4m3_above() -> np.ndarray:
    """Above which magnitude is each next one of 8-bit floats the nearest; ties go to even codes."""
    between = _midpoints(np.array(_BYTES["e4m3"][:127], np.float32))
    between[1::2] = np.nextafter(between[1::2], np.float32(0))
    return np.append(between, np.float32(np.inf))


_E4M3_ABOVE = _e4m3_above()
_quantize = Op("quantize", _quantize_composite)
_quantize_codes = Op("quantize_codes", _quantize_codes_composite)
_dequantize = Op("dequantize", _dequantize_composite)
