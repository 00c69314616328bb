"""Modules that two or more models use."""

from boostr.nn.attention import Attention
from boostr.nn.batch import Batch, CacheView
from boostr.nn.linear import Embedding, Linear
from boostr.nn.mlp import ACTIVATIONS, GatedMLP, activation
from boostr.nn.module import Module, Parameter
from boostr.nn.norm import LayerNorm, RMSNorm

__all__ = [
    "ACTIVATIONS", "Attention", "Batch", "CacheView", "Embedding", "GatedMLP", "LayerNorm",
    "Linear", "Module", "Parameter", "RMSNorm", "activation",
]  # fmt: skip
