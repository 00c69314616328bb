"""Adapters in PEFT's file format: adapter_config.json and adapter_model.safetensors.

A low-rank adapter of a module X of transformers is two tensors, `base_model.model.X.lora_A.weight`
[r, in] and `…X.lora_B.weight` [out, r]; of a table of embeddings `…X.lora_embedding_A` [r, V] and
`…X.lora_embedding_B` [E, r]. What the config has beyond that is obeyed or refused by its name.
Source: peft 0.21, `LoraConfig` and `utils/save_and_load.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boostr import dtypes
from boostr.errors import ModelFileError, NumericsError
from boostr.io.mapping import refuse_foreign
from boostr.io.safetensors import SafetensorsFile, save
from boostr.io.settings import ANY, INERT, Settings, Table, obeyed, read_object, unless

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
# what is kept of a first value that changes the base is the difference, which is not in the file
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
_KEYS: Table = {
    "peft_type": obeyed(str),
    "r": obeyed(int),
    "lora_alpha": obeyed(int, float),
    "use_rslora": obeyed(bool),
    "rank_pattern": obeyed(dict),
    "alpha_pattern": obeyed(dict),
    "modules_to_save": obeyed(list),
    "ensure_weight_tying": obeyed(bool),
    "init_lora_weights": unless(*_PLAIN_STARTS),
    "bias": unless("none"),
    # which modules have one: the file's tensors say it, as does how their weights lie the model
    **dict.fromkeys(
        ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
         "fan_in_fan_out"), INERT),
    # of training, and remarks
    **dict.fromkeys(
        ("lora_dropout", "task_type", "base_model_name_or_path", "revision", "inference_mode",
         "auto_mapping", "peft_version", "eva_config", "megatron_core", "qalora_group_size"),
        INERT),
    ANY: unless(False, {}, []),
}  # fmt: skip


@dataclass(frozen=True)
class Factors:
    """The adapter of one module: scale · up · down is added to its weight [out, in].

    Attributes:
        down: float [r, in], PEFT's A.   up: float [out, r], its B.
        table: whether the module is one of embeddings, [V, E] = [out, in].
    """

    down: np.ndarray
    up: np.ndarray
    scale: float
    table: bool = False


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder holds.

    Attributes:
        source: the folder, for messages.   layers: module of transformers -> its factors.
        whole: name -> weights that take the place of the model's (`modules_to_save`).
        tied: whether an adapter of the embedding is meant for a head tied to it, too.
        dropout: what it was trained with, a remark.
    """

    source: str
    layers: Mapping[str, Factors]
    whole: Mapping[str, np.ndarray] = field(default_factory=dict)
    tied: bool = False
    dropout: float = 0.0


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter in a folder; its numbers are views of the file.

    Raises:
        ModelFileError: files that are missing, malformed or a pickle; a kind of adapter, a key of
            the config or a tensor that is not supported, by its name.
    """
    folder = Path(folder)
    raw = read_object(folder / CONFIG, required=True)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise ModelFileError(f"{folder / CONFIG}: peft_type must be LORA, got {kind!r:.80}")
    if raw.get("use_dora"):
        raise ModelFileError(f"{folder / CONFIG}: use_dora: magnitudes (DoRA) are not supported")
    config = Settings(raw, str(folder / CONFIG), _KEYS)
    pairs, whole = _sorted(_tensors(folder), config.get("modules_to_save", []), folder)
    if not pairs and not whole:
        raise ModelFileError(f"{folder / TENSORS}: no tensors of an adapter are in it")
    layers = {module: _factors(module, pair, config) for module, pair in pairs.items()}
    return Adapter(str(folder), layers, whole, config.get("ensure_weight_tying", False))


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of the file under the names that they have in the base model."""
    path = folder / TENSORS
    if not path.exists() and (folder / PICKLE).exists():
        with (folder / PICKLE).open("rb") as file:
            refuse_foreign(folder / PICKLE, file.read(16))
    with SafetensorsFile(path) as file:
        foreign = [name for name in file.names if not name.startswith(_PREFIX)]
        if foreign:
            raise ModelFileError(
                f"{path}: expected names that begin with {_PREFIX}, got {_some(foreign)}"
            )
        tensors = {name.removeprefix(_PREFIX): file.tensor(name) for name in file.names}
    for name, array in tensors.items():
        if array.dtype not in dtypes.MODEL_FLOATS:
            raise ModelFileError(f"{path}: {name} is {array.dtype}; expected 16 or 32 bit floats")
        if not np.isfinite(array.astype(np.float32)).all():
            raise ModelFileError(f"{path}: {name} has numbers that are nan or infinite")
    return tensors


# the end of a tensor's name -> (which factor it is, whether of a table)
_ENDS = {
    ".lora_A.weight": ("A", False), ".lora_B.weight": ("B", False),
    ".lora_embedding_A": ("A", True), ".lora_embedding_B": ("B", True),
}  # fmt: skip
_Pair = dict[tuple[str, bool], np.ndarray]


