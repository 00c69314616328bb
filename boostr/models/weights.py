"""Strict loading: every parameter set exactly once from a source, and nothing left over."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

from boostr import dtypes, ops
from boostr.backends.base import Backend
from boostr.errors import ModelFileError, NumericsError, ShapeError
from boostr.io.safetensors import SafetensorsSource
from boostr.models.lazy import Expected, FromFile, LazyWeight, whole, whole_of
from boostr.models.plan import LoadPlan
from boostr.nn.linear import Embedding
from boostr.nn.module import Module, Parameter, Weight
from boostr.operands import Ordered
from boostr.quant.scheme import QuantizedTensor, Scheme, embedding_scheme
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

    def end_to_end(self, names: Sequence[str]) -> LazyWeight | None:
        """The one tensor whose rows are these weights in this order, if the source has one."""
        return None

    def is_inert(self, name: str) -> bool:
        """Whether a model without a place for this weight is right without it."""
        return False

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

    def sources(self, name: str) -> tuple[str, ...]:
        """The names in the checkpoint that a weight is made of."""
        return self._weights[name].sources

    def end_to_end(self, names: Sequence[str]) -> LazyWeight | None:
        return whole_of([self._weights[name] for name in names])

    def is_inert(self, name: str) -> bool:
        weight = self._weights[name]
        return weight.is_optional and not np.any(weight.read(whole(weight.shape)))

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
        name: FromFile(path, name, files.shape(name), partial(files.tensor, name))
        for name in files.names
    }


def load_parameters(
    module: Module,
    source: WeightSource,
    backend: Backend,
    *,
    dtype: np.dtype | None = None,
    quantize: str | None = None,
    quantize_embeddings: str | bool | None = None,
) -> None:
    """Set every parameter of `module`, one tensor in memory at a time.

    Args:
        dtype: convert matrices to this float dtype; None keeps the stored one.
        quantize: scheme for the weights of linear layers (`ops.quantize`); a warning says so if
            they are quantized already.
        quantize_embeddings: scheme for embedding and head; see `embedding_scheme`.
    Raises:
        ModelFileError: one error with all names that are missing, unexpected or misshapen, and all
            that conflict.
    """
    places = {name: (owner, attribute) for name, owner, attribute in module.places()}
    check_names(places, source)
    groups = _adjacent(module, places)
    forms = _Forms(dtype, quantize, embedding_scheme(quantize, quantize_embeddings))
    for name, (owner, attribute) in places.items():
        place = getattr(owner, attribute)
        if not isinstance(place, Parameter):  # set as a part of the group before it
            continue
        group = groups.get(name, [name])
        stored = source.end_to_end(group) if len(group) > 1 else None
        if stored is not None:
            whole = forms.made(source.label(name), stored.weight(backend), place.role)
            _share([places[n][0] for n in group], whole)
            continue
        weight = source.weight(name, backend)
        if isinstance(owner, Embedding):  # before it is packed: activations are as in the file
            held = weight.dtype if isinstance(weight, Tensor) else dtypes.float32
            owner.dtype = backend.activation_dtype(dtype or held)
        setattr(owner, attribute, forms.made(source.label(name), weight, place.role))
        if backend.joins_weights and name == group[-1] and len(group) > 1:
            _join([places[n][0] for n in group])
    for owner, attribute in module.constants():
        setattr(owner, attribute, Tensor(getattr(owner, attribute).values, backend=backend))
    if forms.twice:
        warnings.warn(
            f"{source.path}: weights that are quantized already ({', '.join(sorted(forms.twice))}) "
            f"are rounded a second time, to {quantize or quantize_embeddings}; the model that this "
            "one was made from would lose less",
            stacklevel=2,
        )


def _adjacent(module: Module, places: dict) -> dict[str, list[str]]:
    """Name -> names of all weights in its group of linear layers that read the same input."""
    names = {id(owner): name for name, (owner, at) in places.items() if at == "weight"}
    groups = [[names[id(layer)] for layer in layers] for _, layers in module.adjacent_weights()]
    return {name: group for group in groups for name in group}


class _Forms:
    """What weights become.

    Attributes:
        dtype: of floats, None as stored.   schemes: of roles, None as stored.
        twice: names of the schemes that weights had which have been rounded once more.
    """

    def __init__(self, dtype: np.dtype | None, linear: str | None, tables: str | None) -> None:
        self.dtype = dtype
        self.schemes = {"linear": linear, "embedding": tables, "head": tables}
        self.twice = set[str]()

    def made(self, name: str, weight: Weight, role: str) -> Weight:
        """A weight as the model wants it."""
        if role == "vector":
            return _dequantized(weight).to("float32")
        scheme = self.schemes[role]
        if scheme is None:
            return _converted(weight, self.dtype)
        if not isinstance(weight, Tensor):
            base = weight.base if isinstance(weight, Ordered) else weight
            self.twice.add(base.scheme.name)
        try:
            return ops.quantize(_dequantized(_converted(weight, self.dtype)), scheme)
        except (NumericsError, ShapeError) as error:
            raise ModelFileError(f"{name}: {error}") from None


def _share(layers: Sequence[Module], whole: Weight) -> None:
    """Give linear layers their rows of one weight, as views."""
    start = 0
    for layer in layers:
        stop = start + layer.weight.shape[0]  # type: ignore[attr-defined]
        rows = whole[start:stop] if isinstance(whole, Tensor) else whole.rows(start, stop)
        layer.weight, start = rows, stop  # type: ignore[attr-defined]


def _join(layers: Sequence[Module]) -> None:
    """Put weights of linear layers end to end in memory, as far as neighbours are stored alike."""
    for alike, run in groupby(layers, lambda layer: _stored_as(layer.weight)):  # type: ignore[attr-defined]
        some = list(run)
        weights: list[Any] = [layer.weight for layer in some]  # type: ignore[attr-defined]
        if len(some) == 1:
            continue
        if isinstance(alike, Scheme):
            parts = {n: _end_to_end([w.parts[n] for w in weights]) for n in alike.parts}
            joined: list[Any] = [
                QuantizedTensor(alike, w.shape, {n: part[i] for n, part in parts.items()})
                for i, w in enumerate(weights)
            ]
        else:
            joined = _end_to_end(weights)
        for layer, weight in zip(some, joined, strict=True):
            layer.weight = weight  # type: ignore[attr-defined]


def _stored_as(weight: Weight) -> Scheme | np.dtype | int:
    if isinstance(weight, Ordered):
        return id(weight)  # alike none: each has an order of its own
    return weight.scheme if isinstance(weight, QuantizedTensor) else weight.dtype


def _end_to_end(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same rows as views of one tensor."""
    whole = ops.core.concat(list(tensors))
    ends = np.cumsum([len(t) for t in tensors])
    return [whole[int(end) - len(t) : int(end)] for t, end in zip(tensors, ends, strict=True)]


def _dequantized(weight: Weight) -> Tensor:
    return weight if isinstance(weight, Tensor) else ops.dequantize(weight)


def _converted(weight: Weight, dtype: np.dtype | None) -> Weight:
    return weight if dtype is None else _dequantized(weight).to(dtype)


def check_names(places: dict, source: WeightSource) -> None:
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
        "unexpected": sorted(
            source.label(n) for n in present - set(wanted) if not source.is_inert(n)
        ),
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
