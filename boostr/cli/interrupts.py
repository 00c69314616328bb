"""Ctrl-C that stops an answer at its next token, and leaves the program and the model whole; and
an end asked for by `kill`, which leaves nothing half written."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

TERMINATED = 143  # 128 + SIGTERM, as a shell says it


@contextlib.contextmanager
def exit_on_terminate() -> Iterator[None]:
    """Inside, SIGTERM ends the program as an exception, so that scratch files go as after an error.

    Elsewhere than in the main thread, or where SIGTERM is handled already, it does nothing.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class StopOnInterrupt:
    """While entered, the first Ctrl-C (or another of `signals`) sets `requested`, and writes
    `notice` to stderr; a second one raises KeyboardInterrupt.

    A KeyboardInterrupt may come between any two steps of Python, also inside of a running program;
    a flag is looked at between tokens only. Elsewhere than in the main thread it does nothing.
    """

    def __init__(self, notice: str = "", signals: Sequence[int] = (signal.SIGINT,)) -> None:
        self.requested, self._notice, self._signals = False, notice, signals
        self._previous: list[Any] = []

    def __enter__(self) -> StopOnInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = [signal.signal(number, self._request) for number in self._signals]
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, previous in zip(self._signals, self._previous, strict=False):
            if previous is not None:
                signal.signal(number, previous)

    def _request(self, *signal_and_frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(OSError):  # no stream, which this may have interrupted
            os.write(2, self._notice.encode())
