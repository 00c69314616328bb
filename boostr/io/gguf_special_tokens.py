"""The special tokens that GGUF metadata declares: ids, what goes around a text, what ends one."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr.errors import TokenizerError
from boostr.io.pre_tokenizers import PRE_TOKENIZERS
from boostr.io.special_tokens import surround

if TYPE_CHECKING:
    import tokenizers

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # llama_token_type
# Tokens that end a turn, by their text: files often declare only one of a model's several, and some
# call them user-defined. As in llama.cpp they are control tokens all the same.
TURN_ENDS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>",
    "<end_of_turn>", "<turn|>", "<|tool_response>", "<|return|>", "<|call|>", "<|calls|>",
    "<|flush|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<end_of_utterance>", "<eos>", "[e~[",
    "<｜end▁of▁sentence｜>",
}  # fmt: skip
_END_TEXTS = {*TURN_ENDS, "</s>"}  # user-defined, "</s>" is HTML, as in Gemma's files
# Where a model has these, it goes on behind <|end|>, which ends a message (gpt-oss, Solar Open).
_GOES_ON = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"}, {"<|call|>", "<|flush|>"})
END_IDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # each ends a generation
_NAMED = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id", "sep_token": "seperator_token_id",
    "cls_token": "cls_token_id", "mask_token": "mask_token_id",
}  # fmt: skip  # "seperator" is how the format spells it
_WITH_SEPARATOR = ("roberta-bpe", "jina-v1-en", "jina-v2-code")  # unless add_sep_token says no
_ADDED = {"llama": (True, False), "gemma4": (True, False), "t5": (False, True)}  # BOS, EOS


class SpecialIds:
    """The ids of special tokens by key, without `tokenizer.ggml.`; None where a file has none.

    Raises:
        TokenizerError: an id that is none of the vocabulary's `count`.
    """

    def __init__(self, metadata: Mapping[str, Any], count: int, source: str) -> None:
        self._metadata, self._count, self._source = metadata, count, source
        self._ids = {key: self._id(key) for key in (*_NAMED.values(), *END_IDS)}

    @property
    def unknown(self) -> int | None:
        return self._ids["unknown_token_id"]

    def names(self, tokens: list[str]) -> dict[str, str]:
        """The texts of special tokens by what transformers calls them."""
        found = {name: self._ids[key] for name, key in _NAMED.items()}
        return {name: tokens[id_] for name, id_ in found.items() if id_ is not None}

    def ends(self, tokens: list[str], types: np.ndarray) -> tuple[int, ...]:
        """The ids that end a generation: as declared, and control tokens that are known to."""
        declared = [self._ids[key] for key in END_IDS]
        by_text = {tokens[i]: int(i) for i in (types == _CONTROL).nonzero()[0]}
        known = {text: id_ for text, id_ in by_text.items() if text in _END_TEXTS}
        if any(both <= known.keys() for both in _GOES_ON):
            known.pop("<|end|>", None)
        both = (*declared, *known.values())
        return tuple(dict.fromkeys(id_ for id_ in both if id_ is not None))

    def surround(self, inner: "tokenizers.Tokenizer", kind: str, tokens: list[str]) -> None:
        """Sets the tokens that `encode` puts around a text, or around two."""
        if kind == "bert":
            first = self._ids["cls_token_id"]
            first = self._ids["bos_token_id"] if first is None else first
            ends = {"cls_token_id": first, "seperator_token_id": self._ids["seperator_token_id"]}
            flags = dict.fromkeys(ends, True)
        else:
            added = _ADDED.get(kind) or (PRE_TOKENIZERS[self._get("pre")].add_bos, False)
            ends = {key: self._ids[key] for key in ("bos_token_id", "eos_token_id")}
            flags = {
                key: self._get("add_" + key.removesuffix("_id"), default)
                for key, default in zip(ends, added, strict=True)
            }
        for key, flag in flags.items():
            if flag and ends[key] is None:
                raise TokenizerError(
                    f"{self._source}: the file asks to add {key}, but does not set it"
                )
        bos, eos = (
            (tokens[id_], id_) if flags[key] and id_ is not None else None
            for key, id_ in ends.items()
        )
        if bos or eos:
            surround(inner, bos, eos, self._pair(kind, bos, eos))

    def _pair(
        self, kind: str, bos: tuple[str, int] | None, eos: tuple[str, int] | None
    ) -> list[str] | None:
        """The template of two texts of an encoder: [CLS] a [SEP] b [SEP], <s> a </s></s> b </s>."""
        separates = self._get("add_sep_token", self._get("pre") in _WITH_SEPARATOR)
        if bos is None or eos is None or (kind != "bert" and not separates):
            return None
        if kind == "bert":
            return [bos[0], "$A", eos[0], "$B:1", f"{eos[0]}:1"]
        return [bos[0], "$A", eos[0], eos[0], "$B", eos[0]]

    def _get(self, name: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{name}", default)

    def _id(self, key: str) -> int | None:
        value = self._get(key)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < self._count:
            raise TokenizerError(
                f"{self._source}: tokenizer.ggml.{key} must be in [0, {self._count}), "
                f"got {value!r:.40}"
            )
        return value


def add_tokens(inner: "tokenizers.Tokenizer", tokens: list[str], types: np.ndarray) -> None:
    """Makes control and user-defined tokens be found whole in a text; `types` says which."""
    from tokenizers import AddedToken

    special = np.isin(types, (_UNKNOWN, _CONTROL)).nonzero()[0]
    plain = (types == _USER_DEFINED).nonzero()[0]
    inner.add_special_tokens([AddedToken(tokens[i], normalized=False) for i in special])
    inner.add_tokens([AddedToken(tokens[i], normalized=False) for i in plain])


def chat_templates(metadata: Mapping[str, Any], source: str) -> dict[str, str]:
    """Chat templates by name."""
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
