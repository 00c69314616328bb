"""ALBERT: BERT whose layers are shared, in groups, and whose tables are narrower than they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from boostr.errors import ModelFileError
from boostr.io.settings import INERT
from boostr.models import bert, encoder, plan, stack
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan

DEFAULTS = bert.DEFAULTS | {
    "vocab_size": 30000, "embedding_size": 128, "hidden_size": 4096, "intermediate_size": 16384,
    "num_attention_heads": 64, "num_hidden_groups": 1, "inner_group_num": 1,
    "hidden_act": "gelu_new",
}  # fmt: skip
KEYS = {**bert.POSITIONS, "classifier_dropout_prob": INERT}


@dataclass(frozen=True)
class AlbertConfig(ModelConfig):
    """A `ModelConfig` of the layers that there are; `turns` are the groups of them as they run."""

    turns: tuple[int, ...] = ()
    group: int = 1


class Stack(stack.Stack):
    """See `stack.Stack`. A group of layers has several turns."""

    def __init__(self, config: AlbertConfig, block: Callable[..., Any]) -> None:
        super().__init__(config, block)
        self._turns, self._group = config.turns, config.group

    def in_turn(self) -> Iterable[Any]:
        size = self._group
        return (layer for at in self._turns for layer in self.layers[at * size : (at + 1) * size])


class Model(encoder.Model):
    """See `encoder.Model`."""

    keys = KEYS
    stack = Stack

    @staticmethod
    def read_config(config: RawConfig) -> AlbertConfig:
        config = config.filled(**DEFAULTS)
        turns, groups = config.size("num_hidden_layers"), config.size("num_hidden_groups")
        if groups > turns:
            raise ModelFileError(
                f"{config.source}: num_hidden_groups {groups} is above num_hidden_layers {turns}"
            )
        group = config.size("inner_group_num")
        made = bert.bert_config(config, width=config.size("embedding_size"))
        return AlbertConfig(
            **{**vars(made), "layers": made.layers[:1] * groups * group},
            turns=tuple(int(i / (turns / groups)) for i in range(turns)),  # as transformers rounds
            group=group,
        )

    @staticmethod
    def load_plan(config: AlbertConfig) -> LoadPlan:
        """The layers of all groups, one after the other."""
        canonical = "model.layers.{i}."
        places = (divmod(at, config.group) for at in range(len(config.layers)))
        heads = ("predictions.", "sop_classifier.")
        return encoder.model_alone("albert.", *heads) + LoadPlan((
            *bert.EMBEDDINGS,
            plan.rename("encoder.embedding_hidden_mapping_in", "model.embed_project"),
            *(
                plan.rename(
                    f"encoder.albert_layer_groups.{group}.albert_layers.{inner}",
                    f"model.layers.{group * config.group + inner}",
                )
                for group, inner in places
            ),
            plan.rename(canonical + "attention.query", canonical + "self_attn.q_proj"),
            plan.rename(canonical + "attention.key", canonical + "self_attn.k_proj"),
            plan.rename(canonical + "attention.value", canonical + "self_attn.v_proj"),
            plan.rename(canonical + "attention.dense", canonical + "self_attn.o_proj"),
            plan.rename(canonical + "attention.LayerNorm", canonical + "attention_output_norm"),
            plan.rename(canonical + "ffn", canonical + "mlp.up_proj"),
            plan.rename(canonical + "ffn_output", canonical + "mlp.down_proj"),
            plan.rename(canonical + "full_layer_layer_norm", canonical + "mlp_output_norm"),
        ))  # fmt: skip
