"""Low-rank adapters of a model: put over its weights, taken off as files want them, merged in.

An adapter is of modules as transformers has them, of which a family's load plan makes parameters:
it may cut one into several (qkv), turn it (GPT-2's products lie [in, out]) or take its rows in
another order. So the plan is asked where each output of a module comes to lie, and the rows of `up`
are cut alike; `down` is shared by all parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from boostr import autograd, dtypes, ops
from boostr.backends.base import Backend
from boostr.errors import ModelFileError, OptionError
from boostr.io.peft import Adapter, Factors, write_adapter
from boostr.models.base import Model
from boostr.models.gguf import reordered
from boostr.models.heads import Classifier
from boostr.models.lazy import Expected, Held, Indices, LazyWeight, whole
from boostr.models.plan import LoadPlan
from boostr.nn.linear import Embedding, Linear
from boostr.nn.module import Module
from boostr.operands import LowRank
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

_EMBEDDING = "model.embed_tokens.weight"
_IN_FILES = "split-half"  # how rotated pairs lie in folders; some GGUF files have them otherwise


class Numbered(LazyWeight):
    """A weight whose elements say where they are: row · columns + column."""

    path = "this adapter"

    def __init__(self, name: str, shape: tuple[int, int]) -> None:
        self.sources, self.shape = (name,), shape

    def read(self, indices: Indices) -> np.ndarray:
        rows, columns = (np.asarray(index, np.int64) for index in indices)
        return rows[:, None] * self.shape[1] + columns


def outputs_of(module: str, outputs: int, inputs: int, model: Model) -> dict[str, np.ndarray]:
    """Parameter [N, K] -> which outputs of a module of transformers it has, int [N], of so many;
    it has all inputs, in their order.

    Raises:
        ModelFileError: a module that the family does not have, or of another shape.
    """
    problems: list[str] = []
    for turned in (False, True):
        shape = (inputs, outputs) if turned else (outputs, inputs)
        naming = model.load_plan(model.config).load({f"{module}.weight": _numbered(module, shape)})
        problems = problems or naming.problems
        if not naming.problems:
            found = {
                name: _rows(_as_in_model(name, weight, model), shape[1], turned)
                for name, weight in naming.weights.items()
            }
            taken = {name: rows for name, rows in found.items() if rows is not None}
            if taken and len(taken) == len(found):
                return taken
    raise ModelFileError(f"{module}: {'; '.join(problems) or 'not a matrix of this model'}")


def _numbered(module: str, shape: tuple[int, int]) -> Numbered:
    return Numbered(f"{module}.weight", shape)


def _rows(weight: LazyWeight, width: int, turned: bool) -> np.ndarray | None:
    """The outputs that a numbered tensor of so many columns has kept; None where it is no matrix,
    has lost inputs, or has not been turned as expected."""
    if len(weight.shape) != 2 or 0 in weight.shape:
        return None
    N, K = weight.shape
    first, along = weight.read((range(N), range(1)))[:, 0], weight.read((range(1), range(K)))[0]
    outputs = first % width if turned else first // width
    inputs = np.arange(K)
    crossed = inputs * width + outputs[0] if turned else outputs[0] * width + inputs
    return outputs if np.array_equal(crossed, along) else None


def _as_in_model(name: str, weight: LazyWeight, model: Model) -> LazyWeight:
    """Its rows in the order of this model's, which a GGUF file may say."""
    own = model.config.extra.get("rope_layout", _IN_FILES)
    return weight if own == _IN_FILES else reordered(name, weight, model.config, _IN_FILES, own)


