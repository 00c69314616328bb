"""Fixtures of the tests that look at the kernels of one backend, or of every GPU backend."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import open_backend, skip_large
from strict_cupy import strict_cupy
from strict_wgpu import BARE, strict_wgpu

STRICT = {"cupy": strict_cupy, "wgpu": strict_wgpu}
# what wgpu's kernels are told of the GPU: as it is, with the tiles of a large one, with no extras
CLASSES: dict[str, dict[str, Any]] = {
    "cupy": {}, "wgpu": {}, "wgpu-large": {"kind": "discrete"},
    "wgpu-bare": BARE | {"kind": "discrete"},
}  # fmt: skip


@contextmanager
def _opened(request: pytest.FixtureRequest) -> Iterator[Any]:
    name = request.param.partition("-")[0]
    skip_large(request, open_backend(name))
    with STRICT[name](**CLASSES[request.param]) as backend:
        yield backend


@pytest.fixture(params=STRICT)
def gpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Every GPU backend, strict, with poisoned outputs: see `strict_cupy` and `strict_wgpu`."""
    with _opened(request) as backend:
        yield backend


@pytest.fixture(params=CLASSES)
def any_gpu(request: pytest.FixtureRequest) -> Iterator[Any]:
    """As `gpu`; wgpu also with other tiles and without its optional features."""
    with _opened(request) as backend:
        yield backend


@pytest.fixture
def cupy_backend() -> Iterator[Any]:
    """The cupy backend, strict, with poisoned outputs: see `strict_cupy`."""
    with strict_cupy() as backend:
        yield backend
