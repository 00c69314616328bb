"""Truth for optimizer steps: plain float64 numpy that imports nothing of ours."""

import numpy as np


def adamw(
    param, grad, m, v, step, *, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01,
    grad_scale=1.0,
):  # fmt: skip
    """(param, m, v) after one step; decoupled decay, both moments freed of their bias. torch.

    arXiv:1711.05101, algorithm 2, whose eta is 1.
    """
    param, grad, m, v = (np.asarray(a).astype(np.float64) for a in (param, grad, m, v))
    g = grad * grad_scale
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    unbiased_m, unbiased_v = m / (1 - beta1**step), v / (1 - beta2**step)
    param = param - lr * weight_decay * param - lr * unbiased_m / (np.sqrt(unbiased_v) + eps)
    return param, m, v
