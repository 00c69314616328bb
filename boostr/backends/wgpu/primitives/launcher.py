"""What primitives need of the backend that they are part of: memory and launches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from boostr.backends.base import Backend, Shape
from boostr.backends.wgpu.runtime.array import GpuArray
from boostr.backends.wgpu.runtime.device import Caps


class Launcher(Backend):
    """See `WgpuBackend`, which defines these."""

    caps: Caps

    @abstractmethod
    def empty(self, shape: Shape, dtype: Any = ...) -> GpuArray: ...

    @abstractmethod
    def dense(self, x: GpuArray) -> GpuArray: ...

    @abstractmethod
    def offset(self, array: GpuArray) -> int: ...

    @abstractmethod
    def launch(
        self,
        family: str,
        entry: str,
        grid: int | Sequence[int],
        reads: Sequence[GpuArray],
        writes: Sequence[GpuArray],
        params: Sequence[int | float] = (),
        **values: Any,
    ) -> None: ...
