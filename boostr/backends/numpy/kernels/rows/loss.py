"""Cross-entropy of logits x [T, V] and its gradient; item = row.

lse = log Σ exp(x); loss = (1 - s) (lse - x[target]) + s (lse - mean(x)), 0 where ignored
dx = (exp(x - lse) - (1 - s) [v = target] - s / V) · the row's gradient, 0 where ignored
A target outside of 0..V-1 gives nan and reads nothing. Sources: `boostr/ops/loss.py`.
"""

from numba import float32, float64, int64

from boostr.backends.numpy.kernels.rows.activation import exp_sum, largest
from boostr.backends.numpy.kernels.rows.sums import row_sum
from boostr.backends.numpy.kernels.runtime.edges import clear, load_upto, store_upto
from boostr.backends.numpy.kernels.runtime.memory import f32, float_param, i32, i64
from boostr.backends.numpy.kernels.runtime.simd import LANES, inline
from boostr.backends.numpy.kernels.runtime.special import log
from boostr.backends.numpy.kernels.runtime.vmath import exp

NAN = float("nan")


@inline
def _target(address, t, wide):
    return i64(address)[t] if wide else int64(i32(address)[t])


def cross_entropy(wide: bool):
    """params: x, targets, losses, lse, V, stride of x, ignore_index, smoothing. `wide`: targets
    are int64."""

    def kernel(params, start, stop):
        V, smoothing = params[4], float_param(params[7])
        for t in range(start, stop):
            x, target = f32(params[0]) + t * params[5], _target(params[1], t, wide)
            top = largest(x, V)
            away = log(exp_sum(x, x, V, top, False))
            f32(params[3])[t] = top + away
            loss = float32(0.0)
            if target != params[6]:
                if target < 0 or target >= V:
                    loss = float32(NAN)
                else:
                    loss = (float32(1.0) - smoothing) * (away - (x[target] - top))
                    if smoothing != 0:
                        loss += smoothing * (away - (row_sum(x, V) / float32(V) - top))
            f32(params[2])[t] = loss

    return kernel


def total(wide: bool):
    """params: losses, targets, result, rows, T, ignore_index, whether to divide by the rows that
    count. One item."""

    def kernel(params, start, stop):
        losses, count, result = float64(0.0), 0, f32(params[2])
        for t in range(params[4]):
            losses += f32(params[0])[t]
            if _target(params[1], t, wide) != params[5]:
                count += 1
        f32(params[3])[0] = count
        result[0] = losses / count if params[6] != 0 else losses

    return kernel


def gradient(wide: bool):
    """params: g, g's step from row to row, lse, rows to divide by or 0, x, targets, dx, V, stride
    of x, ignore_index, smoothing."""

    @inline
    def step(x, dx, lse, even, scale, e, n):
        store_upto(dx, e, (exp(load_upto(x, e, n) - lse) - even) * scale, n)

    def kernel(params, start, stop):
        V, smoothing = params[7], float_param(params[10])
        even, whole = smoothing / float32(V), V - V % LANES
        for t in range(start, stop):
            x, dx = f32(params[4]) + t * params[8], f32(params[6]) + t * V
            target = _target(params[5], t, wide)
            if target == params[9]:
                clear(dx, V)
                continue
            lse, scale = f32(params[2])[t], f32(params[0])[t * params[1]]
            if params[3] != 0:
                scale = scale / f32(params[3])[0]
            for e in range(0, whole, LANES):
                step(x, dx, lse, even, scale, e, LANES)
            if whole < V:
                step(x, dx, lse, even, scale, whole, V - whole)
            if 0 <= target < V:
                dx[target] = dx[target] - (float32(1.0) - smoothing) * scale

    return kernel
