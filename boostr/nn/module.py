"""Module: a tree of named parameters whose attribute paths are the names in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from boostr.operands import LowRank, Ordered
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

Weight = Tensor | QuantizedTensor | Ordered  # as a checkpoint has it; an adapter may come over it


@dataclass(frozen=True)
class Parameter:
    """The place of a weight that is still to be loaded.

    Attributes:
        shape: what the checkpoint must have.
        role: "linear" (what `quantize=` packs), "embedding" and "head" (packed on request), or
            "vector", always kept in float32.
    """

    shape: tuple[int, ...]
    role: str = "linear"


@dataclass(frozen=True)
class Constant:
    """The place of a tensor that no checkpoint has. Its attribute begins with _, so that it is no
    parameter; loading sets it.

    Attributes:
        values: float32 or int32.
    """

    values: np.ndarray


@dataclass(frozen=True)
class Feed:
    """Linear layers that read what another part makes of its outputs one by one: these divided by
    a factor each, and the columns that read them multiplied by it, are the same model.

    Attributes:
        source: a Norm, or the Linear whose rows make the outputs.   readers: Linear layers.
        outputs: int [K], the output of `source` that each input is of.
    """

    source: Module
    readers: tuple[Any, ...]
    outputs: np.ndarray


class Module:
    """Attributes that are parameters, modules or lists of modules form the tree; those that begin
    with _ are not of it. `edits[0]` is another object after one of the tree was set or deleted in
    any module.

    `adjacent` names linear layers that read the same input: a backend that multiplies them at once
    wants their weights to lie end to end. `replaced` names the parameters that came whole with an
    adapter.
    """

    adjacent: tuple[str, ...] = ()
    replaced: frozenset[str] = frozenset()
    edits: ClassVar[list[object]] = [object()]  # a list, as setting what a class has is dear

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        Module._edited(name)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        Module._edited(name)

    @staticmethod
    def _edited(name: str) -> None:
        if not name.startswith("_"):  # behind the edit: who looks then sees it
            Module.edits[0] = object()

    def places(self, prefix: str = "") -> Iterator[tuple[str, Module, str]]:
        """(name, owner, attribute) of every parameter, in order of definition."""
        for attribute, value in vars(self).items():
            if isinstance(value, WEIGHTS) and not attribute.startswith("_"):
                yield prefix + attribute, self, attribute
            for place, child in _children(attribute, value):
                yield from child.places(f"{prefix}{place}.")

    def constants(self) -> Iterator[tuple[Module, str]]:
        """(owner, attribute) of every constant in the tree."""
        for attribute, value in vars(self).items():
            if isinstance(value, Constant):
                yield self, attribute
            for _, child in _children(attribute, value):
                yield from child.constants()

    def adjacent_weights(self, prefix: str = "") -> Iterator[tuple[str, list[Module]]]:
        """(name of the last weight, layers) of every group of adjacent layers in the tree."""
        if self.adjacent:
            layers = [getattr(self, name) for name in self.adjacent]
            yield f"{prefix}{self.adjacent[-1]}.weight", layers
        for attribute, value in vars(self).items():
            for place, child in _children(attribute, value):
                yield from child.adjacent_weights(f"{prefix}{place}.")

    def feeds(self) -> Iterator[Feed]:
        """What can be scaled on its way from one part of a layer to the next; a layer says it."""
        yield from ()

    def weights(self) -> dict[str, Weight | LowRank]:
        """Name -> weight of every parameter, once they are loaded."""
        return {name: getattr(owner, attribute) for name, owner, attribute in self.places()}

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every float that can be trained, once. A packed weight is none; an
        adapter is `lora_A.weight` [r, in] and `lora_B.weight` [out, r] beside its weight."""
        shared = set[int]()  # an A of weights that a checkpoint has in one tensor
        for name, weight in self.weights().items():
            if isinstance(weight, LowRank):
                module = name.removesuffix("weight")
                yield from _floats(name, weight.base)
                if id(weight.down) not in shared:
                    shared.add(id(weight.down))
                    yield f"{module}lora_A.weight", weight.down
                yield f"{module}lora_B.weight", weight.up
            else:
                yield from _floats(name, weight)

    def parameters(self) -> Iterator[Tensor]:
        """The tensors of `named_parameters`."""
        return (tensor for _, tensor in self.named_parameters())

    def __call__(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} cannot be called")


def _floats(name: str, weight: Weight) -> Iterator[tuple[str, Tensor]]:
    if isinstance(weight, Tensor):
        yield name, weight


WEIGHTS = Parameter | Tensor | QuantizedTensor | Ordered | LowRank  # what an attribute may be


def _children(attribute: str, value: Any) -> Iterator[tuple[str, Module]]:
    """(path, module) of each module that an attribute is or lists."""
    if attribute.startswith("_"):
        return
    if isinstance(value, Module):
        yield attribute, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, Module):
                yield f"{attribute}.{index}", item
