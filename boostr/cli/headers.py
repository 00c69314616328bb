"""What a model's headers say: `summarize` reads no tensor, and knows more than boostr can run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from boostr.cli.forms import INDICES, WeightRow, weights_of_folder, weights_of_gguf
from boostr.engine.modules import transformer_folder
from boostr.errors import BoostrError, DownloadError, ModelFileError, TokenizerError
from boostr.io.gguf_split import GGUFSource, open_gguf
from boostr.io.hub import ResolvedModel, resolve, resolve_default
from boostr.io.safetensors import SafetensorsSource, open_safetensors
from boostr.io.settings import read_object, read_settings
from boostr.io.tokenizer_files import class_of, tokenizer_file
from boostr.io.tokenizer_gguf import check_kind, has_tokenizer
from boostr.models import family_of
from boostr.models.config import RawConfig
from boostr.models.gguf_config import hf_config
from boostr.models.quantized import method_of, quantization_method

# what is shown of a config: name -> key after "<architecture>." in GGUF metadata
_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}


@dataclass(frozen=True)
class TensorRow:
    """A tensor: `type` as the file's format spells it, shape row-major."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Summary:
    """A model by its headers. None where the files do not say.

    Attributes:
        refusal: why this version of boostr cannot run it, None if it can.
        file_bytes: of all files that hold tensors.   sizes: from the config, Hugging Face's names.
        quantization: method that the config names, or None.
        weights: the tensors again, as boostr would hold them: packed ones whole.
    """

    source: str
    path: str
    format: str
    architecture: str | None
    refusal: str | None
    file_bytes: int
    tensors: list[TensorRow]
    context: int | None
    tokenizer: str | None
    vocabulary: int | None
    chat_template: bool
    quantization: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    weights: list[WeightRow] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Numbers in the weights, without those that are indices or masks."""
        if self.weights:
            return sum(row.count for row in self.weights)
        return sum(row.count for row in self.tensors if row.type not in INDICES)

    @property
    def weight_bytes(self) -> int:
        return sum(row.nbytes for row in self.tensors)

    @property
    def types(self) -> dict[str, dict[str, int]]:
        """For each type how many tensors, numbers and bytes; the most bytes first."""
        totals: dict[str, dict[str, int]] = {}
        for row in self.tensors:
            total = totals.setdefault(row.type, {"tensors": 0, "parameters": 0, "bytes": 0})
            total["tensors"] += 1
            total["parameters"] += row.count
            total["bytes"] += row.nbytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]["bytes"]))


def summarize(model: str | None, revision: str | None = None) -> Summary:
    """The summary of a folder, a .gguf or .safetensors file, or a model in the cache.

    Raises:
        ModelFileError: a header that breaks its format.   DownloadError: not on this machine.
    """
    path = Path(model).expanduser() if model is not None else None
    if path is not None and path.suffix == ".safetensors" and path.is_file():
        found = ResolvedModel(path, "folder", str(path))
    else:
        found = _on_this_machine(model, revision)
    return _gguf(found) if found.kind == "gguf" else _safetensors(found)


def _on_this_machine(model: str | None, revision: str | None) -> ResolvedModel:
    try:
        if model is None:
            return resolve_default(offline=True)
        return resolve(model, revision=revision, offline=True)
    except DownloadError:
        what = f"{model}{f' at {revision}' if revision else ''}" if model else "the default model"
        fetch = f"boostr pull {model or ''}".rstrip()
        raise DownloadError(f"{what} is not on this machine; fetch it first: {fetch}") from None


def _gguf(found: ResolvedModel) -> Summary:
    with open_gguf(found.path) as file:
        data = file.metadata
        architecture = data.get("general.architecture")
        tokens = data.get("tokenizer.ggml.tokens")
        kind = data.get("tokenizer.ggml.model")
        pre = data.get("tokenizer.ggml.pre")
        sizes = {name: data.get(f"{architecture}.{key}") for name, key in _SIZES.items()}
        return Summary(
            source=found.source,
            path=str(found.path),
            format=f"gguf v{file.version}",
            architecture=_text(architecture),
            refusal=_refusal_of_gguf(file),
            file_bytes=sum(path.stat().st_size for path in file.paths),
            tensors=[TensorRow(t.name, t.type, t.shape, t.nbytes) for t in file.tensors.values()],
            context=_whole(data.get(f"{architecture}.context_length")),
            tokenizer=f"{kind} ({pre})" if kind and pre else _text(kind),
            vocabulary=None if tokens is None else len(tokens),
            chat_template="tokenizer.chat_template" in data,
            sizes=_wholes(sizes),
            weights=weights_of_gguf(file),
        )


def _refusal_of_gguf(file: GGUFSource) -> str | None:
    try:
        config = RawConfig(hf_config(file), str(file.path))
        _read_config(config)
        for tensor in file.tensors.values():
            tensor.check_readable()
        if has_tokenizer(file.metadata):
            check_kind(file.metadata, str(file.path))
    except BoostrError as error:
        return _short(error, file.path)
    return None


def _safetensors(found: ResolvedModel) -> Summary:
    path = found.path
    folder, wrong = _encoder(path) if path.is_dir() else (path.parent, None)
    raw = read_object(folder / "config.json") if path.is_dir() else {}
    config = RawConfig(raw, str(folder / "config.json"))
    with open_safetensors(folder if path.is_dir() else path) as files:
        rows, shards = [_row(files, name) for name in files.names], files.paths
        weights, unfit = weights_of_folder(files, raw, folder)
    kind, vocabulary = _tokenizer(folder) if path.is_dir() else (None, None)
    return Summary(
        source=found.source,
        path=str(path),
        format=f"safetensors, {len(shards)} {'file' if len(shards) == 1 else 'shards'}",
        architecture=_architecture(config),
        refusal=wrong or _refusal(config, raw) or unfit or _unknown_tokenizer(folder),
        file_bytes=sum(shard.stat().st_size for shard in shards),
        tensors=rows,
        context=_whole(config.raw.get("max_position_embeddings")),
        tokenizer=kind,
        vocabulary=vocabulary,
        chat_template=path.is_dir() and _has_template(folder),
        quantization=quantization_method(raw),
        sizes=_wholes({name: config.raw.get(name) for name in _SIZES}),
        weights=weights,
    )


def _architecture(config: RawConfig) -> str | None:
    """The model_type; of a wrapper also that of the part that runs."""
    outer, inner = (_text(raw.get("model_type")) for raw in (config.given, config.raw))
    return outer if outer == inner else f"{outer} (its text part, {inner})"


def _encoder(folder: Path) -> tuple[Path, str | None]:
    """Where the model itself lies (sentence-transformers may have it in a subfolder), and why the
    modules around it cannot be run."""
    try:
        return transformer_folder(folder), None
    except BoostrError as error:
        return folder, _short(error, folder / "modules.json")


def _refusal(config: RawConfig, raw: dict[str, Any]) -> str | None:
    if not raw:
        return "no config.json beside the tensors"
    try:
        method_of(raw, config.source)
        _read_config(config)
    except BoostrError as error:
        return _short(error, Path(config.source))
    return None


def _read_config(config: RawConfig) -> None:
    """Raises what loading would raise for this config."""
    family_of(config).read_config(config)  # type: ignore[attr-defined]


def _row(files: SafetensorsSource, name: str) -> TensorRow:
    info = files.info(name)
    return TensorRow(name, info.dtype, info.shape, info.end - info.begin)


def _unknown_tokenizer(folder: Path) -> str | None:
    """Why the vocabulary in a folder makes no tokenizer."""
    if tokenizer_file(folder) in (None, "tokenizer.json"):
        return None
    config = folder / "tokenizer_config.json"
    try:
        class_of(folder, read_settings(config, error=TokenizerError))
    except BoostrError as error:
        return _short(error, config)
    return None


def _tokenizer(folder: Path) -> tuple[str | None, int | None]:
    """(kind, number of tokens) of tokenizer.json; the name of the file that there is instead."""
    data = read_object(folder / "tokenizer.json")
    model = data.get("model")
    if not isinstance(model, Mapping):
        return tokenizer_file(folder), None
    vocabulary = model.get("vocab") or ()
    added = data.get("added_tokens") or ()
    try:
        highest = max((int(token["id"]) for token in added), default=-1)
        return _text(model.get("type")), max(len(vocabulary), highest + 1)
    except (TypeError, KeyError, ValueError):
        raise ModelFileError(f"{folder / 'tokenizer.json'}: malformed added_tokens") from None


def _has_template(folder: Path) -> bool:
    if any((folder / f"chat_template.{end}").is_file() for end in ("jinja", "json")):
        return True
    return bool(read_object(folder / "tokenizer_config.json").get("chat_template"))


def _short(error: BoostrError, path: Path) -> str:
    """The message without the path that it begins with."""
    return str(error).removeprefix(f"{path}: ")


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _wholes(values: Mapping[str, Any]) -> dict[str, int]:
    return {name: whole for name, v in values.items() if (whole := _whole(v)) is not None}
