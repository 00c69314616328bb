"""Recipes: what a quantized checkpoint is made of, for each target that a user may name.

A recipe says which scheme the weights of a role get and what config.json then says of them; the
methods in `quant/formats` lay the weights out, so that what is written is what is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boostr.errors import OptionError
from boostr.quant.scheme import (
    QUANTIZABLE,
    SCHEMES,
    Scheme,
    affine_scheme,
    did_you_mean,
    embedding_scheme,
    parse_scheme,
)

Config = dict[str, Any]
MLX_BITS = (2, 3, 4, 5, 6, 8)
TARGETS = (*QUANTIZABLE, "mlx:4", "mlx:8", "gguf:Q4_K_M", "gguf:Q8_0")  # some of all, for messages
_MLX = re.compile(r"mlx:(\d+)(?:-g(\d+))?")


@dataclass(frozen=True)
class Modules:
    """The modules of a checkpoint, by what becomes of their weights.

    Attributes:
        embeddings, heads: those of the embedding and of an output projection of its own.
        left: all others with a weight [N, K] that stays as it is.
    """

    embeddings: Sequence[str]
    heads: Sequence[str]
    left: Sequence[str]


@dataclass(frozen=True)
class Recipe:
    """Schemes by role ("linear", "embedding", "head"); a role that is not there stays as it is.

    Attributes:
        method: whose config it is, for messages.
    """

    name: str
    method: str
    schemes: Mapping[str, Scheme]

    def config(self, modules: Modules) -> Config:
        """What config.json gains."""
        make = {"compressed-tensors": _compressed_tensors, "mlx": _mlx, "bitsandbytes": _nf4}
        return make[self.method](self, modules)


def recipe(target: str, tables: str | bool | None, floats: str) -> Recipe:
    """What `boostr.quantize` makes of a target such as "int4-g64" or "mlx:4".

    Args:
        tables: as `quantize_embeddings` of `load`.   floats: the kind of the weights as they are,
            f32, f16 or bf16.
    Raises:
        OptionError: a target that there is not, or one whose embedding cannot be as asked.
    """
    found = _MLX.fullmatch(target)
    if found is not None:
        return _mlx_recipe(target, int(found[1]), int(found[2] or 64), tables, floats)
    if target not in QUANTIZABLE:
        raise OptionError(
            f"quantize: unknown scheme {target!r}; known: {', '.join(TARGETS)} (mlx: with "
            f"{', '.join(map(str, MLX_BITS))} bits, gguf: with any type of llama-quantize)"
            f"{did_you_mean(target, TARGETS)}"
        )
    if target == "nf4":
        if tables is not None and tables is not False:
            raise OptionError(
                "quantize: bitsandbytes packs linear layers only; embedding and head of an nf4 "
                "folder stay as they are (quantize_embeddings=False)"
            )
        return Recipe(target, "bitsandbytes", {"linear": SCHEMES["nf4"]})
    schemes = {"linear": parse_scheme(target)}
    head = embedding_scheme(target, tables)
    if head == "nf4":
        raise OptionError(
            f"quantize: compressed-tensors has no nf4, so that the head of an {target} folder "
            "cannot be; take int8, int8-g32 or fp8, or nf4 as the scheme of all"
        )
    if head is not None:
        schemes["head"] = parse_scheme(head)
    return Recipe(target, "compressed-tensors", schemes)


def _mlx_recipe(
    target: str, bits: int, group: int, tables: str | bool | None, floats: str
) -> Recipe:
    if bits not in MLX_BITS or group not in (32, 64, 128):
        raise OptionError(
            f"quantize: {target!r}: bits are one of {', '.join(map(str, MLX_BITS))}, groups 32, "
            "64 or 128, as in mlx:4-g32"
        )
    if isinstance(tables, str):
        raise OptionError(
            f"quantize: under {target} embedding and head take 8 bits, the same bits "
            "(quantize_embeddings=True) or stay as they are (False)"
        )
    linear = affine_scheme(bits, group, floats)
    if tables is False:
        return Recipe(target, "mlx", {"linear": linear})
    own = linear if tables else affine_scheme(8, group, floats)
    return Recipe(target, "mlx", {"linear": linear, "embedding": own, "head": own})


def _compressed_tensors(recipe: Recipe, modules: Modules) -> Config:
    """Of compressed-tensors, by class of module; the head by its name, which goes before."""
    linear, head = recipe.schemes["linear"], recipe.schemes.get("head")
    groups = {"group_0": _group(linear, ["Linear"])}
    if head is None:
        ignore = [*modules.heads, *modules.left]
    else:
        ignore = list(modules.left)
        if head != linear and modules.heads:
            groups["group_1"] = _group(head, list(modules.heads))
    formats = {group["format"] for group in groups.values()}
    return {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": sorted(ignore),
            "kv_cache_scheme": None,
        }
    }


def _group(scheme: Scheme, targets: list[str]) -> Config:
    weights = {
        "num_bits": scheme.bits,
        "type": "float" if scheme.values else "int",
        "symmetric": True,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size or None,
        "dynamic": False,
    }
    inputs = None
    form = "float-quantized" if scheme.values else "pack-quantized"
    if scheme.activations_int8:
        form = "int-quantized"
        inputs = {
            "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
        }  # fmt: skip
    return {
        "targets": targets, "weights": weights, "input_activations": inputs,
        "output_activations": None, "format": form,
    }  # fmt: skip


def _mlx(recipe: Recipe, modules: Modules) -> Config:
    """Of mlx-lm, which looks for the scales of a module, and else at the file's tensors."""
    linear = recipe.schemes["linear"]
    table: Config = {"group_size": linear.group_size, "bits": linear.bits, "mode": "affine"}
    for role, names in (("embedding", modules.embeddings), ("head", modules.heads)):
        scheme = recipe.schemes.get(role)
        for name in names:
            if scheme is None:
                table[name] = False
            elif scheme != linear:
                table[name] = {"group_size": scheme.group_size, "bits": scheme.bits}
    return {"quantization": table, "quantization_config": table}


def _nf4(recipe: Recipe, modules: Modules) -> Config:
    """Of transformers' BitsAndBytesConfig."""
    return {
        "quantization_config": {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": False,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": sorted({*modules.heads, *modules.left}),
        }
    }
