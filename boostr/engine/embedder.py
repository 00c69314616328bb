"""EmbeddingModel: an encoder with the pooling of its sentence-transformers modules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boostr import autograd
from boostr.backends.base import Backend
from boostr.errors import ModelFileError, OptionError, TokenizerError
from boostr.io.tokenizer import Tokenizer
from boostr.models.base import Model
from boostr.nn.batch import Batch
from boostr.tensor import Tensor

POOLINGS = ("mean", "cls", "max")
_BATCH_TOKENS = 4096  # packed tokens of one forward pass


@dataclass(frozen=True)
class Pooling:
    """How hidden states become one vector: `mode` of POOLINGS, then unit length if `normalize`."""

    mode: str = "mean"
    normalize: bool = True
    max_length: int | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> Pooling:
        """From modules.json and what it names; without it mean pooling, normalised."""
        modules = _read(folder / "modules.json")
        if modules is None:
            return cls()
        kinds = [str(m.get("type", "")).rsplit(".", 1)[-1] for m in modules]
        unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
        if unknown:
            raise ModelFileError(f"{folder}/modules.json: unknown modules {sorted(unknown)}")
        mode = "mean"
        if "Pooling" in kinds:
            mode = _mode(folder, str(modules[kinds.index("Pooling")].get("path", "")))
        settings = _read(folder / "sentence_bert_config.json") or {}
        return cls(mode, "Normalize" in kinds, settings.get("max_seq_length"))


def _mode(folder: Path, path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise ModelFileError(f"{folder}/modules.json: path {path!r} leaves the folder")
    config = _read(folder / path / "config.json") or {}
    if isinstance(config.get("pooling_mode"), str):
        named = [config["pooling_mode"]]
    else:
        switches = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
        on = [k.removeprefix("pooling_mode_") for k, v in config.items() if v is True]
        named = [switches.get(name, name) for name in on if name != "include_prompt"]
    if len(named) != 1 or named[0] not in POOLINGS:
        raise ModelFileError(
            f"{folder}/{path}/config.json: pooling must be one of {POOLINGS}, got {named}"
        )
    return named[0]


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{path}: not valid JSON: {error}") from None


class EmbeddingModel:
    """An encoder that is ready to use. Made by `boostr.load`."""

    def __init__(
        self, module: Model, tokenizer: Tokenizer, backend: Backend, source: str, pooling: Pooling
    ) -> None:
        self.module, self.tokenizer, self.backend, self.source = module, tokenizer, backend, source
        self.config, self.pooling = module.config, pooling

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors float32 [N, E], one a text; longer texts are cut as the checkpoint says."""
        if isinstance(texts, str):
            raise OptionError("embed: expected a list of texts, got one text")
        tokens = [self._encode(text) for text in texts]
        out = np.zeros((len(tokens), self.config.hidden_size), np.float32)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        group: list[int] = []
        for at in order:
            if group and sum(len(tokens[i]) for i in group) + len(tokens[at]) > _BATCH_TOKENS:
                out[group] = self._embed_packed([tokens[i] for i in group])
                group = []
            group.append(at)
        if group:
            out[group] = self._embed_packed([tokens[i] for i in group])
        return out

    def _encode(self, text: str) -> list[int]:
        limit = min(
            self.pooling.max_length or self.config.max_position_embeddings,
            self.config.max_position_embeddings,
        )
        ids = self.tokenizer.encode(text)
        if max(ids, default=0) >= self.config.vocab_size:
            raise TokenizerError(
                f"token id {max(ids)} is not in the model's vocabulary "
                f"0..{self.config.vocab_size - 1}"
            )
        if len(ids) <= limit:
            return ids
        bare = self.tokenizer.encode(text, add_special_tokens=False)
        extra = len(ids) - len(bare)  # [CLS] and [SEP] stay around what is cut
        return [*ids[: limit - extra + 1], *ids[len(ids) - extra + 1 :]] if extra else ids[:limit]

    def hidden(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Last hidden states float32 [T, E] of each of several token sequences, computed packed."""
        lengths = [len(s) for s in sequences]
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = np.concatenate([np.asarray(s, np.int32) for s in sequences])
        positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
        packed, places, cu = (Tensor(a, backend=self.backend) for a in (ids, positions, ends))
        with autograd.no_grad():
            states = self.module.hidden(Batch(packed, places, cu)).to("float32").numpy()
        return np.split(states, ends[1:-1])

    def _embed_packed(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        pool = {"mean": lambda s: s.mean(0), "cls": lambda s: s[0], "max": lambda s: s.max(0)}
        vectors = np.stack([pool[self.pooling.mode](s) for s in self.hidden(sequences)])
        if self.pooling.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are stored."""
        return sum(w.nbytes for w in self.module.weights().values())
