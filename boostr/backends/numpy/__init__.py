"""The numpy backend: composites on any CPU; with numba, kernels on all cores for what is hot."""

from boostr.backends.numpy.backend import NumpyBackend
from boostr.errors import BackendError


def open_backend(selector: str) -> NumpyBackend:
    """The one CPU backend; there is nothing to select."""
    if selector:
        raise BackendError(f"backend numpy takes no selector, got {selector!r}")
    return NumpyBackend()


def probe() -> str | None:
    """None: this backend runs everywhere."""
    return None
