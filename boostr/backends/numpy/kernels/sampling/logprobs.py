"""Log probabilities of rows of logits [V], as `boostr/ops/logprobs.py` defines them; a row an item.

The terms are summed in parts, and these in f64, so that wide rows lose nothing. The largest are
kept in a list in order; most parts of a row have none that belongs there.
"""

from numba import float32, float64

from boostr.backends.numpy.kernels.rows.activation import exp_sum, largest
from boostr.backends.numpy.kernels.runtime.memory import bf16, f16, f32, i32
from boostr.backends.numpy.kernels.runtime.simd import inline, vector
from boostr.backends.numpy.kernels.runtime.special import log
from boostr.backends.numpy.kernels.runtime.vmath import reduce_max
from boostr.backends.numpy.kernels.sampling.sampling import has_largest

PART = 1024  # elements that are summed in f32
SEARCHED = 256  # elements that are looked through for one that belongs to the list
POINTERS = {"f32": f32, "bf16": bf16, "f16": f16}
NAN = float("nan")


@inline
def _log_sum(x, V, top):
    """log of the sum of exp(x - top)."""
    total = float64(0.0)
    for e in range(0, V, PART):
        total += float64(exp_sum(x + e, x, min(PART, V - e), top, False))
    return reduce_max(log(vector(float32(total))))


@inline
def _list_largest(x, V, k, ids, values):
    """The k largest of x in order, ties by rising id."""
    count = 0
    for e in range(0, V, SEARCHED):
        n = min(SEARCHED, V - e)
        if count < k or largest(x + e, n) > values[k - 1]:
            for i in range(e, e + n):
                value = x[i]
                if count < k or value > values[k - 1]:
                    j = min(count, k - 1)
                    while j > 0 and values[j - 1] < value:
                        values[j], ids[j] = values[j - 1], ids[j - 1]
                        j -= 1
                    values[j], ids[j] = value, i
                    count = min(count + 1, k)


def top_logprobs(logit: str):
    """params: logits, stride, V, ids, k, logprobs of ids, ids of the k largest, their logprobs."""
    pointer = POINTERS[logit]

    def kernel(params, start, stop):
        V, k = params[2], params[4]
        for row in range(start, stop):
            x, token = pointer(params[0]) + row * params[1], i32(params[3])[row]
            best, logs = i32(params[6]) + row * k, f32(params[7]) + row * k
            top = largest(x, V)
            if not has_largest(x, V, top):
                f32(params[5])[row] = NAN
                for i in range(k):
                    best[i], logs[i] = -1, NAN
                continue
            away = _log_sum(x, V, top)
            known = token >= 0 and token < V
            f32(params[5])[row] = x[token] - top - away if known else float32(NAN)
            if k > 0:
                _list_largest(x, V, k, best, logs)
                for i in range(k):
                    logs[i] = logs[i] - top - away

    return kernel
