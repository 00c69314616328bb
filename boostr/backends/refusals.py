"""What the kernels of both GPU backends refuse, as the `supports` of a kernel says it.

Each function takes an op's arguments and answers None or why not.
"""

from __future__ import annotations

from typing import Any

from boostr import dtypes
from boostr.operands import KV, HeadNorms, Norm, PackedKV, Rope
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
    """Of norms: x, [residual,] weight, bias, eps."""
    weight, bias = args[-3], args[-2]
    if bias is not None and bias.dtype != weight.dtype:
        return f"bias is {bias.dtype}, weight {weight.dtype}"
    return floats(*args)


def add_norm(x: Tensor, norm: Norm, residual: Tensor, factor: float) -> str | None:
    if (x.dtype, x.shape) != (residual.dtype, residual.shape):
        return f"x is {x.dtype}{list(x.shape)}, the residual {residual.dtype}{list(residual.shape)}"
    if norm.kind == "rms" and norm.bias is not None:
        return "an RMS norm with a bias"
    return layer_norm(x, residual, norm.weight, norm.bias, norm.eps)


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


def norm_before(norm: Norm | None) -> str | None:
    """Products that normalise what they read, by float32 weights."""
    if norm is None:
        return None
    if norm.kind == "rms" and norm.bias is not None:
        return "an RMS norm with a bias"
    for name, part in (("weights", norm.weight), ("biases", norm.bias)):
        if part is not None and part.dtype != dtypes.float32:
            return f"norm {name} are {part.dtype}, not float32"
    return None


def heads(norms: HeadNorms, rope: Rope | None) -> str | None:
    """Norms of q and k alike or none, and what queries are multiplied by."""
    q, k, after_rope = norms
    if q is None and k is None:
        return None
    if q is None or k is None:
        return "only one of q and k is normalised"
    if "layer" in (q.kind, k.kind):
        return "layer norms of heads"
    if (q.eps, q.offset) != (k.eps, k.offset):
        return f"norms of q and k with two eps or offsets, {q.eps}, {q.offset}, {k.eps}, {k.offset}"
    if after_rope and rope is not None and rope.query_factors is not None:
        return "norms of heads after rope, and queries with a factor by position"
    return norm_before(q) or norm_before(k)


def norm_over(q: Norm, head_dim: int) -> str:
    """What a norm of heads goes over: see `AttentionSpec.norm_over`."""
    if q.weight.ndim == 2:
        return "heads"
    return "head" if q.weight.shape == (head_dim,) else "all"
