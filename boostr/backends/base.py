"""The contract of a backend: about thirty primitives on its own arrays, and optional kernels.

A backend's array type is its own affair (`numpy.ndarray`, `cupy.ndarray`, a GPU buffer with
strides): nothing above this file looks inside. Primitives are called by `ops/core.py` with
arguments already checked; they return new arrays, except the two that write in place (`assign`,
`put_rows`).
Low-precision floats are accumulated in float32 by `reduce`, `cumsum` and `matmul`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from boostr.program import Program

Array = Any
Shape = tuple[int, ...]

UNARY = (
    "neg", "abs", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf", "sigmoid",
    "floor", "round", "logical_not",
)  # fmt: skip
BINARY = (
    "add", "sub", "mul", "div", "pow", "maximum", "minimum", "floor_div", "mod",
    "bitwise_and", "bitwise_or", "bitwise_xor", "right_shift", "left_shift",
)  # fmt: skip
COMPARE = ("eq", "ne", "lt", "le", "gt", "ge")
REDUCE = ("sum", "max", "min")


@dataclass(frozen=True)
class Kernel:
    """A fast implementation of one op on one backend.

    `run` takes the op's tensors and options and returns its output(s) as tensors. `supports` takes
    the same arguments and returns None, or the reason why this kernel cannot serve them.
    """

    run: Callable[..., Any]
    supports: Callable[..., str | None] = lambda *args, **options: None


@dataclass
class KernelClock:
    """Seconds that the host has spent in kernels."""

    seconds: float = 0.0


class Backend(ABC):
    """One place where tensors live and ops run. Instances are made once, by `backends.get`."""

    name: str
    prefill_chunk = 512  # tokens of one forward pass of a prompt, which bounds its scratch memory
    prefill_beside = 128  # of a prompt, between two decode steps of others, which wait for them
    text_tokens = 4096  # of one forward pass over whole texts, which are embedded or classified
    records_prefill = False  # whether the forward pass over a chunk is worth a program
    kv_block = 16  # tokens of a block of keys and values
    sequence_rows = 32  # the most sequences that are decoded together
    # rows that a step is recorded for; few sizes where it waits for weights, and rows cost little
    row_buckets: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32)
    run_ahead = 0  # decode steps that are started before the token of an earlier one is read
    repeats_bits = False  # whether a pass over equal inputs gives equal bits, whatever ran before
    joins_weights = False  # whether weights that read the same input should lie end to end

    @property
    @abstractmethod
    def device(self) -> str:
        """The device's name as a user would write it, such as "numpy" or "cupy:0"."""

    # -- creation and transfer -------------------------------------------------------------------
    @abstractmethod
    def from_numpy(self, array: np.ndarray) -> Array:
        """Take a numpy array; numpy shares its memory, GPUs upload it."""

    @abstractmethod
    def to_numpy(self, x: Array) -> np.ndarray:
        """The values on the host. Waits for the device; refused inside a capture."""

    def start_read(self, x: Array) -> Callable[[], np.ndarray]:
        """Begin to copy x's values of now to the host; the result waits for them."""
        values = self.to_numpy(x).copy()
        return lambda: values

    def activation_dtype(self, stored: np.dtype) -> np.dtype:
        """The dtype of a model's activations and cache when its embedding is stored as `stored`."""
        return np.dtype(np.float32)

    @abstractmethod
    def full(self, shape: Shape, value: float | int | bool, dtype: np.dtype) -> Array: ...

    def room(self, shape: Shape, dtype: np.dtype) -> Array:
        """An array for a weight that is to be filled."""
        return self.full(shape, 0, dtype)

    @abstractmethod
    def arange(self, start: float, stop: float, step: float, dtype: np.dtype) -> Array: ...

    @abstractmethod
    def shape(self, x: Array) -> Shape: ...

    @abstractmethod
    def dtype(self, x: Array) -> np.dtype: ...

    def owned(self, x: Array) -> Array:
        """x where it may be written in place: itself, or a copy of what others hold or that is not
        contiguous."""
        return x if self.is_contiguous(x) else self.copy(x)

    def is_writable(self, x: Array) -> bool:
        """Whether x may be written in place."""
        return True

    @abstractmethod
    def is_contiguous(self, x: Array) -> bool:
        """Whether the elements lie in row-major order without gaps; in-place ops need it."""

    # -- views: share memory where strides allow, else copy --------------------------------------
    @abstractmethod
    def reshape(self, x: Array, shape: Shape) -> Array: ...

    @abstractmethod
    def permute(self, x: Array, axes: Sequence[int]) -> Array: ...

    @abstractmethod
    def broadcast_to(self, x: Array, shape: Shape) -> Array: ...

    @abstractmethod
    def slice(self, x: Array, slices: tuple[slice, ...]) -> Array:
        """One slice (step of either sign) for every axis."""

    @abstractmethod
    def bitcast(self, x: Array, dtype: np.dtype) -> Array:
        """The same bytes as another dtype; the last axis shrinks or grows with the item size."""

    # -- elementwise -----------------------------------------------------------------------------
    @abstractmethod
    def unary(self, name: str, x: Array) -> Array:
        """One of UNARY."""

    @abstractmethod
    def binary(self, name: str, a: Array, b: Array | float | int, dtype: np.dtype) -> Array:
        """One of BINARY or COMPARE, broadcasting; `dtype` is the operands' common dtype."""

    @abstractmethod
    def where(self, condition: Array, a: Array, b: Array, dtype: np.dtype) -> Array: ...

    @abstractmethod
    def cast(self, x: Array, dtype: np.dtype) -> Array: ...

    @abstractmethod
    def copy(self, x: Array) -> Array:
        """A contiguous copy."""

    # -- reductions, products, indexing ----------------------------------------------------------
    @abstractmethod
    def reduce(self, name: str, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
        """One of REDUCE over `axes`."""

    @abstractmethod
    def argmax(self, x: Array, axis: int) -> Array:
        """int32 index of the first maximum."""

    @abstractmethod
    def argsort(self, x: Array, axis: int) -> Array:
        """int32 indices that sort ascending; stable."""

    @abstractmethod
    def cumsum(self, x: Array, axis: int) -> Array: ...

    @abstractmethod
    def matmul(self, a: Array, b: Array) -> Array:
        """[..., M, K] @ [..., K, N], broadcasting the leading axes; float32 sums."""

    @abstractmethod
    def take(self, x: Array, indices: Array, axis: int) -> Array:
        """x's entries at integer `indices` along `axis`, whose place the axes of `indices` take."""

    @abstractmethod
    def take_along(self, x: Array, indices: Array, axis: int) -> Array:
        """One entry per index: indices has x's rank, and x's shape except along `axis`."""

    @abstractmethod
    def scatter_add(self, shape: Shape, indices: Array, values: Array) -> Array:
        """zeros(shape) with values[i] added to row indices[i]; indices is flat."""

    @abstractmethod
    def concat(self, arrays: Sequence[Array], axis: int) -> Array: ...

    # -- in place --------------------------------------------------------------------------------
    @abstractmethod
    def assign(self, target: Array, source: Array) -> None:
        """target[...] = source, shapes equal; dtypes may differ."""

    @abstractmethod
    def put_rows(self, target: Array, indices: Array, values: Array) -> None:
        """target[indices[i]] = values[i]; a negative index is skipped."""

    # -- kernels and programs --------------------------------------------------------------------
    @abstractmethod
    def kernel(self, op: str) -> Kernel | str:
        """The kernel for an op by name, or the reason why there is none."""

    @abstractmethod
    def new_arena(self) -> Any:
        """Memory for the intermediate results of programs that share it; see `capture`."""

    @abstractmethod
    def capture(self, fn: Callable[[], Any], arena: Any = None) -> tuple[Any, Program]:
        """Run `fn` once, record what this thread launched; see `boostr.program`."""

    def constant_weights(self) -> AbstractContextManager[None]:
        """Inside, the caller promises that no kernel writes what later ones may fetch before those
        ahead of them are done: weights of products; lengths, block tables and the cache rows of
        earlier positions that `paged_attention` reads, until the last kernel of a program."""
        return nullcontext()

    def memory_bandwidth(self) -> float | None:
        """Bytes per second that the device's memory was just measured at; None if not known."""
        return None

    def timed_kernels(self) -> AbstractContextManager[KernelClock] | None:
        """Inside, the host's seconds in kernels are added up; None where it does not wait there."""
        return None

    @property
    def compiled_kernels(self) -> int:
        """How many kernels for the host's processor this process has compiled anew."""
        return 0

    def used_memory(self) -> int | None:
        """Bytes of the device's own memory taken since it was opened; None where it has none."""
        return None

    def free_memory(self) -> int | None:
        """Bytes that can still be taken; None if the device does not say."""
        return None

    def release_memory(self) -> None:  # noqa: B027  (most backends keep none)
        """Give memory that is kept for reuse back to the device."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done all that was asked of it."""
