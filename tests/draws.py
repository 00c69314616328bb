"""Inputs of tests, and what a refused call must say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from boostr import Tensor, dtypes
from boostr.backends import Backend
from boostr.errors import BoostrError


def normal(rng: np.random.Generator, shape: Any, dtype: str = "float32", scale: float = 1.0):
    """Normal numbers of any float dtype; each call draws new ones."""
    return (rng.standard_normal(shape) * scale).astype(dtypes.parse(dtype))


def strided(x: np.ndarray) -> np.ndarray:
    """x's values in memory with a hole after every element of every axis."""
    room = np.zeros([2 * n for n in x.shape], x.dtype)
    view = room[tuple(slice(None, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def tensors(backend: str | Backend, *arrays: Any) -> list[Any]:
    """Each array as a tensor; None stays None."""
    return [None if a is None else Tensor(a, backend=backend) for a in arrays]


def view(backend: str | Backend, x: np.ndarray, rest: int = 8) -> Tensor:
    """x as the first columns of a wider matrix on the device, as a fused product gives it."""
    room = np.full((*x.shape[:-1], x.shape[-1] + rest), np.nan, x.dtype)
    room[..., : x.shape[-1]] = x
    return Tensor(room, backend=backend)[..., : x.shape[-1]]


def large(*values: Any) -> Any:
    """Values of a parameter that a GPU in software would take too long for."""
    return pytest.param(*values, marks=pytest.mark.large)


def rare(*values: Any) -> Any:
    """Values of a parameter that have a kernel of their own, like others that are compiled."""
    return pytest.param(*values, marks=pytest.mark.rare)


def kernels_alone(few: Sequence[Any], rows: Sequence[Any]) -> list[Any]:
    """The rows, of which a GPU in software goes through `few` without kernels."""
    marks = pytest.mark.kernel
    return [row if row in few else pytest.param(row, marks=marks) for row in rows]


def every(few: Sequence[Any], *axes: Any) -> list[Any]:
    """The product of the axes, of which a GPU in software goes through the rows of `few` alone."""
    rows = dict.fromkeys([*few, *itertools.product(*axes)])
    return [row if row in few else large(*row) for row in rows]


def in_turn(first: Sequence[Any], *others: Any) -> list[Any]:
    """Every value of `first` with one of each other axis, these in turn; its first value with the
    product of the others."""
    rest = list(itertools.product(*others))
    rows = [(value, *rest[i % len(rest)]) for i, value in enumerate(first)]
    return list(dict.fromkeys([*rows, *((first[0], *row) for row in rest)]))


def leaves(backend: str | Backend, *arrays: np.ndarray) -> list[Any]:
    """Float64 tensors that require a gradient, for gradcheck."""
    return [Tensor(a.astype(np.float64), backend=backend, requires_grad=True) for a in arrays]


@contextmanager
def refused(error: type[BoostrError], *words: Any) -> Iterator[None]:
    """The call raises `error`, with all of `words` (op, expected, got) in its message."""
    with pytest.raises(error) as caught:
        yield
    missing = [w for w in map(str, words) if w not in str(caught.value)]
    assert not missing, f"{missing} not in the message {str(caught.value)!r}"
