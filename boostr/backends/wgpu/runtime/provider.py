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
# lanes of subgroups by PCI vendor: NVIDIA, AMD, Intel, Apple
_LANES = {0x10DE: (32, 32), 0x1002: (32, 64), 0x8086: (8, 32), 0x106B: (32, 32)}
# of Dawn: tensor cores and f16 on NVIDIA's Vulkan
_TOGGLES = ("allow_unsafe_apis", "use_vulkan_memory_model", "vulkan_enable_f16_on_nvidia")
_WHILE = 100_000_000  # nanoseconds of a wait, between which the program can be interrupted
# parts of an adapter's memory after which allocations fail, and the device is lost, in percent
_BUDGET, _LOSS = 90, 97


class Provider:
    """A WebGPU library that is installed here.

    Attributes:
        name: "wgpu" or "wgpudawn".   gpu: the entry point of its Python API.
        raw, safe: its C functions, without and with a check for errors after each call.
        errors: what its Python API raises when the GPU refuses something.
        problems: errors that surfaced outside of a checked call; `Queue.checked` raises them.
        losses: how many devices have been lost.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        package = importlib.import_module(name)
        self.flags: Any = package.flags
        part = "wgpu_native" if name == "wgpu" else "dawn"
        self._backend: Any = importlib.import_module(f"{name}.backends.{part}")
        self._api: Any = importlib.import_module(f"{name}.backends.{part}._api")
        self.gpu: Any = self._backend.gpu
        self.raw: Any = self._api.lib
        self.safe: Any = self._api.libf
        self.ffi: Any = self._api.ffi
        self._instance: Any = self._api.get_wgpu_instance
        self.errors: tuple[type[Exception], ...] = (package.GPUError, RuntimeError)
        self.mapped: Any = None  # what the library calls when a buffer is mapped
        self.losses = 0
        self.problems: list[str] = []  # errors of calls that were not checked, and lost devices
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they would be logged
        self._api.error_handler.log_error = self._note
        self._extras: Any = importlib.import_module(f"{name}.backends.{part}.extras")
        try:
            self._configure()
        except RuntimeError:
            return  # the program has opened an instance of its own before us

    def _configure(self) -> None:
        """Options of the instance, before it is made."""
        if self.name == "wgpu":
            self._extras.set_instance_extras(
                backends=["Vulkan", "Metal", "DX12"], flags=["Empty"],
                budget_for_device_creation=_BUDGET, budget_for_device_loss=_LOSS,
            )  # fmt: skip
        else:
            known = self._extras.all_toggles()
            self._extras.set_instance_extras(
                enable_toggles=[t for t in _TOGGLES if t in known],
                disable_toggles=[t for t in ("timestamp_quantization",) if t in known],
            )

    def _note(self, message: str) -> None:
        if "device was lost" in message:
            self.losses += 1  # of a device that it does not name
        else:
            self.problems.append(message)

    def adapters(self) -> list[Any]:
        """Every adapter that the library finds, in its order."""
        return list(self.gpu.enumerate_adapters_sync())

    def version(self) -> str:
        package = importlib.import_module(self.name)
        inner = ".".join(map(str, self._backend.lib_version_info))
        return f"{self.name} {package.__version__} ({inner})"

    def device(
        self, adapter: Any, features: list[str], limits: dict[str, int], checked: bool
    ) -> Any:
        """The adapter's device; unless `checked`, kernels run without bounds checks of Dawn's."""
        options: dict[str, Any] = {"required_features": features, "required_limits": limits}
        if self.name == "wgpu":
            return adapter.request_device_sync(**options)
        wanted = () if checked else ("disable_robustness", "disable_workgroup_init")
        toggles = [t for t in wanted if t in self._extras.all_toggles()]
        return self._extras.request_device_sync(adapter, enable_toggles=toggles, **options)

    def subgroups(self, adapter: Any) -> tuple[int, int]:
        """The fewest and the most lanes, which wgpu-native does not say."""
        if self.name == "wgpu":
            return _LANES.get(adapter.info["vendor_id"], (4, 128))
        info = self.ffi.new("WGPUAdapterInfo *")
        self.safe.wgpuAdapterGetInfo(adapter._internal, info)
        found = info.subgroupMinSize, info.subgroupMaxSize
        self.raw.wgpuAdapterInfoFreeMembers(info[0])
        return found

    def null_adapter(self) -> Any:
        """Dawn's adapter without hardware, which has every feature: for compiling alone."""
        found = self.gpu._enumerate_all_adapters() if self.name == "wgpudawn" else ()
        return next((a for a in found if a.info["backend_type"] == "Null"), None)

    def matrices(self, adapter: Any) -> tuple[tuple[str, str, int, int, int], ...]:
        """The shapes of subgroup matrices: (component, result, M, N, K)."""
        if self.name == "wgpu":
            return ()  # cooperative matrices are listed there, but refused on request
        found = self._extras.get_adapter_properties(adapter).get("subgroup_matrix_configs", [])
        return tuple(
            (c["component_type"], c["result_component_type"], c["m"], c["n"], c["k"]) for c in found
        )

    def module(self, device: Any, text: str, checked: bool) -> Any:
        """A shader module; unless `checked`, without clamped indices and bounded loops."""
        if checked or self.name != "wgpu":
            return device.create_shader_module(code=text)
        ffi, data = self.ffi, text.encode()
        held = ffi.new("char[]", data)
        source = ffi.new("WGPUShaderSourceWGSL *")
        source.chain.sType = self.raw.WGPUSType_ShaderSourceWGSL
        source.code.data, source.code.length = held, len(data)
        described = ffi.new("WGPUShaderModuleDescriptor *")
        described.nextInChain = ffi.cast("WGPUChainedStruct *", source)
        made = self.safe.wgpuDeviceCreateShaderModuleTrusted(device._internal, described, 0)
        return self._api.GPUShaderModule("", made, device)

    def live_objects(self) -> dict[str, int]:
        """How many objects of each kind the library holds; empty where it does not say."""
        if self.name != "wgpu":
            return {}
        helpers = importlib.import_module("wgpu.backends.wgpu_native._helpers")
        return {name: counts["kept"] for name, counts in helpers.generate_report()["hub"].items()}

    def number(self, pointer: Any) -> int:
        """A C pointer as a number."""
        return int(self.ffi.cast("uintptr_t", pointer))

    def address(self, name: str) -> int:
        """Where one of the C functions lies."""
        if self.name == "wgpu":
            return self.number(getattr(self.raw, name))
        return self.number(self.ffi.addressof(self.raw, name))

    def encoder(self, device: Any) -> Any:
        """A command encoder's raw handle."""
        return self.raw.wgpuDeviceCreateCommandEncoder(device._internal, self.ffi.NULL)

    def place(self, submission: Any, future: Any) -> Any:
        """What `wait_for` waits for: a buffer mapped behind a submission."""
        if self.name == "wgpu":
            return submission
        info = self.ffi.new("WGPUFutureWaitInfo *")
        info.future = future
        return info

    def wait_for(self, device: Any, place: Any) -> None:
        """Run callbacks, some of them once the GPU has come to a `place`, or a while is over."""
        if self.name == "wgpu":
            self.raw.wgpuDevicePoll(device._internal, True, place)
        else:
            self.raw.wgpuInstanceWaitAny(self._instance(), 1, place, _WHILE)

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
