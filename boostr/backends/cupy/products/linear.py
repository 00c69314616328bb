"""linear: few rows go to the GEMV, the rest to tensor cores (ours or cuBLASLt's) or plain float32.

| x, weight | more than 8 rows |
|---|---|
| f16 or bf16, of one type | cuBLASLt; `gemm_sm90.cu` up to 32 rows, `gemm_mma.cu` up to 16 |
| f16 or bf16, codes | `gemm_mma.cu`; on Hopper mostly `gemm_sm90.cu`: `gemm_sm90_plan.py` |
| the same, 1024 or 4096 rows and more | on Hopper decoded once for `gemm_sm90.cu` |
| f16 or bf16, codes that may be rounded | from 1024 rows decoded for cuBLASLt |
| any, w8a8 | x rounded by `gemm_int8.cu`, then products of int8 in the first two |
| f32, f32 | cuBLASLt, without TF32 |
| all else: f32 x, two float types, odd alignment, sm_75 | `gemm_simt.cu` |
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from boostr import dtypes
from boostr.backends.base import Kernel
from boostr.backends.cupy.products import blas, gemm, gemm_halves, gemm_sm90, gemm_sm90_plan
from boostr.backends.cupy.products.quant import dequantize
from boostr.backends.cupy.products.stored import NO_PLANES, Stored, Weight, form_refusal
from boostr.quant.forms import form_of
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

FEW = 8  # rows of x that the GEMV takes
_MANY = 1024  # rows that pay for decoding a weight: cuBLASLt does not read codes
_SKINNY = 16  # rows up to which `gemm_mma` reads 16-bit weights as fast as cuBLASLt


def _supports(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: np.dtype | None = None,
    rounded: bool = False,
) -> str | None:
    for part in (t for t in (x, bias, residual) if t is not None):
        if part.dtype not in dtypes.MODEL_FLOATS:
            return f"dtype {part.dtype} is none of float32, float16, bfloat16"
    if dtype is not None and dtype not in dtypes.MODEL_FLOATS:
        return f"result dtype {dtype} is none of float32, float16, bfloat16"
    if weight.shape[1] == 0:
        return "K is 0"
    return form_refusal(form_of(weight))


def _linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: np.dtype | None = None,
    rounded: bool = False,
) -> Tensor:
    backend: CupyBackend = x.backend  # type: ignore[assignment]
    N, K = weight.shape
    lead = x.shape[:-1]
    M = math.prod(lead)
    out_dtype = x.dtype if dtype is None else dtype
    if M == 0 or N == 0:
        return Tensor.wrap(backend.empty((*lead, N), out_dtype), backend)
    rows = _rows(backend, x.data, M, K)
    flat_bias = None if bias is None else backend.dense(bias.data)
    flat_residual = None if residual is None else backend.dense(residual.data).reshape(M, N)
    if M <= FEW:
        from boostr.backends.cupy.products import gemv

        y = gemv.gemv(backend, rows, weight, flat_bias, flat_residual, out_dtype)
    else:
        if rounded and M >= _MANY and x.dtype != dtypes.float32:
            weight = _rounded(weight, x.dtype)
        y = backend.empty((M, N), out_dtype)
        product(backend, rows, Stored.of(weight, backend), flat_bias, flat_residual, y)
    return Tensor.wrap(y.reshape(*lead, N), backend)


def _rounded(weight: Weight, dtype: np.dtype) -> Weight:
    """The weight decoded to `dtype`, unless its products round x."""
    if isinstance(weight, Tensor) or weight.scheme.activations_int8:
        return weight
    return dequantize(weight, dtype)


def _rows(backend: CupyBackend, x: Any, M: int, K: int) -> Any:
    """x as [M, K] with dense rows; a 2-D view keeps its row stride."""
    if x.ndim == 2 and x.strides[1] == x.itemsize and x.strides[0] >= K * x.itemsize:
        return x
    return backend.dense(x).reshape(M, K)


def product(backend: CupyBackend, x: Any, w: Stored, bias: Any, residual: Any, out: Any) -> None:
    """out [M, N] = x [M, K] wᵀ + bias + residual by whatever is fastest for these arguments.

    x and out may have any row stride; residual shares out's.
    """
    if _on_tensor_cores(backend, x, [w], [bias], residual, out, backend.early):
        return
    if _blas_takes(backend, x, w, residual, out):
        if bias is not None and bias.dtype != out.dtype:
            bias = backend.cast(bias, out.dtype)  # no finer than the result
        blas.linear(backend, x, w.codes, out, bias, residual)
    elif gemm.tensor_cores_take(backend, x, [w]) is None and gemm.mma_refusal(w.form) is None:
        gemm.mma(backend, x, [w], [bias], residual, out)
    else:
        gemm.simt(backend, x, w, bias, residual, out)


def _on_tensor_cores(
    backend: CupyBackend, x: Any, weights: list[Stored], biases: list[Any], residual: Any, out: Any,
    early: bool,
) -> bool:  # fmt: skip
    """Multiply by all weights at once if our tensor-core kernels take them and are the fastest."""
    if len({b.dtype for b in biases if b is not None}) > 1:
        return False
    if gemm.tensor_cores_take(backend, x, weights) is not None:
        return False
    M = x.shape[0]
    if gemm_sm90_plan.hopper_takes(backend, weights, M):
        gemm_sm90.hopper(backend, x, weights, biases, residual, out, early=early)
    elif gemm.mma_refusal(weights[0].form) is None and (
        not weights[0].form.is_float or M <= _SKINNY
    ):
        gemm.mma(backend, x, weights, biases, residual, out, early=early)
    else:
        return False
    return True


def _blas_takes(backend: CupyBackend, x: Any, w: Stored, residual: Any, out: Any) -> bool:
    if (
        not w.form.is_float
        or w.codes.dtype != x.dtype
        or out.dtype not in (x.dtype, dtypes.float32)
    ):
        return False
    if x.dtype == dtypes.bfloat16 and backend.caps.compute_capability < 80:
        return False
    return residual is None or residual.dtype == out.dtype


def segments_gemm(
    backend: CupyBackend,
    x: Any,
    weights: list[Weight],
    biases: list[Any],
    out_dtype: np.dtype,
) -> Any:
    """x [M, K] times up to three weights [N_i, K] side by side: [M, sum N_i].

    Neighbours of one form are one product, and floats one behind the other in memory one weight.

    Args:
        x: a cupy array with dense rows.   biases: a cupy array [N_i] or None for each weight.
    """
    stored = [Stored.of(weight, backend) for weight in weights]
    out = backend.empty((x.shape[0], sum(w.N for w in stored)), out_dtype)
    if out.size == 0:
        return out
    start = 0
    pairs = zip(stored, biases, strict=True)
    for _, alike in itertools.groupby(pairs, key=lambda pair: (pair[0].form, pair[0].codes.dtype)):
        run, run_biases = map(list, zip(*alike, strict=True))
        end = start + sum(w.N for w in run)
        _alike_gemm(backend, x, run, run_biases, out[:, start:end])
        start = end
    return out


def _alike_gemm(
    backend: CupyBackend, x: Any, weights: list[Stored], biases: list[Any], out: Any
) -> None:
    """`segments_gemm` of weights of one form, into out [M, sum N_i], whose rows may lie apart."""
    if _on_tensor_cores(backend, x, weights, biases, None, out, backend.early):
        return
    if _adjacent(weights) and all(b is None for b in biases):
        planes = (_Joined(weights), *NO_PLANES[1:])
        whole = Stored(weights[0].form, planes, out.shape[1], x.shape[1])
        if _blas_takes(backend, x, whole, None, out):
            blas.linear(backend, x, whole.codes, out)
            return
    start = 0
    for w, bias in zip(weights, biases, strict=True):
        product(backend, x, w, bias, None, out[:, start : start + w.N])
        start += w.N


def _adjacent(weights: list[Stored]) -> bool:
    """Whether float weights of one type lie one behind the other."""
    return all(
        a.form == b.form
        and a.form.is_float
        and b.codes.data.ptr == a.codes.data.ptr + a.codes.nbytes
        for a, b in itertools.pairwise(weights)
    )


class _Joined:
    """Adjacent weights seen as one array: what `blas.linear` asks of one."""

    def __init__(self, weights: list[Stored]) -> None:
        first = weights[0].codes
        self.data, self.dtype, self.itemsize = first.data, first.dtype, first.itemsize
        self.shape = (sum(w.N for w in weights), weights[0].K)
        self.strides = first.strides


KERNELS = {"linear": Kernel(_linear, _supports)}
VARIANTS = [*gemm.VARIANTS, *gemm_halves.VARIANTS, *gemm_sm90.VARIANTS]
