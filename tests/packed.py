"""Random weights of every scheme, and what they mean in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import oracles_gguf
from draws import normal
from tolerance import THREE_DIGITS, TWO_DIGITS
from toys import drawn, meaning

from boostr import Tensor
from boostr.backends import Backend
from boostr.backends.numpy.runtime import jit
from boostr.quant.gguf import BLOCK_TYPES, planes
from boostr.quant.scheme import SCHEMES, QuantizedTensor, Scheme

# schemes that GGUF blocks are read as, and what blocks mean: those that all kernels read,
BLOCKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "q8_0": oracles_gguf.q8_0,
    "q4_0": oracles_gguf.q4_0,
    "q4_1": oracles_gguf.q4_1,
    "q6_k": oracles_gguf.q6_k,
}
# and all: the others are decoded by the gguf package, which does not know two of them
TYPES = {kind.lower(): oracles_gguf.by_package(kind) for kind in BLOCK_TYPES} | {
    **BLOCKS,
    "q1_0": oracles_gguf.q1_0,
    "q2_0": oracles_gguf.q2_0,
}
# where in a block float16 numbers are, and how large usual ones
HALVES = {name: [(0, 0.05)] for name in TYPES} | {
    "q4_0": [(0, 0.3)], "q4_1": [(0, 0.05), (2, 0.05)], "q5_1": [(0, 0.05), (2, 0.05)],
    "q2_k": [(80, 5e-3), (82, 5e-3)], "q3_k": [(108, 1e-3)], "q4_k": [(0, 5e-4), (2, 5e-4)],
    "q5_k": [(0, 5e-4), (2, 5e-4)], "q6_k": [(208, 5e-4)], "iq4_xs": [(0, 5e-4)],
    "tq1_0": [(52, 0.05)], "tq2_0": [(64, 0.05)], "iq1_m": [], "mxfp4": [], "nvfp4": [],
}  # fmt: skip
# where bytes are that are not any: exponents, and 8-bit floats that have no sign and are no NaN
_BYTES = {"mxfp4": (0, 1, 119, 126), "nvfp4": (0, 4, 0, 0x7F)}
INT8 = ("int8", "int8-g32", "int8-g64", "int8-g128", "w8a8")
# a scheme of each width and kind of number; `ops/test_schemes.py` has every kind of scale
FORMS = (*INT8, *BLOCKS, "q2_k", "q3_k", "q4_k", "q5_0", "nf4", "fp8")


def product_c(backend: Backend, scheme: Scheme, rows: int) -> float | None:
    """`c` of `tolerance` for a product: the CPU cuts few and many rows of x into digits."""
    numbers = () if isinstance(scheme.values, str) else scheme.values
    floats = scheme.values == "e4m3" or any(value % 1 for value in numbers)
    if backend.name != "numpy" or floats or scheme.activations_int8:
        return None
    three = rows <= 2 and (scheme.bits == 8 or scheme.values) and jit.target().int8_dot != "pmaddwd"
    return THREE_DIGITS if three else TWO_DIGITS


def group_of(scheme: str) -> int | None:
    return SCHEMES[scheme].group_size or None


def fitted(form: str, K: int) -> int:
    """K, rounded up to a number of inputs that weights of the form may have."""
    multiple = SCHEMES[form].multiple if form in SCHEMES else 1
    return -(-K // multiple) * multiple


def draw_blocks(rng: np.random.Generator, scheme: str, N: int, K: int) -> np.ndarray:
    """GGUF blocks uint8 [N, bytes] of random codes.

    Their f16 numbers are of both signs and of a usual size (`HALVES`), but for some that are
    subnormal and some that are zero.
    """
    block = BLOCK_TYPES[scheme.upper()]
    raw = rng.integers(0, 256, (N, K // block.size, block.nbytes)).astype(np.uint8)
    for at, scale in HALVES[scheme]:
        raw[:, :, at : at + 2] = _halves(rng, N, K // block.size, scale).view(np.uint8)
    if scheme in _BYTES:
        at, count, least, end = _BYTES[scheme]
        raw[:, :, at : at + count] = rng.integers(least, end, (N, K // block.size, count))
    if scheme == "iq1_m":  # a nibble of d in each of four words
        d = _halves(rng, N, K // block.size, 0.01).view(np.uint16)
        words = raw[:, :, 48:].copy().view(np.uint16) & 0xFFF
        words |= (d >> np.array([0, 4, 8, 12], np.uint16)) << 12
        raw[:, :, 48:] = words.view(np.uint8)
    return raw.reshape(N, -1)


def _halves(rng: np.random.Generator, N: int, G: int, scale: float) -> np.ndarray:
    d = normal(rng, (N, G, 1), "float16", scale)
    rare = rng.integers(0, 16, d.shape)
    d[rare == 0] = 0
    d[rare == 1] *= np.float16(2**-14)
    return d


def packed(backend: str | Backend, scheme: str, raw: np.ndarray, K: int) -> QuantizedTensor:
    """The weight [N, K] that blocks uint8 [N, bytes] of GGUF are read as."""
    return tensor(backend, scheme, (len(raw), K), planes(scheme.upper(), raw))


def tensor(
    backend: str | Backend, scheme: str, shape: tuple[int, ...], parts: dict[str, np.ndarray]
) -> QuantizedTensor:
    """A weight of these parts."""
    return tensor_of(backend, SCHEMES[scheme], shape, parts)


def tensor_of(
    backend: str | Backend, scheme: Scheme, shape: tuple[int, ...], parts: dict[str, np.ndarray]
) -> QuantizedTensor:
    """A weight of these parts of any scheme."""
    tensors = {name: Tensor(part, backend=backend) for name, part in parts.items()}
    return QuantizedTensor(scheme, shape, tensors)


def draw(
    backend: str | Backend,
    rng: np.random.Generator,
    scheme: str,
    N: int,
    K: int,
    scale: float = 1.0,
) -> tuple[QuantizedTensor, np.ndarray]:
    """(a weight [N, K] of the scheme, its values in float64); `scale` is that of int8 weights."""
    if scheme in TYPES:
        raw = draw_blocks(rng, scheme, N, K)
        return packed(backend, scheme, raw, K), TYPES[scheme](raw)
    if scheme not in INT8:
        parts = drawn(rng, SCHEMES[scheme], N, K)
        w = tensor(backend, scheme, (N, K), parts)
        return w, meaning(SCHEMES[scheme], parts, K)
    q, s = oracles.quantize_int8(normal(rng, (N, K), scale=scale), group_of(scheme))
    w = tensor(backend, scheme, (N, K), {"codes": q, "scales": s})
    return w, oracles.dequantize_int8(q, s, group_of(scheme))


def stack(
    backend: str | Backend, rng: np.random.Generator, scheme: str, X: int, N: int, K: int
) -> tuple[QuantizedTensor, np.ndarray]:
    """(a stack [X, N, K] of weights of the scheme, its values in float64)."""
    made = [draw("numpy", rng, scheme, N, K) for _ in range(X)]
    parts: dict[str, Any] = {
        name: np.stack([w.parts[name].numpy() for w, _ in made]) for name in made[0][0].parts
    }
    return tensor(backend, scheme, (X, N, K), parts), np.stack([truth for _, truth in made])
