"""Static embeddings (model2vec, static-retrieval): a table, of which a text's rows are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boostr import nn
from boostr.errors import OptionError
from boostr.models import base, plan
from boostr.models.config import RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.states import State
from boostr.tensor import Tensor


@dataclass(frozen=True)
class StaticConfig:
    """The shape of the table, which is all there is; texts are of any length."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int = 2**31 - 1
    model_type: str = "static"
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Model(base.Model):
    """The rows of a text's tokens."""

    capabilities = frozenset({"embed"})

    def __init__(self, config: StaticConfig) -> None:
        self.config, self.ropes = config, {}
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)

    @staticmethod
    def read_config(config: RawConfig) -> StaticConfig:
        return StaticConfig(config.size("vocab_size"), config.size("hidden_size"))

    @staticmethod
    def load_plan(config: StaticConfig) -> LoadPlan:
        """model2vec has a name of its own for the table."""
        return LoadPlan((plan.alias("embeddings", "embedding.weight"),))

    @property
    def activation_dtype(self) -> np.dtype:
        """Of hidden states."""
        return self.embedding.dtype

    def states(self) -> list[list[State]]:
        """Nothing: there are no layers."""
        return []

    def hidden(self, batch: nn.Batch) -> Tensor:
        """Rows [T, E] of packed tokens."""
        return self.embedding(batch.ids)

    def last_hidden_state(self, batch: nn.Batch) -> Tensor:
        """As `hidden`: there is no norm."""
        return self.hidden(batch)

    def hidden_states(self, batch: nn.Batch) -> list[Tensor]:
        """The rows alone."""
        return [self.hidden(batch)]

    def head(self, hidden: Tensor) -> Tensor:
        """Refused: what `capabilities` does not name."""
        raise OptionError("static embeddings give no logits")
