"""convert: a Hugging Face folder as a GGUF file, a tensor at a time. The way back: from_gguf.py."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from boostr.engine.classifier import Labels
from boostr.engine.from_gguf import write_from_gguf
from boostr.engine.inputs import of_types
from boostr.engine.load import empty_module, end_ids, folder_config, heads_of
from boostr.engine.modules import read_modules, transformer_folder
from boostr.engine.sentence import GGUF_POOLINGS, Sentence
from boostr.errors import ModelFileError, NumericsError, OptionError
from boostr.io.gguf import PLAIN_TYPES
from boostr.io.gguf_split import GGUFSource
from boostr.io.gguf_writer import NewTensor, write_gguf
from boostr.io.hub import resolve, resolve_default
from boostr.io.mapping import release
from boostr.io.safetensors import open_safetensors
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_files import tokenizer_file
from boostr.io.tokenizer_to_gguf import gguf_tokenizer, with_ends
from boostr.models.architecture import Architecture
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.gguf import gguf_plan, reordered
from boostr.models.gguf_config import hf_config
from boostr.models.gguf_folder import rounded
from boostr.models.gguf_heads import ranking, written_head
from boostr.models.gguf_metadata import (
    architecture_for,
    as_written,
    differing,
    gguf_metadata,
    layer_numbers,
    rope_tensors,
)
from boostr.models.gguf_mix import FLOATS, MIXES, Mix, check_mix, is_small
from boostr.models.heads import ClassifierSpec
from boostr.models.lazy import LazyWeight, whole
from boostr.models.quantized import refuse_quantized
from boostr.models.weights import stored_weights
from boostr.quant.gguf.rounding import round_blocks

_BAND_BYTES = 16 * 2**20  # of float32 rows that are made at once; rounding takes several times that
_POSITIONS = "model.embed_positions.weight"
Progress = Callable[[int, int, str], None]


def convert(
    model: str | Path | None,
    out: str | Path,
    *,
    kind: str | None = None,
    dtype: Any = None,
    revision: str | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write a folder of safetensors as a GGUF file, or a GGUF file as a folder of floats.

    Tokenizer and chat template come along. Tensors are made in bands of rows; nothing is at `out`
    until all is.

    Args:
        model: as in `load`: a Hugging Face folder of float weights, or a GGUF file of any types.
        out: what to make, NAME.gguf of a folder, else a folder; it must not exist.
        kind: of a file's matrices, as llama-quantize names mixes: "F16", "Q8_0", "Q4_K_M", ...;
            None is as they are stored. Vectors are float32.
        dtype: of a folder's tensors: "float32", "float16" or "bfloat16"; None is that of the
            matrices if all are floats of one, else bfloat16. Float32 alone holds exactly what
            quantized blocks say.
        progress: called after each tensor: (tensors done, of how many, name).
    Raises:
        OptionError: a kind that there is not, or an `out` that exists.
        ModelFileError: a model that is quantized already, or that GGUF cannot say all of.
        TokenizerError: a tokenizer that GGUF has no form for.
    """
    of_types("convert", _TYPES, locals())
    out = Path(out)
    if out.exists():
        raise OptionError(f"convert: {out} exists already; take another name, or remove it")
    if kind is not None:
        check_mix(kind)
    found = (
        resolve_default(offline=offline)
        if model is None
        else resolve(model, revision=revision, offline=offline)
    )
    if found.kind == "gguf":
        if out.suffix == ".gguf":
            raise OptionError(f"convert: {found.source} is a GGUF file already")
        if kind is not None:
            raise OptionError(
                f"convert: kind {kind!r} is a type of GGUF, and what is written is a folder; take "
                "dtype (on the command line --dtype)"
            )
        write_from_gguf(found.path, out, dtype, progress)
        return out
    if out.suffix != ".gguf":
        raise OptionError(
            f"convert: what is written of a folder is GGUF; expected NAME.gguf, got {out.name}"
        )
    if dtype is not None:
        raise OptionError("convert: dtype is that of folders; for a GGUF file take kind (--type)")
    write_folder(found.path, out, kind, progress)
    return out


