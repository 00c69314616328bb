"""compile_step: a training step as one program, for batches of any sequence lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from boostr.engine.packed import IGNORED, PackedBatch
from boostr.errors import OptionError
from boostr.nn.batch import Batch
from boostr.program import Program, capture
from boostr.tensor import Tensor
from boostr.train.clip import clip_grad_norm
from boostr.train.optimizers import Optimizer

if TYPE_CHECKING:
    from boostr.engine.model import LanguageModel


class StepMetrics:
    """Numbers of a step, which are read from the device when they are asked for.

    Attributes:
        target_count: labels that counted.
    """

    def __init__(self, reads: list[Callable[[], np.ndarray]], target_count: int) -> None:
        self._reads, self.target_count = reads, target_count

    @property
    def loss(self) -> float:
        """The mean over the labels that count."""
        return float(self._reads[0]())

    @property
    def grad_norm(self) -> float:
        """The norm of all gradients before they were clipped."""
        return float(self._reads[1]())


class CompiledStep:
    """Forward, backward, clipping and the optimizer's step, recorded once. See `compile_step`."""

    def __init__(
        self, model: LanguageModel, optimizer: Optimizer, tokens: int, max_sequences: int,
        max_norm: float,
    ) -> None:  # fmt: skip
        if model.runner.rotary.depends_on_length:
            raise OptionError(
                "compile_step: this model's rope depends on the length of a sequence, which one "
                "program does not know; use model.loss(batch) and optimizer.step()"
            )
        self._model, self._optimizer, self._max_norm = model, optimizer, max_norm
        self.tokens, self.max_sequences = tokens, max_sequences
        tensor = model.runner.tensor
        zeros = np.zeros(tokens, np.int32)
        self._ids, self._targets, self._positions = (tensor(zeros.copy()) for _ in range(3))
        self._starts = tensor(np.zeros(max_sequences + 2, np.int32))
        self._count = Tensor(np.ones((), np.float32), backend=model.backend)
        ropes = model.runner.rotary.decode(tokens, self._positions)
        self._batch = Batch(self._ids, self._positions, self._starts, ropes)
        self.program: Program | None = None

    def __call__(self, batch: PackedBatch) -> StepMetrics:
        """Make a step on a batch of at most `tokens` tokens; parameters and state change."""
        self._fill(batch)
        if self.program is None:
            self.program = capture(self._step, self._model.backend, grad=True)
        else:
            self.program.run()
            for written in self._optimizer.params:
                written.written()
        read = self._model.backend.start_read
        return StepMetrics([read(t.data) for t in self.program.outputs], batch.target_count)

    def _step(self) -> tuple[Tensor, Tensor]:
        module, optimizer = self._model.module, self._optimizer
        hidden = module.hidden(self._batch)
        loss = module.losses(hidden, self._targets, count=self._count)
        optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm(optimizer.params, self._max_norm)
        optimizer.step(norm)
        optimizer.zero_grad()
        return loss.detach(), norm

    def _fill(self, batch: PackedBatch) -> None:
        """Put a batch, and a sequence of labels that do not count, where the program reads."""
        T, B = len(batch), len(batch.lengths)
        if not (self.tokens >= T and self.max_sequences >= B):
            raise OptionError(
                f"this step takes {self.tokens} tokens of {self.max_sequences} sequences, got {T} "
                f"of {B}"
            )
        if not batch.target_count:
            raise OptionError("no label of this batch counts behind another token")
        rest = self.tokens - T
        filler = np.arange(rest, dtype=np.int32)
        ends = np.full(self.max_sequences + 1 - B, self.tokens, np.int32)
        for target, values in (
            (self._ids, np.concatenate([batch.input_ids, filler * 0])),
            (self._targets, np.concatenate([batch.targets, np.full_like(filler, IGNORED)])),
            (self._positions, np.concatenate([batch.position_ids, filler])),
            (self._starts, np.concatenate([batch.cu_seqlens, ends])),
            (self._count, np.array(batch.target_count, np.float32)),
        ):
            target.assign(values)


def compile_step(
    model: LanguageModel,
    optimizer: Optimizer,
    *,
    tokens: int,
    max_sequences: int = 512,
    max_grad_norm: float = 1.0,
) -> CompiledStep:
    """A function that trains on a batch: loss, backward, clipping and optimizer as one program.

    The first call records it, later ones replay it without Python for each op; sequence lengths may
    differ from call to call. What is left of `tokens` is filled with a sequence that never counts.
    A step whose gradients are not finite moves nothing.

    Args:
        tokens: the most tokens of a batch.   max_sequences: the most sequences.
    Returns:
        step(batch) -> `StepMetrics`; `optimizer.lr` may be set between calls.
    """
    return CompiledStep(model, optimizer, tokens, max_sequences, max_grad_norm)
