"""Trainable: what a loaded model has for training: its parameters, differentiable calls, saving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boostr.engine.packed import PackedBatch
from boostr.errors import OptionError
from boostr.models.adapters import next_dropout
from boostr.models.base import GENERATES, RECOMPUTE
from boostr.models.save import carry_over, new_folder, save_folder
from boostr.nn.batch import Batch
from boostr.nn.module import Module
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.base import Backend
    from boostr.engine.runner import Runner
    from boostr.models.base import Model


class Trainable:
    """Attributes:
    files: the folder or file that the model was read from; None for one that was made.
    """

    module: Model
    runner: Runner
    source: str
    files: Path | None = None

    # -- parameters ------------------------------------------------------------------------------
    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of every float weight, tied ones once; a tensor's `requires_grad` says
        whether it trains. See `nn.Module.named_parameters`."""
        for prefix, module in self.modules():
            yield from ((prefix + name, tensor) for name, tensor in module.named_parameters())

    def parameters(self) -> Iterator[Tensor]:
        """The tensors of `named_parameters`."""
        return (tensor for _, tensor in self.named_parameters())

    def modules(self) -> Iterator[tuple[str, Module]]:
        """(what names of its parameters begin with, module) of the model, and of its classifier."""
        yield "", self.module
        if (head := self._head()) is not None:
            yield "classifier.", head

    def _head(self) -> Any:
        return getattr(self, "classifier", None)

    def make_trainable(self) -> None:
        """See `trainable` of `boostr.load`."""
        for _, module in self.modules():
            train_all(module, self.runner.backend, self.source)

    @property
    def recompute(self) -> str:
        """ "none", or "layer": backward computes a layer again instead of keeping what it computed,
        a quarter more work for a fraction of the memory."""
        return self.module.recompute

    @recompute.setter
    def recompute(self, policy: str) -> None:
        if policy not in RECOMPUTE:
            raise OptionError(f"recompute must be one of {RECOMPUTE}, got {policy!r}")
        self.module.recompute = policy

    # -- forward ---------------------------------------------------------------------------------
    def __call__(self, batch: PackedBatch) -> Tensor:
        """Logits float32 [T, V] of a decoder, vectors float32 [B, E] of an embedding model, logits
        [B, labels] of a classifier; on the tape."""
        uploaded = self.upload(batch)
        next_dropout(self.module)
        return self.module.head(self.module.hidden(uploaded))

    def loss(self, batch: PackedBatch, reduction: str = "mean") -> Tensor:
        """Next-token cross-entropy of a decoder, a scalar: the "mean" over `batch.target_count`, or
        the "sum". Logits [T, V] are never there at once.

        Raises:
            OptionError: a model without a language head, or a batch whose labels do not count.
        """
        if GENERATES not in self.module.capabilities:
            raise OptionError(f"loss: {self.source} gives no logits of tokens")
        if not batch.target_count:
            raise OptionError("loss: no label of this batch counts behind another token")
        uploaded = self.upload(batch)
        next_dropout(self.module)
        hidden = self.module.hidden(uploaded)
        targets = self.runner.tensor(batch.targets)
        return self.module.losses(hidden, targets, reduction=reduction)

    def upload(self, batch: PackedBatch) -> Batch:
        """The batch on the model's backend, with its rope tables."""
        batch.check(self.module.config.vocab_size)
        positions = self.runner.tensor(batch.position_ids)
        lengths: Sequence[int] = [int(n) for n in batch.lengths]
        self.runner.check_length(max(lengths, default=0), "a sequence of the batch")
        ropes = self.runner.rotary.prompt(batch.position_ids, positions, lengths, lengths)
        ids, starts = (self.runner.tensor(x) for x in (batch.input_ids, batch.cu_seqlens))
        return Batch(ids, positions, starts, ropes)

    # -- out of here -----------------------------------------------------------------------------
    def save(self, folder: str | Path) -> None:
        """Write a Hugging Face folder: config, weights in their dtypes, and the other files of the
        folder that the model was loaded from. It is there when all of it is.

        Raises:
            ModelFileError: what exists already, weights that are packed or under an adapter.
        """
        with new_folder(Path(folder)) as made:
            if self.files is not None and self.files.is_dir():
                carry_over(self.files, made, self.files / "config.json")
            save_folder(self.module, made, head=self._head())


def train_all(module: Module, backend: Backend, source: str) -> None:
    """Give a module floats of its own, which may be written and require gradients.

    Raises:
        OptionError: a packed weight, which cannot be trained.
    """
    for name, owner, attribute in module.places():
        weight = getattr(owner, attribute)
        if not isinstance(weight, Tensor):
            raise OptionError(
                f"trainable: {name} of {source} is packed, and packed weights cannot be trained; "
                "put an adapter over them, or load with dtype='float32' or 'bfloat16' and without "
                "quantize="
            )
        own = Tensor.wrap(backend.owned(weight.data), backend)
        own.requires_grad = True
        setattr(owner, attribute, own)