def write_folder(
    path: Path, out: Path, kind: str | None = None, progress: Progress | None = None
) -> None:
    """`convert` of a folder."""
    folder = transformer_folder(path)
    raw = folder_config(folder)
    refuse_quantized(folder, raw.raw, raw.source)
    headless, spec = heads_of(path, raw)
    module = empty_module(raw, headless)
    config = module.config
    row = architecture_for(config, raw.source)  # refused before anything is read
    with open_safetensors(folder) as files:
        stored = stored_weights(files, str(folder))
        head = {n: weight for n, weight in stored.items() if spec is not None and spec.owns(n)}
        body = {n: weight for n, weight in stored.items() if n not in head}
        naming = module.load_plan(config).load(body)
        if naming.problems:
            raise ModelFileError(f"{folder}: {'; '.join(naming.problems)}")
        unsaid = naming.weights.keys() - {name for name, _, _ in module.places()}
        if unsaid:
            raise ModelFileError(f"{folder}: GGUF has no place for {', '.join(sorted(unsaid))}")
        numbers = layer_numbers(row, naming.weights, len(config.layers))
        if skipped := config.embedding.first_position:
            table = naming.weights[_POSITIONS]
            naming.weights[_POSITIONS] = table.take(0, range(skipped, table.shape[0]))
        config = as_written(config, row)
        tensors = _tensors(config, naming.weights, kind)
        metadata = gguf_metadata(config, raw.source) | numbers | _general(folder, kind, tensors)
        if spec is None:
            metadata |= _pooling(path, row.name)
        else:
            tensors += _head(head, row, spec, raw.source)
            labels = Labels.from_config(raw).names
            metadata |= {f"{row.name}.{key}": v for key, v in ranking(spec, labels).items()}
        _check_said(config, metadata, tensors, raw.source)
        if tokenizer_file(folder):
            metadata |= gguf_tokenizer(Tokenizer.from_folder(folder), config.vocab_size)
        else:
            metadata["tokenizer.ggml.model"] = "none"  # programs want the key
        metadata = with_ends(metadata, end_ids(folder, raw), raw.source)
        write_gguf(out, metadata, tensors, progress)


def _head(
    stored: dict[str, LazyWeight], row: Architecture, spec: ClassifierSpec, source: str
) -> list[NewTensor]:
    """The tensors of a classifier, which are floats in every mix."""
    canonical = spec.load_plan().load(stored).weights
    named = written_head(row, spec, source).load_plan().save(canonical)
    return [
        NewTensor(name, "F32", weight.shape, partial(_bands, name, weight, "F32", 0.0))
        for name, weight in named.items()
    ]


def _pooling(folder: Path, architecture: str) -> dict[str, Any]:
    """How a sentence-transformers folder pools; of prompts and lengths GGUF says nothing."""
    if not read_modules(folder):
        return {}
    sentence = Sentence.from_folder(folder)
    for number, name in GGUF_POOLINGS.items():
        if number and sentence.poolings == (name,) and sentence.outputs is None:
            return {f"{architecture}.pooling_type": number}
    raise ModelFileError(
        f"{folder}: GGUF says one pooling of {sorted(set(GGUF_POOLINGS.values()))} and no layers "
        f"behind it; got {' + '.join(sentence.poolings)}"
    )


def _general(folder: Path, kind: str | None, tensors: list[NewTensor]) -> dict[str, Any]:
    if kind is None:
        kind = next((t.type for t in tensors if len(t.shape) > 1), "F32")
    return {
        "general.type": "model",
        "general.name": folder.resolve().name,
        "general.file_type": MIXES[kind][1],
        "general.quantization_version": 2,
    }


