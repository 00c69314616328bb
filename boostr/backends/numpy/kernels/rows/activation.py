"""silu, gelu and the gated forms, elementwise on rows [F]; softmax and log_softmax of rows [N].

silu: x·sigmoid(x). gelu: x/2·(1 + erf(x/√2)), or x·sigmoid(2√(2/π)·(x + 0.044715 x³)), which is the
tanh form. The gated forms multiply with `up`. Sources: `boostr/ops/activation.py`.
"""

from numba import float32

from boostr.backends.numpy.kernels.runtime.layout_ops import CHUNK
from boostr.backends.numpy.kernels.runtime.memory import f32, load, load_n, store_n
from boostr.backends.numpy.kernels.runtime.simd import (
    LANES,
    fill,
    inline,
    iota,
    less,
    maximum,
    select,
    vector,
)
from boostr.backends.numpy.kernels.runtime.special import gelu, gelu_tanh, log, silu
from boostr.backends.numpy.kernels.runtime.vmath import exp, reduce_add, reduce_max

MINUS_INF = float("-inf")


_FORMS = {"silu": silu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def elementwise(form: str, gated: bool):
    """params: x, up, y, F, chunks of a row, inner and stride of x, inner and stride of up."""
    activate = _FORMS[form]

    def kernel(params, start, stop):
        F, chunks = params[3], params[4]
        for item in range(start, stop):
            row, first = item // chunks, item % chunks * 512
            last = min(F, first + CHUNK)
            x = f32(params[0]) + ((row // params[5]) * params[6] + row % params[5] * F)
            up = f32(params[1]) + ((row // params[7]) * params[8] + row % params[7] * F)
            y = f32(params[2]) + row * F
            for e in range(first, last, LANES):
                n = last - e
                value = activate(load_n(x, e, n))
                if gated:
                    value = value * load_n(up, e, n)
                store_n(y, e, value, n)

    return kernel


@inline
def _tail(x, e, n):
    """The last n < LANES elements, -inf in the other lanes."""
    return select(less(iota(), n), load_n(x, e, n), MINUS_INF)


@inline
def largest(x, N):
    """The largest of N elements; -inf for none."""
    top = fill(4, MINUS_INF)
    whole = N - N % (4 * LANES)
    for e in range(0, whole, 4 * LANES):
        four = (load(x, e), load(x, e + LANES), load(x, e + 2 * LANES), load(x, e + 3 * LANES))
        top = maximum(top, four)
    one = maximum(maximum(top[0], top[1]), maximum(top[2], top[3]))
    for e in range(whole, N, LANES):
        one = maximum(one, _tail(x, e, N - e))
    return reduce_max(one)


@inline
def exp_sum(x, y, N, top, write):
    """sum of exp(x - top), the terms written to y if `write`."""
    total = vector(0.0)
    for e in range(0, N, LANES):
        term = exp(_tail(x, e, N - e) - top)
        total = total + term
        if write:
            store_n(y, e, term, N - e)
    return reduce_add(total)


def softmax(logarithm: bool):
    """params: x, y, N, inner, stride. A row of -inf alone gives zeros (NaN for the logarithm)."""

    def kernel(params, start, stop):
        N = params[2]
        for row in range(start, stop):
            x = f32(params[0]) + ((row // params[3]) * params[4] + row % params[3] * N)
            y = f32(params[1]) + row * N
            top = largest(x, N)
            if not logarithm and top == MINUS_INF:
                top = float32(0.0)
            total = exp_sum(x, y, N, top, not logarithm)
            if logarithm:
                away = log(vector(total))
                for e in range(0, N, LANES):
                    store_n(y, e, load_n(x, e, N - e) - top - away, N - e)
            else:
                share = float32(1.0) if total == 0 else float32(1.0) / total
                for e in range(0, N, LANES):
                    store_n(y, e, load_n(y, e, N - e) * share, N - e)

    return kernel
