"""Saving: the parameters of a model as a Hugging Face folder, by its load plan read backwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from boostr.errors import ModelFileError
from boostr.io.safetensors import INDEX, SINGLE, save
from boostr.io.scratch import scratch_beside
from boostr.models.config import RawConfig
from boostr.models.heads import Classifier, classifier_spec
from boostr.models.lazy import Held, LazyWeight, whole
from boostr.models.plan import LoadPlan
from boostr.models.quantized import KEYS, method_of, quantized_plan
from boostr.nn.module import Module
from boostr.operands import LowRank, Ordered
from boostr.quant.scheme import QuantizedTensor

SHARD_BYTES = 5_000_000_000  # as transformers
# what is not carried over: weights in any form, their indices, and code
_LEFT = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".npz", ".py")
_INDICES = (INDEX, "pytorch_model.bin.index.json")
# keys that GGUF's reader adds: what a folder has, and what lies otherwise where it is another value
_GGUF_ONLY = {
    "rope_layout": ("split-half", "q and k lie in another order"),
    "norm_offset": (1.0, "norm weights are larger by 1"),  # Gemma: others read them so in silence
}


def save_folder(
    module: Module,
    folder: str | Path,
    *,
    head: Classifier | None = None,
    plan: LoadPlan | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json and the weights of a model, so that loading the folder gives the same.

    Tensors have the names and layout of the family's checkpoints, in the dtypes that they have in
    the model; no tokenizer files are written. One shard at a time is in memory.

    Args:
        folder: made if need be; it must not hold weights yet.
        head: of a model that classifies, its `classifier`.
        plan: default that of the model's family.
        shard_bytes: a file of more than that is split, at tensors.
    Raises:
        ModelFileError: a folder with weights, a model whose weights have no form in one (packed,
            under an adapter, or from a GGUF file), or one that classifies without its head.
    """
    folder = Path(folder)
    config = module.config  # type: ignore[attr-defined]
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        raise ModelFileError(f"{folder}: there are weights in this folder already; take another")
    other = [what for key, (own, what) in _GGUF_ONLY.items() if config.extra.get(key, own) != own]
    if other:
        raise ModelFileError(
            f"{folder}: this model came from a GGUF file, whose {' and '.join(other)} than in a "
            "Hugging Face folder; it cannot be saved as one"
        )
    chosen = module.load_plan(config) if plan is None else plan  # type: ignore[attr-defined]
    packed = any(isinstance(weight, QuantizedTensor) for weight in module.weights().values())
    said = {k: v for k, v in config.extra.items() if packed or k not in KEYS}
    names_head = classifier_spec(RawConfig(said, "this model")) is not None
    if names_head != (head is not None):
        architectures, what = said.get("architectures"), "no" if head is None else "a"
        raise ModelFileError(
            f"{folder}: a config with architectures {architectures} cannot be saved with {what} "
            "classifier; give that of a model that boostr.load made as head=model.classifier"
        )
    stored = (quantized_plan(method_of(said, "this model")) + chosen).save(_held(module))
    _check_unpacked(module, stored)
    if head is not None:
        stored = {chosen.prefix + name: weight for name, weight in stored.items()}
        stored |= head.spec.load_plan().save(_held(head))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(said, indent=2) + "\n")
    tensors = ((name, weight.read(whole(weight.shape))) for name, weight in stored.items())
    write_shards(folder, tensors, shard_bytes)


def _held(module: Module) -> dict[str, LazyWeight]:
    """The parameters of a model."""
    held: dict[str, LazyWeight] = {}
    for name, weight in module.weights().items():
        if isinstance(weight, LowRank):
            raise ModelFileError(f"{name} has an adapter over it; a folder holds merged weights")
        if isinstance(weight, Ordered):
            raise ModelFileError(
                f"{name} has its inputs in another order (desc_act), which is not written; load "
                "the model with dtype= to save it"
            )
        held[name] = Held(name, weight)
    return held


def _check_unpacked(module: Module, stored: Mapping[str, LazyWeight]) -> None:
    """Every packed weight must have found a rule that writes its parts."""
    whole_names = {name for weight in stored.values() for name in weight.sources}
    for name, weight in module.weights().items():
        if isinstance(weight, QuantizedTensor) and name in whole_names:
            raise ModelFileError(
                f"{name} is packed as {weight.scheme.name}, for which a Hugging Face folder has no "
                "form; load the model without quantize= to save it"
            )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` if all goes well, and of which else nothing is left."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(out) as scratch:
        made = scratch / out.name
        made.mkdir()
        yield made
        made.rename(out)


def carry_over(source: Path, target: Path, config: Path) -> None:
    """The files of a model but for weights, code and its config, which is written anew; links
    become what they point to."""
    for path in sorted(source.rglob("*")):
        inside = path.relative_to(source)
        hidden = any(part.startswith(".") for part in inside.parts)
        anew = path == config or path.name in _INDICES or path.suffix in _LEFT
        if hidden or anew or not path.is_file():
            continue
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / inside)


def write_shards(folder: Path, tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> None:
    """Write tensors as model.safetensors, or as shards with an index; one shard is in memory."""
    written: list[list[str]] = []
    total = 0
    for shard in _shards(tensors, shard_bytes):
        total += sum(array.nbytes for array in shard.values())
        save(folder / _temporary(len(written)), shard, {"format": "pt"})
        written.append(list(shard))
    if len(written) == 1:
        (folder / _temporary(0)).rename(folder / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(written):
        name = f"model-{number + 1:05d}-of-{len(written):05d}.safetensors"
        (folder / _temporary(number)).rename(folder / name)
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _temporary(number: int) -> str:
    """The name of a shard until it is known how many there are."""
    return f"shard-{number}.tmp"


def _shards(
    tensors: Iterable[tuple[str, np.ndarray]], limit: int
) -> Iterator[dict[str, np.ndarray]]:
    """The tensors in groups of at most `limit` bytes, but at least one."""
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in tensors:
        if shard and size + array.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    yield shard
