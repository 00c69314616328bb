"""Which module of this backend holds the kernel of which op. Opened on first use."""

from __future__ import annotations

import importlib
import importlib.util

from boostr import env
from boostr.backends.base import Kernel

# op -> room and module of boostr.backends.numpy whose KERNELS has it
_MODULES = {
    op: module
    for module, ops in {
        "products.linear": ("linear",),
        "products.linear_backward": ("linear_input_gradient", "linear_weight_gradient"),
        "rows.norm": (
            "rms_norm",
            "add_rms_norm",
            "layer_norm",
            "add_layer_norm",
            "add_norm",
            "rms_norm_backward",
            "layer_norm_backward",
        ),
        "rows.rope": ("rope", "rope_backward"),
        "rows.activation": (
            "silu",
            "gelu",
            "swiglu",
            "geglu",
            "softmax",
            "log_softmax",
            "silu_backward",
            "gelu_backward",
            "swiglu_backward",
            "geglu_backward",
        ),
        "rows.embedding": ("embedding", "embedding_backward"),
        "rows.loss": ("cross_entropy", "cross_entropy_backward"),
        "rows.optim": ("adamw", "global_norm"),
        "attention.cache": ("slot_mapping", "kv_write", "advance_rows"),
        "attention.attention": ("varlen_attention", "paged_attention"),
        "attention.attention_backward": ("varlen_attention_backward",),
        "products.quant": ("quantize", "dequantize", "read_blocks"),
        "sampling.sampling": (
            "argmax",
            "greedy",
            "penalize",
            "add_bias",
            "sample",
            "record_tokens",
        ),
        "sampling.logprobs": ("top_logprobs",),
    }.items()
    for op in ops
}


def find_kernel(op: str) -> Kernel | str:
    """The kernel of an op, or why there is none here."""
    if op not in _MODULES:
        return "the numpy backend has no kernel for it"
    if env.JIT.integer() == 0:
        return f"{env.JIT.name} is 0"
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed (pip install 'boostr[cpu]')"
    return importlib.import_module(f"boostr.backends.numpy.{_MODULES[op]}").KERNELS[op]
