"""Load plans: how the names and tensors of a checkpoint become the parameters of a module.

The canonical names are the attribute paths of the modules, which are Llama's in Hugging Face form
(`model.layers.0.self_attn.q_proj.weight`). A plan is data, a tuple of rules that are applied in
order to the weights of a checkpoint; read backwards it gives the checkpoint again, so that what was
loaded and saved is the same. No rule reads a weight: they cut and gather what lies in the files.

In a pattern `{i}` (one letter) is a number and `{path}` (more letters) anything. A pattern stands
for all below it, too: `rename("gpt_neox.final_layer_norm", "model.norm")` for weight and bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from boostr.models.lazy import (
    Constant,
    Expected,
    Index,
    Item,
    Joined,
    LazyWeight,
    Same,
    Stack,
    Turned,
    row_axis,
)  # fmt: skip


@dataclass
class Naming:
    """Weights on their way from one set of names to the other.

    Attributes:
        weights: under their names so far.   problems: what did not fit, a line each.
    """

    weights: dict[str, LazyWeight]
    problems: list[str] = field(default_factory=list)

    def put(self, name: str, weight: LazyWeight) -> None:
        """Set a name, which must still be free."""
        if name in self.weights:
            both = (*self.weights[name].sources, *weight.sources)
            self.problems.append(f"{name}: given twice, by {' and '.join(both)}")
        self.weights[name] = weight

    def matches(self, pattern: Pattern) -> list[tuple[str, dict[str, str]]]:
        """(name, fields) of every weight that a pattern stands for."""
        found = ((name, pattern.match(name)) for name in self.weights)
        return [(name, fields) for name, fields in found if fields is not None]


class Pattern:
    """A name with fields, or the names below it."""

    def __init__(self, text: str) -> None:
        self.text = text
        pieces = re.split(r"\{(\w+)\}", text)
        expression = "".join(
            (rf"(?P<{piece}>\d+)" if len(piece) == 1 else rf"(?P<{piece}>.+)")
            if place % 2
            else re.escape(piece)
            for place, piece in enumerate(pieces)
        )
        self._expression = re.compile(rf"{expression}(?P<below>\..+)?")

    def match(self, name: str) -> dict[str, str] | None:
        """The fields of a name, and "below": what follows the pattern; None if it does not fit."""
        found = self._expression.fullmatch(name)
        return None if found is None else {k: v or "" for k, v in found.groupdict().items()}

    def name(self, fields: Mapping[str, str]) -> str:
        """The name with these fields."""
        return self.text.format(**fields) + fields["below"]


class Rule(Protocol):
    """One step of a plan, in both directions; each changes `naming` in place."""

    def load(self, naming: Naming) -> None:
        """From the checkpoint's names towards the canonical ones."""

    def save(self, naming: Naming) -> None:
        """Back again."""


@dataclass(frozen=True)
class LoadPlan:
    """Rules from a checkpoint to canonical names, in the order in which loading applies them."""

    rules: tuple[Rule, ...] = ()

    def __add__(self, other: LoadPlan) -> LoadPlan:
        """This plan, then the other."""
        return LoadPlan(self.rules + other.rules)

    def load(self, stored: Mapping[str, LazyWeight]) -> Naming:
        """The weights of a checkpoint under canonical names, and what did not fit."""
        naming = Naming(dict(stored))
        for rule in self.rules:
            rule.load(naming)
        return naming

    def save(self, parameters: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
        """Parameters as the weights of a checkpoint that `load` makes the same parameters of.

        Raises:
            ValueError: parameters of which a rule cannot make a tensor of the checkpoint.
        """
        naming = Naming(dict(parameters))
        for rule in reversed(self.rules):
            rule.save(naming)
        if naming.problems:
            raise ValueError("; ".join(naming.problems))
        return naming.weights

    @property
    def prefix(self) -> str:
        """What a checkpoint with a head puts before the names of the model; "" if nothing."""
        rules = (rule for rule in self.rules if isinstance(rule, _Prefixes))
        return "".join(rule.options[0] for rule in rules if not rule.canonical)

    def checkpoint_names(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, ...]]:
        """Parameter -> names in a checkpoint that it is made of; from name -> shape of them all."""
        places = {name: Expected(tuple(shape), (name,)) for name, shape in shapes.items()}
        out: dict[str, tuple[str, ...]] = dict.fromkeys(shapes, ())
        for name, weight in self.save(places).items():
            for parameter in weight.sources:
                out[parameter] += (name,)
        return out


