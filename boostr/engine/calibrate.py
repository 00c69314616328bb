"""Calibration: what the inputs of every weight are on a text, a layer at a time.

Chunks of the text go through the layers as a batch of hidden states. Before a layer's weights are
rounded its inputs are recorded; after that the states go on through the rounded layer, so that
what comes later is fitted to what really arrives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from boostr import autograd, ops
from boostr.backends.base import Backend
from boostr.engine.gptq import Inputs
from boostr.engine.load import load
from boostr.engine.runner import Runner
from boostr.errors import NumericsError, OptionError
from boostr.io.tokenizer import required
from boostr.models.base import GENERATES, Model
from boostr.models.lazy import Held, LazyWeight, whole
from boostr.models.plan import LoadPlan
from boostr.nn import Linear
from boostr.operands import Recorded
from boostr.ops import core
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

Seer = TypeVar("Seer", bound=Callable[[Tensor], None])
CHUNK = 512  # tokens that are seen together
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


class Gram:
    """The sum of x xᵀ over the rows of all inputs x [..., K] that it is called with."""

    def __init__(self) -> None:
        self._sums: list[np.ndarray] = []
        self._rows = 0

    def __call__(self, x: Tensor) -> None:
        flat = core.cast(x.reshape(-1, x.shape[-1]), "float32")
        new = (flat.T @ flat).numpy().astype(np.float64)
        self._sums = [self._sums[0] + new] if self._sums else [new]
        self._rows += len(flat)

    @cached_property
    def inputs(self) -> Inputs:
        """What GPTQ makes of it; once, since several weights share it.

        Raises:
            NumericsError: inputs that are nan or infinite.
        """
        if not self._sums or not np.isfinite(self._sums[0]).all():
            raise NumericsError("inputs on the calibration text are nan or infinite")
        return Inputs.of(self._sums.pop() / self._rows)


def layer_of(name: str) -> int | None:
    """The layer that a parameter belongs to, by its canonical name."""
    found = _LAYER.match(name)
    return None if found is None else int(found[1])


class Calibration:
    """Hidden states of a text on their way through a decoder of float weights."""

    def __init__(self, module: Model, backend: Backend, ids: Sequence[int], chunks: int) -> None:
        if GENERATES not in module.capabilities:
            raise OptionError("calibration runs a text through a decoder; this model is none")
        starts = range(0, len(ids) - CHUNK + 1, CHUNK)[:chunks]
        if not starts:
            raise OptionError(f"the calibration text has {len(ids)} tokens, expected {CHUNK}")
        self._module, self._decoder = module, module.model  # type: ignore[attr-defined]
        self._backend, runner = backend, Runner(module, backend)
        self._batches = [runner.packed([ids[at : at + CHUNK]]) for at in starts]
        with autograd.no_grad():
            self._states = [next(self._decoder(batch)) for batch in self._batches]

    @classmethod
    def of(cls, path: Path, backend: Backend, text: str, chunks: int) -> Calibration:
        """Of the float model in a folder; raises TokenizerError if it has no tokenizer."""
        floats = load(path, backend=backend)
        ids = required(floats.tokenizer, floats.source).encode(text)
        return cls(floats.module, backend, ids, chunks)

    @property
    def layers(self) -> Sequence[Any]:
        """The blocks of the decoder."""
        return self._decoder.layers

    def names(self, layer: int) -> dict[int, str]:
        """id -> canonical path of every part of a layer that has parameters."""
        places = self.layers[layer].places(f"model.layers.{layer}.")
        return {id(owner): name.rpartition(".")[0] for name, owner, _ in places}

    def seen(self, layer: int, make: Callable[[], Seer]) -> dict[str, Seer]:
        """What was called with the inputs of each weight of a layer, by its canonical name; those
        that read the same share one."""
        block, prefix = self.layers[layer], f"model.layers.{layer}."
        linears = self._linears(block, prefix)
        shared: dict[int, Seer] = {}
        for _, group in block.adjacent_weights():
            shared |= dict.fromkeys(map(id, group), make())
        found, recorded = {}, set[int]()
        for name, owner in linears.items():
            seer = found[name] = shared.setdefault(id(owner), make())
            if id(seer) not in recorded:  # of those that read the same the first is enough
                owner.weight = Recorded(owner.weight, seer)
                recorded.add(id(seer))
        with autograd.no_grad():
            for state, batch in zip(self._states, self._batches, strict=True):
                block(state, batch)
        for owner in linears.values():
            if isinstance(owner.weight, Recorded):
                owner.weight = owner.weight.base
        return found

    def advance(self, layer: int, rounded: Mapping[str, np.ndarray]) -> None:
        """The states after a layer, with other weights by canonical names."""
        block, prefix = self.layers[layer], f"model.layers.{layer}."
        linears = self._linears(block, prefix)
        kept = {name: owner.weight for name, owner in linears.items()}
        for name, weight in rounded.items():
            linears[name].weight = Tensor(weight, backend=self._backend)
        with autograd.no_grad():
            pairs = zip(self._states, self._batches, strict=True)
            self._states = [block(state, batch) for state, batch in pairs]
        for name, owner in linears.items():
            owner.weight = kept[name]

    @staticmethod
    def _linears(block: Any, prefix: str) -> dict[str, Any]:
        """Canonical name -> owner of all matrices of a layer."""
        return {
            name: owner
            for name, owner, attribute in block.places(prefix)
            if attribute == "weight" and isinstance(owner, Linear)
        }


class Fitted:
    """Rounds the linear weights of a checkpoint, a layer after the other, to what calibration saw.

    Args:
        plan: of the checkpoint.   names: its tensors -> the parameters that are made of each.
    """

    def __init__(
        self, calibration: Calibration, plan: LoadPlan, names: Mapping[str, Sequence[str]]
    ) -> None:
        self._calibration, self._plan, self._names = calibration, plan, names
        self._layer: int | None = None
        self._grams: dict[str, Gram] = {}
        self._rounded: dict[str, LazyWeight] = {}

    def order(self, name: str) -> int:
        """Of a tensor among all: what is of no layer comes last."""
        layers = [layer_of(parameter) for parameter in self._names.get(name, ())]
        return next((layer for layer in layers if layer is not None), len(self._names))

    def inputs(self, name: str) -> Inputs | None:
        """What a tensor is multiplied with; None for one of no layer. Layers come in order."""
        parameters = [p for p in self._names.get(name, ()) if layer_of(p) is not None]
        if not parameters:
            return None
        layer = layer_of(parameters[0])
        if layer != self._layer:
            if self._layer is not None:
                self._advance(self._layer)
            self._layer, self._grams = layer, self._calibration.seen(layer, Gram)  # type: ignore[arg-type]
        return self._grams[parameters[0]].inputs

    def put(self, name: str, weight: QuantizedTensor) -> None:
        """What a tensor of the layer has become."""
        self._rounded[name] = Held(name, ops.dequantize(weight).numpy())

    def _advance(self, layer: int) -> None:
        made = self._plan.load(self._rounded).weights
        self._calibration.advance(layer, {n: w.read(whole(w.shape)) for n, w in made.items()})
        self._rounded = {}
