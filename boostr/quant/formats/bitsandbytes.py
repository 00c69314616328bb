"""bitsandbytes: codes of 4 bits over the flat weight, or int8 by rows.

Source: github.com/bitsandbytes-foundation/bitsandbytes (functional.py: QuantState, Int8Params).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from boostr import dtypes
from boostr.errors import DTypeError, ModelFileError
from boostr.quant.formats.fields import ALL, EACH, UINT8, Axis, Field, Packing, Stored
from boostr.quant.formats.layout import KERNEL_GROUP, Layout, Numbers, Tensors
from boostr.quant.formats.table import Table
from boostr.quant.pack import unpack_codes
from boostr.quant.scheme import PACK, SCHEMES, QuantizedTensor, Scheme

_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
_HIGH_FIRST = Packing(4, (4, 0), 1)
_F32 = (dtypes.float32,)


class _State(NamedTuple):
    """What `quant_state` says of a weight of 4 bits."""

    kind: str
    shape: tuple[int, int]
    block: int
    dtype: np.dtype
    nested_block: int
    nested_offset: float


@dataclass(frozen=True)
class _Made:
    """A tensor that others stand for; see `fields.Stored`."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    array: Callable[[], np.ndarray]


class BitsAndBytes:
    """See `layout.Method`."""

    name = "bitsandbytes"
    marks = (*_STATES, "SCB")
    parts = (
        "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax",
        "weight.nested_quant_map", *_STATES, "SCB", "weight_format",
    )  # fmt: skip

    def __init__(self, config: Table, dtype: np.dtype) -> None:
        """What a weight is stored as, its tensors say; `dtype` is that of the model."""
        self._dtype = dtype

    def layout(self, module: str, tensors: Tensors) -> Layout:
        weight = tensors.get("weight")
        if weight is None:
            raise ModelFileError("weight missing")
        if "SCB" in tensors:
            return _int8(tensors, weight)
        state = _state(next(tensors[name] for name in _STATES if name in tensors))
        absent = [n for n in ("weight.absmax", "weight.quant_map") if n not in tensors]
        if absent:
            raise ModelFileError(f"{' and '.join(absent)} missing")
        (N, K), size = state.shape, weight.array().nbytes
        if size != -(-N * K // 2):
            raise ModelFileError(
                f"weight: {size} bytes, but quant_state says {list(state.shape)} codes of 4 bits"
            )
        table = tensors["weight.quant_map"]
        if table.shape != (16,) or table.dtype not in _F32:
            raise ModelFileError(f"weight.quant_map: expected 16 float32, got {list(table.shape)}")
        values = tuple(table.array().tolist())
        if K % state.block or state.block % KERNEL_GROUP or K % PACK:
            return _crossing(state, tensors, values)
        return _blocks(state, tensors, values)

    def written(self, module: str, weight: QuantizedTensor) -> Numbers | None:
        scheme, (N, K) = weight.scheme, weight.shape
        if scheme.name != "nf4" or K % scheme.group_size:
            return None
        parts = {name: part.numpy() for name, part in weight.parts.items()}
        pairs = unpack_codes(parts, 4).reshape(-1, 2)
        state = {
            "quant_type": "nf4", "blocksize": scheme.group_size, "dtype": str(self._dtype),
            "shape": [N, K],
        }  # fmt: skip
        return {
            "weight": pairs[:, :1] << 4 | pairs[:, 1:],
            "weight.absmax": parts["scales"].reshape(-1),
            "weight.quant_map": np.array(scheme.values, np.float32),
            _STATES[0]: np.frombuffer(json.dumps(state).encode(), np.uint8),
        }


def _int8(tensors: Tensors, weight: Stored) -> Layout:
    if len(weight.shape) != 2:
        raise ModelFileError(f"weight: expected [N, K], got {list(weight.shape)}")
    told = tensors.get("weight_format")
    if told is not None and told.array().any():
        raise ModelFileError("weight_format: boostr reads 0, by rows (the others are tiles)")
    fields = {
        "codes": Field("weight", EACH, EACH, (dtypes.int8,)),
        "scales": Field("SCB", EACH, ALL, _F32),
    }
    scaled: Callable[[Numbers], Numbers] = lambda n: {**n, "scales": n["scales"] / np.float32(127)}  # noqa: E731
    return Layout((weight.shape[0], weight.shape[1]), SCHEMES["int8"], fields, scaled)


def _state(tensor: Stored) -> _State:
    """The JSON in a tensor of bytes."""
    try:
        raw: dict[str, Any] = json.loads(tensor.array().tobytes())
        (N, K), block = raw["shape"], raw["blocksize"]
        nested = raw.get("nested_blocksize") or 0
        state = _State(
            str(raw["quant_type"]), (int(N), int(K)), int(block), dtypes.parse(raw["dtype"]),
            int(nested), float(raw.get("nested_offset") or 0),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, DTypeError) as error:
        raise ModelFileError(f"quant_state: not what bitsandbytes writes: {error!s:.80}") from None
    if min(*state.shape, state.block) < 1 or state.dtype not in dtypes.MODEL_FLOATS:
        raise ModelFileError(f"quant_state: sizes must be 1 or more and floats, got {raw!s:.200}")
    return state


def _blocks(state: _State, tensors: Tensors, values: tuple[float, ...]) -> Layout:
    """Blocks that are groups of inputs of a row."""
    N, K = state.shape
    weight = tensors["weight"]
    raw = _Made(
        weight.name, (N, K // 2), dtypes.uint8, lambda: _flat(weight, dtypes.uint8).reshape(N, -1)
    )
    return Layout(
        state.shape,
        Scheme(state.kind, state.block, bits=4, values=values, multiple=PACK),
        {
            "codes": Field("weight", EACH, Axis(packing=_HIGH_FIRST), UINT8),
            "scales": Field("weight.absmax", EACH, Axis(state.block), _F32),
        },
        made={"weight": raw, "weight.absmax": _absmax(state, tensors, (N, K // state.block))},
    )


def _crossing(state: _State, tensors: Tensors, values: tuple[float, ...]) -> Layout:
    """Blocks that go on in the next row, which no plane can hold: a scale for each number."""
    (N, K), size = state.shape, state.shape[0] * state.shape[1]
    weight = tensors["weight"]
    flat = _absmax(state, tensors, (-(-size // state.block),))

    def codes() -> np.ndarray:
        raw = _flat(weight, dtypes.uint8).reshape(1, -1)
        return _HIGH_FIRST.unpacked(raw)[0, :size].reshape(N, K)

    def scales() -> np.ndarray:
        return np.repeat(flat.array(), state.block)[:size].reshape(N, K)

    return Layout(
        state.shape,
        Scheme(state.kind, 1, values=values),
        {
            "codes": Field("weight", EACH, EACH, UINT8),
            "scales": Field("weight.absmax", EACH, EACH, _F32),
        },
        made={
            "weight": _Made(weight.name, (N, K), dtypes.uint8, codes),
            "weight.absmax": _Made(flat.name, (N, K), dtypes.float32, scales),
        },
        floats=state.dtype,
    )


def _absmax(state: _State, tensors: Tensors, shape: tuple[int, ...]) -> _Made:
    """The scales of blocks as float32; they may be quantized too ("nested")."""
    absmax, size = tensors["weight.absmax"], int(np.prod(shape))
    if absmax.shape != (size,):
        raise ModelFileError(f"weight.absmax: expected [{size}], got {list(absmax.shape)}")
    if not state.nested_block:
        if absmax.dtype not in _F32:
            raise ModelFileError(f"weight.absmax: expected float32, got {absmax.dtype}")
        return _Made(absmax.name, shape, dtypes.float32, lambda: absmax.array().reshape(shape))
    wanted = {
        "weight.nested_quant_map": (256,),
        "weight.nested_absmax": (-(-size // state.nested_block),),
    }
    for name, wants in wanted.items():
        if name not in tensors or tensors[name].shape != wants:
            got = list(tensors[name].shape) if name in tensors else "none"
            raise ModelFileError(f"{name}: expected {list(wants)}, got {got}")
    if absmax.dtype not in UINT8:
        raise ModelFileError(f"weight.absmax: expected uint8, being nested, got {absmax.dtype}")
    table, above = (tensors[name] for name in wanted)

    def unnested() -> np.ndarray:
        outer = np.repeat(above.array().astype(np.float32), state.nested_block)[:size]
        found = table.array().astype(np.float32)[absmax.array()] * outer
        return (found + np.float32(state.nested_offset)).reshape(shape)

    return _Made(absmax.name, shape, dtypes.float32, unnested)


def _flat(tensor: Stored, dtype: np.dtype) -> np.ndarray:
    """The bytes of a tensor, which bitsandbytes may store as any dtype."""
    return tensor.array().reshape(-1).view(dtype)
