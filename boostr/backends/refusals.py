"""What the kernels of both GPU backends refuse, as the `supports` of a kernel says it.

Each function takes an op's arguments and answers None or why not.
"""

from __future__ import annotations

from typing import Any

from boostr import dtypes
from boostr.operands import KV, HeadNorms, Norm, PackedKV
from boostr.tensor import Tensor


def floats(*args: Any, **options: Any) -> str | None:
    """Kernels that take float tensors of 32 and 16 bits; integers pass."""
    return only_floats(*(x for x in args if isinstance(x, Tensor) and x.dtype.kind not in "iub"))


def only_floats(*tensors: Tensor) -> str | None:
    """The same, without integers."""
    for x in tensors:
        if x.dtype not in dtypes.MODEL_FLOATS:
            return f"dtype {x.dtype} is not float32, float16 or bfloat16"
    return None


def activation_backward(g: Tensor, x: Tensor, *args: Any) -> str | None:
    return floats(x) if g.dtype == x.dtype else f"the gradient is {g.dtype}, x {x.dtype}"


def layer_norm(*args: Any) -> str | None:
    """Of [add_]layer_norm: x, [residual,] weight, bias, eps."""
    weight, bias = args[-3], args[-2]
    if bias is not None and bias.dtype != weight.dtype:
        return f"bias is {bias.dtype}, weight {weight.dtype}"
    return floats(*args)


def norm_backward(g: Tensor, passed: Tensor | None, x: Tensor, *args: Any) -> str | None:
    for t in (g, passed):
        if t is not None and t.dtype != x.dtype:
            return f"a gradient is {t.dtype}, x {x.dtype}"
    return floats(x, *args)


def quantize(w: Tensor, group: int) -> str | None:
    return only_floats(w) if w.shape[1] else "the weight has no inputs"


def kv_write(k: Tensor, v: Tensor, k_cache: KV, v_cache: KV, slots: Tensor) -> str | None:
    if isinstance(k_cache, PackedKV) or isinstance(v_cache, PackedKV):
        return only_floats(k, v) or (f"k is {k.dtype}, v {v.dtype}" if k.dtype != v.dtype else None)
    if k.dtype != v.dtype or k_cache.dtype != v_cache.dtype:
        return f"k and v differ: {k.dtype}, {v.dtype}, caches {k_cache.dtype}, {v_cache.dtype}"
    return only_floats(k, k_cache)


def advance(most: int, ids: Tensor, chosen: Tensor, counters: list[Tensor]) -> str | None:
    """most: counters that one launch takes."""
    if not all(t.backend.is_contiguous(t.data) for t in (ids, *counters)):
        return "a tensor is not dense"
    return f"{len(counters)} counters, more than {most}" if len(counters) > most else None


def norm_before(norm: Norm | None) -> str | None:
    """Products that normalise what they read: by RMS, with a float32 weight."""
    if norm is None:
        return None
    if norm.kind != "rms" or norm.bias is not None:
        return f"a {norm.kind} norm before the product"
    if norm.weight.dtype != dtypes.float32:
        return f"norm weights are {norm.weight.dtype}, not float32"
    return None


def head_norms(norms: HeadNorms, head_dim: int) -> str | None:
    """Both of q and k or neither, of each head, by one eps."""
    q, k, after_rope = norms
    if q is None and k is None:
        return None
    if after_rope:
        return "norms of heads after rope"
    if q is None or k is None:
        return "only one of q and k is normalised"
    for norm in (q, k):
        if norm.weight.shape != (head_dim,):
            return f"a norm of heads with weights {list(norm.weight.shape)}"
        if norm.offset:
            return f"norms of heads with an offset, {norm.offset}"
    if q.eps != k.eps:
        return f"norms of heads with two eps, {q.eps} and {k.eps}"
    return norm_before(q) or norm_before(k)
