"""A GGUF file as a Hugging Face folder of floats: `convert` the other way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.engine.load import empty_module
from boostr.errors import ModelFileError, OptionError
from boostr.io.disk import room_for
from boostr.io.gguf import PLAIN_TYPES
from boostr.io.gguf_split import GGUFSource, open_gguf
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_gguf import has_tokenizer
from boostr.models.base import Model
from boostr.models.config import RawConfig
from boostr.models.gguf import (
    architecture_of,
    gguf_plan,
    gguf_weights,
    layer_numbers,
    reordered,
)
from boostr.models.gguf_config import hf_config
from boostr.models.gguf_folder import Decoded, folder_config, shortest
from boostr.models.gguf_metadata import differing
from boostr.models.lazy import LazyWeight, whole
from boostr.models.save import new_folder, write_shards
from boostr.models.weights import CheckpointWeights, check_names

SHARD_BYTES = 1_000_000_000  # in memory until it is written
Progress = Callable[[int, int, str], None]


def write_from_gguf(path: Path, out: Path, dtype: Any, progress: Progress | None) -> None:
    """Write a GGUF file as the folder `out`; see `convert`."""
    with open_gguf(path) as file, new_folder(out) as made:
        chosen, source = _dtype(file, dtype), str(file.path)
        said = shortest(hf_config(file))
        module = empty_module(RawConfig(said, source))
        tokenizer = None
        if has_tokenizer(file.metadata):
            tokenizer = Tokenizer.from_gguf(file.metadata, source)
        row = architecture_of(file)[1]
        config = folder_config(said, row, chosen, source) | _ends(module, tokenizer)
        target = empty_module(RawConfig(config, source))
        lost = differing(module.config, target.config)
        if lost is not None:
            name, ours, theirs = lost
            raise ModelFileError(
                f"{source}: a config.json cannot say {name} {ours}; programs would take it for "
                f"{theirs}"
            )
        _write_json(made / "config.json", config)
        _write_json(made / "generation_config.json", _ends(module, tokenizer))
        if tokenizer is not None:
            _write_tokenizer(tokenizer, made)
        stored = _stored(file, module, target, chosen)
        size = sum(math.prod(weight.shape) for weight in stored.values()) * chosen.itemsize
        with room_for(out, size):
            write_shards(made, _tensors(stored, progress), SHARD_BYTES)


def _dtype(file: GGUFSource, asked: Any) -> np.dtype:
    if asked is not None:
        wanted = dtypes.parse(asked)
        if wanted not in dtypes.MODEL_FLOATS:
            names = ", ".join(str(d) for d in dtypes.MODEL_FLOATS)
            raise OptionError(f"convert: dtype must be one of {names}, got {wanted}")
        return wanted
    types = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) > 1}
    held = {np.dtype(PLAIN_TYPES[t]) if t in PLAIN_TYPES else None for t in types}
    return next((one for one in dtypes.MODEL_FLOATS if held == {one}), dtypes.bfloat16)


def _ends(module: Model, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The ids of tokens that the folder's configs name."""
    ends = dict.fromkeys(module.config.eos_token_ids)
    ids: dict[str, Any] = {}
    if tokenizer is not None:
        ends |= dict.fromkeys(tokenizer.eos_ids)
        ids = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    ids["eos_token_id"] = next(iter(ends)) if len(ends) == 1 else list(ends) or None
    return {name: id_ for name, id_ in ids.items() if id_ is not None}


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.inner.save(str(folder / "tokenizer.json"))
    special = tokenizer.special
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **special.names,
    }
    templates = [{"name": name, "template": text} for name, text in special.templates.items()]
    if templates:
        alone = special.templates.keys() == {"default"}
        config["chat_template"] = special.templates["default"] if alone else templates
    _write_json(folder / "tokenizer_config.json", config)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _stored(
    file: GGUFSource, module: Model, target: Model, dtype: np.dtype
) -> dict[str, LazyWeight]:
    """The folder's tensors: the file's plan forwards, then the family's backwards."""
    path, config = str(file.path), module.config
    row = architecture_of(file)[1]
    plan = gguf_plan(config, row)
    held = gguf_weights(file) | layer_numbers(file, row, len(config.layers))
    places = {name: (owner, attribute) for name, owner, attribute in module.places()}
    check_names(places, CheckpointWeights(held, path, plan))
    weights = plan.load(held).weights
    added = 0.0
    if config.norm is not None:
        added = config.norm.offset - target.config.norm.offset  # Gemma's 1
    decoded = {}
    for name in places:
        plus = added if name.endswith("norm.weight") else 0.0
        weight = Decoded(weights[name], dtype, plus)
        decoded[name] = reordered(name, weight, config, row.layout, "split-half")
    return target.load_plan(target.config).save(decoded)


def _tensors(
    stored: dict[str, LazyWeight], progress: Progress | None
) -> Iterator[tuple[str, np.ndarray]]:
    for number, (name, weight) in enumerate(stored.items()):
        yield name, weight.read(whole(weight.shape))
        if progress is not None:
            progress(number + 1, len(stored), name)
