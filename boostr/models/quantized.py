"""Checkpoints that are quantized already: which method a config names, and the rules for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.errors import DTypeError, ModelFileError
from boostr.io.settings import read_object
from boostr.models import plan
from boostr.models.assemble import assemble
from boostr.models.plan import LoadPlan
from boostr.quant.formats.awq import AWQ
from boostr.quant.formats.bitsandbytes import BitsAndBytes
from boostr.quant.formats.compressed_tensors import CompressedTensors
from boostr.quant.formats.fp8 import FP8
from boostr.quant.formats.gptq import GPTQ, auto_round
from boostr.quant.formats.layout import Method
from boostr.quant.formats.mlx import MLX
from boostr.quant.formats.modelopt import ModelOpt
from boostr.quant.formats.table import Table

METHODS: dict[str, Callable[[Table, np.dtype], Method]] = {
    "compressed-tensors": CompressedTensors,
    "gptq": GPTQ,
    "auto-round": auto_round,
    "awq": AWQ,
    "bitsandbytes": BitsAndBytes,
    "mlx": MLX,
    "fp8": FP8,
    "fbgemm_fp8": FP8,
    "modelopt": ModelOpt,
}
# where a config says it: transformers' key, an old one of compressed-tensors, that of MLX and of
# ModelOpt, which has it in a file of its own
KEYS = ("quantization_config", "compression_config", "quantization")
_CACHE_SCALES = (".q_scale", ".k_scale", ".v_scale")  # of attention in 8 bits


def quantization_method(raw: Mapping[str, Any]) -> str | None:
    """The method that a config.json names, such as "gptq"; None for plain weights.

    MLX writes bits and group size alone, ModelOpt's own file `quant_algo`.
    """
    found = _table(raw)
    if found is None:
        return None
    key, table = found
    named = table.get("quant_method") or table.get("quant_algo")
    return str(named) if named else "mlx" if "group_size" in table else f"unnamed ({key})"


def method_of(raw: Mapping[str, Any], source: str) -> Method | None:
    """How the weights of a config.json are quantized; None if they are plain.

    Raises:
        ModelFileError: a method, or an option of it, that boostr does not read; no weight has been.
    """
    name, found = quantization_method(raw), _table(raw)
    if name is None or found is None:
        return None
    key, table = found
    read = ModelOpt if table.get("quant_algo") else METHODS.get(name)
    if read is None:
        raise ModelFileError(
            f"{source}: the weights are quantized by the method {name!r}, which boostr does not "
            f"read; it reads {', '.join(METHODS)}, safetensors of float32, float16 and bfloat16, "
            "and GGUF files. Take the model that this one was made from (and quantize="
            '"int8" to pack it), or a GGUF of it'
        )
    return read(Table(table, f"{source}: {key}"), _float_dtype(raw))


def method_in(folder: Path, raw: Mapping[str, Any]) -> Method | None:
    """As `method_of`, of a folder with this config.json: ModelOpt may say it in a file beside."""
    separate = folder / "hf_quant_config.json"
    said = _table(raw) or not separate.is_file()
    source = folder / "config.json" if said else separate
    return method_of(raw if said else {**raw, **read_object(separate)}, str(source))


def refuse_quantized(folder: Path, raw: Mapping[str, Any], source: str) -> None:
    """Raises ModelFileError for a folder that cannot be rounded, as it has been already."""
    method = method_in(folder, raw)
    if method is not None:
        raise ModelFileError(
            f"{source}: the weights are quantized already, by {method.name}; take the model that "
            "this one was made from"
        )


def quantized_plan(method: Method | None) -> LoadPlan:
    """The rules that make packed weights of a checkpoint's tensors, under its own names: what comes
    before a family's plan. Empty for plain weights."""
    if method is None:
        return LoadPlan()
    return LoadPlan((assemble(method), plan.leftover(suffixes=_CACHE_SCALES)))


def _table(raw: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """(key, table) of a config that says how weights are quantized."""
    for key in KEYS:
        table = raw.get(key)
        if isinstance(table, Mapping) and table:
            return key, table
    return None


def _float_dtype(raw: Mapping[str, Any]) -> np.dtype:
    """The dtype that the weights had before."""
    try:
        dtype = dtypes.parse(raw.get("dtype") or raw.get("torch_dtype") or "float32")
    except DTypeError:
        return dtypes.float32
    return dtype if dtype in dtypes.MODEL_FLOATS else dtypes.float32
