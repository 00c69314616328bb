"""The two libraries that speak WebGPU: wgpu (wgpu-native) and wgpudawn (Dawn), behind one face.

Objects are made through their common Python API, which raises on errors. Commands are encoded
through the C functions themselves (`raw`), which costs a third; their errors surface when a pass or
an encoder is ended through the checked functions (`safe`).
"""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from typing import Any

from boostr import env
from boostr.errors import BackendError

NAMES = ("wgpu", "wgpudawn")
# parts of an adapter's memory after which allocations fail, and the device is lost, in percent
_BUDGET, _LOSS = 90, 97


class Provider:
    """A WebGPU library that is installed here.

    Attributes:
        name: "wgpu" or "wgpudawn".   gpu: the entry point of its Python API.
        raw, safe: its C functions, without and with a check for errors after each call.
        errors: what its Python API raises when the GPU refuses something.
        problems: errors that surfaced outside of a checked call; `Queue.checked` raises them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        package = importlib.import_module(name)
        self.gpu: Any = package.gpu
        self.flags: Any = package.flags
        part = "wgpu_native" if name == "wgpu" else "dawn"
        self._backend: Any = importlib.import_module(f"{name}.backends.{part}")
        self._api: Any = importlib.import_module(f"{name}.backends.{part}._api")
        self.raw: Any = self._api.lib
        self.safe: Any = self._api.libf
        self.ffi: Any = self._api.ffi
        self.errors: tuple[type[Exception], ...] = (package.GPUError, RuntimeError)
        self.OutOfMemory: type[Exception] = package.GPUOutOfMemoryError
        self.problems: list[str] = []  # errors of calls that were not checked, and lost devices
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they would be logged
        self._api.error_handler.log_error = self.problems.append
        if name == "wgpu":
            self._configure_native()

    def _configure_native(self) -> None:
        extras = importlib.import_module("wgpu.backends.wgpu_native.extras")
        try:
            extras.set_instance_extras(
                backends=["Vulkan", "Metal", "DX12"], flags=["Empty"],
                budget_for_device_creation=_BUDGET, budget_for_device_loss=_LOSS,
            )  # fmt: skip
        except RuntimeError:
            return  # the program has opened an instance of its own before us

    def adapters(self) -> list[Any]:
        """Every adapter that the library finds, in its order."""
        return list(self.gpu.enumerate_adapters_sync())

    def version(self) -> str:
        package = importlib.import_module(self.name)
        inner = ".".join(map(str, self._backend.lib_version_info))
        return f"{self.name} {package.__version__} ({inner})"

    def encoder(self, device: Any) -> Any:
        """A command encoder's raw handle."""
        return self.raw.wgpuDeviceCreateCommandEncoder(device._internal, self.ffi.NULL)

    def poll(self, device: Any, wait: bool) -> None:
        """Run callbacks that are due; with `wait`, after all submitted work is done."""
        if self.name == "wgpu":
            self.raw.wgpuDevicePoll(device._internal, wait, self.ffi.NULL)
        elif wait:
            device.queue.on_submitted_work_done_sync()
        else:
            self._backend.process_events()


def installed(name: str) -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec(name) is not None


def chosen() -> str:
    """The provider that BOOSTR_WGPU names."""
    name = env.WGPU.text()
    if name not in NAMES:
        raise BackendError(f"{env.WGPU.name} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


@cache
def load(name: str) -> Provider:
    """The provider of that name, opened once."""
    return Provider(name)