# -- putting one over a model ---------------------------------------------------------------------
def apply_adapter(
    model: Model, adapter: Adapter, backend: Backend, head: Classifier | None = None,
    trainable: bool = False,
) -> None:  # fmt: skip
    """Put an adapter over the weights of a model, in the dtype of its activations, and the whole
    weights that come with it in the place of the model's.

    Args:
        trainable: factors stay in float32 and require gradients, as do the whole weights; nothing
            else of the model does.
    Raises:
        ModelFileError: one error with all modules that do not fit this model; nothing is changed.
    """
    owners, problems = owners_of(model), list[str]()
    made: dict[str, LowRank] = {}
    for module, factors in _checked_ties(model, adapter).items():
        try:
            made |= _lowered(module, factors, model, owners, backend, trainable)
        except ModelFileError as error:
            problems.append(str(error))
    targets = _replacements(model, adapter.whole, head, backend, problems)
    if problems:
        lines = "\n  ".join(problems)
        raise ModelFileError(f"{adapter.source}: the adapter does not fit the model:\n  {lines}")
    if trainable:
        for tensor in model.parameters():
            tensor.requires_grad = False
    for module, weights in targets:
        for name, weight in weights.items():
            owner, attribute = owners_of(module)[name]
            weight.requires_grad = trainable and name not in made
            setattr(owner, attribute, weight)
        module.replaced = frozenset(weights) - frozenset(made)
    for name, weight in made.items():  # whose base may have been replaced just now
        owner, attribute = owners[name]
        setattr(owner, attribute, weight._replace(base=getattr(owner, attribute)))


def owners_of(module: Module) -> dict[str, tuple[Module, str]]:
    """Parameter -> (owner, attribute)."""
    return {name: (owner, attribute) for name, owner, attribute in module.places()}


def _is_tied(model: Model) -> bool:
    head = getattr(model.config, "head", None)
    return head is not None and head.tied


def _checked_ties(model: Model, adapter: Adapter) -> dict[str, Factors]:
    """The adapters of modules, without that of a head that is tied to the embedding's.

    peft adapts embedding or head where a model has one matrix for both, which this one cannot: it
    would be merged into both.
    """
    layers = dict(adapter.layers)
    if not _is_tied(model):
        return layers
    named = {n: m for m in [*layers, *_modules(adapter.whole)] for n in _canonical(m, model)}
    if _EMBEDDING in named and not adapter.tied:
        raise ModelFileError(
            f"{adapter.source}: {named[_EMBEDDING]} is embedding and head in one in this model, of "
            "which the adapter means one alone; with ensure_weight_tying it would be of both"
        )
    copy = layers.pop("lm_head", None)  # peft writes the embedding's factors a second time
    if copy is not None and not any(own.table and _same(own, copy) for own in layers.values()):
        raise ModelFileError(f"{adapter.source}: lm_head differs from the embedding it is tied to")
    return layers


def _same(one: Factors, other: Factors) -> bool:
    return np.array_equal(one.down, other.down) and np.array_equal(one.up, other.up)


def _modules(whole_weights: Mapping[str, np.ndarray]) -> list[str]:
    return [name.removesuffix(".weight") for name in whole_weights if name.endswith(".weight")]


def _canonical(module: str, model: Model) -> list[str]:
    """The parameters that the plan makes of a module, whatever its shape."""
    expected = Expected((1, 1), (module,))
    return list(model.load_plan(model.config).load({f"{module}.weight": expected}).weights)


def _lowered(
    module: str, factors: Factors, model: Model, owners: Mapping[str, tuple[Module, str]],
    backend: Backend, trainable: bool,
) -> dict[str, LowRank]:  # fmt: skip
    """Parameter -> it under its part of an adapter."""
    outputs, inputs = factors.up.shape[0], factors.down.shape[1]
    made, dtype = {}, dtypes.float32 if trainable else model.activation_dtype
    down = Tensor(factors.down.astype(dtype), backend=backend, requires_grad=trainable)
    for name, rows in outputs_of(module, outputs, inputs, model).items():
        owner, attribute = owners.get(name, (None, ""))
        if not isinstance(owner, Linear | Embedding) or attribute != "weight":
            raise ModelFileError(f"{module}: the model has no such product or table")
        base, shape = getattr(owner, attribute), (len(rows), inputs)
        if isinstance(base, LowRank):
            raise ModelFileError(
                f"{module}: it has an adapter already; merge_adapter() comes first"
            )
        if base.shape != shape:
            raise ModelFileError(f"{module}: the weight is {list(base.shape)}, not {list(shape)}")
        up = Tensor(factors.up[rows].astype(dtype), backend=backend, requires_grad=trainable)
        made[name] = LowRank(base, down, up, factors.scale)
    return made