# -- the rules -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Rename:
    old: Pattern
    new: Pattern
    saves: bool

    def load(self, naming: Naming) -> None:
        _renamed(naming, self.old, self.new)

    def save(self, naming: Naming) -> None:
        if self.saves:
            _renamed(naming, self.new, self.old)


def _renamed(naming: Naming, old: Pattern, new: Pattern) -> None:
    found = naming.matches(old)
    taken = [(new.name(fields), naming.weights.pop(name)) for name, fields in found]
    for name, weight in taken:  # after all are taken, since names may change places
        naming.put(name, weight)


def rename(old: str, canonical: str) -> Rule:
    """A name, or all names below it, under another: both patterns with the same fields."""
    return _Rename(Pattern(old), Pattern(canonical), saves=True)


def alias(old: str, canonical: str) -> Rule:
    """A name that some checkpoints have in place of the canonical one; it is never written."""
    return _Rename(Pattern(old), Pattern(canonical), saves=False)


@dataclass(frozen=True)
class _Split:
    """One tensor whose rows are those of several, in `groups`; None: as many as there are rows."""

    whole: Pattern
    parts: tuple[tuple[Pattern, int], ...]
    groups: int | None
    axis: int | None

    def load(self, naming: Naming) -> None:
        group = sum(rows for _, rows in self.parts)
        for name, fields in naming.matches(self.whole):
            weight = naming.weights.pop(name)
            axis = row_axis(weight.shape) if self.axis is None else self.axis
            count = weight.shape[axis] if weight.shape else 0
            groups = self.groups or count // group
            if groups * group != count and not isinstance(weight, Expected):
                naming.problems.append(f"{name}: {self._wants(groups)}, got {list(weight.shape)}")
            start = 0
            for part, rows in self.parts:
                made = (*weight.shape[:axis], groups * rows, *weight.shape[axis + 1 :])
                taken: LazyWeight = Expected(made, weight.sources, weight.path)
                if groups * group == count:
                    taken = weight.take(axis, _every(start, rows, group, groups))
                naming.put(part.name(fields), taken)
                start += rows

    def _wants(self, groups: int) -> str:
        rows = " + ".join(f"{rows} ({part.text})" for part, rows in self.parts)
        times = f"{groups} times " if groups > 1 else ""
        return f"expected rows {times}{rows}"

    def save(self, naming: Naming) -> None:
        (first, unit), *_ = self.parts
        for name, fields in naming.matches(first):
            names = [part.name(fields) for part, _ in self.parts]
            absent = [n for n in names if n not in naming.weights]
            if absent:
                naming.problems.append(f"{name}: cannot be written without {', '.join(absent)}")
                continue
            weights = [naming.weights.pop(n) for n in names]
            axis = row_axis(weights[0].shape) if self.axis is None else self.axis
            groups = self.groups or weights[0].shape[axis] // unit
            naming.put(self.whole.name(fields), Joined(weights, axis, groups))


def _every(start: int, rows: int, group: int, groups: int) -> Index:
    """Rows [start, start + rows) of every group."""
    if groups == 1:
        return range(start, start + rows)
    if rows == 1:
        return range(start, group * groups, group)
    return (np.arange(groups)[:, None] * group + np.arange(start, start + rows)).reshape(-1)


def _parts(parts: Sequence[tuple[str, int]]) -> tuple[tuple[Pattern, int], ...]:
    return tuple((Pattern(name), rows) for name, rows in parts)


def rows(name: str, parts: Sequence[tuple[str, int]], axis: int | None = None) -> Rule:
    """One tensor that has several end to end: (canonical, rows) of each in order.

    The parts are views of the one tensor. `axis` is that of the rows where it is not the last but
    one (the last of a vector), as in a stack of biases.
    """
    return _Split(Pattern(name), _parts(parts), 1, axis)


def heads(
    name: str, groups: int, parts: Sequence[tuple[str, int]], axis: int | None = None
) -> Rule:
    """One tensor that has several by head: in each of `groups`, so many rows of each part.

    [H, 3, D] of NeoX is `heads(name, H, [(q, D), (k, D), (v, D)])`, [K, G + 2, D] of Falcon
    `heads(name, K, [(q, G * D), (k, D), (v, D)])`.
    """
    return _Split(Pattern(name), _parts(parts), groups, axis)


def interleaved(name: str, parts: Sequence[str], axis: int | None = None) -> Rule:
    """One tensor that has a row of each part in turn: rows 2i gate, rows 2i + 1 up."""
    return _Split(Pattern(name), _parts([(part, 1) for part in parts]), None, axis)


@dataclass(frozen=True)
class _Transpose:
    name: Pattern

    def load(self, naming: Naming) -> None:
        for name, _ in naming.matches(self.name):
            if len(naming.weights[name].shape) > 1:
                naming.weights[name] = Turned(naming.weights[name])

    save = load


