"""Where the engine's tests run: a CPU, and a GPU that is some steps ahead of what is read."""

import pytest
from conftest import open_backend


@pytest.fixture(scope="module", params=["numpy", "wgpu"])
def where(request):
    return open_backend(request.param)
