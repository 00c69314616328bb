"""Which module of this backend holds the kernel of which op. Opened on first use."""

from __future__ import annotations

import importlib

from boostr.backends.base import Kernel

# module of boostr.backends.wgpu -> the ops in its KERNELS
OPS_OF: dict[str, tuple[str, ...]] = {
    "norm": (
        "rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "rms_norm_backward",
        "layer_norm_backward",
    ),
    "rope": ("rope", "rope_backward"),
    "activation": (
        "silu", "gelu", "swiglu", "geglu", "softmax", "log_softmax", "silu_backward",
        "gelu_backward", "swiglu_backward", "geglu_backward",
    ),
    "embedding": ("embedding", "embedding_backward"),
    "cache": ("slot_mapping", "kv_write", "advance"),
    "loss": ("cross_entropy", "cross_entropy_backward"),
    "optim": ("adamw", "global_norm"),
    "attention": ("varlen_attention", "paged_attention"),
    "attention_backward": ("varlen_attention_backward",),
    "linear": ("linear",),
    "decoder": (
        "qkv_rope", "qkv_rope_write", "paged_attention_linear", "norm_gated_linear", "norm_linear",
    ),
    "quant": ("quantize", "dequantize"),
    "sampling": (
        "argmax", "penalize", "sample", "record_tokens", "philox", "filtered_probabilities",
    ),
}  # fmt: skip
_MODULE = {op: module for module, ops in OPS_OF.items() for op in ops}


def find_kernel(op: str) -> Kernel | str:
    """The kernel of an op, or why there is none here."""
    if op not in _MODULE:
        return "the wgpu backend has no kernel for it"
    return importlib.import_module(f"boostr.backends.wgpu.{_MODULE[op]}").KERNELS[op]