def _replacements(
    model: Model, weights: Mapping[str, np.ndarray], head: Classifier | None, backend: Backend,
    problems: list[str],
) -> list[tuple[Module, dict[str, Tensor]]]:  # fmt: skip
    """(module, parameter -> what takes its place) of the model and of its head; what does not fit
    is added to `problems`."""
    of_head = {n: a for n, a in weights.items() if head is not None and head.spec.owns(n)}
    of_model = {name: array for name, array in weights.items() if name not in of_head}
    made: list[tuple[Module, dict[str, Tensor]]]
    made = [(model, _whole(model, model.load_plan(model.config), of_model, backend, problems))]
    if head is not None:
        made.append((head, _whole(head, head.spec.load_plan(), of_head, backend, problems)))
    other = model.config.extra.get("norm_offset", 1.0) != 1.0
    wrong = [name for name in made[0][1] if other and name.endswith("norm.weight")]
    if wrong:
        problems.append(f"{wrong[0]}: norms of this GGUF file are larger by 1 than the adapter's")
    return made


def _whole(
    module: Module, plan: LoadPlan, weights: Mapping[str, np.ndarray], backend: Backend,
    problems: list[str],
) -> dict[str, Tensor]:  # fmt: skip
    """Parameter -> the weight of a file that takes its place, in its dtype."""
    naming, owners = plan.load({n: Held(n, a) for n, a in weights.items()}), owners_of(module)
    problems += naming.problems
    made = {}
    for name, weight in naming.weights.items():
        owner, attribute = owners.get(name, (module, ""))
        base: Any = getattr(owner, attribute, None)
        if not isinstance(base, Tensor) or base.shape != weight.shape:
            has = "nothing" if base is None else f"{type(base).__name__} {list(base.shape)}"
            problems.append(f"{name}: the model has {has}, the adapter {list(weight.shape)}")
            continue
        array = weight.read(whole(weight.shape)).astype(base.dtype)
        made[name] = Tensor(array, backend=backend)
    return made


# -- taking it off --------------------------------------------------------------------------------
def adapted(model: Module) -> dict[str, LowRank]:
    """The parameters that have an adapter.

    Raises:
        OptionError: none has.
    """
    found = {name: w for name, w in model.weights().items() if isinstance(w, LowRank)}
    if not found:
        raise OptionError("the model has no adapter; boostr.load(..., adapter=FOLDER) gives it one")
    return found


def dropout_step(model: Module) -> Tensor | None:
    """The count of forward passes that all dropout of a model's adapter goes by, if it has any."""
    lowered = (weight for weight in model.weights().values() if isinstance(weight, LowRank))
    return next((weight.dropout.step for weight in lowered if weight.dropout is not None), None)


def next_dropout(model: Module, passes: int = 1) -> None:
    """A forward pass of training begins: dropout takes other masks than the last one.

    passes: as many begin, of which other ranks make all but one.
    """
    step = dropout_step(model)
    if step is not None and passes and autograd.is_enabled():
        step.assign(step + passes)


def modules_of(model: Model, head: Classifier | None = None) -> dict[str, list[str]]:
    """Module of transformers -> the parameters that are made of its weight: all that can have an
    adapter, under the names that the family's checkpoints have."""
    plan = model.load_plan(model.config)
    shapes = {
        name: getattr(owner, attribute).shape
        for name, (owner, attribute) in owners_of(model).items()
        if isinstance(owner, Linear | Embedding) and attribute == "weight"
    }
    stored = plan.save({name: Expected(shape, (name,)) for name, shape in shapes.items()})
    prefix = "" if head is None else plan.prefix
    return {
        prefix + name.removesuffix(".weight"): list(weight.sources)
        for name, weight in stored.items()
    }


