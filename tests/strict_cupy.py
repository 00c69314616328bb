"""For tests of single CUDA kernels: strict dispatch, and memory full of nan before use."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from conftest import open_backend

from boostr import dispatch


@contextmanager
def strict_cupy(poison: bool = True) -> Iterator[Any]:
    """The cupy backend, where no composite steps in for a kernel.

    Args:
        poison: memory that a kernel has not written is nan (or -1), so that no result is right by
            luck. In a program this is one more node for each array.
    """
    backend: Any = open_backend("cupy")
    empty = backend.empty

    def poisoned(shape: Any, dtype: Any = np.float32) -> Any:
        made = empty(shape, dtype)
        if made.nbytes:
            made.data.memset_async(0xFF, made.nbytes)
        return made

    with pytest.MonkeyPatch.context() as patched, dispatch.strict():
        if poison:
            patched.setattr(backend, "empty", poisoned)
        yield backend
