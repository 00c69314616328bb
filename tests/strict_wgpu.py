"""For tests of single WGSL kernels: strict dispatch, dirty memory, and GPUs that can do less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from conftest import open_backend

from boostr import dispatch
from boostr.backends.wgpu.runtime.kernels import Pipelines

# what a GPU has that offers no more than WebGPU promises
BARE = {
    "f16": False, "subgroup_min": 0, "subgroup_max": 0, "dot4": False, "dot4_native": False,
    "immediate_bytes": 0, "f32_atomics": False, "workgroup_bytes": 16384, "workgroup_threads": 256,
    "matrices": (),
}  # fmt: skip
_pipelines: dict[Any, Pipelines] = {}


@contextmanager
def strict_wgpu(poison: bool = True, strict: bool = True, **caps: Any) -> Iterator[Any]:
    """The wgpu backend, where no composite steps in for a kernel.

    Args:
        poison: memory and workgroup arrays that nobody has written yet are nan.
        caps: fields of `Caps` that the kernels shall see changed, such as subgroup_max=0;
            `**BARE` is a GPU with no extras at all.
    """
    backend: Any = open_backend("wgpu")
    before = backend.caps, backend.pipelines, backend.poison
    seen = replace(backend.caps, **caps)
    key = (backend, seen, poison)
    if key not in _pipelines:  # compiling is slow: kept for the other tests
        _pipelines[key] = Pipelines(backend.provider, backend._gpu, seen, poison)
    _set(backend, seen, _pipelines[key], poison)
    try:
        with dispatch.strict(strict):
            yield backend
    finally:
        backend.flush()
        _set(backend, *before)


def _set(backend: Any, caps: Any, pipelines: Pipelines, poison: bool) -> None:
    backend.caps = backend.groups.caps = caps
    backend.pipelines, backend.poison = pipelines, poison
