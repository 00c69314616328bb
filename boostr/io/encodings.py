"""Texts, and pairs of them, as tokens with their places, cut to a length as transformers cuts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from boostr.io.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding

Text = str | tuple[str, str]  # or a pair, which the tokenizer puts together


def encode_batch(
    tokenizer: Tokenizer, texts: Sequence[Text], limit: int, special_tokens: bool = True
) -> list["Encoding"]:
    """The tokens of each text, with special ones unless told otherwise, at most `limit`.

    Of a pair that is too long the longer text loses tokens, then both alike ("longest_first").

    Raises:
        TokenizerError: a text that is no valid UTF-8.
    """
    try:
        found = tokenizer.inner.encode_batch(list(texts), add_special_tokens=special_tokens)
    except Exception:
        for text in texts:
            for one in (text,) if isinstance(text, str) else text:
                tokenizer.encode(one)  # says which is wrong, and where
        raise
    return [
        encoding if len(encoding.ids) <= limit else _cut(tokenizer, text, limit, special_tokens)
        for text, encoding in zip(texts, found, strict=True)
    ]


def _cut(tokenizer: Tokenizer, text: Text, limit: int, special_tokens: bool) -> "Encoding":
    inner, side = tokenizer.inner, tokenizer.special.truncation_side
    pair = not isinstance(text, str)
    first, *rest = inner.encode_batch([*text] if pair else [text], add_special_tokens=False)
    second = rest[0] if pair else None
    room = max(0, limit - (inner.num_special_tokens_to_add(pair) if special_tokens else 0))
    kept, others = (room, 0) if second is None else _shares(len(first.ids), len(second.ids), room)
    first.truncate(kept, direction=side)
    if second is not None:
        second.truncate(others, direction=side)
    return inner.post_process(first, second, add_special_tokens=special_tokens)


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many of `room` tokens each text of a pair keeps that together have more."""
    short = min(first, second, room // 2)
    return (short, room - short) if first <= second else (room - short, short)
