"""The wgpu backend: any GPU through WebGPU (Vulkan, Metal, DirectX 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from boostr.errors import BackendError, OptionError

if TYPE_CHECKING:
    from boostr.backends.collectives import Communicator
    from boostr.backends.wgpu.backend import WgpuBackend


def open_backend(selector: str) -> WgpuBackend:
    """The backend on the adapter of that index or part of a name; default the best real GPU."""
    from boostr.backends.wgpu.runtime import provider

    name = provider.chosen()
    if not provider.installed(name):
        raise BackendError(f"backend wgpu cannot be used: {_missing(name)}")
    from boostr.backends.wgpu.backend import WgpuBackend
    from boostr.backends.wgpu.runtime import adapters

    library = provider.load(name)
    return WgpuBackend(library, adapters.choose(library, selector), selector)


def open_ranks(devices: Sequence[int]) -> list[Communicator]:
    """Refused: WebGPU has no way from one device to another."""
    raise OptionError(
        f"devices {list(devices)}: wgpu cannot sum over devices; train on one, where "
        f"grad_accumulation = {len(devices)} makes the same step"
    )


def probe() -> str | None:
    """None if a real GPU answers, else why not, in one line that says what to do."""
    from boostr.backends.wgpu.runtime import provider

    try:
        name = provider.chosen()
        if not provider.installed(name):
            return _missing(name)
        from boostr.backends.wgpu.runtime import adapters

        adapters.choose(provider.load(name), "")
    except BackendError as error:
        return str(error).removeprefix("backend wgpu: ")
    except Exception as error:  # a broken install raises whatever it likes
        return f"the {provider.chosen()} package does not work here: {error}"
    return None


def _missing(name: str) -> str:
    extra = "wgpu" if name == "wgpu" else "wgpudawn"
    return f"{name} is not installed; pip install 'boostr[{extra}]'"
