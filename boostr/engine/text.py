"""Text of a growing sequence: whole characters, cut before stop strings across token borders."""

from __future__ import annotations

from collections.abc import Sequence

from boostr.io.detokenizer import Detokenizer


class TextStream:
    """Turns token ids into text that may be shown at once.

    What might be the beginning of a stop string is held back until it is decided.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer, self._stop = detokenizer, tuple(stop)
        self._held = ""
        self.stopped = False

    def add(self, token_id: int) -> str:
        """The text that this token completes; sets `stopped` when a stop string has appeared."""
        return self._release(self._detokenizer.add(token_id))

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        text = self._release(self._detokenizer.finish())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
