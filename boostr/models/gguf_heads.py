"""What files of GGUF have behind a model: classifiers and rankers (`cls.*`), of which the rest is
constants of the architecture, and products behind a pooling.

Source: llama.cpp's llama-graph.cpp and its converter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from boostr.errors import ModelFileError
from boostr.io.gguf_split import GGUFSource
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig
from boostr.models.gguf import gguf_weights
from boostr.models.gguf_folder import Decoded
from boostr.models.heads import ClassifierSpec
from boostr.models.lazy import LazyWeight, Stack, whole
from boostr.nn.specs import NormSpec

RANK, _POOLINGS = 4, {1: "mean", 2: "first"}  # llama_pooling_type
_POOLING, _OUTPUT = "classifier.pooling_type", "cls.output.weight"
# part -> its name; "cls" last, for the others lie below it
_NAMES = {"output": "cls.output", "norm": "cls.norm", "dense": "cls"}
# `general.architecture` -> head; the file says which parts and biases there are, and the pooling
# unless it is this one
HEADS = {
    "bert": ClassifierSpec(_NAMES, "first", "tanh"),
    "modern-bert": ClassifierSpec(_NAMES, "mean", "gelu"),
    "qwen3": ClassifierSpec(_NAMES, "last"),
}
_POOLED = ("bert", "modern-bert")  # whose heads begin with a product


def gguf_classifier(file: GGUFSource, config: ModelConfig) -> ClassifierSpec | None:
    """The head of a file that ranks or classifies; None if it is for something else.

    Raises:
        ModelFileError: a head that is not whole, or of an architecture whose heads are not known.
    """
    name, tensors, path = file.metadata["general.architecture"], file.tensors, file.path
    pooling = file.metadata.get(f"{name}.pooling_type", 0)
    if pooling != RANK and (pooling != 0 or _OUTPUT not in tensors):
        return None
    if name not in HEADS:
        raise ModelFileError(
            f"{path}: a ranker of architecture {name!r} is not known; boostr reads those of "
            f"{', '.join(HEADS)}"
        )
    if _OUTPUT not in tensors:
        raise ModelFileError(f"{path}: it is to rank, and has no tensor {_OUTPUT!r}")
    there = {part: own for part, own in _NAMES.items() if f"{own}.weight" in tensors}
    if name in _POOLED and "dense" not in there:
        raise ModelFileError(
            f"{path}: its head has no 'cls.weight', the pooler that llama.cpp's converter leaves "
            "out of BERT: its scores would not be the model's; take the Hugging Face folder"
        )
    inner = file.metadata.get(f"{name}.{_POOLING}")
    if inner is not None and inner not in _POOLINGS:
        raise ModelFileError(
            f"{path}: {name}.{_POOLING} must be one of {list(_POOLINGS)}, got {inner!r:.80}"
        )
    act = "relu" if config.model_type == "distilbert" else HEADS[name].act
    norm = replace(config.norm or NormSpec(), bias="cls.norm.bias" in tensors)
    return replace(
        HEADS[name],
        names=there,
        pooling=HEADS[name].pooling if inner is None else _POOLINGS[inner],
        act=act,
        bias="cls.output.bias" in tensors,
        dense_bias="cls.bias" in tensors,
        norm=norm if "norm" in there else None,
    )


def written_head(row: Architecture, spec: ClassifierSpec, source: str) -> ClassifierSpec:
    """A head under the names that it has in a file.

    Raises:
        ModelFileError: one that programs would take for another.
    """
    known = HEADS.get(row.name)
    if row.name not in _POOLED or known is None:
        raise ModelFileError(f"{source}: GGUF of {row.name} has no place for a classifier")
    pooled = spec.pooling in _POOLINGS.values() and not spec.late
    if "dense" not in spec.names or not pooled or spec.act != known.act:
        raise ModelFileError(
            f"{source}: its classifier ({', '.join(spec.names.values())}) would be taken for one "
            f"with a product and act {known.act!r} over pooled states, which GGUF of {row.name} "
            f"has; got pooling {spec.pooling!r} and act {spec.act!r}"
        )
    return replace(spec, names={part: own for part, own in _NAMES.items() if part in spec.names})


def ranking(spec: ClassifierSpec, labels: Sequence[str]) -> dict[str, Any]:
    """What a file says of a classifier with these labels, by key after "<architecture>."."""
    pooling = next(number for number, name in _POOLINGS.items() if name == spec.pooling)
    return {"pooling_type": RANK, _POOLING: pooling, "classifier.output_labels": list(labels)}


def as_matrix(weights: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
    """The weights of a file with a head; a product of one row lies as a vector in some."""
    output = weights[_OUTPUT]
    return {**weights, _OUTPUT: output if len(output.shape) > 1 else Stack([output])}


def gguf_labels(file: GGUFSource) -> tuple[str, ...]:
    """What the classifier of a file tells apart.

    Raises:
        ModelFileError: other labels than the head has rows, or the same one twice.
    """
    key = f"{file.metadata['general.architecture']}.classifier.output_labels"
    shape = file.tensors[_OUTPUT].shape
    rows = shape[0] if len(shape) > 1 else 1
    labels = file.metadata.get(key, [f"LABEL_{i}" for i in range(rows)])
    if not isinstance(labels, list) or len(labels) != rows or len({*labels}) != rows:
        raise ModelFileError(
            f"{file.path}: {key} must be {rows} different names, got {labels!r:.80}"
        )
    return tuple(labels)


def behind_pooling(file: GGUFSource) -> tuple[str, ...]:
    """The names of a file's products that follow the pooling, in order."""
    if file.metadata["general.architecture"] != "gemma-embedding":
        return ()
    return tuple(name for name in ("dense_2.weight", "dense_3.weight") if name in file.tensors)


def dense_weights(file: GGUFSource) -> list[np.ndarray]:
    """The products that follow the pooling, float32 [N, K] each."""
    weights, names = gguf_weights(file), behind_pooling(file)
    decoded = (Decoded(weights[name], np.dtype(np.float32)) for name in names)
    return [weight.read(whole(weight.shape)) for weight in decoded]
