"""The operations: each a composite of primitives, and a kernel where a backend has one."""

from boostr.ops import core as core
from boostr.ops.activation import (
    geglu,
    gelu,
    log_softmax,
    quick_gelu,
    relu,
    relu2,
    silu,
    softmax,
    swiglu,
)
from boostr.ops.attention import paged_attention, varlen_attention
from boostr.ops.cache import kv_write, slot_mapping
from boostr.ops.dropout import dropout
from boostr.ops.embedding import embedding
from boostr.ops.linear import linear
from boostr.ops.linear_loss import linear_cross_entropy
from boostr.ops.logprobs import top_logprobs
from boostr.ops.loss import cross_entropy
from boostr.ops.norm import layer_norm, rms_norm
from boostr.ops.optim import adamw, adamw_step, clip_scale, global_norm
from boostr.ops.quant import dequantize, quantize
from boostr.ops.rope import rope
from boostr.ops.rows import advance_rows
from boostr.ops.sampling import (
    add_bias,
    filtered_probabilities,
    greedy,
    penalize,
    record_tokens,
    sample,
)
from boostr.ops.states import begin_rows, read_rows, write_rows

__all__ = [
    "adamw", "adamw_step", "add_bias", "advance_rows", "begin_rows", "clip_scale", "core",
    "cross_entropy", "dequantize", "dropout", "embedding", "filtered_probabilities", "geglu",
    "gelu", "global_norm", "greedy", "kv_write", "layer_norm", "linear", "linear_cross_entropy",
    "log_softmax", "paged_attention", "penalize", "quantize", "quick_gelu", "read_rows",
    "record_tokens", "relu", "relu2", "rms_norm", "rope", "sample", "silu", "slot_mapping",
    "softmax", "swiglu", "top_logprobs", "varlen_attention", "write_rows",
]  # fmt: skip
