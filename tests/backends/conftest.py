"""Fixtures of the tests that look at the kernels of one backend."""

from collections.abc import Iterator
from typing import Any

import pytest
from strict_cupy import strict_cupy


@pytest.fixture
def cupy_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The cupy backend, strict, with poisoned outputs: see `strict_cupy`."""
    with strict_cupy(monkeypatch) as backend:
        yield backend
