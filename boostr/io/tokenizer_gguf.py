"""Tokenizers out of GGUF metadata (`tokenizer.ggml.*`), of each kind that a file can name.

"gpt2" is byte-level BPE (`pre_tokenizers`), "llama" and "gemma4" SentencePiece BPE, "t5" unigram,
"bert" WordPiece.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.errors import TokenizerError
from boostr.io.gguf_special_tokens import TURN_ENDS, SpecialIds, add_tokens, chat_templates
from boostr.io.pre_tokenizers import PRE_TOKENIZERS
from boostr.io.special_tokens import SpecialTokens
from boostr.io.tokenizer_byte_bpe import build_byte_bpe
from boostr.io.tokenizer_sentencepiece import build_sentencepiece, merges_of_scores, spelled
from boostr.io.tokenizer_unigram import build_unigram
from boostr.io.tokenizer_wordpiece import as_written, build_wordpiece

if TYPE_CHECKING:
    import tokenizers

_KINDS = {
    "gpt2": "byte-level BPE", "llama": "SentencePiece BPE by scores",
    "gemma4": "SentencePiece BPE by merges", "t5": "unigram", "bert": "WordPiece",
}  # fmt: skip
_BY_MERGES = ("gemma4", "granite-embed-multi-311m")  # `pre` of "gpt2" files that are no bytes
_CONTROL, _USER_DEFINED = 3, 4  # llama_token_type


def build_from_gguf(
    metadata: Mapping[str, Any], source: str
) -> tuple["tokenizers.Tokenizer", SpecialTokens]:
    """The tokenizer and special tokens of a GGUF file; `source` names it in errors."""
    kind = check_kind(metadata, source)
    tokens = _tokens(metadata, source)
    types = _types(metadata, tokens, source)
    ids = SpecialIds(metadata, len(tokens), source)
    if kind == "bert":
        tokens = as_written(tokens, types)
        inner = build_wordpiece(metadata, tokens, ids.unknown, source)
    elif kind == "gpt2":
        pre = PRE_TOKENIZERS[metadata[_key("pre")]]
        vocab = {token: id_ for id_, token in enumerate(tokens)}
        inner = build_byte_bpe(vocab, _merges(metadata, source), pre, source)
    else:
        tokens = spelled(tokens, types)
        inner = _build_pieces(kind, metadata, tokens, types, ids.unknown, source)
    add_tokens(inner, tokens, types)
    ids.surround(inner, kind, tokens)
    templates = chat_templates(metadata, source)
    return inner, SpecialTokens(ids.names(tokens), ids.ends(tokens, types), templates)


def _build_pieces(
    kind: str,
    metadata: Mapping[str, Any],
    tokens: list[str],
    types: np.ndarray,
    unknown: int | None,
    source: str,
) -> "tokenizers.Tokenizer":
    if kind == "t5":
        return build_unigram(metadata, tokens, unknown, source)
    if kind == "llama":
        merges, prefix = merges_of_scores(metadata, tokens, types, source), True
    else:
        merges, prefix = _merges(metadata, source), False
    return build_sentencepiece(
        {_key("add_space_prefix"): prefix, **metadata}, tokens, merges, unknown, source
    )


def has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF file has one; llama.cpp's converter also writes files that have none."""
    return metadata.get(_key("model")) not in (None, "none", "no_vocab")


def check_kind(metadata: Mapping[str, Any], source: str) -> str:
    """The kind of tokenizer, one of those that `tokenizer.ggml.model` names.

    Raises:
        TokenizerError: a kind of tokenizer, or a pre-tokenizer, that is not known.
    """
    model, pre = metadata.get(_key("model")), metadata.get(_key("pre"))
    if model not in _KINDS:
        known = ", ".join(f"{name!r} ({what})" for name, what in _KINDS.items())
        raise TokenizerError(
            f"{source}: tokenizer model {model!r:.80} is not known; boostr builds {known}. Load "
            "the model from its folder with tokenizer.json instead"
        )
    if model != "gpt2":
        return model
    if pre in _BY_MERGES:
        return "gemma4"
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        known = ", ".join((*PRE_TOKENIZERS, *_BY_MERGES))
        raise TokenizerError(
            f"{source}: {_key('pre')} is {pre!r:.80}; boostr knows {known} and does not guess. "
            "Load the model from its folder with tokenizer.json instead"
        )
    return model


def _key(name: str) -> str:
    return f"tokenizer.ggml.{name}"


def _strings(metadata: Mapping[str, Any], name: str, source: str) -> list[str]:
    value = metadata.get(_key(name))
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        got = "nothing" if value is None else type(value).__name__
        raise TokenizerError(f"{source}: {_key(name)} must be a list of strings, got {got}")
    return value


def _tokens(metadata: Mapping[str, Any], source: str) -> list[str]:
    tokens = _strings(metadata, "tokens", source)
    # No text encodes to an empty token; it only needs a name of its own, as in llama.cpp.
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    if not tokens or len(set(tokens)) != len(tokens):
        raise TokenizerError(
            f"{source}: {_key('tokens')} must be distinct; {len(tokens)} tokens, "
            f"{len(tokens) - len(set(tokens))} of them repeated"
        )
    return tokens


def _types(metadata: Mapping[str, Any], tokens: list[str], source: str) -> np.ndarray:
    types = metadata.get(_key("token_type"))
    count = len(tokens)
    if types is None:
        return np.ones(count, np.int32)
    if not isinstance(types, np.ndarray) or types.shape != (count,) or types.dtype.kind not in "iu":
        raise TokenizerError(
            f"{source}: {_key('token_type')} must be {count} integers, one for each token"
        )
    ends = [i for i in (types == _USER_DEFINED).nonzero()[0] if tokens[i] in TURN_ENDS]
    types = types.copy()
    types[ends] = _CONTROL
    return types


def _merges(metadata: Mapping[str, Any], source: str) -> list[tuple[str, str]]:
    merges = []
    for merge in _strings(metadata, "merges", source):
        cut = merge.find(" ", 1)
        if cut < 0 or cut + 1 == len(merge):
            raise TokenizerError(f"{source}: merge {merge!r:.200} must be two tokens and a space")
        merges.append((merge[:cut], merge[cut + 1 :]))
    return merges
