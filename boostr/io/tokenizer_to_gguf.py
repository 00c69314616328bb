"""A tokenizer as GGUF metadata (`tokenizer.ggml.*`): `tokenizer_gguf` read backwards.

What is written is built again and must give the same ids as the original, so that a file never has
a tokenizer that is almost right.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from boostr.errors import TokenizerError
from boostr.io.gguf_special_tokens import END_IDS
from boostr.io.pre_tokenizer_names import pre_tokenizer_name, steps_of
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_gguf import build_from_gguf, has_tokenizer
from boostr.io.tokenizer_sentencepiece import BYTE_TOKENS, SPACE
from boostr.io.tokenizer_wordpiece import as_marked

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # llama_token_type
_UNUSED_SCORE = -10000.0
_IDS = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding",
    "sep_token": "seperator", "cls_token": "cls", "mask_token": "mask",
}  # fmt: skip  # "seperator" is how the format spells it
_CHECK = (
    "Hello, world! I'm sure they'LL've 3 33 333 3333 33333 tokens 3.14\n\n\n  spaces   and\t\t tabs"
    " \n don't WE'RE naïve façade Привет мир 你好世界 こんにちは 안녕 🚀😀 ''''``` __init__(self):"
    " {a[0]} x+=1; // -- == != <= >= #include <a.h> https://a.b/c?d=e&f ½ ² १२३ e\u0301\r\nCamel"
    "Case i.e. (a) "
)


def with_ends(metadata: dict[str, Any], ends: Sequence[int], source: str) -> dict[str, Any]:
    """The metadata with keys for all ids that end a generation; a reader knows some by their text.

    Raises:
        TokenizerError: more of them than GGUF has keys for.
    """
    known: set[int] = set()
    if has_tokenizer(metadata):
        known = {*build_from_gguf(metadata, source)[1].eos_ids}
    keys = [key for name in END_IDS if (key := f"tokenizer.ggml.{name}") not in metadata]
    more = [id_ for id_ in ends if id_ not in known]
    if len(more) > len(keys):
        raise TokenizerError(
            f"{source}: GGUF has keys for {len(keys)} more tokens that end a generation, and the "
            f"folder has {len(more)}: {more}; shorten eos_token_id in its generation_config.json"
        )
    return metadata | dict(zip(keys, more, strict=False))


def gguf_tokenizer(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """The metadata of a tokenizer, for a model whose embedding has so many rows.

    Raises:
        TokenizerError: a kind that GGUF has no form for, or a pre-tokenizer that has no name there.
    """
    inner, source = tokenizer.inner, tokenizer.source
    state = json.loads(inner.to_str())
    kind = state["model"]["type"]
    if kind not in _WRITERS:
        raise TokenizerError(f"{source}: {kind} is not written to GGUF; {', '.join(_WRITERS)} are")
    tokens, types = _tokens(tokenizer, rows)
    data: dict[str, Any] = {"pre": "default", "tokens": tokens, "token_type": types}
    data |= _WRITERS[kind](state, data | _ids(tokenizer), tokenizer)
    named = {f"tokenizer.ggml.{key}": value for key, value in data.items()}
    for name, template in tokenizer.special.templates.items():
        end = "" if name == "default" else f".{name}"
        named[f"tokenizer.chat_template{end}"] = template
    # HF's unigram ones keep a space at the end that SentencePiece itself drops.
    check = _CHECK.rstrip() if kind == "Unigram" else _CHECK
    if build_from_gguf(named, source)[0].encode(check).ids != inner.encode(check).ids:
        raise TokenizerError(
            f"{source}: the nearest that GGUF can say of this tokenizer (model {data['model']!r}, "
            f"pre {data['pre']!r}) cuts text otherwise, so a model would get wrong tokens from it"
        )
    return named


def _tokens(tokenizer: Tokenizer, rows: int) -> tuple[list[str], np.ndarray]:
    """All tokens by id, and their types."""
    vocab, added = tokenizer.inner.get_vocab(), tokenizer.inner.get_added_tokens_decoder()
    count = max(rows, max(vocab.values(), default=-1) + 1)
    tokens = [f"[PAD{i}]" for i in range(count)]
    types = np.full(count, _UNUSED, np.int32)
    for token, id_ in vocab.items():
        tokens[id_], types[id_] = token, _NORMAL
    for id_, token in added.items():
        types[id_] = _CONTROL if token.special else _USER_DEFINED
    return tokens[:rows], types[:rows]


def _ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The special tokens as declared, and those that `encode` adds in their place."""
    inner, found = tokenizer.inner, dict[str, Any]()
    for name, key in _IDS.items():
        text = tokenizer.special.names.get(name)
        id_ = None if text is None else inner.token_to_id(text)
        if id_ is not None:
            found[f"{key}_token_id"] = id_
    around, bare = (inner.encode("a", add_special_tokens=flag).ids for flag in (True, False))
    found["add_bos_token"] = around[:1] != bare[:1]
    found["add_eos_token"] = around[-1:] != bare[-1:]
    if found["add_bos_token"] and found["add_eos_token"]:  # RoBERTa's <s> a </s></s> b </s>
        two = inner.encode("a", "a").ids
        found["add_sep_token"] = two == [*around, around[-1], *around[1:]]
    if found["add_bos_token"]:
        found["bos_token_id"] = around[0]
    if found["add_eos_token"]:
        declared = found.get("eos_token_id", around[-1])
        found["eos_token_id"] = around[-1]
        if declared != around[-1]:
            found["eot_token_id"] = declared
    return found


