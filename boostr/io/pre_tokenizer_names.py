"""GGUF's name for the way a byte-level BPE tokenizer cuts a text: `pre_tokenizers` backwards."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from boostr.errors import TokenizerError
from boostr.io.pre_tokenizers import DIGIT, DIGITS, GPT2, MARK, MARKS, PRE_TOKENIZERS, PreTokenizer

if TYPE_CHECKING:
    from boostr.io.tokenizer import Tokenizer

_PUNCTUATION = {"Isolated": MARK, "Contiguous": MARKS}
_PIECES = (("Isolated", False), ("Removed", True))  # the second where nothing lies between matches


def pre_tokenizer_name(state: dict[str, Any], tokenizer: Tokenizer) -> str:
    """What `tokenizer.ggml.pre` is for a tokenizer, given also as its tokenizer.json.

    Raises:
        TokenizerError: it cuts, or composes, text as no pre-tokenizer that boostr knows by name.
    """
    read = _read(state)
    name = None if read is None else _name(read)
    if name is None and read is not None and _merges_make_all(tokenizer):
        name = _name(replace(read, whole_words=not read.whole_words))
    if name is not None:
        return name
    cuts = [step.get("pattern", step["type"]) for step in steps_of(state["pre_tokenizer"])]
    raise TokenizerError(
        f"{tokenizer.source}: no pre-tokenizer of GGUF that boostr knows cuts text as this one "
        f"does, by {cuts!s:.300} (it knows {', '.join(PRE_TOKENIZERS)})"
    )


def steps_of(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be a sequence or missing."""
    if part is None:
        return []
    nested = part.get("normalizers", part.get("pretokenizers"))
    return [part] if nested is None else [step for each in nested for step in steps_of(each)]


def _name(read: PreTokenizer) -> str | None:
    same = (read, replace(read, add_bos=True))  # a file says that by itself
    return next((name for name, known in PRE_TOKENIZERS.items() if known in same), None)


def _merges_make_all(tokenizer: Tokenizer) -> bool:
    """Whether merges make every token, so that looking words up whole finds nothing else."""
    model = tokenizer.inner.model
    vocab = tokenizer.inner.get_vocab(with_added_tokens=False)
    added = tokenizer.inner.get_added_tokens_decoder()
    return not model.ignore_merges and all(
        id_ in added or len(model.tokenize(token)) == 1 for token, id_ in vocab.items()
    )


def _read(state: dict[str, Any]) -> PreTokenizer | None:
    """The pre-tokenizer of a tokenizer.json; None if it has what no GGUF file can say."""
    model, normalizers = state["model"], [step["type"] for step in steps_of(state["normalizer"])]
    parts = [model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")]
    if any(parts) or normalizers not in ([], ["NFC"]):
        return None
    patterns: list[str] = []
    of_bytes: list[str] | None = None
    for step in steps_of(state["pre_tokenizer"]):
        if step["type"] == "ByteLevel":
            if of_bytes is not None or step["add_prefix_space"]:
                return None
            patterns += [GPT2] if step["use_regex"] else []
            of_bytes = []
        elif (pattern := _pattern(step)) is None:
            return None
        else:
            (patterns if of_bytes is None else of_bytes).append(pattern)
    if of_bytes is None:
        return None
    nfc, whole = bool(normalizers), bool(model.get("ignore_merges"))
    return PreTokenizer(tuple(patterns), tuple(of_bytes), nfc, whole)


def _pattern(step: dict[str, Any]) -> str | None:
    """The regex of a step, spelled as in `pre_tokenizers`."""
    if step["type"] == "Digits":
        return DIGIT if step["individual_digits"] else DIGITS
    if step["type"] == "Punctuation":
        return _PUNCTUATION.get(step["behavior"])
    if step["type"] != "Split" or (step["behavior"], step["invert"]) not in _PIECES:
        return None
    regex = step["pattern"].get("Regex")
    if regex is None:
        return None
    return regex.replace("\r", r"\r").replace("\n", r"\n").replace(r"\p{N}{1}|", r"\p{N}|")
