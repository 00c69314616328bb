"""Stack: what every model is: tokens embedded, layers one after the other, a norm at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from boostr import nn
from boostr.models.base import Model, last_of
from boostr.models.config import ModelConfig
from boostr.nn.norm import maybe_norm
from boostr.ops import core
from boostr.recompute import checkpoint
from boostr.tensor import Tensor, arange


class Stack(nn.Module):
    """The tables of the embedding, the layers, and the final norm, which a head applies.

    Args:
        block: (E, index, LayerSpec) -> a layer.
    """

    def __init__(self, config: ModelConfig, block: Callable[..., Any]) -> None:
        E, spec = config.hidden_size, config.embedding
        width = spec.width or E
        self.embed_tokens = nn.Embedding(config.vocab_size, width, spec.factor)
        self.embed_positions = self.embed_types = None
        if spec.positions is not None:
            self.embed_positions = nn.Embedding(spec.positions, width)
        if spec.types is not None:
            self.embed_types = nn.Embedding(spec.types, width)
        self.embed_norm = maybe_norm(width, spec.norm)
        self.embed_project = None if spec.width is None else nn.Linear(width, E, bias=True)
        self.layers = [block(E, i, layer) for i, layer in enumerate(config.layers)]
        self.norm = maybe_norm(E, config.norm)
        self._spec = spec

    def __call__(self, batch: nn.Batch, recompute: str = "none") -> Iterator[Tensor]:
        """Hidden states after the embedding and after each layer, none of them kept."""
        x = self._embedded(batch)
        yield x
        for layer in self.in_turn():
            if recompute == "layer":
                x = checkpoint(partial(_run, layer, batch), x)
            else:
                x = layer(x, batch)
            yield x

    def in_turn(self) -> Iterable[Any]:
        """The layers as they are run."""
        return self.layers

    def _embedded(self, batch: nn.Batch) -> Tensor:
        x = self.embed_tokens(batch.ids) if batch.embeddings is None else batch.embeddings
        if self.embed_positions is not None:
            x = x + self.embed_positions(self._position_rows(batch))
        if self.embed_types is not None:
            x = x + self.embed_types(batch.ids * 0 if batch.types is None else batch.types)
        x = x if self.embed_norm is None else self.embed_norm(x)
        return x if self.embed_project is None else self.embed_project(x)

    def _position_rows(self, batch: nn.Batch) -> Tensor:
        """The row of the table of positions for each token."""
        first, padding = self._spec.first_position, self._spec.padding
        if padding is None:
            return batch.positions + first if first else batch.positions
        counts = core.cast(core.ne(batch.ids, padding), "int32")
        before = core.cumsum(counts) - counts
        start = arange(len(counts), backend=counts.backend) - batch.positions
        return (before - core.take(before, start) + 1) * counts + (first - 1)

    def ended(self, x: Tensor) -> Tensor:
        """The last hidden states under the final norm."""
        return x if self.norm is None else self.norm(x)


def _run(layer: Callable[..., Tensor], batch: nn.Batch, x: Tensor) -> Tensor:
    return layer(x, batch)


class StackModel(Model):
    """A stack, and what a subclass makes of its hidden states. Families whose layers are of another
    form than `nn.Block` set `block`, those that do not run each once `stack`."""

    block: Callable[..., Any] = nn.Block
    stack: Callable[..., Stack] = Stack

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.ropes = config, config.ropes
        self.model = type(self).stack(config, type(self).block)

    @property
    def activation_dtype(self) -> np.dtype:
        """Of hidden states, keys and values."""
        return self.model.embed_tokens.dtype

    def last_hidden_state(self, batch: nn.Batch) -> Tensor:
        """Hidden states [T, E] of packed tokens, after the final norm if there is one."""
        return self.model.ended(last_of(self.model(batch, self.recompute)))

    def hidden_states(self, batch: nn.Batch) -> list[Tensor]:
        """Hidden states [T, E] after the embedding, each layer, and for the last the final norm."""
        *states, end = self.model(batch)
        return [*states, self.model.ended(end)]