def _tensors(
    config: ModelConfig, weights: Mapping[str, LazyWeight], kind: str | None
) -> list[NewTensor]:
    """The tensors of the file, from the parameters of the model."""
    row = architecture_for(config, "this model")
    mixer, tied = config.layers[0].mixer, config.head is not None and config.head.tied
    placed = {n: reordered(n, w, config, "split-half", row.layout) for n, w in weights.items()}
    named = gguf_plan(config, row, writing=True).save(placed)
    if row.untied and config.head is not None:
        named.setdefault("output.weight", named["token_embd.weight"])
    sharing = mixer.heads // mixer.kv_heads
    mix = None if kind is None else Mix(kind, len(config.layers), sharing, tied)
    made = [
        NewTensor(name, "F32", factors.shape, partial(iter, [factors]))
        for name, factors in rope_tensors(config.ropes.get("full")).items()
    ]
    plus = 0.0 if config.norm is None else config.norm.offset
    for name, weight in named.items():
        stored = "F32" if is_small(name, weight.shape) else _stored_type(weight)
        chosen = stored if mix is None else mix.type_of(name, weight.shape)
        added = plus if name.endswith("norm.weight") else 0.0
        data = partial(_bands, name, weight, chosen, added)
        made.append(NewTensor(name, chosen, weight.shape, data))
    if mix is not None:
        _say_replaced(mix, made)
    return made


def _say_replaced(mix: Mix, tensors: list[NewTensor]) -> None:
    """Warn of matrices whose rows are no whole blocks of the type that the mix has for them."""
    pairs = Counter((t.type, mix.wanted(t.name)) for t in tensors if len(t.shape) > 1)
    replaced = {pair: count for pair, count in pairs.items() if pair[0] != pair[1]}
    if replaced:
        said = (f"{count} in {got} for {wanted}" for (got, wanted), count in replaced.items())
        warnings.warn(
            f"{mix.name}: matrices whose rows are no whole blocks (256 inputs of K-quants) take "
            f"other types, as llama-quantize has them: {', '.join(said)}",
            stacklevel=2,
        )


def _stored_type(weight: LazyWeight) -> str:
    """The type of GGUF that a float matrix is stored as."""
    one = weight.read(tuple(range(1) for _ in weight.shape))
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    if one.dtype.name not in names:
        raise ModelFileError(
            f"{weight.path}: tensor {' + '.join(weight.sources)} is {one.dtype}; expected "
            f"{', '.join(names)}"
        )
    return names[one.dtype.name]


def _bands(name: str, weight: LazyWeight, kind: str, added: float) -> Iterator[np.ndarray]:
    """A tensor in bands of rows, as its bytes lie in the file."""
    first, *rest = whole(weight.shape)
    width = int(np.prod(weight.shape[1:], dtype=int))
    step = max(1, _BAND_BYTES // (4 * max(width, 1)))
    for start in range(0, len(first), step):
        array = weight.read((range(start, min(start + step, len(first))), *rest))
        numbers = array.astype(np.float32)
        release(array)
        try:
            yield _written(numbers + np.float32(added), kind)
        except NumericsError as error:
            raise ModelFileError(
                f"{weight.path}: {' + '.join(weight.sources)} (for {name}): {error}"
            ) from None


def _written(numbers: np.ndarray, kind: str) -> np.ndarray:
    if kind not in FLOATS:
        return round_blocks(kind, numbers.reshape(-1, numbers.shape[-1]))
    return rounded(numbers, PLAIN_TYPES[kind])


def _check_said(
    config: ModelConfig, metadata: dict[str, Any], tensors: list[NewTensor], source: str
) -> None:
    """Raises ModelFileError if a reader of the file would make another model of it."""
    read = RawConfig(hf_config(cast(GGUFSource, _Draft(Path(source), metadata, tensors))), source)
    lost = differing(config, empty_module(read).config)
    if lost is not None:
        name, ours, theirs = lost
        raise ModelFileError(
            f"{source}: GGUF cannot say {name} {ours}; programs would take it for {theirs}"
        )


class _Draft:
    """A file that is still to be written, as `hf_config` looks at one."""

    def __init__(self, path: Path, metadata: dict[str, Any], tensors: list[NewTensor]) -> None:
        self.path, self.metadata = path, metadata
        self.tensors = {tensor.name: _DraftTensor(tensor) for tensor in tensors}


class _DraftTensor:
    def __init__(self, tensor: NewTensor) -> None:
        self.type, self.shape, self._tensor = tensor.type, tensor.shape, tensor

    @property
    def data(self) -> np.ndarray:
        return np.concatenate(list(self._tensor.data()))


_TYPES = {
    "model": (str, Path, type(None)), "out": (str, Path), "kind": (str, type(None)),
    "revision": (str, type(None)), "offline": (bool, type(None)),
}  # fmt: skip
