"""Where the engine's tests run: a CPU, and a GPU that is some steps ahead of what is read; and the
models that most of them run, one that sees all tokens and one with a window."""

import pytest
from conftest import open_backend, skip_large
from tiny_model import make_tiny

import boostr

KINDS = {"full": {}, "window": {"model_type": "mistral", "sliding_window": 6}}


@pytest.fixture(scope="module", params=["numpy", "wgpu", "cupy"])
def where(request):
    return open_backend(request.param)


@pytest.fixture(autouse=True)
def _small_enough(request):
    """`where` is opened for a module, what is marked `large` is a test."""
    if "where" in request.fixturenames:
        skip_large(request, request.getfixturevalue("where"))


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", **KINDS[request.param])


@pytest.fixture
def model(where, folder):
    return boostr.load(folder, backend=where)
