"""What a capture on the CPU records, and its replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from boostr.program import Program


class Recorder:
    """Collects calls while a capture runs."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple, np.ndarray | None]] = []

    def python_call(self, fn: Callable[..., Any], args: tuple, result: np.ndarray | None) -> None:
        self.calls.append((fn, args, result))

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.empty(shape, dtype)


class NumpyProgram(Program):
    """A list of bound calls."""

    def __init__(self, recorder: Recorder) -> None:
        self._calls = recorder.calls

    def run(self) -> Any:
        for fn, args, result in self._calls:
            if result is None:
                fn(*args)
            else:
                np.copyto(result, fn(*args))
        return self.outputs

    def __len__(self) -> int:
        return len(self._calls)

    def describe(self) -> list[str]:
        return [getattr(fn, "__name__", repr(fn)) for fn, _, _ in self._calls]
