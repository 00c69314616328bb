"""The numpy backend: composites on any CPU; with numba, kernels on all cores for what is hot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from boostr.backends.numpy.backend import NumpyBackend
from boostr.errors import BackendError

if TYPE_CHECKING:
    from boostr.backends.collectives import Communicator


def open_backend(selector: str) -> NumpyBackend:
    """The one CPU backend; there is nothing to select."""
    if selector:
        raise BackendError(f"backend numpy takes no selector, got {selector!r}")
    return NumpyBackend()


def open_ranks(devices: Sequence[int]) -> list[Communicator]:
    """As many ranks as there are numbers, which share the CPU."""
    from boostr.backends import get
    from boostr.backends.numpy.ranks import open_ranks

    return open_ranks(cast("NumpyBackend", get("numpy")), len(devices))


def probe() -> str | None:
    """None: this backend runs everywhere."""
    return None
