"""Tensor: an n-dimensional array on some backend, with a place in the gradient tape. No maths here.

Operators and methods forward to `boostr.ops.core`. Views (reshape, permute, slicing, broadcasting)
share memory where the backend's strides allow.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import autograd, backends, dtypes
from boostr.errors import BackendError, DTypeError, ShapeError
from boostr.host import as_shape, host_array, shape_argument

if TYPE_CHECKING:
    from types import ModuleType

    from boostr.backends.base import Backend
    from boostr.ops import core as _core

Number = bool | int | float


class Tensor:
    """An array with a dtype, a shape and a backend.

    Args:
        data: numpy array, nested list, number, anything with `__dlpack__`; a Tensor is copied.
        dtype: dtype or its name; default that of `data` (Python floats: float32, ints: int32).
        backend: name or instance; default that of `data`, else the one BOOSTR_BACKEND chooses.
        requires_grad: record what is computed from this tensor, so that `backward` reaches it.
    `node` is what computed it, if that is on the tape, and `index` which of its results it is.
    """

    __slots__ = (
        "__weakref__", "_writes", "backend", "data", "grad", "index", "node", "requires_grad",
    )  # fmt: skip
    __array_priority__ = 100  # numpy_array + tensor is ours

    def __init__(
        self,
        data: Any,
        dtype: Any = None,
        backend: str | Backend | None = None,
        requires_grad: bool = False,
    ) -> None:
        if isinstance(data, Tensor):
            backend, data = backend or data.backend, data.numpy().copy()
        array = host_array(data, None if dtype is None else dtypes.parse(dtype))
        self.backend: Backend = backends.get(backend)
        self.data: Any = self.backend.from_numpy(array)
        self.requires_grad = requires_grad
        self.grad: Tensor | None = None
        self.node: autograd.Node | None = None
        self.index = 0
        self._writes: list[int] | None = None
        if requires_grad and not dtypes.is_float(self.dtype):
            raise DTypeError(f"only float tensors can require a gradient, got {self.dtype}")

    @classmethod
    def wrap(cls, data: Any, backend: Backend) -> Tensor:
        """A tensor around an array that is already the backend's own."""
        tensor = object.__new__(cls)
        tensor.data = data
        tensor.backend = backend
        tensor.requires_grad = False
        tensor.grad = None
        tensor.node = tensor._writes = None
        tensor.index = 0
        return tensor

    # -- what it is ------------------------------------------------------------------------------
    @property
    def shape(self) -> tuple[int, ...]:
        return self.backend.shape(self.data)

    @property
    def dtype(self) -> np.dtype:
        return self.backend.dtype(self.data)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def device(self) -> str:
        return self.backend.device

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a tensor without axes")
        return self.shape[0]

    def __repr__(self) -> str:
        grad = ", requires_grad" if self.requires_grad else ""
        head = f"Tensor(shape={list(self.shape)}, dtype={self.dtype}, device={self.device}{grad})"
        if self.size > 1000:
            return head
        return f"{head}\n{np.array2string(self.numpy(), precision=4, suppress_small=True)}"

    # -- out of here -----------------------------------------------------------------------------
    def numpy(self) -> np.ndarray:
        """The values on the host. On the numpy backend this shares memory."""
        return self.backend.to_numpy(self.data)

    def item(self) -> Any:
        """The value of a tensor of one element, as a Python number."""
        if self.size != 1:
            raise ShapeError(f"item: needs one element, got shape {list(self.shape)}")
        return self.numpy().item()

    def tolist(self) -> Any:
        return self.numpy().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __bool__(self) -> bool:
        return bool(self.item())

    def to(self, target: Any) -> Tensor:
        """On another backend (a name such as "numpy" or an instance) or in another dtype."""
        if isinstance(target, backends.Backend) or (
            isinstance(target, str) and target.partition(":")[0] in (*backends.names(), "auto")
        ):
            backend = backends.get(target)
            if backend is self.backend:
                return self
            return Tensor(self.numpy(), backend=backend, requires_grad=self.requires_grad)
        return _core.cast(self, dtypes.parse(target))

    # -- gradients -------------------------------------------------------------------------------
    def backward(self, gradient: Tensor | None = None, *, retain: bool = False) -> None:
        """Add its gradient to `.grad` of every leaf below; `retain` keeps the tape for another."""
        autograd.backward(self, gradient, retain=retain)

    def detach(self) -> Tensor:
        """The same data without a gradient."""
        return Tensor.wrap(self.data, self.backend).seen_through(self)

    @property
    def version(self) -> int:
        """How often the values were written in place, through this tensor or a view of it."""
        return 0 if self._writes is None else self._writes[0]

    def written(self) -> None:
        """Note that the values were written in place."""
        if self._writes is None:
            self._writes = [0]
        self._writes[0] += 1

    def seen_through(self, base: Tensor) -> Tensor:
        """This tensor, whose memory is that of `base`: what is written to one is to the other."""
        if base._writes is None:
            base._writes = [0]
        self._writes = base._writes
        return self

    def assign(self, source: Tensor | np.ndarray) -> Tensor:
        """Overwrite the values in place (shapes equal); not recorded for gradients."""
        if not isinstance(source, Tensor):
            source = Tensor(source, backend=self.backend)
        if source.backend is not self.backend:
            raise BackendError(f"assign: target on {self.device}, source on {source.device}")
        if source.shape != self.shape:
            raise ShapeError(f"assign: expected shape {list(self.shape)}, got {list(source.shape)}")
        self.backend.assign(self.data, source.data)
        self.written()
        return self

    def full_like(self, value: Number) -> Tensor:
        return full(self.shape, value, self.dtype, self.backend)

    # -- views -----------------------------------------------------------------------------------
    def reshape(self, *shape: Any) -> Tensor:
        """Another shape for the same elements; one entry may be -1."""
        return _core.reshape(self, shape_argument(shape))

    def permute(self, *axes: Any) -> Tensor:
        """Axes in another order."""
        return _core.permute(self, shape_argument(axes))

    def transpose(self, a: int = -2, b: int = -1) -> Tensor:
        """Two axes swapped; by default the last two."""
        axes = list(range(self.ndim))
        a, b = (_core.checked_axis("transpose", axis, self.ndim) for axis in (a, b))
        axes[a], axes[b] = axes[b], axes[a]
        return _core.permute(self, tuple(axes))

    @property
    def T(self) -> Tensor:  # noqa: N802
        return _core.permute(self, tuple(reversed(range(self.ndim))))

    def broadcast_to(self, *shape: Any) -> Tensor:
        return _core.broadcast_to(self, shape_argument(shape))

    def squeeze(self, axis: int) -> Tensor:
        shape = list(self.shape)
        axis = _core.checked_axis("squeeze", axis, self.ndim)
        if shape[axis] != 1:
            raise ShapeError(f"squeeze: axis {axis} has length {shape[axis]}, not 1")
        del shape[axis]
        return _core.reshape(self, tuple(shape))

    def unsqueeze(self, axis: int) -> Tensor:
        shape = list(self.shape)
        shape.insert(_core.checked_axis("unsqueeze", axis, self.ndim + 1), 1)
        return _core.reshape(self, tuple(shape))

    def flatten(self) -> Tensor:
        return _core.reshape(self, (self.size,))

    def contiguous(self) -> Tensor:
        """This tensor, or a copy whose elements lie in row-major order."""
        return _core.contiguous(self)

    def __getitem__(self, index: Any) -> Tensor:
        return _core.index(self, index)

    # -- arithmetic ------------------------------------------------------------------------------
    def __add__(self, other: Any) -> Tensor:
        return _core.add(self, other)

    def __sub__(self, other: Any) -> Tensor:
        return _core.sub(self, other)

    def __mul__(self, other: Any) -> Tensor:
        return _core.mul(self, other)

    def __truediv__(self, other: Any) -> Tensor:
        return _core.div(self, other)

    def __pow__(self, other: Any) -> Tensor:
        return _core.pow(self, other)

    def __floordiv__(self, other: Any) -> Tensor:
        return _core.floor_div(self, other)

    def __mod__(self, other: Any) -> Tensor:
        return _core.mod(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _core.add(other, self)

    def __rsub__(self, other: Any) -> Tensor:
        return _core.sub(other, self)

    def __rmul__(self, other: Any) -> Tensor:
        return _core.mul(other, self)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _core.div(other, self)

    def __rpow__(self, other: Any) -> Tensor:
        return _core.pow(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return _core.matmul(self, other)

    def __neg__(self) -> Tensor:
        return _core.neg(self)

    def __abs__(self) -> Tensor:
        return _core.abs(self)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return _core.eq(self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return _core.ne(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return _core.lt(self, other)

    def __le__(self, other: Any) -> Tensor:
        return _core.le(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return _core.gt(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return _core.ge(self, other)

    __hash__ = object.__hash__

    def __and__(self, other: Any) -> Tensor:
        return _core.bitwise_and(self, other)

    def __or__(self, other: Any) -> Tensor:
        return _core.bitwise_or(self, other)

    def __xor__(self, other: Any) -> Tensor:
        return _core.bitwise_xor(self, other)

    def __rshift__(self, other: Any) -> Tensor:
        return _core.right_shift(self, other)

    def __lshift__(self, other: Any) -> Tensor:
        return _core.left_shift(self, other)

    # -- elementwise and reductions --------------------------------------------------------------
    def exp(self) -> Tensor:
        return _core.exp(self)

    def log(self) -> Tensor:
        return _core.log(self)

    def sqrt(self) -> Tensor:
        return _core.sqrt(self)

    def rsqrt(self) -> Tensor:
        return _core.rsqrt(self)

    def sin(self) -> Tensor:
        return _core.sin(self)

    def cos(self) -> Tensor:
        return _core.cos(self)

    def tanh(self) -> Tensor:
        return _core.tanh(self)

    def sigmoid(self) -> Tensor:
        return _core.sigmoid(self)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return _core.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return _core.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return _core.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> Tensor:
        return _core.min(self, axis, keepdims)

    def argmax(self, axis: int = -1) -> Tensor:
        return _core.argmax(self, axis)


def full(
    shape: Any, value: Number, dtype: Any = "float32", backend: str | Backend | None = None
) -> Tensor:
    """A tensor filled with one value."""
    chosen = backends.get(backend)
    return Tensor.wrap(chosen.full(as_shape(shape), value, dtypes.parse(dtype)), chosen)


def zeros(shape: Any, dtype: Any = "float32", backend: str | Backend | None = None) -> Tensor:
    """A tensor of zeros."""
    return full(shape, 0, dtype, backend)


def ones(shape: Any, dtype: Any = "float32", backend: str | Backend | None = None) -> Tensor:
    """A tensor of ones."""
    return full(shape, 1, dtype, backend)


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    dtype: Any = "int32",
    backend: str | Backend | None = None,
) -> Tensor:
    """start, start + step, ... up to but without stop; with one number, from 0 to it."""
    first, last = (0, start) if stop is None else (start, stop)
    chosen = backends.get(backend)
    return Tensor.wrap(chosen.arange(first, last, step, dtypes.parse(dtype)), chosen)


def forward_to(core: ModuleType) -> None:
    """What operators and methods of tensors call: `boostr.ops.core`, which is built on tensors and
    therefore names itself here."""
    global _core
    _core = core
