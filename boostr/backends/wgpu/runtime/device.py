"""What a GPU can do: the record that kernels are specialised from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boostr.backends.wgpu.runtime import adapters

if TYPE_CHECKING:
    from boostr.backends.wgpu.runtime.provider import Provider


@dataclass(frozen=True)
class Caps:
    """A device as kernels see it; sizes in bytes.

    Attributes:
        kind: "discrete", "integrated" or "software".
        subgroup_min, subgroup_max: lanes; 0 without subgroups.
        dot4: whether dot4I8Packed and its kin exist.
        dot4_native: whether they are instructions, as far as a vendor's name tells.
        bindings: the most arrays that a kernel can see.
        immediate_bytes: of parameters without a buffer; 0 where there are none.
        binding_bytes: the largest part of a buffer that a kernel can see.
        workgroup_bytes: of shared memory.   workgroups: the most in one dimension of a grid.
        matrices: subgroup matrix shapes (component, result, M, N, K), such as
            ("f16", "f32", 16, 16, 16); empty without tensor cores.
    """

    name: str
    vendor: str
    driver: str
    provider: str = "wgpu"
    kind: str = "discrete"
    f16: bool = False
    subgroup_min: int = 0
    subgroup_max: int = 0
    dot4: bool = False
    dot4_native: bool = False
    bindings: int = 16
    immediate_bytes: int = 0
    f32_atomics: bool = False
    timestamps: bool = False
    binding_bytes: int = 1 << 27
    buffer_bytes: int = 1 << 28
    workgroup_bytes: int = 16384
    workgroup_threads: int = 256
    workgroups: int = 65535
    offset_alignment: int = 256
    matrices: tuple[tuple[str, str, int, int, int], ...] = ()


# features that are asked for where the adapter has them: wgpu's name, Dawn's name
_MATRICES = "chromium-experimental-subgroup-matrix"
_FEATURES = (
    "shader-f16", "subgroup", "subgroups", "immediates", "timestamp-query",
    "timestamp-query-inside-passes", "shader-float32-atomic",
    "implicit-device-synchronization", _MATRICES,
)  # fmt: skip
_LIMITS = (
    "max-storage-buffer-binding-size", "max-buffer-size", "max-compute-workgroup-storage-size",
    "max-compute-invocations-per-workgroup", "max-compute-workgroup-size-x",
    "max-compute-workgroup-size-y", "max-compute-workgroup-size-z",
    "max-storage-buffers-per-shader-stage",
)  # fmt: skip
_MOST_IMMEDIATES = 128  # bytes: 32 parameters
_WITH_DOT4 = ("nvidia", "amd", "intel")
_MOST_BINDING = 0x7FFFFFF0  # a kernel's indices are 32 bits wide


def open_device(provider: Provider, adapter: Any, checked: bool = True) -> tuple[Any, Caps]:
    """The adapter's device with everything of the whitelists that it has, and what it can do."""
    features = [f for f in _FEATURES if f in adapter.features]
    limits = {name: adapter.limits[name] for name in _LIMITS if name in adapter.limits}
    immediates = 0
    if provider.name == "wgpu" and "immediates" in features:
        immediates = min(adapter.limits["max-immediate-size"], _MOST_IMMEDIATES)
        limits["max-immediate-size"] = immediates
    device = provider.device(adapter, features, limits, checked)
    return device, _caps(provider, adapter, device, immediates)


def _caps(provider: Provider, adapter: Any, device: Any, immediates: int) -> Caps:
    info, has, limits = adapter.info, device.features, device.limits
    subgroups = "subgroup" in has or "subgroups" in has
    lanes = provider.subgroups(adapter) if subgroups else (0, 0)
    return Caps(
        name=adapters.name(adapter), vendor=info["vendor"], driver=info["description"],
        provider=provider.name, kind=adapters.kind(adapter), f16="shader-f16" in has,
        subgroup_min=lanes[0], subgroup_max=lanes[1],
        dot4=True,  # a language feature of both; emulated where the hardware has none
        bindings=limits["max-storage-buffers-per-shader-stage"],
        dot4_native=any(name in info["vendor"].lower() for name in _WITH_DOT4),
        immediate_bytes=immediates, f32_atomics="shader-float32-atomic" in has,
        timestamps="timestamp-query" in has,
        binding_bytes=min(limits["max-storage-buffer-binding-size"], _MOST_BINDING) // 16 * 16,
        buffer_bytes=limits["max-buffer-size"] // 16 * 16,
        workgroup_bytes=limits["max-compute-workgroup-storage-size"],
        workgroup_threads=limits["max-compute-invocations-per-workgroup"],
        workgroups=limits["max-compute-workgroups-per-dimension"],
        offset_alignment=max(limits["min-storage-buffer-offset-alignment"], 256),
        matrices=provider.matrices(adapter) if _MATRICES in has else (),
    )  # fmt: skip
