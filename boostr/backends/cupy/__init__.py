"""The cupy backend: NVIDIA GPUs of compute capability 7.5 and up, with CUDA kernels of our own."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from boostr.errors import BackendError

if TYPE_CHECKING:
    from boostr.backends.collectives import Communicator
    from boostr.backends.cupy.backend import CupyBackend

INSTALL = "pip install 'boostr[cuda13]' (driver 580 or newer) or 'boostr[cuda12]' (525 or newer)"
LEAST_CAPABILITY = 75


def open_backend(selector: str) -> CupyBackend:
    """The backend on the GPU of that index; default 0."""
    reason = probe()
    if reason is not None:
        raise BackendError(f"backend cupy cannot be used: {reason}")
    if selector and not selector.isdecimal():
        raise BackendError(f"backend cupy is chosen by the GPU's index (cupy:0), got {selector!r}")
    from boostr.backends.cupy.backend import CupyBackend

    return CupyBackend(int(selector or 0))


def open_ranks(devices: Sequence[int]) -> list[Communicator]:
    """A rank for each GPU of these numbers."""
    from boostr.backends import get

    opened = [get(f"cupy:{index}") for index in devices]
    from boostr.backends.cupy.runtime.nccl import open_ranks

    return open_ranks(opened)


def probe() -> str | None:
    """None if a CUDA device answers, else why not, in one line that says what to do."""
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed; {INSTALL}"
    from boostr.backends.cupy.runtime import driver

    try:
        driver.library()
    except BackendError as error:
        return str(error)
    try:
        import cupy
    except Exception as error:  # a broken install raises whatever it likes
        return f"CuPy cannot be imported ({error}); {INSTALL}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CUDA does not start: {error}; {mismatch() or 'is a GPU there (nvidia-smi)?'}"
    if count == 0:
        return "the NVIDIA driver sees no GPU"
    capabilities = [int(cupy.cuda.Device(i).compute_capability) for i in range(count)]
    if max(capabilities) < LEAST_CAPABILITY:
        return (
            f"compute capability {max(capabilities) / 10} is too old: "
            f"{LEAST_CAPABILITY / 10} (Turing, 2018) is the least"
        )
    return None


def mismatch() -> str | None:
    """The pip line that mends a CuPy whose CUDA is newer than the driver's; None if it fits."""
    import cupy

    runtime = cupy.cuda.runtime
    built, driver = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    if driver // 1000 >= built // 1000:
        return None
    if driver < 12000:
        return f"the driver offers CUDA {dotted(driver)}, boostr needs 12.0: update the driver"
    return (
        f"CuPy is built for CUDA {dotted(built)}, the driver offers {dotted(driver)}: "
        f"pip uninstall -y cupy-cuda{built // 1000}x && pip install 'boostr[cuda12]'"
    )


def dotted(version: int) -> str:
    """13000 is CUDA 13.0."""
    return f"{version // 1000}.{version % 1000 // 10}"
