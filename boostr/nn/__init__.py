"""Modules that two or more models use."""

from boostr.nn.attention import Attention
from boostr.nn.batch import Batch
from boostr.nn.block import Block
from boostr.nn.fusion import activation
from boostr.nn.linear import Embedding, Linear
from boostr.nn.mlp import MLP
from boostr.nn.module import Feed, Module, Parameter
from boostr.nn.norm import Norm
from boostr.nn.specs import (
    AttentionSpec,
    EmbeddingSpec,
    HeadSpec,
    LayerNorms,
    LayerSpec,
    MLPSpec,
    NormSpec,
)

__all__ = [
    "MLP", "Attention", "AttentionSpec", "Batch", "Block", "Embedding", "EmbeddingSpec",
    "Feed", "HeadSpec", "LayerNorms", "LayerSpec", "Linear", "MLPSpec", "Module", "Norm",
    "NormSpec", "Parameter", "activation",
]  # fmt: skip
