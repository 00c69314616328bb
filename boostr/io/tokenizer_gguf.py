"""Tokenizers out of GGUF metadata (`tokenizer.ggml.*`): "gpt2", byte-level BPE, and "llama".

Of byte-level BPE the file names the pre-tokenizer (`tokenizer.ggml.pre`) without describing it.
Each entry of `PRE_TOKENIZERS` was checked to give llama.cpp's ids; names that are not there are
refused, since a wrong pre-tokenizer gives plausible text from wrong tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.errors import TokenizerError
from boostr.io.special_tokens import SpecialTokens, surround
from boostr.io.tokenizer_sentencepiece import build_sentencepiece, spelled

if TYPE_CHECKING:
    import tokenizers

_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)  # fmt: skip
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """Regexes applied one after another; what they match and what lies between are pieces.

    `nfc` composes the text first (as the original tokenizer.json does); `whole_words` takes a
    piece that is a token as it is, without merging; `add_bos` holds unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


_DIGITS_GPT2 = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3 = PreTokenizer((_WORDS + r"\p{N}{1,3}" + _REST,), whole_words=True, add_bos=True)
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": _DIGITS_GPT2,
    "starcoder": _DIGITS_GPT2,
    "refact": _DIGITS_GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": PreTokenizer((_WORDS + r"\p{N}" + _REST,), nfc=True),
    "tekken": PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
}
_OTHER_MODELS = {
    "bert": "WordPiece", "t5": "SentencePiece unigram",
    "rwkv": "RWKV", "plamo2": "PLaMo-2", "gemma4": "SentencePiece-style BPE",
}  # fmt: skip
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # llama_token_type
# Tokens that end a turn, by their text: files often declare only one of a model's several, and some
# call them user-defined. As in llama.cpp they are control tokens all the same.
_TURN_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>",
    "<end_of_turn>",
}  # fmt: skip
_END_TEXTS = {*_TURN_ENDS, "</s>"}  # user-defined, "</s>" is HTML, as in Gemma's files
END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # each ends a generation
_NAMED = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id", "sep_token": "seperator_token_id",
    "mask_token": "mask_token_id",
}  # fmt: skip  # "seperator" is how the format spells it


def build_from_gguf(
    metadata: Mapping[str, Any], source: str
) -> tuple["tokenizers.Tokenizer", SpecialTokens]:
    """The tokenizer and special tokens of a GGUF file; `source` names it in errors."""
    check_kind(metadata, source)
    tokens = _tokens(metadata, source)
    types = _types(metadata, tokens, source)
    ids = {
        key: _token_id(metadata, key, len(tokens), source) for key in (*_NAMED.values(), *END_IDS)
    }
    if metadata[_key("model")] == "llama":
        tokens, add_bos = spelled(tokens, types), True
        inner = build_sentencepiece(metadata, tokens, types, ids["unknown_token_id"], source)
    else:
        pre = _pre_tokenizer(metadata, source)
        inner, add_bos = _build(tokens, _merges(metadata, source), pre, source), pre.add_bos
    _add_tokens(inner, tokens, types)
    _post_process(inner, metadata, add_bos, tokens, ids, source)
    names = {name: tokens[id_] for name, key in _NAMED.items() if (id_ := ids[key]) is not None}
    return inner, SpecialTokens(names, _eos_ids(tokens, types, ids), _templates(metadata, source))


def has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF file has one; llama.cpp's converter also writes files that have none."""
    return metadata.get(_key("model")) not in (None, "none", "no_vocab")


def check_kind(metadata: Mapping[str, Any], source: str) -> None:
    """Raises TokenizerError for a kind of tokenizer, or a pre-tokenizer, that is not known."""
    model = metadata.get(_key("model"))
    if model not in ("gpt2", "llama"):
        kind = _OTHER_MODELS.get(str(model))
        raise TokenizerError(
            f"{source}: tokenizer model {model!r:.80}{f' ({kind})' if kind else ''} is not "
            "supported from GGUF; boostr builds 'gpt2' (byte-level BPE) and 'llama' (SentencePiece "
            "BPE). Load the model from its folder with tokenizer.json instead"
        )
    if model == "gpt2":
        _pre_tokenizer(metadata, source)


def _key(name: str) -> str:
    return f"tokenizer.ggml.{name}"


def _pre_tokenizer(metadata: Mapping[str, Any], source: str) -> PreTokenizer:
    pre = metadata.get(_key("pre"))
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"{source}: {_key('pre')} is {pre!r}; boostr knows {', '.join(PRE_TOKENIZERS)} and "
            "does not guess. Load the model from its folder with tokenizer.json instead"
        )
    return PRE_TOKENIZERS[pre]


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
    ends = [i for i in (types == _USER_DEFINED).nonzero()[0] if tokens[i] in _TURN_ENDS]
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


def _token_id(metadata: Mapping[str, Any], key: str, count: int, source: str) -> int | None:
    value = metadata.get(_key(key))
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < count:
        raise TokenizerError(f"{source}: {_key(key)} must be in [0, {count}), got {value!r:.40}")
    return value


def _build(
    tokens: list[str], merges: list[tuple[str, str]], pre: PreTokenizer, source: str
) -> "tokenizers.Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = {token: id_ for id_, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.whole_words)
    except Exception as error:  # tokenizers raises bare Exceptions
        raise TokenizerError(f"{source}: vocabulary and merges do not fit: {error}") from None
    inner = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in pre.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])  # type: ignore[assignment]
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if pre.nfc:
        inner.normalizer = normalizers.NFC()  # type: ignore[assignment]
    return inner


def _add_tokens(inner: "tokenizers.Tokenizer", tokens: list[str], types: np.ndarray) -> None:
    from tokenizers import AddedToken

    special = np.isin(types, (_UNKNOWN, _CONTROL)).nonzero()[0]
    plain = (types == _USER_DEFINED).nonzero()[0]
    inner.add_special_tokens([AddedToken(tokens[i], normalized=False) for i in special])
    inner.add_tokens([AddedToken(tokens[i], normalized=False) for i in plain])


def _post_process(
    inner: "tokenizers.Tokenizer",
    metadata: Mapping[str, Any],
    add_bos: bool,
    tokens: list[str],
    ids: Mapping[str, int | None],
    source: str,
) -> None:
    """Sets the BOS and EOS that `encode` adds."""
    flags = {"bos_token_id": add_bos, "eos_token_id": False}
    for key in flags:
        flag = metadata.get(_key("add_" + key.removesuffix("_id")), flags[key])
        if flag and ids[key] is None:
            raise TokenizerError(f"{source}: the file asks to add {key}, but does not set it")
        flags[key] = bool(flag)
    bos, eos = (ids[key] if flags[key] else None for key in flags)
    if bos is not None or eos is not None:
        surround(inner, *((tokens[i], i) if i is not None else None for i in (bos, eos)))


def _eos_ids(
    tokens: list[str], types: np.ndarray, ids: Mapping[str, int | None]
) -> tuple[int, ...]:
    declared = [ids[key] for key in END_IDS]
    by_text = [int(i) for i in (types == _CONTROL).nonzero()[0] if tokens[i] in _END_TEXTS]
    return tuple(dict.fromkeys(id_ for id_ in (*declared, *by_text) if id_ is not None))


def _templates(metadata: Mapping[str, Any], source: str) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    found = {
        key.removeprefix(prefix).removeprefix(".") or "default": value
        for key, value in metadata.items()
        if key == prefix or key.startswith(prefix + ".")
    }
    for name, value in found.items():
        if not isinstance(value, str):
            raise TokenizerError(f"{source}: chat template {name!r} must be a string")
    return found
