"""Which GPU: adapters in order of preference, and how one is chosen by index or name."""

from __future__ import annotations

from typing import Any

from boostr.backends.wgpu.runtime.provider import Provider
from boostr.errors import BackendError

_KINDS = {
    "discretegpu": "discrete", "integratedgpu": "integrated", "virtualgpu": "integrated",
    "cpu": "software",
}  # fmt: skip
_RANK = {"discrete": 0, "integrated": 1, "software": 2}
_BACKENDS = {"vulkan": 0, "metal": 0, "d3d12": 1}  # others are not used: OpenGL lacks too much


def kind(adapter: Any) -> str:
    """ "discrete", "integrated" or "software"."""
    text = str(adapter.info["adapter_type"]).lower().replace("-", "").replace("_", "")
    return _KINDS.get(text, "integrated")


def describe(adapter: Any) -> str:
    """Name, kind and API, such as "NVIDIA H100 (discrete, Vulkan)"."""
    return f"{name(adapter)} ({kind(adapter)}, {adapter.info['backend_type']})"


def name(adapter: Any) -> str:
    info = adapter.info
    return info["device"] or info["description"] or info["vendor"] or "unnamed"


def ranked(provider: Provider) -> list[Any]:
    """Adapters that can be used, the best first."""
    usable = [a for a in provider.adapters() if _api(a) in _BACKENDS]
    return sorted(usable, key=lambda a: (_RANK[kind(a)], _BACKENDS[_api(a)]))


def _api(adapter: Any) -> str:
    return str(adapter.info["backend_type"]).lower()


def choose(provider: Provider, selector: str) -> Any:
    """The adapter of that index or part of a name; without one, the best that is real hardware.

    Raises:
        BackendError: nothing fits; lists what there is.
    """
    found = ranked(provider)
    if selector.isdecimal() and int(selector) < len(found):
        return found[int(selector)]
    if selector and not selector.isdecimal():
        fits = [a for a in found if selector.lower() in describe(a).lower()]
        if fits:
            return fits[0]
    if not selector:
        real = [a for a in found if kind(a) != "software"]
        if real:
            return real[0]
    listed = "; ".join(f"{i}: {describe(a)}" for i, a in enumerate(found)) or "none"
    if selector:
        raise BackendError(f"backend wgpu:{selector}: no such adapter; there is {listed}")
    raise BackendError(
        "backend wgpu: no GPU answers through Vulkan, Metal or DirectX 12 "
        f"(adapters: {listed}; a software adapter is used only when named, as in wgpu:llvmpipe)"
    )
