"""Blocks of a GGUF file as the planes that products read (`boostr/quant/gguf/`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from boostr import backends, dispatch
from boostr.backends.base import Backend
from boostr.dispatch import Op
from boostr.errors import NumericsError
from boostr.quant.gguf import BLOCK_TYPES, planes
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

_BAND = 1 << 24  # bytes of blocks that are read at a time
_COMPOSITE_BAND = 1 << 20  # the same without a kernel, where numpy needs several times as much


def read_blocks(
    kind: str,
    rows: np.ndarray,
    shape: tuple[int, ...],
    backend: Backend,
    done: Callable[[np.ndarray], None] = lambda rows: None,
) -> QuantizedTensor:
    """A weight of GGUF's blocks, laid out anew without loss.

    Args:
        kind: GGUF's type, such as "Q4_0".   rows: uint8 [N, bytes], as they lie in the file.
        shape: [..., K] of the weight, where N is all but K multiplied.
        done: is given the rows that are read, band by band.
    The host holds a band of rows at a time, besides the weight itself if `backend` is numpy.

    Raises:
        NumericsError: a scale or an offset is nan or infinite.
    """
    scheme, host = BLOCK_TYPES[kind].scheme, backends.get("numpy")
    sizes = [((len(rows), part.columns(shape[-1])), part.dtype) for part in scheme.parts.values()]
    parts = [Tensor.wrap(backend.room(size, dtype), backend) for size, dtype in sizes]
    band = max(_BAND // max(rows.shape[1], 1), 1)
    for start in range(0, len(rows), band):
        few = rows[start : start + band]
        places = parts if len(few) == len(rows) else [p[start : start + band] for p in parts]
        if backend is host:
            _read_blocks(Tensor(few, backend=host), kind, places)
            _check_finite(kind, places)
        else:
            _through_host(few, kind, places, host)
        done(few)
    if len(shape) != 2:
        parts = [part.reshape(*shape[:-1], part.shape[1]) for part in parts]
    return QuantizedTensor(scheme, shape, dict(zip(scheme.parts, parts, strict=True)))


def _through_host(rows: np.ndarray, kind: str, places: list[Tensor], host: Backend) -> None:
    made = [Tensor.wrap(host.room(place.shape, place.dtype), host) for place in places]
    with dispatch.strict(False):  # which is about the device's kernels
        _read_blocks(Tensor(rows, backend=host), kind, made)
    _check_finite(kind, made)
    for place, part in zip(places, made, strict=True):
        place.assign(part.numpy())


_NAN = {"e8m0": (0xFF, 0xFF), "e4m3": (0x7F, 0x7F)}  # scales in bytes: mask, what it leaves


def _check_finite(kind: str, places: list[Tensor]) -> None:
    scheme = BLOCK_TYPES[kind].scheme
    for name, place in zip(scheme.parts, places, strict=True):
        numbers = place.numpy()
        if name == "scales" and scheme.scale in _NAN:
            mask, nan = _NAN[scheme.scale]
            wrong = ((numbers & mask) == nan).any()
        else:
            wrong = numbers.dtype.kind == "f" and not np.isfinite(numbers).all()
        if wrong:
            raise NumericsError(f"its blocks of {kind} have {name} that are nan or infinite")


def _composite(rows: Tensor, kind: str, places: list[Tensor]) -> None:
    """Fills the parts of rows uint8 [N, bytes], in the order of their scheme."""
    data = rows.numpy()
    band = max(_COMPOSITE_BAND // max(data.shape[1], 1), 1)
    for start in range(0, len(data), band):
        found = planes(kind, data[start : start + band])
        for place, part in zip(places, found.values(), strict=True):
            place[start : start + band].assign(part)


_read_blocks = Op("read_blocks", _composite)
