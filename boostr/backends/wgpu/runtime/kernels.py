"""WGSL sources specialised and compiled: variants as the compile gate knows them, pipelines."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from boostr import env
from boostr.backends.wgpu.runtime import wgsl
from boostr.errors import BackendError

if TYPE_CHECKING:
    from boostr.backends.wgpu.runtime.device import Caps
    from boostr.backends.wgpu.runtime.provider import Provider


@dataclass(frozen=True)
class Variant:
    """A source and its values.

    Attributes:
        family: the file `FAMILY.wgsl` of `shaders/wgsl/`.   values: its template is rendered with.
        needs: attributes of `Caps` that must be true of a device for this variant to exist on it,
            such as ("subgroup_max",).
    """

    family: str
    values: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def source(self, caps: Caps, immediates: bool = True, poison: bool = False) -> str:
        """Its text on a device."""
        return wgsl.source(self.family, self.values, caps, immediates, poison)


_FIELD = re.compile(r"(\w+)\s*:\s*(u32|i32|f32)\b")
_PARAMS = re.compile(r"struct\s+Params\s*\{([^}]*)\}")
_CODES = {"u32": "I", "i32": "i", "f32": "f"}
_COMMENT = re.compile(r"//[^\n]*")


class Pipeline:
    """A compiled entry point.

    Attributes:
        handle: the C pointer.   layout: of its bind group, made once for each kind.
        pack: parameters -> bytes; None without parameters.   immediate_bytes: of parameters that
            need no buffer, 0 if they come in a uniform buffer (or there are none).
    """

    __slots__ = ("_keep", "handle", "immediate_bytes", "layout", "name", "pack", "uniform")

    def __init__(self, name: str, keep: Any, layout: Layout, pack: struct.Struct | None) -> None:
        self.name, self.layout, self._keep = name, layout, keep
        self.handle = keep._internal
        self.pack = pack
        self.uniform = pack is not None and not layout.immediate_bytes
        self.immediate_bytes = layout.immediate_bytes

    def packed(self, params: Sequence[int | float]) -> bytes:
        """The bytes of a `struct Params`."""
        try:
            return self.pack.pack(*params)  # type: ignore[union-attr]
        except struct.error as error:
            form = self.pack.format  # type: ignore[union-attr]
            raise BackendError(
                f"{self.name}[wgpu]: {error}: parameters {list(params)} for {form!r}"
            ) from None


@dataclass(frozen=True, eq=False)
class Layout:
    """What a pipeline binds: `reads` + `writes` arrays and a uniform buffer, or immediates."""

    reads: int
    writes: int
    uniform: bool
    immediate_bytes: int
    group: Any
    pipeline: Any


class Pipelines:
    """Every pipeline of a device, compiled at its first use."""

    def __init__(self, provider: Provider, device: Any, caps: Caps, poison: bool) -> None:
        self._provider, self._device, self._caps = provider, device, caps
        self._poison, self._checked = poison, poison or env.DEBUG.integer() > 0
        self._found: dict[tuple, Pipeline] = {}
        self._modules: dict[str, Any] = {}
        self._layouts: dict[tuple, Layout] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(
        self, family: str, entry: str, values: Mapping[str, Any], reads: int, writes: int
    ) -> Pipeline:
        """Entry point `entry` of a source with these values, for so many arrays."""
        key = (family, entry, reads, writes, *values.items())
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._make(family, entry, values, reads, writes)
        return found

    def _make(
        self, family: str, entry: str, values: Mapping[str, Any], reads: int, writes: int
    ) -> Pipeline:
        name = f"{family}.{entry}"
        text, fields = self._source(family, values)
        needed, most = wgsl.shared_bytes(text), self._caps.workgroup_bytes
        if needed > most:
            raise BackendError(
                f"{name}[wgpu] {dict(values)} needs {needed} bytes of workgroup memory, more than "
                f"the {most} of {self._caps.name}"
            )
        pack = struct.Struct("<" + "".join(_CODES[kind] for kind in fields)) if fields else None
        size = pack.size if pack else 0
        immediates = size if size <= self._caps.immediate_bytes else 0
        layout = self._layout(reads, writes, bool(size and not immediates), immediates)
        try:
            module = self._module(text)
            made = self._device.create_compute_pipeline(
                layout=layout.pipeline, compute={"module": module, "entry_point": entry}
            )
        except self._provider.errors as error:
            raise BackendError(
                f"{name}[wgpu] {dict(values)} does not compile on {self._caps.name}: {error}"
            ) from None
        return Pipeline(name, made, layout, pack)

    def _source(self, family: str, values: Mapping[str, Any]) -> tuple[str, list[str]]:
        """The text, and the types of its parameters in order."""
        caps = self._caps
        text = wgsl.source(family, values, caps, caps.immediate_bytes > 0, self._poison)
        found = _PARAMS.search(_COMMENT.sub("", text))
        fields = [kind for _, kind in _FIELD.findall(found[1])] if found else []
        if 0 < caps.immediate_bytes < 4 * len(fields):
            text = wgsl.source(family, values, caps, False, self._poison)
        if env.DEBUG.integer() >= 4:
            print(text, file=sys.stderr)
        return text, fields

    def _module(self, text: str) -> Any:
        if text not in self._modules:
            self._modules[text] = self._provider.module(self._device, text, self._checked)
        return self._modules[text]

    def _layout(self, reads: int, writes: int, uniform: bool, immediates: int) -> Layout:
        key = (reads, writes, uniform, immediates)
        if key not in self._layouts:
            kinds = ["read-only-storage"] * reads + ["storage"] * writes + ["uniform"] * uniform
            visible = self._provider.flags.ShaderStage.COMPUTE
            entries = [
                {"binding": i, "visibility": visible, "buffer": {"type": kind}}
                for i, kind in enumerate(kinds)
            ]
            group = self._device.create_bind_group_layout(entries=entries)
            more = {"immediate_size": immediates} if immediates else {}
            pipeline = self._device.create_pipeline_layout(bind_group_layouts=[group], **more)
            self._layouts[key] = Layout(reads, writes, uniform, immediates, group, pipeline)
        return self._layouts[key]
