"""Kernels by name: source assembled, compiled for the device, loaded, launched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from boostr import shaders
from boostr.backends.cupy.runtime import driver, nvrtc


@dataclass(frozen=True)
class Variant:
    """One specialisation of a source file, as the compile gate knows it.

    Attributes:
        family: the file `FAMILY.cu` of `shaders/cuda/`.   defines: its macros.
        least: the lowest compute capability that it is compiled for, times 10.
        only: the one architecture that it is for ("sm_90a"), if it uses what only that has.
    """

    family: str
    defines: Mapping[str, int | str] = field(default_factory=dict)
    least: int = 75
    only: str | None = None

    def compile(self, arch: str) -> nvrtc.Compiled:
        """Compile it anew; needs no GPU."""
        return nvrtc.compile_source(
            shaders.cuda_source(self.family, self.defines), arch, self.family
        )


class Kernels:
    """The kernels of one device; each is compiled and loaded when it is first used.

    Args:
        arch: of the device, such as "sm_80"; sm_90 devices take "sm_90a".
    """

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self._modules: dict[Any, driver.Module] = {}
        self._functions: dict[Any, driver.Function] = {}

    def function(self, family: str, name: str, defines: Mapping[str, int | str]) -> driver.Function:
        """Kernel `name` of `FAMILY.cu` under these macros."""
        key = (family, name, *defines.items())
        found = self._functions.get(key)
        if found is None:
            variant = (family, tuple(sorted(defines.items())))
            module = self._modules.get(variant)
            if module is None:
                text = shaders.cuda_source(family, defines)
                cubin = nvrtc.compile_cached(text, self.arch, family).cubin
                module = self._modules[variant] = driver.Module(cubin, family)
            found = self._functions[key] = module.function(name)
        return found

    def launch(
        self,
        family: str,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        *,
        stream: int,
        shared_bytes: int = 0,
        dependent: bool = False,
        **defines: int | str,
    ) -> None:
        """Start a kernel; see `driver.launch` for the arguments."""
        if 0 in grid:
            return
        function = self.function(family, name, defines)
        driver.launch(function, grid, block, args, stream, shared_bytes, dependent)
