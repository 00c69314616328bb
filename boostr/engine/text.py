"""Text of a growing sequence: whole characters, cut before stop strings across token borders."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from boostr.io.detokenizer import Detokenizer

Run = tuple[str, bool]  # a text, and whether it is shown


class TextStream:
    """Turns token ids into text that may be shown at once.

    What might be the beginning of a stop string is held back until it is decided. `special` gives
    the text of a special token, None for others: it is never shown, but a stop string may have it.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop: Sequence[str] = (),
        special: Callable[[int], str | None] = lambda token_id: None,
    ) -> None:
        self._detokenizer, self._stop = detokenizer, tuple(stop)
        self._special = special
        self._held: list[Run] = []
        self.stopped = False

    def add(self, token_id: int) -> str:
        """The text that this token completes; sets `stopped` when a stop string has appeared."""
        if not self._stop:
            return self._detokenizer.add(token_id)
        hidden = self._special(token_id)
        new = [(self._detokenizer.add(token_id), True)]
        return self._release(new if hidden is None else [*new, (hidden, False)])

    def finish(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        text = self._release([(self._detokenizer.finish(), True)])
        if not self.stopped:
            text, self._held = text + _shown(self._held), []
        return text

    def _release(self, new: list[Run]) -> str:
        if self.stopped:
            return ""
        runs = self._held + new
        text = "".join(part for part, _ in runs)
        found = [at for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, []
            return _shown(_cut(runs, min(found))[0])
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        ready, self._held = _cut(runs, len(text) - keep)
        return _shown(ready)


def _cut(runs: list[Run], at: int) -> tuple[list[Run], list[Run]]:
    """The first `at` characters, and the rest."""
    before, behind = [], []
    for text, shown in runs:
        before.append((text[:at], shown))
        behind.append((text[at:], shown))
        at = max(at - len(text), 0)
    return before, [run for run in behind if run[0]]


def _shown(runs: list[Run]) -> str:
    return "".join(text for text, shown in runs if shown)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
