"""Runner: a model on its backend: whole sequences, packed, without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boostr import autograd
from boostr.backends.base import Backend
from boostr.engine.kv_pool import KVPool
from boostr.engine.rotary import Rotary
from boostr.errors import OptionError
from boostr.models.base import Model
from boostr.nn.batch import Batch
from boostr.nn.states import Latent, Paged, token_bytes
from boostr.quant.kv import KVForm
from boostr.tensor import Tensor


class Runner:
    """A model on its backend, with its rope tables.

    Args:
        kv_form: how caches keep keys and values; None: as floats of the activations' dtype.
    Attributes:
        kv_token_bytes: what all layers keep of a token.
    Raises:
        OptionError: heads that the form cannot hold.
    """

    def __init__(self, module: Model, backend: Backend, kv_form: KVForm | None = None) -> None:
        self.module, self.backend, self.kv_form = module, backend, kv_form
        states = [s for kept in module.states() for s in kept if isinstance(s, Paged | Latent)]
        activations = module.activation_dtype
        self.kv_token_bytes = sum(token_bytes(s, activations, kv_form) for s in states)
        self.rotary = Rotary(module.ropes, backend)

    def tensor(self, values: Sequence[int] | np.ndarray) -> Tensor:
        """An int32 tensor on the model's backend."""
        return Tensor(np.asarray(values, np.int32), backend=self.backend)

    def check_length(self, length: int, what: str) -> None:
        """Refuse a sequence that is longer than the table of positions, if the model has one.

        Raises OptionError, which `what` begins.
        """
        config = self.module.config
        context = config.max_position_embeddings
        if length > context and config.embedding.positions is not None:
            raise OptionError(
                f"{what}: the model has vectors of {context} positions, got {length} tokens"
            )

    def new_pool(self) -> KVPool:
        """Room for what layers keep of sequences, none yet."""
        return KVPool(
            self.module.states(), self.backend, self.backend.kv_block, self.module.activation_dtype,
            self.kv_form,
        )  # fmt: skip

    def packed(
        self, sequences: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> Batch:
        """Whole sequences end to end, without a cache; `types` are those of their tokens."""
        lengths = [len(s) for s in sequences]
        positions = np.concatenate([np.arange(n) for n in lengths])
        places = self.tensor(positions)
        return Batch(
            self.tensor(np.concatenate([np.asarray(s) for s in sequences])),
            places,
            self.tensor(np.concatenate([[0], np.cumsum(lengths)])),
            self.rotary.prompt(positions, places, lengths, lengths),
            types=None if types is None else self.tensor(np.concatenate(types)),
        )

    def logits(self, ids: Sequence[int]) -> Tensor:
        """Logits [T, V] of one sequence, without a cache."""
        with autograd.no_grad():
            return self.module.head(self.module.hidden(self.packed([ids])))

    def hidden_states(self, ids: Sequence[int]) -> list[Tensor]:
        """Of one sequence, [T, E] after the embedding and every layer; see `models.base.Model`."""
        with autograd.no_grad():
            return self.module.hidden_states(self.packed([ids]))
