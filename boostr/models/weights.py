"""Strict loading: every parameter set exactly once from a source, and nothing left over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from boostr import dtypes, ops
from boostr.backends.base import Backend
from boostr.errors import ModelFileError
from boostr.io.safetensors import SafetensorsSource
from boostr.models.lazy import Expected, LazyWeight, Stored
from boostr.models.plan import LoadPlan
from boostr.nn.linear import Embedding
from boostr.nn.module import Module, Parameter, Weight
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor


class WeightSource:
    """Where weights come from, under canonical names: shaped, and read one at a time.

    Attributes:
        path: for messages.   problems: what about the source does not fit, a line each.
    """

    path: str
    problems: Sequence[str] = ()

    @property
    def names(self) -> Iterable[str]:
        raise NotImplementedError

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a weight; None if `problems` say what is wrong with it."""
        raise NotImplementedError

    def weight(self, name: str, backend: Backend) -> Weight:
        """The weight in its stored form, without a copy on the numpy backend."""
        raise NotImplementedError

    def label(self, name: str) -> str:
        """A name that is there, as messages should say it."""
        return name

    def expected(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        """The names of all parameters, as messages should say them where they are missing."""
        return {name: name for name in shapes}


class CheckpointWeights(WeightSource):
    """The weights of a checkpoint, which a load plan brings under canonical names."""

    def __init__(self, stored: Mapping[str, LazyWeight], path: str, plan: LoadPlan) -> None:
        self.path, self._plan = path, plan
        naming = plan.load(stored)
        self._weights, self.problems = naming.weights, naming.problems

    @property
    def names(self) -> Iterable[str]:
        return self._weights

    def shape(self, name: str) -> tuple[int, ...] | None:
        weight = self._weights[name]
        return None if isinstance(weight, Expected) else weight.shape

    def weight(self, name: str, backend: Backend) -> Weight:
        return self._weights[name].weight(backend)

    def label(self, name: str) -> str:
        weight = self._weights.get(name)
        return name if weight is None else _labelled(name, weight.sources)

    def expected(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
        origins = self._plan.checkpoint_names(shapes)
        return {name: _labelled(name, sources) for name, sources in origins.items()}


def _labelled(name: str, sources: tuple[str, ...]) -> str:
    """A canonical name, with those in the checkpoint where they are others."""
    return name if sources in ((), (name,)) else f"{name} (in the checkpoint: {', '.join(sources)})"


def stored_weights(files: SafetensorsSource, path: str) -> dict[str, LazyWeight]:
    """The tensors of a safetensors checkpoint under their names in it."""
    return {
        name: Stored(path, name, files.shape(name), partial(files.tensor, name))
        for name in files.names
    }


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
        ModelFileError: one error with all names that are missing, unexpected or misshapen, and all
            that conflict.
    """
    places = {name: (owner, attribute) for name, owner, attribute in module.parameters()}
    _check_names(places, source)
    groups = dict(module.adjacent_weights()) if backend.joins_weights else {}
    for name, (owner, attribute) in places.items():
        place: Parameter = getattr(owner, attribute)
        role = place.role
        weight = source.weight(name, backend)
        if role == "vector":
            weight = _dequantized(weight).to("float32")
        else:
            weight = _converted(weight, dtype)
            if isinstance(owner, Embedding):
                stored = weight.dtype if isinstance(weight, Tensor) else dtypes.float32
                owner.dtype = backend.activation_dtype(stored)
            packs = quantize_embeddings if role in ("embedding", "head") else True
            if quantize is not None and packs:
                weight = ops.quantize(_dequantized(weight), quantize)
        setattr(owner, attribute, weight)
        if name in groups:
            _join(groups[name])


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


def _check_names(places: dict, source: WeightSource) -> None:
    """Every parameter in its shape, and nothing else; or one error with all that does not fit."""
    present = set(source.names)
    wanted = {n: getattr(owner, attribute).shape for n, (owner, attribute) in places.items()}
    missing = [n for n in wanted if n not in present]
    misshapen = []
    for name, shape in wanted.items():
        got = source.shape(name) if name in present else None
        if got is not None and tuple(got) != tuple(shape):
            misshapen.append(f"{source.label(name)}: expected {list(shape)}, got {list(got)}")
    expected = source.expected(wanted) if missing else {}
    kinds = {
        "missing": [expected[name] for name in missing],
        "unexpected": sorted(source.label(n) for n in present - set(wanted)),
        "misshapen": misshapen,
        "conflicting": list(source.problems),
    }
    parts = [
        f"\n  {kind} ({len(names)}):\n    " + "\n    ".join(names)
        for kind, names in kinds.items()
        if names
    ]
    if parts:
        hint = ""
        if missing == ["lm_head.weight"]:
            hint = "\n  (if the head is the embedding, set tie_word_embeddings in the config)"
        raise ModelFileError(
            f"{source.path}: the checkpoint does not fit the model{''.join(parts)}{hint}"
        )