def transpose(name: str) -> Rule:
    """Weights that lie [..., in, out], as GPT-2's Conv1D; vectors below the name stay."""
    return _Transpose(Pattern(name))


@dataclass(frozen=True)
class _Stack:
    item: Pattern
    stack: Pattern
    by: str

    def load(self, naming: Naming) -> None:
        stacks: dict[str, dict[int, LazyWeight]] = {}
        for name, fields in naming.matches(self.item):
            items = stacks.setdefault(self.stack.name(fields), {})
            items[int(fields[self.by])] = naming.weights.pop(name)
        for name, items in stacks.items():
            shapes = {item.shape for item in items.values()}
            made: LazyWeight = Expected(())
            if set(items) != set(range(len(items))):
                naming.problems.append(f"{name}: the checkpoint has only items {sorted(items)}")
            elif len(shapes) > 1:
                naming.problems.append(f"{name}: its items differ in shape: {sorted(shapes)}")
            else:
                made = Stack([items[i] for i in range(len(items))])
            naming.put(name, made)

    def save(self, naming: Naming) -> None:
        for name, fields in naming.matches(self.stack):
            stack = naming.weights.pop(name)
            for index in range(stack.shape[0]):
                item = self.item.name({**fields, self.by: str(index)})
                naming.put(item, Item(stack, index))


def stack(item: str, canonical: str, by: str = "e") -> Rule:
    """Tensors that the field `by` numbers as one [X, ...]: `stack("x.{e}.w1", "x.gate_proj")`."""
    return _Stack(Pattern(item), Pattern(canonical), by)


@dataclass(frozen=True)
class _Prefixes:
    canonical: str
    options: tuple[str, ...]
    outside: tuple[str, ...]

    def load(self, naming: Naming) -> None:
        for option in self.options:
            names = [n for n in naming.weights if n.startswith(option)]
            if names:
                break
        else:
            return
        if option == self.canonical:
            return
        for name in names:
            if not name.startswith(self.outside):
                naming.put(self.canonical + name.removeprefix(option), naming.weights.pop(name))

    def save(self, naming: Naming) -> None:
        """The canonical prefix is the one that is written."""


def prefixes(canonical: str, options: Sequence[str], outside: Sequence[str] = ()) -> Rule:
    """The first of `options` that some name begins with becomes the canonical prefix.

    The more special come first; "" fits always. Names that begin with one of `outside` stay.
    """
    return _Prefixes(canonical, tuple(options), tuple(outside))


@dataclass(frozen=True)
class _Leftover:
    prefixes: tuple[str, ...]
    suffixes: tuple[str, ...]

    def load(self, naming: Naming) -> None:
        for name in list(naming.weights):
            if name.startswith(self.prefixes) or name.endswith(self.suffixes):
                del naming.weights[name]

    def save(self, naming: Naming) -> None:
        """What is inert is not written."""


def leftover(prefixes: Iterable[str] = (), suffixes: Iterable[str] = ()) -> Rule:
    """Names that may be in a checkpoint and mean nothing here: buffers, other heads, towers."""
    return _Leftover(tuple(prefixes), tuple(suffixes))


@dataclass(frozen=True)
class _Constant:
    name: Pattern
    beside: Pattern
    value: float

    def load(self, naming: Naming) -> None:
        for name, _ in naming.matches(self.name):
            del naming.weights[name]

    def save(self, naming: Naming) -> None:
        for name, fields in naming.matches(self.beside):
            naming.put(self.name.name(fields), Constant(naming.weights[name], self.value))


def constant(name: str, beside: str, value: float) -> Rule:
    """A number that means nothing here, and is a tensor of the shape of the one beside it."""
    return _Constant(Pattern(name), Pattern(beside), value)


@dataclass(frozen=True)
class _Tied:
    repeated: str
    kept: str

    def load(self, naming: Naming) -> None:
        copy = naming.weights.pop(self.repeated, None)
        if copy is None:
            return
        kept = naming.weights.get(self.kept)
        if kept is not None and kept.shape != copy.shape:
            naming.problems.append(
                f"{self.repeated}: tied to {self.kept} {list(kept.shape)}, got {list(copy.shape)}"
            )
        else:
            naming.weights[self.kept] = copy if kept is None else Same(kept, copy)

    def save(self, naming: Naming) -> None:
        """Written once."""


def tied(repeated: str, kept: str) -> Rule:
    """A parameter that a checkpoint may have under a second name: the same numbers, or an error."""
    return _Tied(repeated, kept)
