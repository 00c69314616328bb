"""What the primitives refuse, and how they say it."""

import numpy as np
import pytest
from draws import normal, refused

from boostr import Tensor, full
from boostr.errors import DTypeError, ShapeError
from boostr.ops import core

A, I3 = (2, 3), [0, 1, 2]


def ones4(x):
    return full((4,), 1, backend=x.backend)


REFUSED = [
    (ShapeError, ("add", "[2, 3]", "[2]"), lambda x: x + x[:, 0]),
    (DTypeError, ("add", "str"), lambda x: x + "one"),
    (DTypeError, ("mul", "Tensor"), lambda x: core.mul(1, 2)),
    (ShapeError, ("where", "[2, 3]", "[4]"), lambda x: core.where(x > 0, x, ones4(x))),
    (DTypeError, ("where", "bool", "float32"), lambda x: core.where(x, x, 0)),
    (DTypeError, ("where", "condition", "bool"), lambda x: core.where(True, x, 0)),
    (ShapeError, ("where", "[2, 3]", "[4]"), lambda x: core.where(ones4(x) > 0, x, 0)),
    (ShapeError, ("sum", "axis 2", "2 axes"), lambda x: core.sum(x, 2)),
    (ShapeError, ("argmax", "axis -3", "2 axes"), lambda x: core.argmax(x, -3)),
    (ShapeError, ("max", "[2, 0]"), lambda x: core.max(x[:, :0], 1)),
    (ShapeError, ("mean", "[2, 0]"), lambda x: core.mean(x[:, :0])),
    (ShapeError, ("argmax", "[2, 0]"), lambda x: core.argmax(x[:, :0])),
    (ShapeError, ("matmul", "[2, 3] @ [2, 3]"), lambda x: x @ x),
    (ShapeError, ("matmul", "M, K]", "[3]"), lambda x: x @ x[0]),
    (ShapeError, ("matmul", "broadcast"), lambda x: full((2, 2, 3), 1) @ full((3, 3, 2), 1)),
    (DTypeError, ("matmul", "float32", "bfloat16"), lambda x: x @ x.T.to("bf16")),
    (DTypeError, ("matmul", "Tensor", "ndarray"), lambda x: x @ np.zeros((3, 2))),
    (DTypeError, ("take", "integers", "float32"), lambda x: core.take(x, x)),
    (ShapeError, ("take", "axis 2"), lambda x: core.take(x, Tensor(I3), 2)),
    (ShapeError, ("take_along", "[2, 3]", "[3]"), lambda x: core.take_along(x, Tensor(I3))),
    (ShapeError, ("take_along", "[2, 3]", "[1, 3]"), lambda x: core.take_along(x, Tensor([I3]), 1)),
    (DTypeError, ("take_along", "integers"), lambda x: core.take_along(x, x)),
    (DTypeError, ("scatter_add", "integers"), lambda x: core.scatter_add(A, x, x)),
    (ShapeError, ("scatter_add", "[N]", "[3]"), lambda x: core.scatter_add(A, Tensor(I3), x)),
    (ShapeError, ("scatter_add", "4]", "[2, 3]"),
     lambda x: core.scatter_add((4, 4), Tensor([0, 1]), x)),
    (ShapeError, ("reshape", "[2, 3]", "[4]"), lambda x: x.reshape(4)),
    (ShapeError, ("reshape", "[-1, -1]"), lambda x: x.reshape(-1, -1)),
    (ShapeError, ("reshape", "[-1, 4]"), lambda x: x.reshape(-1, 4)),
    (ShapeError, ("permute", "(0, 0)"), lambda x: x.permute(0, 0)),
    (ShapeError, ("permute", "(0, 3)", "2 axes"), lambda x: x.permute(0, 3)),
    (ShapeError, ("transpose", "axis 2", "2 axes"), lambda x: x.transpose(0, 2)),
    (ShapeError, ("broadcast_to", "[2, 3]", "[3, 3]"), lambda x: x.broadcast_to(3, 3)),
    (ShapeError, ("squeeze", "length 2"), lambda x: x.squeeze(0)),
    (ShapeError, ("squeeze", "axis 2", "2 axes"), lambda x: x.squeeze(2)),
    (ShapeError, ("unsqueeze", "axis 4", "3 axes"), lambda x: x.unsqueeze(4)),
    (ShapeError, ("index", "3", "2 axes"), lambda x: x[0, 0, 0]),
    (DTypeError, ("index", "str"), lambda x: x["a"]),
    (DTypeError, ("take", "bool"), lambda x: x[np.array([True, False])]),
    (ShapeError, ("concat", "one tensor"), lambda x: core.concat([])),
    (ShapeError, ("concat", "axis 1", "float32[2, 3]", "float32[1, 3]"),
     lambda x: core.concat([x, x[:1]], 1)),
    (ShapeError, ("concat", "axis 2", "2 axes"), lambda x: core.concat([x, x], 2)),
    (ShapeError, ("split", "[1, 1]", "3"), lambda x: core.split(x, [1, 1], 1)),
    (ShapeError, ("split", "axis 2", "2 axes"), lambda x: core.split(x, [1, 1], 2)),
    (ShapeError, ("bitcast", "float64", "3"), lambda x: core.bitcast(x, "float64")),
    (DTypeError, ("float8_e9", "known"), lambda x: x.to("float8_e9")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "words", "call"), REFUSED, ids=[f"{i}-{w[0]}" for i, (_, w, _) in enumerate(REFUSED)]
)
def test_refuses(error, words, call, rng):
    with refused(error, *words):
        call(Tensor(normal(rng, A), backend="numpy"))


def test_index_outside_is_an_index_error(plain_backend):
    x = full((2, 3), 0, backend=plain_backend)
    with pytest.raises(IndexError, match=r"index: 3 .* axis 1 of length 3"):
        x[0, 3]
    assert len(list(x)) == 2  # the old iteration protocol ends at the IndexError
