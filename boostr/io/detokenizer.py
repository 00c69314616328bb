"""Text from tokens as they come: never half a character, O(1) work for each token."""

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tokenizers

_REPLACEMENT = "\ufffd"
_MAX_PENDING = (
    16  # tokens; a character takes 4 bytes, so more are garbage and not an unfinished one
)


class Detokenizer(Protocol):
    """Turns ids into text one at a time; the pieces joined are what `Tokenizer.decode` gives."""

    def add(self, token_id: int) -> str:
        """The text that this id completes; "" while a character is unfinished."""
        ...

    def finish(self) -> str:
        """What is left; a character that was cut off comes as U+FFFD. Then `add` starts anew."""
        ...


class NoText:
    """For models without a tokenizer: no id has a text."""

    def add(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class ByteLevelDetokenizer:
    """For byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): exact, by bytes.

    `skip` holds the ids that give no text.
    """

    def __init__(self, inner: "tokenizers.Tokenizer", skip: frozenset[int]) -> None:
        self._inner, self._skip = inner, skip
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        return self._utf8.decode(token_bytes(self._inner.id_to_token(token_id) or ""))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """For every other decoder: decodes a short window of ids and emits what is new in it.

    Decoders treat the first token specially (they strip its space), so the window starts with the
    tokens of the last piece emitted, as context. Byte-fallback decoders (Llama 2) judge a run of
    byte tokens as a whole, so a run that is no UTF-8 may give another number of U+FFFD here.
    `after` are ids that came before, whose text is not given again.
    """

    def __init__(
        self, inner: "tokenizers.Tokenizer", skip: frozenset[int], after: Sequence[int] = ()
    ) -> None:
        self._inner, self._skip = inner, skip
        self._ids = [id_ for id_ in after[-_MAX_PENDING:] if id_ not in skip]
        self._emitted = len(self._ids)  # ids[:_emitted] are out, and stay as context

    def add(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        self._ids.append(token_id)
        text = self._new_text()
        pending = len(self._ids) - self._emitted
        unfinished = not text or text.endswith(_REPLACEMENT)
        if unfinished and pending < _MAX_PENDING:
            return ""
        self._ids = self._ids[self._emitted :]
        self._emitted = len(self._ids)
        return text

    def finish(self) -> str:
        text = self._new_text()
        self._ids, self._emitted = [], 0
        return text

    def _new_text(self) -> str:
        before = self._decode(self._ids[: self._emitted])
        return self._decode(self._ids)[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._inner.decode(ids, skip_special_tokens=False) if ids else ""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


def token_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; text outside of the alphabet stands for its own UTF-8."""
    try:
        return bytes([BYTE_OF[char] for char in token])
    except KeyError:  # an added token such as "<a b>"
        return token.encode("utf-8")
