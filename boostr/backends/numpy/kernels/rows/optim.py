"""AdamW in one pass over parameter, gradient and moments, and the norm of many tensors.

    g = grad · scale, 0 where that is 0; m += (1 - beta1) (g - m); v += (1 - beta2) (g² - v)
    p = p (1 - lr · decay) - lr / (1 - beta1^step) · m / (sqrt(v / (1 - beta2^step)) + eps)

The tensors lie in a table (`layout_ops.py`); an item is OPTIM_CHUNK elements of one of them.
Sources: `boostr/ops/optim.py`.
"""

from numba import float32, float64, int64

from boostr.backends.numpy.kernels.runtime import layout_ops as at
from boostr.backends.numpy.kernels.runtime.edges import load_upto, store_upto
from boostr.backends.numpy.kernels.runtime.memory import f32, f64, i32, i64, load
from boostr.backends.numpy.kernels.runtime.simd import LANES, fill, fma, inline, select, sqrt
from boostr.backends.numpy.kernels.runtime.vmath import reduce_add

CHUNK, WORDS, LENGTH, FIRST = at.OPTIM_CHUNK, at.TENSOR_WORDS, at.LENGTH, at.FIRST_ITEM
PARAM, GRAD, MEAN, SQUARE = at.PARAM, at.GRAD, at.MEAN, at.SQUARE


@inline
def _row(table, row, count, item):
    """The table's row that has the item; `row` is not after it."""
    while row + 1 < count and table[(row + 1) * WORDS + FIRST] <= item:
        row += 1
    return row


@inline
def _number(address, kind):
    """A scalar in memory: float64, float32 or int32 for kind 0, 1, 2."""
    if kind == 0:
        return f64(address)[0]
    return float64(f32(address)[0]) if kind == 1 else float64(i32(address)[0])


@inline
def _power(base, exponent):
    """base ** exponent for a whole number of 0 or more: products, as kernels have no pow."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def adamw():
    """params: table, tensors, numbers f64 [beta1, beta2, eps, decay], then address and kind (see
    `_number`) of step, learning rate and scale."""

    @inline
    def step(p, g, m, v, rates, e, n):
        scale, first, second, keep, rate, spread, eps = rates
        grad = select(scale == 0, 0.0, load_upto(g, e, n) * scale)  # it may be nan
        mean, square = load_upto(m, e, n), load_upto(v, e, n)
        mean = fma(grad - mean, first, mean)
        square = fma(grad * grad - square, second, square)
        store_upto(m, e, mean, n)
        store_upto(v, e, square, n)
        away = mean / (sqrt(square) * spread + eps)
        store_upto(p, e, load_upto(p, e, n) * keep - rate * away, n)

    def kernel(params, start, stop):
        table, numbers = i64(params[0]), f64(params[2])
        beta1, beta2, count = numbers[0], numbers[1], int64(_number(params[3], params[4]))
        lr, scale = _number(params[5], params[6]), _number(params[7], params[8])
        rates = (
            float32(scale),
            float32(1.0 - beta1),
            float32(1.0 - beta2),
            float32(1.0 - lr * numbers[3]),
            float32(lr / (1.0 - _power(beta1, count))),
            float32(1.0) / sqrt(float32(1.0 - _power(beta2, count))),
            float32(numbers[2]),
        )
        row = 0
        for item in range(start, stop):
            row = _row(table, row, params[1], item)
            words = table + row * WORDS
            first = (item - words[FIRST]) * CHUNK
            n = min(CHUNK, words[LENGTH] - first)
            p, g = f32(words[PARAM]) + first, f32(words[GRAD]) + first
            m, v = f32(words[MEAN]) + first, f32(words[SQUARE]) + first
            whole = n - n % LANES
            for e in range(0, whole, LANES):
                step(p, g, m, v, rates, e, LANES)
            if whole < n:
                step(p, g, m, v, rates, whole, n - whole)

    return kernel


def square_sums():
    """params: table, tensors, sums f64 [items]: the squares of each item's elements."""

    def kernel(params, start, stop):
        table, row = i64(params[0]), 0
        for item in range(start, stop):
            row = _row(table, row, params[1], item)
            words = table + row * WORDS
            first = (item - words[FIRST]) * CHUNK
            g, n = f32(words[GRAD]) + first, min(CHUNK, words[LENGTH] - first)
            four = fill(4, 0.0)
            whole = n - n % (4 * LANES)
            for e in range(0, whole, 4 * LANES):
                x = (load(g, e), load(g, e + LANES), load(g, e + 2 * LANES), load(g, e + 3 * LANES))
                four = fma(x, x, four)
            total = (four[0] + four[1]) + (four[2] + four[3])
            for e in range(whole, n, LANES):
                x = load_upto(g, e, n - e)
                total = fma(x, x, total)
            f64(params[2])[item] = float64(reduce_add(total))

    return kernel


def root_of_sums():
    """params: sums f64 [items], result f32, items. One item."""

    def kernel(params, start, stop):
        total = 0.0
        for i in range(params[2]):
            total += f64(params[0])[i]
        f32(params[1])[0] = sqrt(float32(total))

    return kernel
