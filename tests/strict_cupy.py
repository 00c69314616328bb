"""For tests of single CUDA kernels: strict dispatch, and memory full of nan before use."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import open_backend

from boostr import Tensor, backends, dispatch


@contextmanager
def strict_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[backends.Backend]:
    """The cupy backend, where no composite steps in for a kernel.

    Memory that a kernel has not written is nan (or -1), so that no result is right by luck.
    """
    backend = open_backend("cupy")
    empty = backend.empty  # type: ignore[attr-defined]

    def poisoned(shape, dtype=np.float32):
        made = empty(shape, dtype)
        if made.size and made.ndim:
            made.view(np.uint8)[...] = 255
        return made

    monkeypatch.setattr(backend, "empty", poisoned)
    with dispatch.strict():
        yield backend


def view(backend: backends.Backend, x: np.ndarray, rest: int = 8) -> Tensor:
    """x as the first columns of a wider matrix on the device, as a fused product gives it."""
    room = np.full((*x.shape[:-1], x.shape[-1] + rest), np.nan, x.dtype)
    room[..., : x.shape[-1]] = x
    return Tensor(room, backend=backend)[..., : x.shape[-1]]
