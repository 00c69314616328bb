"""MPNet (all-mpnet-base): BERT without token types, whose scores have a bias by distance that all
layers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from boostr import nn
from boostr.errors import ModelFileError
from boostr.models import bert, encoder, plan, stack
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.plan import LoadPlan
from boostr.nn.module import Constant
from boostr.ops import core
from boostr.tensor import Tensor

DEFAULTS = bert.DEFAULTS | {"vocab_size": 30527, "relative_attention_num_buckets": 32}
_BUCKETS, _FAR = 32, 128  # whatever the config says; all that is as far has one bias
_PADDING = 1  # likewise


class Stack(stack.Stack):
    """See `stack.Stack`. The bias of each bucket of distances is [rows, H]."""

    def __init__(self, config: ModelConfig, block: Callable[..., Any]) -> None:
        super().__init__(config, block)
        rows, heads = config.extra["relative_attention_num_buckets"], config.layers[0].mixer.heads
        self.relative_attention_bias: Any = nn.Parameter((rows, heads), "vector")
        self._buckets: Any = Constant(buckets())

    def __call__(self, batch: nn.Batch, recompute: str = "none") -> Iterator[Tensor]:
        bias = core.take(self.relative_attention_bias, self._buckets).transpose()
        return super().__call__(replace(batch, distance_bias=bias), recompute)


class Model(encoder.Model):
    """See `encoder.Model`."""

    stack = Stack

    @staticmethod
    def read_config(config: RawConfig) -> ModelConfig:
        config = config.filled(**DEFAULTS)
        rows = config.size("relative_attention_num_buckets")
        if rows < _BUCKETS:
            raise ModelFileError(
                f"{config.source}: relative_attention_num_buckets must be {_BUCKETS} or more, "
                f"got {rows}"
            )
        return bert.bert_config(config, _PADDING + 1, padding=_PADDING, types=None)

    @staticmethod
    def load_plan(config: ModelConfig) -> LoadPlan:
        layer, canonical = "encoder.layer.{i}.", "model.layers.{i}."
        bias = "relative_attention_bias"
        return encoder.model_alone("mpnet.", "lm_head.") + LoadPlan((
            *bert.EMBEDDINGS,
            plan.rename(f"encoder.{bias}.weight", f"model.{bias}"),
            *(
                plan.rename(
                    f"{layer}attention.attn.{part}", f"{canonical}self_attn.{part}_proj"
                )
                for part in "qkvo"
            ),
            plan.rename(layer + "attention.LayerNorm", canonical + "attention_output_norm"),
            *bert.FEED_FORWARD,
        ))  # fmt: skip


def buckets() -> np.ndarray:
    """int32 [2M+1]: the bucket of each distance from -M to M: near ones have their own, farther
    ones share, by the logarithm; those after a token are numbered behind those before it."""
    distance = np.arange(-_FAR, _FAR + 1)
    half, away = _BUCKETS // 2, np.abs(distance)
    near = half // 2
    ratio = np.log(np.maximum(away, 1).astype(np.float32) / near) / math.log(_FAR / near)
    far = near + (ratio * (half - near)).astype(np.int32)
    shared = np.where(away < near, away, np.minimum(far, half - 1))
    return (half * (distance > 0) + shared).astype(np.int32)
