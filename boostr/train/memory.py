"""What a run will take of memory, from steps on a part of a batch."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from boostr.backends.collectives import Communicator
from boostr.models.adapters import dropout_step
from boostr.train.objectives import Objective
from boostr.train.optimizers import Optimizer
from boostr.train.pack import pack
from boostr.train.step import compile_step

if TYPE_CHECKING:
    from boostr.engine.loaded import Loaded

_PARTS = (1 / 2, 3 / 4)  # of a batch; both have a whole chunk of logits where the batch has


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of a run.

    Attributes:
        weights: of the model, adapter included.   optimizer: its states, and float32 masters.
        gradients: of what is trained, all at once.
        activations: what forward keeps for backward, logits and scratch, as far as gradients do not
            take their place.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.gradients + self.activations


def predicted_memory(
    model: Loaded,
    optimizer: Optimizer,
    *,
    tokens: int,
    max_sequences: int = 512,
    grad_accumulation: int = 1,
    max_length: int | None = None,
    objective: Objective | None = None,
    rank: Communicator | None = None,
) -> MemoryUse | None:
    """What a compiled step of so many tokens takes, by a line through two that are smaller: 1/2 and
    3/4 of the tokens, both of which are made. They need a rate of 0 and so move no weight, but
    they are no beginning of a run: moments decay, and steps are counted.

    Args:
        max_length: tokens of a sequence; default all.   objective, rank: see `compile_step`.
    Returns:
        None where the device does not say what it has given.
    """
    rate, optimizer.lr, step = optimizer.lr, 0.0, dropout_step(model.module)
    passes = None if step is None else step.numpy().copy()
    sizes = [max(math.ceil(part * tokens), 2) for part in _PARTS]
    seen = [
        _measured(
            model, optimizer, n, max_sequences, grad_accumulation, max_length or n, objective, rank
        )
        for n in sizes
    ]
    optimizer.lr = rate
    if step is not None and passes is not None:
        step.assign(passes)
    (less, more), (few, many) = seen, sizes
    if less is None or more is None:
        return None
    slope = (more - less) / max(many - few, 1)
    taken = more + max(slope, 0.0) * (tokens - many)
    gradients = sum(p.nbytes for p in optimizer.params)
    states = (t for tensors in optimizer.tensors().values() for t in tensors if t is not None)
    return MemoryUse(
        weights=model.weight_bytes,
        optimizer=sum(t.nbytes for t in states),
        gradients=gradients,
        activations=max(round(taken) - gradients, 0),
    )


def _measured(
    model: Loaded, optimizer: Optimizer, tokens: int, max_sequences: int, parts: int,
    max_length: int, objective: Objective | None, rank: Communicator | None,
) -> int | None:  # fmt: skip
    """Bytes that a step takes beyond what there is before it."""
    backend = model.backend
    gc.collect()
    backend.release_memory()
    before = backend.used_memory()
    step = compile_step(
        model, optimizer, tokens=tokens, max_sequences=max_sequences, grad_accumulation=parts,
        objective=objective, rank=rank,
    )  # fmt: skip
    lengths = [min(max_length, tokens - start) for start in range(0, tokens, max_length)]
    ids = [np.zeros(n, np.int32) for n in lengths[:max_sequences]]
    batch = pack(ids, reference=np.zeros(len(ids)))  # type: ignore[arg-type]
    _ = step(*[batch] * parts).loss  # which waits for it
    after = backend.used_memory()
    if before is None or after is None:
        return None if step.program is None else step.program.memory
    return after - before
