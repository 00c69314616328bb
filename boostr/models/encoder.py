"""Model: the encoder that a `ModelConfig` describes: hidden states of packed texts, for embeddings.
Every token sees every token of its text. Families read a config into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from boostr import nn
from boostr.errors import OptionError
from boostr.models import config as read
from boostr.models import plan
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.models.stack import StackModel
from boostr.nn.specs import LayerSpec
from boostr.nn.states import State
from boostr.tensor import Tensor

# tensors of GGUF of layers whose norms are of sums
POST_NORMS = {
    "blk.{i}.attn_output_norm": "model.layers.{i}.attention_output_norm",
    "blk.{i}.layer_output_norm": "model.layers.{i}.mlp_output_norm",
}


class Model(StackModel):
    """Hidden states; poolers and heads of a checkpoint are not part of it."""

    capabilities = frozenset({"embed"})

    def states(self) -> list[list[State]]:
        """Nothing: every forward pass is over whole texts."""
        return [[] for _ in self.model.layers]

    def hidden(self, batch: nn.Batch) -> Tensor:
        """Last hidden states [T, E] of packed texts, after the final norm if there is one."""
        return self.last_hidden_state(batch)

    def head(self, hidden: Tensor) -> Tensor:
        """Refused: what `capabilities` does not name."""
        raise OptionError(f"{self.config.model_type!r} is an encoder: it gives no logits")

    def __call__(self, batch: nn.Batch) -> Tensor:
        return self.hidden(batch)


def encoder_config(config: RawConfig, layers: Sequence[LayerSpec], **changes: Any) -> ModelConfig:
    """The whole: no head, and unless a family says otherwise no final norm and no rope."""
    absent = {"norm": None, "ropes": {}, "head": None}
    return read.decoder_config(config, layers, **{**absent, **changes})


def model_alone(prefix: str, *heads: str) -> LoadPlan:
    """The names of a model without the prefix that checkpoints with a head put before them; heads,
    poolers and buffers are left over."""
    return LoadPlan((
        plan.prefixes("", (prefix, "")),
        plan.leftover(("pooler.", *heads), ("embeddings.position_ids",)),
    ))  # fmt: skip


def llamas_names() -> LoadPlan:
    """Llama's names, without the prefix that decoders have."""
    return model_alone("model.", "lm_head.") + LoadPlan((
        plan.rename("embed_tokens", "model.embed_tokens"),
        plan.rename("layers.{i}", "model.layers.{i}"),
        plan.rename("norm", "model.norm"),
    ))  # fmt: skip
