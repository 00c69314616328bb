"""SentencePiece models (tokenizer.model, spiece.model), as classes of transformers use them.

The file is read by the package sentencepiece itself, which only such a folder needs. Its pieces and
settings are those that GGUF metadata repeats, so the tokenizers are built as from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.errors import TokenizerError
from boostr.io.gguf_special_tokens import add_tokens
from boostr.io.settings import Settings
from boostr.io.tokenizer_sentencepiece import SPACE, build_sentencepiece, decoder, merges_of_scores
from boostr.io.tokenizer_unigram import build_unigram

if TYPE_CHECKING:
    import tokenizers

_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_UNIGRAM, _BPE = 1, 2  # TrainerSpec.ModelType
_UNKNOWN, _CONTROL = 2, 3  # SentencePiece.Type, which llama_token_type copies


@dataclass
class Pieces:
    """The pieces of a model by id, their scores and types, and its map of characters."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    unknown: int
    charsmap: bytes
    source: str

    def metadata(self, **more: Any) -> dict[str, Any]:
        """What a GGUF file would say of it."""
        said = {"scores": np.array(self.scores, np.float32), **more}
        if self.charsmap:
            said["precompiled_charsmap"] = np.frombuffer(self.charsmap, np.uint8)
        return {f"tokenizer.ggml.{key}": value for key, value in said.items()}


def read_pieces(folder: Path, model_type: int) -> Pieces:
    """The SentencePiece model of a folder.

    Raises:
        TokenizerError: there is none, or of another type, or the package that reads it is missing.
    """
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if path is None:
        raise TokenizerError(f"{folder}: no SentencePiece model ({', '.join(_NAMES)})")
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise TokenizerError(
            f"{path}: to read it the packages sentencepiece and protobuf are needed ({error}): "
            "pip install boostr[sentencepiece]"
        ) from None
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())  # type: ignore[attr-defined]
    except Exception as error:  # of protobuf, which has classes of its own
        raise TokenizerError(f"{path}: not a SentencePiece model: {error}") from None
    if proto.trainer_spec.model_type != model_type:
        names = {_UNIGRAM: "unigram", _BPE: "BPE"}
        raise TokenizerError(
            f"{path}: a model of type {names.get(proto.trainer_spec.model_type)}; the folder's "
            f"tokenizer_class wants {names[model_type]}"
        )
    pieces, spec = proto.pieces, proto.normalizer_spec
    return Pieces(
        [piece.piece for piece in pieces], [piece.score for piece in pieces],
        [piece.type for piece in pieces], proto.trainer_spec.unk_id, spec.precompiled_charsmap,
        str(path),
    )  # fmt: skip


def build_llama(folder: Path, config: Settings) -> tokenizers.Tokenizer:
    """BPE by scores; the space before a text is only the whole text's unless `legacy`."""
    from tokenizers import pre_tokenizers

    inner = build_gemma(folder, config)
    prefix = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    inner.normalizer = None
    inner.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split=False)  # type: ignore[assignment]
    inner.decoder = decoder(prefix)
    return inner


def build_gemma(folder: Path, config: Settings) -> tokenizers.Tokenizer:
    """BPE by scores, without a space before a text."""
    read = read_pieces(folder, _BPE)
    types, said = np.array(read.types), read.metadata(add_space_prefix=False)
    merges = merges_of_scores(said, read.tokens, types, read.source)
    inner = build_sentencepiece(said, read.tokens, merges, read.unknown, read.source)
    add_tokens(inner, read.tokens, types)
    return inner


def build_t5(folder: Path, config: Settings) -> tokenizers.Tokenizer:
    """Unigram with `extra_ids` sentinels, the last of them first."""
    read = read_pieces(folder, _UNIGRAM)
    count = config.get("extra_ids", 100)
    read.tokens += [f"<extra_id_{i}>" for i in reversed(range(count))]
    read.scores += [0.0] * count
    read.types += [_CONTROL] * count
    return _unigram(read)


def build_xlm_roberta(folder: Path, config: Settings) -> tokenizers.Tokenizer:
    """Unigram with fairseq's ids: four special tokens first, <mask> last."""
    read = read_pieces(folder, _UNIGRAM)
    read.tokens = ["<s>", "<pad>", "</s>", "<unk>", *read.tokens[3:], "<mask>"]
    read.scores = [0.0, 0.0, 0.0, 0.0, *read.scores[3:], 0.0]
    read.types = [_CONTROL, _CONTROL, _CONTROL, _UNKNOWN, *read.types[3:], _CONTROL]
    read.unknown = 3
    return _unigram(read)


def _unigram(read: Pieces) -> tokenizers.Tokenizer:
    said = read.metadata(remove_extra_whitespaces=True)
    inner = build_unigram(said, read.tokens, read.unknown, read.source)
    add_tokens(inner, read.tokens, np.array(read.types))
    return inner
