"""What `boostr doctor` says of adapters, and of what is missing where there is none."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from boostr.backends.wgpu.runtime import adapters, provider
from boostr.errors import BoostrError

_ADVICE = {
    "debian": "sudo apt install libvulkan1 mesa-vulkan-drivers (AMD, Intel, software), or NVIDIA's "
    "driver: sudo apt install nvidia-driver (Ubuntu: sudo ubuntu-drivers install)",
    "fedora": "sudo dnf install vulkan-loader mesa-vulkan-drivers (AMD, Intel, software), or "
    "NVIDIA's driver from RPM Fusion: sudo dnf install akmod-nvidia",
    "linux": "the Vulkan loader and a Vulkan driver for the GPU (Mesa for AMD and Intel, NVIDIA's "
    "own); `vulkaninfo --summary` should list it",
    "windows": "a current driver from the GPU's vendor (DirectX 12 comes with Windows 10 and 11)",
    "darwin": "macOS 13 or newer (Metal is part of it); virtual machines have no GPU",
}


def advice(system: str | None = None, family: str | None = None) -> str:
    """What to install so that a GPU answers, on this machine or a named one.

    Args:
        system: as `platform.system()`.   family: of a Linux distribution, as in /etc/os-release.
    """
    system = (system or platform.system()).lower()
    if system == "linux":
        names = (_linux_family() if family is None else family).lower().split()
        found = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora"}
        system = next((found.get(n, n) for n in names if found.get(n, n) in _ADVICE), "linux")
    return f"needed: {_ADVICE.get(system, _ADVICE['linux'])}"


def _linux_family() -> str:
    """ID and ID_LIKE of this distribution, such as "ubuntu debian"."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return ""
    parts = [line.partition("=") for line in lines]
    return " ".join(text.strip('"') for key, _, text in parts if key in ("ID", "ID_LIKE"))


def describe(caps: Any) -> str:
    """One line: driver, features and limits."""
    lanes = f"subgroups of {caps.subgroup_min}-{caps.subgroup_max}" if caps.subgroup_max else ""
    has = ("f16" if caps.f16 else "", lanes, "tensor cores" if caps.matrices else "",
           "timestamps" if caps.timestamps else "")  # fmt: skip
    features = ", ".join(text for text in has if text) or "no optional features"
    return (
        f"{caps.driver or 'unnamed driver'}; {features}; bindings {caps.binding_bytes / 2**20:.0f} "
        f"MiB, buffers {caps.buffer_bytes / 2**30:.1f} GiB, workgroups of "
        f"{caps.workgroup_threads} threads and {caps.workgroup_bytes // 1024} KiB"
    )


def check_adapters() -> Iterator[tuple[str, str, str]]:
    """(title, PASS or FAIL, detail) for each adapter, which computes a little."""
    library = provider.load(provider.chosen())
    from boostr.backends.wgpu.backend import WgpuBackend

    for i, adapter in enumerate(adapters.ranked(library)):
        title, name = f"wgpu adapter {i}", adapters.describe(adapter)
        try:
            backend = WgpuBackend(library, adapter, str(i))
            wrong = _wrong(backend)
            detail = f"{name}, {library.version()}: {wrong or describe(backend.caps)}"
        except (BoostrError, *library.errors) as error:
            wrong, detail = str(error), f"{name}: {error}"
        yield title, "FAIL" if wrong else "PASS", detail


def _wrong(backend: Any) -> str | None:
    """What a small copy on the GPU gets wrong."""
    values = np.arange(4096, dtype=np.uint32)
    source, target = backend.from_numpy(values), backend.empty(values.shape, np.uint32)
    backend.launch("device", "copy", 4, [source], [target], [1024, 0, 0], COPY=True)
    same = np.array_equal(backend.to_numpy(target), values)
    return None if same else "copies numbers wrongly: the driver is broken"