def _sorted(
    tensors: Mapping[str, np.ndarray], modules_to_save: Iterable[str], folder: Path
) -> tuple[dict[str, _Pair], dict[str, np.ndarray]]:
    """(module -> its factors by kind, name -> whole weight)."""
    kept = [re.compile(rf"(.*\.)?{re.escape(str(name))}(\..*)?") for name in modules_to_save]
    pairs: dict[str, _Pair] = {}
    whole: dict[str, np.ndarray] = {}
    unknown = []
    for name, array in tensors.items():
        end = next((end for end in _ENDS if name.endswith(end)), None)
        module, _, part = name.rpartition(".")
        if end is not None:
            pairs.setdefault(name.removesuffix(end), {})[_ENDS[end]] = array
        elif name.endswith(".base_layer.weight"):  # of a table that has an adapter, too
            whole[name.removesuffix("base_layer.weight") + "weight"] = array
        elif part in ("weight", "bias") and any(k.fullmatch(module) for k in kept):
            whole[name] = array
        else:
            unknown.append(name)
    if unknown:
        raise ModelFileError(
            f"{folder / TENSORS}: tensors that are not supported: {_some(unknown)}"
        )
    return pairs, whole


def _factors(module: str, pair: _Pair, config: Settings) -> Factors:
    """The factors of a module, of the rank that the config says."""
    table = next(iter(pair))[1]
    if set(pair) != {("A", table), ("B", table)}:
        raise ModelFileError(f"{config.source}: {module}: expected one A and one B of one kind")
    A, B = pair["A", table], pair["B", table]
    rank = _of_module(module, config, "rank_pattern", "r", 8)
    alpha = _of_module(module, config, "alpha_pattern", "lora_alpha", 8)
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != rank or B.shape[1] != rank:
        raise ModelFileError(
            f"{config.source}: {module}: expected A [r, in] and B [out, r] with r = {rank}, got "
            f"{list(A.shape)} and {list(B.shape)}"
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora", False) else rank)
    return Factors(B.T, A.T, scale, True) if table else Factors(A, B, scale)


def _of_module(module: str, config: Settings, patterns: str, key: str, default: int) -> float:
    """A number of one module: that of the first pattern that its name ends with, else of all."""
    number = config.get(key, default)
    for pattern, own in config.get(patterns, {}).items():
        try:
            fits = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise ModelFileError(f"{config.source}: {patterns}: {pattern!r}: {error}") from None
        if fits:
            number = own
            break
    if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
        raise ModelFileError(f"{config.source}: {key} of {module} must be above 0, got {number!r}")
    return number


def write_adapter(
    folder: str | Path, adapter: Adapter, modules: Iterable[str], **remarks: str | None
) -> None:
    """Write an adapter as peft reads it; factors in float32, alpha such that scale = alpha / r.

    Args:
        folder: made if need be; an adapter that is there is written over.
        modules: all of the model that could have an adapter, so that those which have one are named
            by their last part where all of that name do.
        remarks: base_model_name_or_path, task_type.
    """
    folder = Path(folder)
    ranks = {name: own.down.shape[0] for name, own in adapter.layers.items()}
    alphas = {name: own.scale * ranks[name] for name, own in adapter.layers.items()}
    r, alpha = _most(ranks.values()), _most(alphas.values())
    config = {
        "peft_type": "LORA",
        **remarks,
        "r": r,
        "lora_alpha": _plain(alpha),
        "target_modules": _targets(list(adapter.layers), modules),
        "rank_pattern": {_exactly(n): rank for n, rank in ranks.items() if rank != r},
        "alpha_pattern": {_exactly(n): _plain(a) for n, a in alphas.items() if a != alpha},
        "modules_to_save": sorted({n.rpartition(".")[0] for n in adapter.whole}) or None,
        "bias": "none", "lora_dropout": adapter.dropout, "use_rslora": False, "use_dora": False,
        "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip
    if adapter.tied:
        config["ensure_weight_tying"] = True
    tensors = {_PREFIX + name: array for name, array in adapter.whole.items()}
    for name, own in adapter.layers.items():
        A, B = (own.up.T, own.down.T) if own.table else (own.down, own.up)
        ends = (end for end, (_, table) in _ENDS.items() if table == own.table)
        for end, array in zip(ends, (A, B), strict=True):
            tensors[_PREFIX + name + end] = np.asarray(array, np.float32)
    broken = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    if broken:
        raise NumericsError(f"{folder}: {_some(broken)}: numbers that are nan or infinite")
    folder.mkdir(parents=True, exist_ok=True)
    save(folder / TENSORS, tensors, {"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _targets(adapted: list[str], modules: Iterable[str]) -> list[str]:
    """The last parts of names that stand for these modules and no others; else whole names."""
    left = {_last(name) for name in set(modules) - set(adapted)}
    return sorted({_last(n) if _last(n) not in left else n for n in adapted})


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _exactly(name: str) -> str:
    """A pattern of one module; peft puts any beginning before it that ends with a dot."""
    return "^" + re.escape(name)


def _most(numbers: Iterable[float]) -> Any:
    return Counter(numbers).most_common(1)[0][0]


def _plain(number: float) -> float:
    """Whole numbers as such."""
    return int(number) if number == int(number) else number


def _some(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
