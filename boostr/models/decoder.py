"""CausalLM: the decoder that a `ModelConfig` describes. Families read a config into one."""

from __future__ import annotations

from typing import Any

from boostr import nn, ops
from boostr.errors import OptionError
from boostr.models import plan
from boostr.models.base import GENERATES, last_of
from boostr.models.config import ModelConfig
from boostr.models.plan import LoadPlan, Rule
from boostr.models.stack import StackModel
from boostr.nn import fusion
from boostr.nn.specs import AttentionSpec, MLPSpec
from boostr.nn.states import State
from boostr.ops import core
from boostr.tensor import Tensor

LAYER = "model.layers.{i}."


class CausalLM(StackModel):
    """A decoder and the head that turns its hidden states into logits."""

    capabilities = frozenset({GENERATES})

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        head, self.lm_head = config.head, None
        if head is not None and not head.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, head.bias)
            self.lm_head.weight = nn.Parameter((config.vocab_size, config.hidden_size), "head")

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        """From the names of checkpoints; base models lack `model.`."""
        rules = [
            plan.prefixes("model.", ("model.", ""), outside=("lm_head.",)),
            plan.leftover(suffixes=("rotary_emb.inv_freq",)),  # buffers of old checkpoints
        ]
        if config.head is None:
            rules.append(plan.leftover(("lm_head.",)))
        elif config.head.tied:
            rules.append(plan.tied("lm_head.weight", "model.embed_tokens.weight"))
        return LoadPlan(tuple(rules))

    def states(self) -> list[list[State]]:
        """What each layer keeps of a sequence."""
        return [layer.states() for layer in self.model.layers]

    def hidden(self, batch: nn.Batch) -> Tensor:
        """Hidden states [T, E] of packed tokens before the final norm."""
        return last_of(self.model(batch, self.recompute))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits float32 [N, V] of hidden states [N, E]."""
        spec = self.config.head
        if spec is None:
            raise OptionError(f"this {self.config.model_type} was loaded without its head")
        owner = self.lm_head or self.model.embed_tokens
        bias = None if self.lm_head is None else self.lm_head.bias
        norm, cap = self.model.norm, spec.softcap
        logits: Any = fusion.products(
            hidden, norm and norm.operand, [owner.weight], [bias], dtype="float32"
        )
        if spec.factor != 1.0:
            logits = logits * spec.factor
        return logits if cap is None else core.tanh(logits / cap) * cap

    def losses(self, hidden: Tensor, targets: Tensor, **options: Any) -> Tensor:
        """See `models.base.Model`; logits are never there at once."""
        spec = self.config.head
        if spec is None:
            raise OptionError(f"this {self.config.model_type} was loaded without its head")
        owner = self.lm_head or self.model.embed_tokens
        bias = None if self.lm_head is None else self.lm_head.bias
        return ops.linear_cross_entropy(
            self.model.ended(hidden), owner.weight, targets, bias=bias, softcap=spec.softcap,
            logit_scale=spec.factor, **options,
        )  # fmt: skip

    def __call__(self, batch: nn.Batch) -> Tensor:
        return self.head(self.hidden(batch))


# -- products that lie end to end in a checkpoint --------------------------------------------------
def packed_qkv(name: str, mixer: AttentionSpec) -> Rule:
    """q, k and v of a layer in one tensor, of this name with `{i}`."""
    heads = {"q": mixer.heads, "k": mixer.kv_heads, "v": mixer.kv_heads}
    parts = [(f"{LAYER}self_attn.{n}_proj", count * mixer.head_dim) for n, count in heads.items()]
    return plan.rows(name, parts)


def qkv_by_head(name: str, mixer: AttentionSpec) -> Rule:
    """The same, where they lie by key head: the q that share it, it and its v."""
    D, K = mixer.head_dim, mixer.kv_heads
    rows = {"q": mixer.heads // K * D, "k": D, "v": D}
    return plan.heads(name, K, [(f"{LAYER}self_attn.{n}_proj", count) for n, count in rows.items()])


def packed_gate_up(name: str, mlp: MLPSpec) -> Rule:
    """gate and up of a layer in one tensor."""
    return plan.rows(LAYER + name, [(f"{LAYER}mlp.{n}_proj", mlp.hidden) for n in ("gate", "up")])
