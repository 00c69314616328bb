"""A tokenizer as GGUF metadata (`tokenizer.ggml.*`): `tokenizer_gguf` read backwards.

What is written is built again and must give the same ids as the original, so that a file never has
a tokenizer that is almost right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from boostr.errors import TokenizerError
from boostr.io.gguf_special_tokens import END_IDS
from boostr.io.pre_tokenizers import PRE_TOKENIZERS
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_gguf import build_from_gguf, has_tokenizer
from boostr.io.tokenizer_sentencepiece import SPACE

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # llama_token_type
_IDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
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
    inner = tokenizer.inner
    model = json.loads(inner.to_str())["model"]
    if model.get("type") != "BPE":
        raise TokenizerError(f"{tokenizer.source}: {model.get('type')} is not written to GGUF")
    tokens, types = _tokens(tokenizer, rows)
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    data: dict[str, Any] = {"tokens": tokens, "token_type": types, **_ids(tokenizer)}
    if model.get("byte_fallback"):
        data |= _sentencepiece(tokens, types, merges, inner)
        options: tuple[str, ...] = ("default",)
    else:
        data |= {"model": "gpt2", "merges": [" ".join(merge) for merge in merges]}
        options = (*(name for name in PRE_TOKENIZERS if name != "default"), "default")
    named = {f"tokenizer.ggml.{key}": value for key, value in data.items()}
    for name, template in tokenizer.special.templates.items():
        end = "" if name == "default" else f".{name}"
        named[f"tokenizer.chat_template{end}"] = template
    want = inner.encode(_CHECK).ids
    for pre in options:
        made = {**named, "tokenizer.ggml.pre": pre}
        if build_from_gguf(made, tokenizer.source)[0].encode(_CHECK).ids == want:
            return made
    raise TokenizerError(
        f"{tokenizer.source}: no tokenizer of GGUF that boostr knows cuts text as this one does "
        f"(tried: {', '.join(options)}), so it would get wrong tokens from its own model"
    )


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
    inner, found = tokenizer.inner, dict[str, Any]()
    for name, key in _IDS.items():
        text = tokenizer.special.names.get(name)
        id_ = None if text is None else inner.token_to_id(text)
        if id_ is not None:
            found[f"{key}_token_id"] = id_
    around, bare = (inner.encode("a", add_special_tokens=flag).ids for flag in (True, False))
    found["add_bos_token"] = around[0] != bare[0]
    found["add_eos_token"] = around[-1] != bare[-1]
    return found


def _sentencepiece(
    tokens: list[str], types: np.ndarray, merges: list[tuple], inner: Any
) -> dict[str, Any]:
    """The scores say in which order pieces are joined: the first merge that makes one ranks it."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    scores = [-float(ranks.get(token, len(merges) + i)) for i, token in enumerate(tokens)]
    for i, token in enumerate(tokens):
        if types[i] == _NORMAL and len(token) == 6 and token.startswith("<0x"):
            types[i] = _BYTE
    unknown = json.loads(inner.to_str())["model"].get("unk_token")
    if unknown in tokens:
        types[tokens.index(unknown)] = _UNKNOWN
    first = inner.encode("a", add_special_tokens=False).tokens
    return {
        "model": "llama",
        "scores": np.array(scores, np.float32),
        "add_space_prefix": bool(first) and first[0].startswith(SPACE),
    }
