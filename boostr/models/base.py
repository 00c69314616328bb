"""Model: what the engine asks of a family, and nothing else of it. The engine imports no family.

A family is a subclass in a file named after its `model_type`, and a row of `models.FAMILIES`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from boostr.errors import OptionError
from boostr.io.settings import Table
from boostr.models.architecture import Architecture
from boostr.nn.batch import Batch
from boostr.nn.module import Module
from boostr.nn.states import State
from boostr.ops.rope_tables import RopeConfig
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.models.config import RawConfig
    from boostr.models.plan import LoadPlan

GENERATES = "generate"
RECOMPUTE = ("none", "layer")


def last_of(states: Iterator[Tensor]) -> Tensor:
    """The last of some hidden states; no other stays in memory."""
    return deque(states, maxlen=1)[0]


class Model(Module):
    """A module that turns packed tokens into hidden states.

    Attributes:
        config: its sizes under Hugging Face's names, of which the engine reads model_type,
            vocab_size, hidden_size and max_position_embeddings.
        capabilities: what it is for: "generate", "embed".
        recompute: of RECOMPUTE: whether backward computes layers again or keeps what they made.
        keys: of its config.json what is inert or refused in this family alone.
        gguf: how it lies in GGUF; files are written as the first.
        ropes: the tables of cosines and sines that `hidden` wants in the batch, by name.
    """

    capabilities: ClassVar[frozenset[str]]
    recompute = "none"
    keys: ClassVar[Table] = {}
    gguf: ClassVar[tuple[Architecture, ...]] = ()
    config: Any
    ropes: Mapping[str, RopeConfig]

    @classmethod
    def of(cls, config: RawConfig) -> type[Model]:
        """The class for a config, where a family has several."""
        return cls

    @staticmethod
    @abstractmethod
    def read_config(config: RawConfig) -> Any:
        """What the constructor takes, from a config.json, with the family's own defaults."""

    @staticmethod
    @abstractmethod
    def load_plan(config: Any) -> LoadPlan:
        """From the names and tensors of the family's checkpoints to its parameters."""

    @property
    @abstractmethod
    def activation_dtype(self) -> np.dtype:
        """Of hidden states, and of what layers keep."""

    @abstractmethod
    def states(self) -> Sequence[Sequence[State]]:
        """What each layer keeps of a sequence from one forward pass to the next."""

    @abstractmethod
    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [T, E] of packed tokens, as `head` takes them."""

    @abstractmethod
    def last_hidden_state(self, batch: Batch) -> Tensor:
        """Hidden states [T, E] of packed tokens after the final norm, under transformers' name."""

    @abstractmethod
    def hidden_states(self, batch: Batch) -> list[Tensor]:
        """After the embedding, after each layer, the last after the final norm: L + 1 of [T, E].
        transformers' convention of `output_hidden_states`."""

    def losses(self, hidden: Tensor, targets: Tensor, **options: Any) -> Tensor:
        """`ops.linear_cross_entropy`, with its options, of hidden states [T, E] and the ids [T] to
        be predicted; of those that "generate"."""
        raise OptionError(f"{self.config.model_type!r} gives no logits of tokens")

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Logits float32 [N, V] of hidden states [N, E]; of those that "generate"."""
