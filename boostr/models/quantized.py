"""Checkpoints that are quantized already: which method, and that this version does not read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from boostr.errors import ModelFileError


def quantization_method(raw: Mapping[str, Any]) -> str | None:
    """The method that a config.json names, such as "gptq"; None for plain weights.

    `quantization_config` is transformers' key, `compression_config` an old one of
    compressed-tensors; MLX writes `quantization` with bits and group size alone, and ModelOpt, in
    a file of its own, `quantization` with `quant_algo`.
    """
    for key in ("quantization_config", "compression_config", "quantization"):
        table = raw.get(key)
        if not isinstance(table, Mapping) or not table:
            continue
        named = table.get("quant_method") or table.get("quant_algo")
        return str(named) if named else "mlx" if "group_size" in table else f"unnamed ({key})"
    return None


def refuse_quantized(raw: Mapping[str, Any], source: str) -> None:
    """Raises ModelFileError, before any weight is read, if a config names a method."""
    method = quantization_method(raw)
    if method is not None:
        raise ModelFileError(
            f"{source}: the weights are quantized by the method {method!r}, which boostr does not "
            "read; it reads safetensors of float32, float16 and bfloat16, and GGUF files. Take the "
            'model that this one was made from (and quantize="int8" to pack it), or a GGUF of it'
        )
