"""What the engine asks of a model, and nothing else of it: it imports no family.

A family is a class of this protocol in a file named after its `model_type`, and a row of
`boostr.models.FAMILIES`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from boostr.nn.batch import Batch
from boostr.nn.module import Weight
from boostr.nn.states import State
from boostr.operands import LowRank
from boostr.ops.rope_tables import RopeConfig
from boostr.tensor import Tensor


def last_of(states: Iterator[Tensor]) -> Tensor:
    """The last of some hidden states; no other stays in memory."""
    return deque(states, maxlen=1)[0]


class ModelConfig(Protocol):
    """What every config says, under Hugging Face's names."""

    @property
    def model_type(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def max_position_embeddings(self) -> int: ...


class Model(Protocol):
    """A module that turns packed tokens into hidden states.

    Attributes:
        config: its sizes.   capabilities: what it is for: "generate", "embed".
        ropes: the tables of cosines and sines that `hidden` wants in the batch, by name.
    """

    config: Any
    capabilities: frozenset[str]
    ropes: Mapping[str, RopeConfig]

    @property
    def activation_dtype(self) -> np.dtype:
        """Of hidden states, and of what layers keep."""
        ...

    def states(self) -> Sequence[Sequence[State]]:
        """What each layer keeps of a sequence from one forward pass to the next."""
        ...

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [T, E] of packed tokens, as `head` takes them."""
        ...

    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """After the embedding, after each layer, the last after the final norm: L + 1 of [T, E].
        transformers' convention of `output_hidden_states`."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Logits float32 [N, V] of hidden states [N, E]."""
        ...

    def weights(self) -> dict[str, Weight | LowRank]:
        """Parameters by name."""
        ...
