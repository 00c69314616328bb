"""The cupy backend without a GPU: what is launched for a model, with which arguments; no results.

Arrays are numpy's, and primitives run on them; kernels of our own do nothing. So a decode step's
launches can be counted, each against the parameters that its source has, and what they are
specialised by can be compiled.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from boostr import dtypes, shaders
from boostr.backends.array import ArrayBackend
from boostr.backends.cupy.kernel_table import find_kernel
from boostr.program import Program

C_TYPES = {
    dtypes.float32: "float", dtypes.float16: "f16", dtypes.bfloat16: "bf16", dtypes.int8: "i8",
}  # fmt: skip
PLANES = 6  # arguments that a struct of a weight's planes takes
SKIPPED = ("attention_decode",)  # their parameters are put together by macros


class Array(np.ndarray):
    """Has its address where cupy's arrays have theirs."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.__array_interface__["data"][0])


def array(x: Any) -> Array:
    return np.asarray(x).view(Array)


class DryProgram(Program):
    """The names of what was launched."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def run(self) -> Any:
        return self.outputs

    def __len__(self) -> int:
        return len(self.names)

    def calls(self) -> list[str]:
        return self.names


class Hopper(NamedTuple):
    """What `Caps` says of an H100."""

    index: int = 0
    compute_capability: int = 90
    arch: str = "sm_90a"
    sms: int = 132
    shared_bytes: int = 232448
    l2_bytes: int = 50 << 20


class DryCupy(ArrayBackend):
    """A Hopper that computes nothing.

    Attributes:
        launched: (family, kernel, macros) of every launch of our own.
    """

    name, device = "cupy", "cupy:dry"
    prefill_chunk, run_ahead, records_prefill, joins_weights = 2048, 0, False, True
    capturing = early = False

    def __init__(self) -> None:
        super().__init__(np)
        self.caps = Hopper()
        self.launched: list[tuple[str, str, dict[str, Any]]] = []
        self._names: list[str] = []

    def _run(self, fn: Callable[..., Any], *args: Any) -> Array:
        self._names.append(getattr(fn, "__name__", "primitive"))
        return array(fn(*args))

    def from_numpy(self, x: np.ndarray) -> Array:
        return array(x)

    def to_numpy(self, x: Array) -> np.ndarray:
        return np.asarray(x)

    def start_read(self, x: Array) -> Callable[[], np.ndarray]:
        return lambda: np.asarray(x)

    def activation_dtype(self, stored: np.dtype) -> np.dtype:
        return stored if stored in dtypes.MODEL_FLOATS else dtypes.float32

    def empty(self, shape: Any, dtype: Any = np.float32) -> Array:
        return array(np.zeros(shape, dtype))

    def dense(self, x: Array) -> Array:
        return x if x.flags.c_contiguous else self.copy(x)

    def c_type(self, dtype: np.dtype) -> str:
        return C_TYPES[dtype]

    def kernel(self, op: str) -> Any:
        return find_kernel(op)

    def launch(
        self, family: str, name: str, grid: Any, block: Any, args: Any, *, shared_bytes: int = 0,
        dependent: bool = False, **defines: Any,
    ) -> None:  # fmt: skip
        assert shared_bytes <= self.caps.shared_bytes and 0 < np.prod(block) <= 1024
        if family not in SKIPPED:
            check(family, name, args)
        self.launched.append((family, name, defines))
        self._names.append(f"{family}.{name}")

    def synchronize(self) -> None:
        pass

    def new_arena(self) -> None:
        return None

    def lasting(self, make: Callable[..., Any], *args: Any) -> Array:
        return array(make(*args))

    def capture(self, fn: Callable[[], Any], arena: None = None) -> tuple[Any, Program]:
        self._names = []
        outputs = fn()
        names, self._names = self._names, []
        return outputs, DryProgram(names)


@cache
def parameters(family: str, name: str) -> tuple[str, ...]:
    """The types of a kernel's parameters; a struct of planes is six pointers."""
    text = next(p for room in shaders.rooms("cuda") for p in room.glob(f"{family}.cu")).read_text()
    listed = re.search(rf"\b{name}\(([^)]*)\)\s*\{{", re.sub(r"//[^\n]*", "", text))
    assert listed, f"{family}.cu has no kernel {name}"
    found: list[str] = []
    for one in listed[1].split(","):
        type_of = one.replace("const ", "").strip().rsplit(" ", 1)[0].strip()
        found += ["pointer"] * PLANES if type_of == "Planes" else [type_of]
    return tuple("pointer" if "*" in t else t for t in found)


def check(family: str, name: str, args: Any) -> None:
    """Every argument is of the kind that its parameter is."""
    wanted = parameters(family, name)
    assert len(args) == len(wanted), f"{name}: {len(args)} arguments for {len(wanted)} parameters"
    for at, (arg, kind) in enumerate(zip(args, wanted, strict=True)):
        is_array = arg is None or isinstance(arg, np.ndarray)
        fits = {
            "pointer": is_array, "float": isinstance(arg, float), "i64": isinstance(arg, np.int64),
            "int": isinstance(arg, int) and not isinstance(arg, np.int64),
        }  # fmt: skip
        assert fits.get(kind, True), f"{name}: argument {at} is {arg!r}, its parameter is {kind}"