def _bpe(state: dict, data: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    model = state["model"]
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model["byte_fallback"]:
        return data | _scored(data["tokens"], data["token_type"], merges, tokenizer.inner)
    pre = pre_tokenizer_name(state, tokenizer)
    return data | {"model": "gpt2", "pre": pre, "merges": [" ".join(merge) for merge in merges]}


def _scored(
    tokens: list[str], types: np.ndarray, merges: list[tuple], inner: Any
) -> dict[str, Any]:
    """The scores say in which order pieces are joined: the first merge that makes one ranks it."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    scores = [-float(ranks.get(token, len(merges) + i)) for i, token in enumerate(tokens)]
    _mark(tokens, types, inner.model.unk_token)
    first = inner.encode("a", add_special_tokens=False).tokens
    return {
        "model": "llama",
        "scores": np.array(scores, np.float32),
        "add_space_prefix": bool(first) and first[0].startswith(SPACE),
    }


def _mark(tokens: list[str], types: np.ndarray, unknown: str | None) -> None:
    """Sets the types of pieces for bytes, and of the unknown token."""
    for i, token in enumerate(tokens):
        if token in BYTE_TOKENS and types[i] == _NORMAL:
            types[i] = _BYTE
    if unknown in tokens:
        types[tokens.index(unknown)] = _UNKNOWN


def _unigram(state: dict, data: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    vocab, unknown = state["model"]["vocab"], state["model"]["unk_id"]
    tokens = data["tokens"]
    scores = np.full(len(tokens), _UNUSED_SCORE, np.float32)
    known = vocab[: len(tokens)]
    scores[: len(known)] = [score for _, score in known]
    _mark(tokens, data["token_type"], vocab[unknown][0])
    scores[data["token_type"] == _BYTE] = 0
    normalizers, cuts = steps_of(state["normalizer"]), steps_of(state["pre_tokenizer"])
    trims = any(step["type"] in ("Replace", "WhitespaceSplit") for step in (*normalizers, *cuts))
    made = {
        "model": "t5",
        "scores": scores,
        "unknown_token_id": unknown,
        "add_space_prefix": any(s.get("prepend_scheme") in ("always", "first") for s in cuts),
        "remove_extra_whitespaces": trims,
    }
    for step in normalizers:
        if step["type"] == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
            made["precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
    return data | made


def _wordpiece(state: dict, data: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    normalizer = state["normalizer"] or {}
    around = data["add_bos_token"] and data["add_eos_token"]
    if normalizer.get("type") != "BertNormalizer" or not around:
        raise TokenizerError(
            f"{tokenizer.source}: GGUF has WordPiece with BERT's normalizer, and with a token "
            f"before and one behind a text; this one has {normalizer.get('type')}, and "
            f"{tokenizer.inner.encode('a').tokens} of the text 'a'"
        )
    made = {
        "model": "bert",
        "tokens": as_marked(data["tokens"], data["token_type"]),
        "unknown_token_id": tokenizer.inner.token_to_id(state["model"]["unk_token"]),
        "cls_token_id": data["bos_token_id"],
        "seperator_token_id": data["eos_token_id"],
        "normalizer.lowercase": normalizer["lowercase"],
    }
    if normalizer["strip_accents"] is not None:
        made["normalizer.strip_accents"] = normalizer["strip_accents"]
    return data | made


_WRITERS = {"BPE": _bpe, "Unigram": _unigram, "WordPiece": _wordpiece}
