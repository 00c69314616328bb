"""What a tensor can be made of: values as a numpy array, a shape as a tuple."""

from __future__ import annotations

from typing import Any

import numpy as np

from boostr import dtypes
from boostr.errors import DTypeError


def host_array(data: Any, dtype: np.dtype | None) -> np.ndarray:
    """A numpy array, nested list, number or anything with `__dlpack__`, in `dtype` if given."""
    if hasattr(data, "__dlpack__") and not isinstance(data, np.ndarray | np.generic):
        array = np.from_dlpack(data)
    else:
        array = np.asarray(data)
        if not isinstance(data, np.ndarray | np.generic):  # Python numbers: the common widths
            narrow = {dtypes.float64: dtypes.float32, dtypes.int64: dtypes.int32}
            array = array.astype(narrow.get(array.dtype, array.dtype))
    if array.dtype.kind in "OUSMm":
        raise DTypeError(f"cannot make a tensor of {array.dtype}; expected numbers")
    return array if dtype is None else array.astype(dtype, copy=False)


def shape_argument(shape: tuple[Any, ...]) -> tuple[int, ...]:
    """`f(2, 3)` and `f((2, 3))` mean the same."""
    return as_shape(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)


def as_shape(shape: Any) -> tuple[int, ...]:
    """A number or some numbers as a tuple."""
    return (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