def adapter_of(model: Model, source: str, head: Classifier | None = None) -> Adapter:
    """The adapter that is over a model, of modules as its family's checkpoints name them.

    Raises:
        OptionError: no adapter, or parts of one module whose adapters do not share their `down`.
    """
    found, owners, layers = adapted(model), owners_of(model), dict[str, Factors]()
    for module, names in modules_of(model, head).items():
        parts = {name: found[name] for name in names if name in found}
        if not parts:
            continue
        first = next(iter(parts.values()))
        outputs, inputs = sum(found[n].shape[0] for n in parts), first.shape[1]
        down, scale = _numbers(first.down), first.scale
        alike = all(
            part.scale == scale and np.array_equal(_numbers(part.down), down, equal_nan=True)
            for part in parts.values()
        )
        if len(parts) != len(names) or not alike:
            raise OptionError(
                f"{module} is one module in the files of this family: {', '.join(names)} must have "
                "adapters that share down and scale"
            )
        up = np.empty((outputs, first.up.shape[1]), np.float32)
        for name, rows in outputs_of(module, outputs, inputs, model).items():
            up[rows] = _numbers(parts[name].up)
        table = isinstance(owners[names[0]][0], Embedding)
        layers[module] = Factors(down, up, scale, table)
    kept = _replaced(model, model.load_plan(model.config))
    if head is not None:
        kept |= _replaced(head, head.spec.load_plan())
    tied = _is_tied(model) and _EMBEDDING in found
    rates = (weight.dropout.rate for weight in found.values() if weight.dropout is not None)
    return Adapter(source, layers, kept, tied, max(rates, default=0.0))


def _replaced(module: Module, plan: LoadPlan) -> dict[str, np.ndarray]:
    """The whole weights that came with an adapter, under the names of files."""
    weights = {
        name: Held(name, weight)
        for name, weight in module.weights().items()
        if name in module.replaced and isinstance(weight, Tensor)
    }
    stored = plan.save(weights)
    return {name: weight.read(whole(weight.shape)) for name, weight in stored.items()}


def save(
    model: Model, folder: str | Path, base: str, task: str, head: Classifier | None = None
) -> None:
    """Write the adapter of a model, whose weights are those of `base`; see `Loaded.save_adapter`.

    Args:
        task: what peft makes of the base: "CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION".
    """
    adapter = adapter_of(model, str(folder), head)
    write_adapter(
        folder, adapter, modules_of(model, head), base_model_name_or_path=base, task_type=task
    )


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.float32)


def merge_adapter(model: Model) -> None:
    """Add an adapter to the weights that it is over: in float32, then rounded to their dtype.

    Raises:
        OptionError: no adapter, or one over packed weights, which are not rounded a second time.
    """
    found, owners = adapted(model), owners_of(model)
    packed = [name for name, weight in found.items() if not isinstance(weight.base, Tensor)]
    if packed:
        base: Any = found[packed[0]].base
        what = base.scheme.name if isinstance(base, QuantizedTensor) else type(base).__name__
        raise OptionError(
            f"merge_adapter: {packed[0]} is packed ({what}); load the model with dtype= to merge "
            "into floats"
        )
    for name, weight in found.items():
        owner, attribute = owners[name]
        setattr(owner, attribute, _merged(weight))


def _merged(weight: LowRank) -> Tensor:
    base: Any = weight.base
    wide = dtypes.float32
    added = ops.core.cast(weight.up, wide) @ ops.core.cast(weight.down, wide) * weight.scale
    return ops.core.cast(ops.core.cast(base, wide) + added, base.dtype)
