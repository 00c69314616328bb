"""compile_step: a training step as one program, for batches of any sequence lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from boostr import dtypes, ops
from boostr.autograd import no_grad
from boostr.backends.collectives import Alone, Communicator
from boostr.engine.packed import IGNORED, PackedBatch
from boostr.errors import OptionError
from boostr.models.adapters import next_dropout
from boostr.nn.batch import Batch
from boostr.ops import core
from boostr.program import Program, capture
from boostr.tensor import Tensor
from boostr.train.loss_scale import LossScale, needs_scale
from boostr.train.objectives import Inputs, NextToken, Objective
from boostr.train.optimizers import Optimizer

if TYPE_CHECKING:
    from boostr.engine.loaded import Loaded

_SAME = 2e-6  # of a norm, whose sums are in another order where a GPU is another one
_NOTHING = PackedBatch(*(np.zeros(n, np.int32) for n in (0, 0, 0, 1)))


class StepMetrics:
    """Numbers of a step, which are read from the device when they are asked for, and then kept.

    Attributes:
        target_count: labels that counted, pairs or preferences.
    """

    def __init__(self, reads: list[Callable[[], np.ndarray]], target_count: int) -> None:
        self._reads, self.target_count = reads, target_count

    @cached_property
    def loss(self) -> float:
        """The mean over what counted."""
        return float(self._reads[0]())

    @cached_property
    def grad_norm(self) -> float:
        """The norm of all gradients before they were clipped."""
        return float(self._reads[1]())

    @cached_property
    def loss_scale(self) -> float:
        """What the loss was multiplied by for backward; 1 but for models of float16."""
        return float(self._reads[2]()) if len(self._reads) > 2 else 1.0


class _Pack:
    """Where the program reads one batch of up to `tokens` tokens of up to `max_sequences`."""

    def __init__(self, model: Loaded, tokens: int, max_sequences: int) -> None:
        self._tokens, self._max_sequences = tokens, max_sequences
        self._context = model.module.config.max_position_embeddings
        self._vocabulary, self._runner = model.module.config.vocab_size, model.runner
        tensor, zeros = model.runner.tensor, np.zeros(tokens, np.int32)
        self._ids, targets, self._positions = (tensor(zeros.copy()) for _ in range(3))
        self._starts = tensor(np.zeros(max_sequences + 2, np.int32))
        ropes = model.runner.rotary.decode(tokens, self._positions)
        batch = Batch(self._ids, self._positions, self._starts, ropes)
        reference = Tensor(np.zeros(max_sequences + 1, np.float32), backend=model.backend)
        self.inputs = Inputs(batch, targets, tensor(np.zeros((), np.int32)), reference)

    def fill(self, batch: PackedBatch) -> None:
        """Put a batch there, and a sequence of labels that do not count behind it."""
        T, B = len(batch), len(batch.lengths)
        if not (self._tokens >= T and self._max_sequences >= B):
            raise OptionError(
                f"this step takes {self._tokens} tokens of {self._max_sequences} sequences, got "
                f"{T} of {B}"
            )
        batch.check(self._vocabulary)
        self._runner.check_length(int(batch.lengths.max(initial=0)), "a sequence of the batch")
        filler = np.arange(self._tokens - T, dtype=np.int32)
        ends = np.full(self._max_sequences + 1 - B, self._tokens, np.int32)
        reference = np.zeros(self._max_sequences + 1, np.float32)
        if batch.reference is not None:
            reference[:B] = batch.reference
        for target, values in (
            (self._ids, np.concatenate([batch.input_ids, filler * 0])),
            (self.inputs.targets, np.concatenate([batch.targets, np.full_like(filler, IGNORED)])),
            (self._positions, np.concatenate([batch.position_ids, filler % self._context])),
            (self._starts, np.concatenate([batch.cu_seqlens, ends])),
            (self.inputs.sequences, np.array(B, np.int32)),
            (self.inputs.reference, reference),
        ):
            target.assign(values)


class CompiledStep:
    """Forward, backward, clipping and the optimizer's step, recorded once. See `compile_step`."""

    def __init__(
        self, model: Loaded, optimizer: Optimizer, tokens: int,
        max_sequences: int, max_norm: float, grad_accumulation: int, objective: Objective | None,
        rank: Communicator | None,
    ) -> None:  # fmt: skip
        if model.runner.rotary.depends_on_length:
            raise OptionError(
                "compile_step: this model's rope depends on the length of a sequence, which one "
                "program does not know; use model.loss(batch) and optimizer.step()"
            )
        if grad_accumulation < 1:
            raise OptionError(
                f"compile_step: grad_accumulation must be 1 or more, got {grad_accumulation}"
            )
        self._model, self._optimizer, self._max_norm = model, optimizer, max_norm
        self.tokens, self.max_sequences = tokens, max_sequences
        self._objective = objective or NextToken(model)
        self._packs = [_Pack(model, tokens, max_sequences) for _ in range(grad_accumulation)]
        self._count = Tensor(np.ones((), np.float32), backend=model.backend)
        if needs_scale(model.module.activation_dtype, optimizer.params):
            optimizer.loss_scale = optimizer.loss_scale or LossScale(model.backend)
        self._rank = rank or Alone(model.backend)
        self._compare()
        self.program: Program | None = None

    def __call__(self, *batches: PackedBatch) -> StepMetrics:
        """Make a step on up to `grad_accumulation` batches of at most `tokens` tokens each, as if
        they and those of the other ranks were one; parameters and state change."""
        target_count = self._fill(batches)
        self._rank.wait()  # nothing else is asked of a device until all ranks have launched: what
        if self.program is None:  # waits for a sum over ranks may block whatever comes behind it
            self.program = capture(self._step, self._model.backend, grad=True)
        else:
            self.program.run()
            for written in self._optimizer.params:
                written.written()
        self._rank.wait()
        read = self._model.backend.start_read
        return StepMetrics([read(t.data) for t in self.program.outputs], target_count)

    def measure(self, batch: PackedBatch) -> float:
        """The sum of a batch's losses, without a step."""
        pack, one = self._packs[0], Tensor(np.ones((), np.float32), backend=self._model.backend)
        pack.fill(batch)
        with no_grad():
            return self._objective.loss(pack.inputs, one).item()

    def _step(self) -> tuple[Tensor, ...]:
        """(loss, norm of the gradients), and what the loss was multiplied by, if it was."""
        optimizer, scale, rank = self._optimizer, self._optimizer.loss_scale, self._rank
        optimizer.zero_grad()
        # objectives divide by a count at once, before anything is rounded
        count, total = self._count if scale is None else self._count / scale.value, None
        for number, pack in enumerate(self._packs):  # of all ranks' batches those of every turn
            next_dropout(self._model.module, rank.size if number else rank.rank + 1)
            loss = self._objective.loss(pack.inputs, count)
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        if rank.size > 1:
            next_dropout(self._model.module, rank.size - 1 - rank.rank)
            total = self._reduced(total)
        norm = ops.global_norm([p.grad for p in optimizer.params if p.grad is not None])
        if scale is None:
            optimizer.step(norm, ops.clip_scale(norm, self._max_norm))
            found: tuple[Tensor, ...] = total, norm
        else:
            rest = 1.0 / scale.value
            norm = norm * rest
            optimizer.step(norm, ops.clip_scale(norm, self._max_norm) * rest)
            found = total * rest, norm, scale.value * 1.0
            scale.update(norm)
        optimizer.zero_grad()
        return found

    def _reduced(self, loss: Tensor) -> Tensor:
        """The loss of all ranks, whose gradients are summed, those of 16 bits in float32. Copies
        are, as parameters may share the memory of one."""
        with no_grad():
            params = [p for p in self._optimizer.params if p.grad is not None]
            for p in params:
                p.grad = _wide_copy(p.grad)  # type: ignore[arg-type]
            loss = _wide_copy(loss)
        self._rank.all_reduce([loss.data, *(p.grad.data for p in params)])  # type: ignore
        self._rank.wait()  # until all have recorded it: one that cannot ends the others
        return loss

    def _compare(self) -> None:
        """Refuse ranks that do not train the same weights."""
        if self._rank.size == 1:
            return
        with no_grad():
            norm = ops.global_norm([p.detach() for p in self._optimizer.params]).item()
        norms = self._rank.gather(norm)
        if max(norms) - min(norms) > _SAME * max(norms):
            raise OptionError(
                "compile_step: the ranks' weights differ; load the same on each, or make them of "
                "the same seed"
            )

    def _fill(self, batches: Sequence[PackedBatch]) -> int:
        """Put batches where the program reads them; how much of all counts."""
        most = len(self._packs)
        if not 1 <= len(batches) <= most:
            raise OptionError(f"this step takes 1 to {most} batches, got {len(batches)}")
        target_count = sum(self._rank.gather(sum(map(self._objective.count, batches))))
        if not target_count:
            raise OptionError("no label of this batch counts behind another token")
        nothing = [_NOTHING] * (most - len(batches))
        for pack, batch in zip(self._packs, (*batches, *nothing), strict=True):
            pack.fill(batch)
        self._count.assign(np.array(target_count, np.float32))
        return target_count


