"""Small computations on a backend, compared with float64 in plain numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from boostr import Tensor, dispatch, dtypes, ops
from boostr.backends.base import Backend
from boostr.errors import FallbackError
from boostr.quant.pack import unpack_codes
from boostr.quant.scheme import FIELDS, QuantizedTensor, affine_scheme, parse_scheme

PLAIN = ("int8", "int4-g32", "fp8")  # beside codes of every width with scales and offsets
TOLERANCE = 1e-4  # of values around 1, sums of at most 96 products in float32


def check_arithmetic(backend: Backend) -> Iterator[tuple[str, str, str]]:
    """(what, PASS or FAIL, detail) for each computation."""
    for title, check in (
        ("matmul", _matmul), ("int8 linear", _int8_linear), ("attention", _attention),
    ):  # fmt: skip
        try:
            run, truth = check(backend, np.random.default_rng(0))
            got, how = (run(), "primitive") if check is _matmul else _with_kernel(run)
            error = float(np.abs(np.asarray(got.numpy(), np.float64) - truth).max())
        except Exception as failure:
            yield title, "FAIL", f"{type(failure).__name__}: {failure}"
            continue
        status = "PASS" if error <= TOLERANCE else "FAIL"  # also for a NaN
        yield title, status, f"largest error {error:.1e} (at most {TOLERANCE:g}), {how}"
    yield _widths(backend)


def _widths(backend: Backend) -> tuple[str, str, str]:
    """Weights of every width of codes, read back and multiplied by."""
    errors: dict[str, float] = {}
    composites = []
    for scheme in (*(affine_scheme(bits, 32, "f16") for bits in FIELDS), *map(parse_scheme, PLAIN)):
        rng = np.random.default_rng(scheme.bits)
        x, w = rng.standard_normal((2, 96)).astype(np.float32), rng.standard_normal((64, 96)) / 10
        try:
            packed = ops.quantize(Tensor(w.astype(np.float32), backend=backend), scheme)
            truth, tensor = _meaning(packed), Tensor(x, backend=backend)
            (got, read), (y, multiplied) = (
                _with_kernel(lambda w=packed: ops.dequantize(w)),
                _with_kernel(lambda w=packed, x=tensor: ops.linear(x, w)),
            )
            wrong = (got.numpy() - truth, y.numpy() - x.astype(np.float64) @ truth.T)
        except Exception as failure:
            return "weights", "FAIL", f"{scheme.name}: {type(failure).__name__}: {failure}"
        errors[scheme.name] = max(float(np.abs(difference).max()) for difference in wrong)
        composites += [scheme.name] * ("composite" in (read, multiplied))
    name, largest = max(errors.items(), key=lambda item: (np.isnan(item[1]), item[1]))
    status = "PASS" if largest <= TOLERANCE else "FAIL"
    how = f"composite: {', '.join(composites)}" if composites else "native"
    return "weights", status, (
        f"{len(errors)} forms of 2 to 8 bits, largest error {largest:.1e} ({name}; at most "
        f"{TOLERANCE:g}), {how}"
    )  # fmt: skip


def _meaning(w: QuantizedTensor) -> np.ndarray:
    """The numbers of a weight [N, K] in float64: scale · (number - zero) + offset."""
    scheme, parts = w.scheme, {name: part.numpy() for name, part in w.parts.items()}
    codes = parts["codes"] if scheme.bits == 8 else unpack_codes(parts, scheme.bits)
    numbers = codes.view(dtypes.float8_e4m3) if scheme.values == "e4m3" else codes
    group = scheme.group_size or w.shape[1]
    scales, *offsets = (
        np.repeat(parts[name].astype(np.float64), group, 1)[:, : w.shape[1]]
        for name in ("scales", "offsets")
        if name in parts
    )
    return scales * (numbers.astype(np.float64) - scheme.zero) + (offsets[0] if offsets else 0)


def _with_kernel(run: Callable[[], Tensor]) -> tuple[Tensor, str]:
    """The result, by a native kernel where there is one, and which it was."""
    try:
        with dispatch.strict():
            return run(), "native"
    except FallbackError:
        with dispatch.strict(False):
            return run(), "composite"


def _matmul(backend: Backend, rng: np.random.Generator) -> Any:
    a = (rng.standard_normal((33, 96)) / 10).astype(np.float32)
    b = rng.standard_normal((96, 65)).astype(np.float32)
    truth = a.astype(np.float64) @ b.astype(np.float64)
    left, right = (Tensor(x, backend=backend) for x in (a, b))
    return lambda: left @ right, truth


def _int8_linear(backend: Backend, rng: np.random.Generator) -> Any:
    x = (rng.standard_normal((3, 96)) / 10).astype(np.float32)
    w = rng.standard_normal((64, 96)).astype(np.float32)
    scales = np.abs(w).max(1, keepdims=True).astype(np.float64) / 127
    truth = x.astype(np.float64) @ (np.rint(w / scales) * scales).T
    packed = ops.quantize(Tensor(w, backend=backend), "int8")
    tensor = Tensor(x, backend=backend)
    return lambda: ops.linear(tensor, packed), truth


def _attention(backend: Backend, rng: np.random.Generator) -> Any:
    """Two causal segments of 5 and 9 tokens, 4 query heads on 2 kv heads."""
    ends, H, K, D = (0, 5, 14), 4, 2, 64
    q, k, v = (rng.standard_normal((14, heads, D)).astype(np.float32) for heads in (H, K, K))
    truth = np.zeros((14, H, D))
    for start, stop in itertools.pairwise(ends):
        for head in range(H):
            keys, values = (x[start:stop, head // (H // K)].astype(np.float64) for x in (k, v))
            scores = q[start:stop, head].astype(np.float64) @ keys.T / np.sqrt(D)
            scores[np.triu_indices(stop - start, 1)] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True))
            truth[start:stop, head] = weights / weights.sum(1, keepdims=True) @ values
    tq, tk, tv = (Tensor(x, backend=backend) for x in (q, k, v))
    cu = Tensor(np.array(ends, np.int32), backend=backend)
    return lambda: ops.varlen_attention(tq, tk, tv, cu, cu, causal=True)[0], truth
