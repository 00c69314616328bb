"""What `boostr doctor` says of a CUDA device and of the software between it and us."""

from __future__ import annotations

import ctypes

import cupy

from boostr.backends.cupy import dotted, mismatch
from boostr.backends.cupy.runtime import nvrtc
from boostr.backends.cupy.runtime.device import Caps


def describe(caps: Caps) -> str:
    """One line: device, driver, CUDA runtime, NVRTC."""
    runtime = cupy.cuda.runtime.runtimeGetVersion()
    return (
        f"{caps.name}, compute capability {caps.compute_capability / 10}, {caps.sms} SMs, "
        f"{caps.memory_bytes / 2**30:.1f} GiB; driver {driver_release()} (CUDA "
        f"{dotted(caps.driver_version)}), runtime {dotted(runtime)}, NVRTC "
        f"{'.'.join(map(str, nvrtc.version()))}, CuPy {cupy.__version__}"
    )


def problem(caps: Caps) -> str | None:
    """What is wrong although the device answers, and the one pip line that mends it."""
    major, minor = nvrtc.version()
    if 1000 * major + 10 * minor > caps.driver_version // 1000 * 1000 + 990:
        return (
            f"NVRTC {major}.{minor} makes code that this driver (CUDA "
            f"{dotted(caps.driver_version)}) cannot load: pip install "
            f"'nvidia-cuda-nvrtc=={caps.driver_version // 1000}.*'"
        )
    return mismatch()


def driver_release() -> str:
    """The driver's own version, such as 580.159.04; "unknown" where NVML is missing."""
    text = ctypes.create_string_buffer(96)
    for name in ("libnvidia-ml.so.1", "nvml.dll"):
        try:
            nvml = ctypes.CDLL(name)
        except OSError:
            continue
        if nvml.nvmlInit_v2() == 0:
            nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text)))
            nvml.nvmlShutdown()
            return text.value.decode() or "unknown"
    return "unknown"