def compile_step(
    model: Loaded,
    optimizer: Optimizer,
    *,
    tokens: int,
    max_sequences: int = 512,
    max_grad_norm: float = 1.0,
    grad_accumulation: int = 1,
    objective: Objective | None = None,
    rank: Communicator | None = None,
) -> CompiledStep:
    """A function that trains on a batch: loss, backward, clipping and optimizer as one program.

    The first call records it, later ones replay it without Python for each op; sequence lengths may
    differ from call to call. What is left of `tokens` is filled with a sequence that never counts.
    A step whose gradients are not finite moves nothing. Models of float16 have a loss scale, see
    `LossScale`.

    Args:
        tokens: the most tokens of a batch.   max_sequences: the most sequences.
        grad_accumulation: batches of a step, one after the other, in the memory of one. The loss is
            the mean over the labels of all, whatever batch they are in; gradients of 16-bit
            parameters add up in float32.
        objective: what is made smaller, `NextToken(model)` by default.
        rank: of `run_ranks`, all of which make a step at the same time, each on batches and a
            model of its own: gradients and losses are summed over them, in float32, so that it is a
            step on the batches of all, and the metrics and the new weights are the same on each.
    Returns:
        step(batch, ...) -> `StepMetrics`; `optimizer.lr` may be set between calls.
    """
    return CompiledStep(
        model, optimizer, tokens, max_sequences, max_grad_norm, grad_accumulation, objective, rank
    )


def _wide_copy(x: Tensor) -> Tensor:
    if x.dtype in dtypes.LOW_PRECISION:
        return core.cast(x, dtypes.float32).contiguous()
    return Tensor.wrap(x.backend.copy(x.data), x.backend)
