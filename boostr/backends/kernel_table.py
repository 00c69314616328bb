"""Which module of a GPU backend holds the kernel of which op: what cupy and wgpu both have."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from boostr.backends.base import Kernel

# room and module of boostr.backends.NAME -> the ops in its KERNELS
OPS_OF: dict[str, tuple[str, ...]] = {
    "products.linear": ("linear",),
    "products.linear_backward": ("linear_input_gradient", "linear_weight_gradient"),
    "rows.norm": (
        "rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm", "add_norm",
        "rms_norm_backward", "layer_norm_backward",
    ),
    "rows.rope": ("rope", "rope_backward"),
    "rows.activation": (
        "silu", "gelu", "swiglu", "geglu", "softmax", "log_softmax", "silu_backward",
        "gelu_backward", "swiglu_backward", "geglu_backward",
    ),
    "rows.embedding": ("embedding", "embedding_backward"),
    "attention.cache": ("slot_mapping", "kv_write", "advance_rows"),
    "products.quant": ("quantize", "dequantize"),
    "attention.attention": ("varlen_attention", "paged_attention"),
    "attention.attention_backward": ("varlen_attention_backward",),
    "rows.loss": ("cross_entropy", "cross_entropy_backward"),
    "rows.optim": ("adamw", "global_norm"),
    "sampling.sampling": ("argmax", "greedy", "penalize", "add_bias", "sample", "record_tokens",
                          "philox", "filtered_probabilities"),
    "sampling.logprobs": ("top_logprobs",),
    "products.fusion": ("products", "attention_inputs", "attend", "product"),
}  # fmt: skip


def finder(
    backend: str, ops_of: dict[str, tuple[str, ...]] = OPS_OF
) -> Callable[[str], Kernel | str]:
    """The function that finds an op's kernel on that backend, or says why there is none. Modules
    are opened on first use."""
    module_of = {op: module for module, ops in ops_of.items() for op in ops}

    def find_kernel(op: str) -> Kernel | str:
        if op not in module_of:
            return f"the {backend} backend has no kernel for it"
        return importlib.import_module(f"boostr.backends.{backend}.{module_of[op]}").KERNELS[op]

    return find_kernel
