"""add_lora: a fresh low-rank adapter over a model, which alone is trained."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from boostr.errors import OptionError
from boostr.io.peft import Adapter, Factors
from boostr.models.adapters import adapted, apply_adapter, modules_of, owners_of
from boostr.models.base import Model
from boostr.nn.linear import Embedding, Linear
from boostr.operands import Dropout
from boostr.tensor import full

if TYPE_CHECKING:
    from boostr.engine.loaded import Loaded

ALL_LINEAR = "all-linear"


def add_lora(
    model: Loaded,
    r: int = 16,
    alpha: float = 32,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    *,
    rslora: bool = False,
    dropout: float = 0.0,
    seed: int = 0,
) -> None:
    """Put an adapter over weights of a model, of any form; nothing else of it is trained any more.

    It changes nothing at first: A is uniform in ±1/√in, B is 0 (of tables A is 0 and B normal), as
    peft starts. Both are float32 whatever the weights are.

    Args:
        r: the rank.   alpha: what is added is scaled by alpha / r.   rslora: by alpha / √r.
        target_modules: modules as the family's checkpoints name them: names or their ends, one
            regular expression of whole names, or "all-linear": every product but the head.
        dropout: see `set_dropout`.
        seed: of A; a module's does not depend on which others have one.
    Raises:
        OptionError: a number out of range, or a target that no module has.
        ModelFileError: a module that has an adapter already.
    """
    if not isinstance(r, int) or r < 1 or not alpha > 0:
        raise OptionError(f"add_lora: r and alpha must be above 0, got {r!r} and {alpha!r}")
    scale = alpha / (math.sqrt(r) if rslora else r)
    module, owners, layers = model.module, owners_of(model.module), {}
    weights = module.weights()
    for name, parts in _targets(module, target_modules).items():
        N, K = sum(weights[part].shape[0] for part in parts), weights[parts[0]].shape[1]
        table = isinstance(owners[parts[0]][0], Embedding)
        layers[name] = _fresh(name, (N, K), r, scale, seed, table)
    tied = any(own.table for own in layers.values())
    _check_rate(dropout)
    apply_adapter(module, Adapter("add_lora", layers, {}, tied), model.backend, trainable=True)
    if dropout:
        set_dropout(model, dropout, seed=seed)


def set_dropout(model: Loaded, rate: float, *, seed: int = 0) -> None:
    """Let products with an adapter's A read inputs of which some are 0, the others larger for it.

    Only while gradients are recorded, and only in front of factors that are trained; adapters of
    tables have none, as in peft. Each module has masks of its own, and each forward pass of
    `model.loss`, `model(batch)` or a compiled step the next: a function of seed, module and the
    count of passes, which `save_state` keeps. With `recompute` a loss's backward comes before the
    next loss.

    Args:
        rate: of inputs that are 0, from 0 to below 1; 0 takes dropout off.
    Raises:
        OptionError: a rate out of range, or a model without an adapter.
    """
    _check_rate(rate)
    owners, module = owners_of(model.module), model.module
    found = adapted(module)
    step = full((1,), 0, "int32", model.backend)
    for name, parts in modules_of(module).items():
        key = (seed & 0xFFFFFFFF, zlib.crc32(name.encode()))
        for part in parts:
            owner, attribute = owners[part]
            if part in found and isinstance(owner, Linear):
                own = Dropout(rate, key, step) if rate else None
                setattr(owner, attribute, found[part]._replace(dropout=own))


def _check_rate(rate: float) -> None:
    if not 0 <= rate < 1:
        raise OptionError(f"dropout must be 0 or more and below 1, got {rate!r}")


def _fresh(
    name: str, shape: tuple[int, int], r: int, scale: float, seed: int, table: bool
) -> Factors:
    """What is 0 at first over the weight [N, K] of a module."""
    (N, K), key = shape, [seed, zlib.crc32(name.encode())]
    draw = np.random.Generator(np.random.Philox(key=key))
    if table:
        down = draw.standard_normal((r, K), np.float32)
    else:
        down = (2 * draw.random((r, K), np.float32) - 1) / np.float32(math.sqrt(K))
    return Factors(down, np.zeros((N, r), np.float32), scale, table)


def _targets(model: Model, wanted: str | Sequence[str]) -> Mapping[str, list[str]]:
    """Module -> its parameters, of those that are wanted."""
    modules = modules_of(model)
    if wanted == ALL_LINEAR:
        return _products(model, modules)
    if isinstance(wanted, str):
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise OptionError(f"add_lora: target_modules {wanted!r}: {error}") from None
        found = {wanted: [name for name in modules if pattern.fullmatch(name)]}
    else:
        found = {end: [n for n in modules if n == end or n.endswith(f".{end}")] for end in wanted}
    missing = [repr(target) for target, names in found.items() if not names]
    if missing or not found:
        ends = sorted({name.rpartition(".")[2] for name in modules})
        raise OptionError(
            f"add_lora: no module is a target of {', '.join(missing) or wanted}; this model has "
            f"{', '.join(ends)}"
        )
    return {
        name: parts for name, parts in modules.items() if any(name in n for n in found.values())
    }


def _products(model: Model, modules: Mapping[str, list[str]]) -> Mapping[str, list[str]]:
    """All of them but the head, which peft leaves out, too."""
    owners, head = owners_of(model), getattr(model, "lm_head", None)
    return {
        name: parts
        for name, parts in modules.items()
        if isinstance(owner := owners[parts[0]][0], Linear) and owner is not head
    }
