"""Strict loading: every parameter set exactly once from a source, and nothing left over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from boostr import dtypes, ops
from boostr.backends.base import Backend
from boostr.errors import ModelFileError
from boostr.io.safetensors import SafetensorsSource
from boostr.nn.linear import Embedding
from boostr.nn.module import Module, Parameter, Weight
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

_STORED = (dtypes.float32, dtypes.float16, dtypes.bfloat16)


class WeightSource(Protocol):
    """Where weights come from: named, shaped, and read one at a time."""

    path: str

    @property
    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def weight(self, name: str, backend: Backend) -> Weight:
        """The weight in its stored form, without a copy on the numpy backend."""
        ...


class SafetensorsWeights:
    """The tensors of a safetensors checkpoint, a prefix taken off their names."""

    def __init__(self, files: SafetensorsSource, path: str, prefix: str = "") -> None:
        self._files, self.path = files, path
        self._stored = {name.removeprefix(prefix): name for name in files.names}

    @property
    def names(self) -> Iterable[str]:
        return self._stored

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files.shape(self._stored[name])

    def weight(self, name: str, backend: Backend) -> Weight:
        array = self._files.tensor(self._stored[name])
        if array.dtype not in _STORED:
            raise ModelFileError(
                f"{self.path}: tensor {name!r} is {array.dtype}; boostr reads "
                f"{', '.join(str(d) for d in _STORED)}"
            )
        return Tensor(array, backend=backend)


def load_parameters(
    module: Module,
    source: WeightSource,
    backend: Backend,
    *,
    dtype: np.dtype | None = None,
    quantize: str | None = None,
    quantize_embeddings: bool = False,
) -> None:
    """Set every parameter of `module`, one tensor in memory at a time.

    Args:
        dtype: convert matrices to this float dtype; None keeps the stored one.
        quantize: scheme for the weights of linear layers (`ops.quantize`); embedding and head stay
            as they are unless `quantize_embeddings`.
    Raises:
        ModelFileError: one error that lists all missing, all unexpected and all misshapen names.
    """
    places = {name: (owner, attribute) for name, owner, attribute in module.parameters()}
    _check_names(module, places, source)
    groups = dict(module.adjacent_weights()) if backend.joins_weights else {}
    for name, (owner, attribute) in places.items():
        place: Parameter = getattr(owner, attribute)
        role = "embedding" if name == "lm_head.weight" else place.role
        weight = source.weight(name, backend)
        if role == "vector":
            weight = _dequantized(weight).to("float32")
        else:
            weight = _converted(weight, dtype)
            if isinstance(owner, Embedding):
                stored = weight.dtype if isinstance(weight, Tensor) else dtypes.float32
                owner.dtype = backend.activation_dtype(stored)
            packs = quantize_embeddings if role == "embedding" else True
            if quantize is not None and packs:
                weight = ops.quantize(_dequantized(weight), quantize)
        setattr(owner, attribute, weight)
        if name in groups:
            _join(groups[name])
    _check_tied(module, source, backend)


def _join(layers: Sequence[Module]) -> None:
    """Put the weights of some linear layers end to end in memory, if their form is the same."""
    weights: list[Weight] = [layer.weight for layer in layers]  # type: ignore[attr-defined]
    first = weights[0]
    if isinstance(first, Tensor):
        if any(not isinstance(w, Tensor) or w.dtype != first.dtype for w in weights):
            return
        joined = _end_to_end(weights)  # type: ignore[arg-type]
    else:
        if any(not isinstance(w, QuantizedTensor) or w.scheme != first.scheme for w in weights):
            return
        parts = {n: _end_to_end([w.parts[n] for w in weights]) for n in first.parts}  # type: ignore
        joined = [
            QuantizedTensor(first.scheme, w.shape, {n: part[i] for n, part in parts.items()})  # type: ignore
            for i, w in enumerate(weights)
        ]
    for layer, weight in zip(layers, joined, strict=True):
        layer.weight = weight  # type: ignore[attr-defined]


def _end_to_end(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same rows as views of one tensor."""
    whole = ops.core.concat(list(tensors))
    ends = np.cumsum([len(t) for t in tensors])
    return [whole[int(end) - len(t) : int(end)] for t, end in zip(tensors, ends, strict=True)]


def _dequantized(weight: Weight) -> Tensor:
    return ops.dequantize(weight) if isinstance(weight, QuantizedTensor) else weight


def _converted(weight: Weight, dtype: np.dtype | None) -> Weight:
    return weight if dtype is None else _dequantized(weight).to(dtype)


def _check_names(module: Module, places: dict, source: WeightSource) -> None:
    present = set(source.names)
    wanted = {n: getattr(owner, attribute).shape for n, (owner, attribute) in places.items()}
    missing = [n for n in wanted if n not in present]
    unexpected = sorted(n for n in present - set(wanted) if not _is_known(module, n))
    misshapen = [
        f"{n}: expected {list(shape)}, got {list(source.shape(n))}"
        for n, shape in wanted.items()
        if n in present and tuple(source.shape(n)) != tuple(shape)
    ]
    if missing or unexpected or misshapen:
        parts = [
            f"\n  {kind} ({len(names)}):\n    " + "\n    ".join(names)
            for kind, names in (
                ("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen),
            )
            if names
        ]  # fmt: skip
        hint = ""
        if missing == ["lm_head.weight"]:
            hint = "\n  (if the head is the embedding, set tie_word_embeddings in the config)"
        raise ModelFileError(
            f"{source.path}: the checkpoint does not fit the model{''.join(parts)}{hint}"
        )


def _is_known(module: Module, name: str) -> bool:
    """Whether a name may be in the checkpoint although it is no parameter."""
    return (
        name in module.tied_names()  # type: ignore[attr-defined]
        or name.endswith(tuple(getattr(module, "inert", ())))
        or name.startswith(tuple(getattr(module, "unused", ())))
    )


def _check_tied(module: Module, source: WeightSource, backend: Backend) -> None:
    """A tied weight that the checkpoint repeats must be the same numbers."""
    names = set(source.names)
    for repeated, name in module.tied_names().items():  # type: ignore[attr-defined]
        if repeated not in names:
            continue
        copy, kept = (_dequantized(source.weight(n, backend)).numpy() for n in (repeated, name))
        if not np.array_equal(copy, kept):
            raise ModelFileError(
                f"{source.path}: the config ties {repeated!r} to {name!r}, but the checkpoint has "
                "different numbers for them; set tie_word_embeddings to false to use both"
            )
