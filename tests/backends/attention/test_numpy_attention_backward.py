"""The CPU's gradient of attention against float64, strictly, on 1 and on 2 threads."""

import numpy as np
import pytest
from backends.attention.test_cupy_attention_backward import OPTIONS, PLAIN, arguments, close
from backends.test_numpy_kernels import numpy_backend, pool  # noqa: F401  (fixtures)
from ops.attention_cases import CASES, Case

from boostr import Tensor, capture
from boostr.errors import FallbackError
from boostr.ops.attention import _backward

CAUSAL = {"causal": True}
# Lengths around the tiles of 48 and 96 keys, of 48 rows, and the parts of 384 keys.
LONG = [
    Case("parts", (1000, 30), (1000, 30), H=3, K=1, D=16, options=CAUSAL),
    Case("parts-of-cross", (70, 5, 900), (800, 385, 0), H=2, K=2, D=24, Dv=8),
    Case("parts-in-a-window", (900,), (900,), H=2, K=1, D=16,
         options={"causal": True, "window": (100, None)}),
    Case("parts-outside", (400, 7), (400, 390), H=2, K=1, D=16, extra=70, options=CAUSAL),
    Case("tiles", (48, 96, 97, 1), (48, 96, 97, 1), H=4, K=4, D=64, options=CAUSAL),
]  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, *OPTIONS, *PLAIN, *LONG], ids=lambda c: c.name)
def test_gradient(case, numpy_backend, rng):  # noqa: F811
    args, want = arguments(numpy_backend, rng, case, "float32")
    close(_backward(*args), want, "float32", case.scale_of_logits)


def test_views(numpy_backend, rng):  # noqa: F811
    """q, k and v as parts of one projection."""
    case = Case("views", (70, 33), (70, 33), H=4, K=2, D=64, options=CAUSAL)
    args, want = arguments(numpy_backend, rng, case, "float32")
    parts = [x.numpy() for x in args[4:7]]
    T = len(parts[0])
    whole = np.concatenate([x.reshape(T, -1) for x in parts], 1)
    for i, (begin, heads) in enumerate(((0, 4), (256, 2), (384, 2))):
        view = Tensor(whole, backend=numpy_backend)[:, begin : begin + heads * 64]
        args[4 + i] = view.reshape(T, heads, 64)
    close(_backward(*args), want, "float32")


def test_repeatable(numpy_backend, rng):  # noqa: F811
    args, _ = arguments(numpy_backend, rng, LONG[0], "float32")
    runs = [[x.numpy().tobytes() for x in _backward(*args)] for _ in range(5)]
    assert all(run == runs[0] for run in runs)


def test_captured(numpy_backend, rng):  # noqa: F811
    """The lengths are read when it runs: a program serves others of the same total."""
    first, second = (
        Case(name, lengths, lengths, H=2, K=1, D=16, options=CAUSAL)
        for name, lengths in (("first", (500, 40)), ("second", (25, 515)))
    )
    args, _ = arguments(numpy_backend, rng, first, "float32")
    program = capture(lambda: _backward(*args), numpy_backend)
    values, want = arguments(numpy_backend, rng, second, "float32")
    for arg, value in zip(args, values, strict=True):
        if isinstance(arg, Tensor):
            arg.assign(value)
    program.run()
    close(program.outputs, want, "float32")


def test_refuses_wide_heads(numpy_backend, rng):  # noqa: F811
    args, _ = arguments(numpy_backend, rng, Case("wide", (3,), (3,), H=1, K=1, D=260), "float32")
    with pytest.raises(FallbackError, match="head_dim 260 is more than 256"):
        _backward(*args)
