"""What a sentence-transformers folder does with hidden states: pooling, dense layers, prompts.

Nothing is imported by the names in these files: they are looked up in tables. Source:
sentence-transformers 6.2 (Pooling, Dense, LayerNorm and Normalize under their `modules`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boostr.engine.modules import Module, Prompts, read_modules, transformer_settings
from boostr.errors import ModelFileError
from boostr.io.gguf_split import GGUFSource
from boostr.io.safetensors import open_safetensors
from boostr.io.settings import Settings, read_settings
from boostr.models.gguf_heads import dense_weights

Step = Callable[[np.ndarray], np.ndarray]  # vectors [N, E] -> [N, E']
_MODEL_TYPE = "SentenceTransformer"


def _weighted_mean(states: np.ndarray, first: int) -> np.ndarray:
    weights = np.arange(first + 1, len(states) + 1, dtype=np.float32)
    return weights @ states[first:] / weights.sum()


# mode -> vector [E] of the states [T, E] of one text, whose tokens before `first` are left out
POOLINGS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "cls": lambda states, first: states[first],
    "max": lambda states, first: states[first:].max(0),
    "mean": lambda states, first: states[first:].mean(0),
    "mean_sqrt_len_tokens": lambda states, first: (
        states[first:].sum(0) / math.sqrt(len(states) - first)
    ),
    "weightedmean": _weighted_mean,
    "lasttoken": lambda states, first: states[-1],
}
# llama_pooling_type; 0 is none, where the caller chooses
GGUF_POOLINGS = {0: "mean", 1: "mean", 2: "cls", 3: "lasttoken"}
# The switches of older files, in the order in which several of them are put together.
_SWITCHES = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2  # which does not overflow


_erf = np.vectorize(math.erf, otypes=[np.float32])
ACTIVATIONS: dict[str, Step] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": _sigmoid,
    "SiLU": lambda x: x * _sigmoid(x),
    "GELU": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
}


def named_activation(full: str, what: str) -> Step:
    """The activation of a class of torch.nn, looked up by its name.

    Raises:
        ModelFileError: a name that is not in the table; `what` is what the message begins with.
    """
    name = full.rpartition(".")[2]
    if not full.startswith("torch.nn.") or name not in ACTIVATIONS:
        raise ModelFileError(
            f"{what} {full!r} is not known; boostr has torch.nn's {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


@dataclass(frozen=True)
class Sentence:
    """How texts become vectors.

    Attributes:
        poolings: names of POOLINGS; the vectors of several are put together.
        include_prompt: whether the tokens of a prompt are pooled, too.
        steps: what is done with the vectors after pooling, in turn.
        inputs, outputs: features that the first step takes and the last one gives; None for any.
        prompts: texts to put before a text.
        truncate_dim: how many numbers of a vector are kept.
        max_length: tokens of a text with its special ones.   lower_case: the text first.
        special_tokens: whether a text gets those of the tokenizer.
    """

    poolings: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Step, ...] = ()
    inputs: int | None = None
    outputs: int | None = None
    prompts: Prompts = field(default_factory=Prompts)
    truncate_dim: int | None = None
    max_length: int | None = None
    lower_case: bool = False
    special_tokens: bool = True

    @classmethod
    def from_folder(cls, folder: Path) -> Sentence:
        """From modules.json and the files that belong to it; without it unit vectors of the mean.

        Raises:
            ModelFileError: a module or a setting that is not known.
        """
        modules, settings = read_modules(folder), transformer_settings(folder)
        config = read_settings(folder / "config_sentence_transformers.json")
        truncate, kind = config.get("truncate_dim"), config.get("model_type", _MODEL_TYPE)
        if kind != _MODEL_TYPE:
            raise ModelFileError(f"{config.source}: model_type {kind!r} is not {_MODEL_TYPE!r}")
        if truncate is not None and truncate < 1:
            raise ModelFileError(f"{config.source}: truncate_dim must be 1 or more, got {truncate}")
        if "message" in settings.get("modality_config", {}):
            raise ModelFileError(
                f"{settings.source}: vectors of chat messages (modality_config) are not supported"
            )
        static = bool(modules) and modules[0].kind == "StaticEmbedding"
        after: dict[str, Any] = _after(folder, modules[1:]) if modules else {"steps": (normalize,)}
        return cls(
            special_tokens=not static,
            **after,
            prompts=Prompts.from_settings(config),
            truncate_dim=truncate,
            max_length=settings.get("max_seq_length"),
            lower_case=settings.get("do_lower_case", False),
        )

    @classmethod
    def from_gguf(cls, file: GGUFSource) -> Sentence:
        """From `pooling_type` of a file, the mean without it, and EmbeddingGemma's products behind
        it; unit vectors, as llama.cpp gives.

        Raises:
            ModelFileError: a pooling that is not known.
        """
        name = f"{file.metadata['general.architecture']}.pooling_type"
        kind = file.metadata.get(name, 0)
        if kind not in GGUF_POOLINGS:
            raise ModelFileError(
                f"{file.path}: {name} must be one of {list(GGUF_POOLINGS)}, got {kind!r:.80}"
            )
        made: dict[str, Any] = {"steps": (), "inputs": None, "outputs": None}
        for weight in dense_weights(file):
            N, K = weight.shape
            _add_step(str(file.path), made, lambda x, weight=weight: x @ weight.T, K, N)
        made["steps"] += (normalize,)
        return cls((GGUF_POOLINGS[kind],), **made)

    def pool(self, states: np.ndarray, first: int) -> np.ndarray:
        """The vector of hidden states float32 [T, E], without those before `first`."""
        return np.concatenate([POOLINGS[name](states, first) for name in self.poolings])


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, E] brought to unit length; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _after(folder: Path, modules: list[Module]) -> dict[str, Any]:
    """poolings, include_prompt and steps, with what they take and give, of these modules."""
    made: dict[str, Any] = {"steps": (), "inputs": None, "outputs": None}
    for module in modules:
        path = folder / module.path
        settings = read_settings(path / "config.json", f"{module.kind}/config.json")
        _AFTER[module.kind](settings, path, made)
    return made


def _pooling(config: Settings, path: Path, made: dict[str, Any]) -> None:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for switch, mode in _SWITCHES.items() if config.get(switch, False)] or "mean"
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    unknown = [mode for mode in modes if mode not in POOLINGS]
    if unknown or not modes:
        raise ModelFileError(
            f"{config.source}: pooling must be of {', '.join(POOLINGS)}, got {list(modes)}"
        )
    made |= {"poolings": modes, "include_prompt": config.get("include_prompt", True)}


def _dense(config: Settings, path: Path, made: dict[str, Any]) -> None:
    full = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = named_activation(full, f"{config.source}: activation_function")
    shape = (config.get("out_features"), config.get("in_features"))
    named: dict[str, tuple[Any, ...]] = {"linear.weight": shape}
    if config.get("bias", True):
        named["linear.bias"] = shape[:1]
    residual = config.get("use_residual", False)
    if residual and shape[0] != shape[1]:
        named["residual.weight"] = shape
    found = _tensors(path, named)
    weight, bias = found["linear.weight"], found.get("linear.bias", np.float32(0))
    aside = found.get("residual.weight")

    def dense(x: np.ndarray) -> np.ndarray:
        out = activation(x @ weight.T + bias)
        if not residual:
            return out
        return out + (x if aside is None else x @ aside.T)

    _add_step(config.source, made, dense, weight.shape[1], weight.shape[0])


def _layer_norm(config: Settings, path: Path, made: dict[str, Any]) -> None:
    size = config.get("dimension")
    found = _tensors(path, {"norm.weight": (size,), "norm.bias": (size,)})

    def layer_norm(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
        return scaled * found["norm.weight"] + found["norm.bias"]

    _add_step(config.source, made, layer_norm, size, size)


def _normalize(config: Settings, path: Path, made: dict[str, Any]) -> None:
    made["steps"] += (normalize,)


def _dropout(config: Settings, path: Path, made: dict[str, Any]) -> None:
    """Nothing: it is for training."""


_AFTER: dict[str, Callable[[Settings, Path, dict[str, Any]], None]] = {
    "Pooling": _pooling, "Dense": _dense, "LayerNorm": _layer_norm, "Normalize": _normalize,
    "Dropout": _dropout,
}  # fmt: skip


def _add_step(source: str, made: dict[str, Any], step: Step, inputs: int, outputs: int) -> None:
    before = made["outputs"]
    if before not in (None, inputs):
        raise ModelFileError(
            f"{source}: takes {inputs} features, but what comes before gives {before}"
        )
    made["steps"] += (step,)
    made |= {"inputs": made["inputs"] or inputs, "outputs": outputs}


def _tensors(path: Path, shapes: Mapping[str, tuple[Any, ...]]) -> dict[str, np.ndarray]:
    """These tensors of a module's model.safetensors as float32."""
    if not (path / "model.safetensors").is_file():
        pickled = " (pytorch_model.bin is a pickle, which boostr does not read)"
        there = (path / "pytorch_model.bin").is_file()
        raise ModelFileError(f"{path}: no model.safetensors{pickled if there else ''}")
    with open_safetensors(path) as files:
        found = {}
        for name, shape in shapes.items():
            if name not in files.names:
                raise ModelFileError(f"{path}/model.safetensors: no tensor {name!r}")
            found[name] = np.array(files.tensor(name), np.float32)
            if found[name].shape != shape:
                raise ModelFileError(
                    f"{path}: {name} must have the shape {shape}, got {found[name].shape}"
                )
    return found
