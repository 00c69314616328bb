"""Every family of CUDA kernels once at odd sizes, to be run under compute-sanitizer.

    compute-sanitizer --tool memcheck  --error-exitcode 1 python tests/sanitize_cuda.py [FAMILY...]
    compute-sanitizer --tool racecheck --error-exitcode 1 python tests/sanitize_cuda.py [FAMILY...]

Memory is taken from the driver for each array, not from a pool, so that a byte too far is seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from packed import draw

from boostr import Tensor, backends, dtypes, ops
from boostr.nn import fusion
from boostr.operands import Cache, HeadNorms, Norm, Rope
from boostr.ops.optim import adamw
from boostr.ops.rows import FIELDS
from boostr.ops.sampling import filtered_probabilities, seed_words
from boostr.quant.scheme import SCHEMES, QuantizedTensor

FAMILIES: dict[str, Callable[[], None]] = {}
RNG = np.random.default_rng(0)
FLOATS = ("bfloat16", "float16", "float32")


def family(fn: Callable[[], None]) -> Callable[[], None]:
    FAMILIES[fn.__name__] = fn
    return fn


def gpu() -> backends.Backend:
    return backends.get("cupy")


def normal(*shape: int, dtype: str = "float32", grad: bool = False) -> Tensor:
    values = RNG.standard_normal(shape).astype(dtypes.parse(dtype))
    return Tensor(values, backend=gpu(), requires_grad=grad)


def ints(values: object) -> Tensor:
    return Tensor(np.asarray(values, np.int32), backend=gpu())


@family
def rows() -> None:
    for dtype in FLOATS:
        for T, E in ((3, 33), (5, 576), (2, 4100)):
            x, r = (normal(T, E, dtype=dtype, grad=True) for _ in range(2))
            w, b = (normal(E, grad=True) for _ in range(2))
            ops.rms_norm(x, w).sum().backward()
            ops.rms_norm(x, w, residual=r)[0].sum().backward()
            ops.layer_norm(x, w, b, residual=r)[0].sum().backward()
            for op in (ops.swiglu, ops.geglu):
                op(x, r).sum().backward()
            for op in (ops.silu, ops.gelu, ops.softmax, ops.log_softmax):
                op(x).sum().backward()


@family
def heads() -> None:
    for dtype in FLOATS:
        for D, R in ((64, 64), (80, 32), (7, 6)):
            x = normal(5, 3, D, dtype=dtype, grad=True)
            tables = normal(9, R // 2), normal(9, R // 2)
            for layout in ("split-half", "interleaved"):
                ops.rope(x, *tables, ints([0, 8, 3, 3, 1]), layout=layout).sum().backward()
            k, cache = normal(5, 3, D, dtype=dtype), normal(4, 3, 3, D, dtype=dtype)
            slots = ops.slot_mapping(ints([0, 1, 2, 3, 9]), ints([0, 0, 1, -1, 1]),
                                     ints([[0, 1], [3, -1]]), 3)  # fmt: skip
            ops.kv_write(k, k, cache, normal(4, 3, 3, D, dtype=dtype), slots)


def packed(N: int, K: int) -> list[QuantizedTensor]:
    """A weight of every scheme that can have K inputs."""
    fit = [name for name, scheme in SCHEMES.items() if K % scheme.multiple == 0]
    return [draw(gpu(), RNG, name, N, K)[0] for name in fit]


@family
def products() -> None:
    for dtype in FLOATS:
        for N, K in ((33, 64), (130, 96), (7, 37), (9, 512)):
            weights = [normal(N, K, dtype=d) for d in FLOATS] + packed(N, K)
            for M in (1, 3, 8, 17, 70, 129):
                x, r = normal(M, K, dtype=dtype), normal(M, N, dtype=dtype)
                for w in weights:
                    ops.linear(x, w, normal(N), r)


@family
def tables() -> None:
    ids = ints([0, 32, 5])
    for w in [normal(33, 64, dtype=d, grad=True) for d in FLOATS]:
        ops.embedding(ids, w).sum().backward()
    for w in packed(33, 64) + packed(33, 256):
        ops.embedding(ids, w, "bfloat16")
        ops.dequantize(w)


@family
def attention() -> None:
    for dtype in FLOATS:
        for D in (64, 80, 96, 128, 256, 20):
            q, k, v = (normal(T, H, D, dtype=dtype, grad=True)
                       for T, H in ((150, 4), (171, 2), (171, 2)))  # fmt: skip
            cu_q, cu_k = ints([0, 1, 131, 131, 150]), ints([0, 5, 140, 150, 171])
            for options in ({"causal": True}, {"window": (20, 3)}, {"softcap": 5.0}):
                out, lse = ops.varlen_attention(q, k, v, cu_q, cu_k, **options)
                (out.sum() + lse.sum()).backward()


@family
def paged() -> None:
    for dtype in FLOATS:
        for D, bs in ((64, 16), (128, 128), (80, 7)):
            caches = [normal(12, bs, 2, D, dtype=dtype) for _ in range(2)]
            table = ints(RNG.permutation(12).reshape(3, 4))
            for counts in ((1, 1, 1), (2, 0, 3), (40, 1, 20)):
                q = normal(sum(counts), 4, D, dtype=dtype)
                cu = ints(np.concatenate([[0], np.cumsum(counts)]))
                ops.paged_attention(q, *caches, cu, table, ints([4 * bs, 3, 2 * bs + 1]))


def rms(size: int) -> Norm:
    return Norm("rms", normal(size), None, 1e-5)


@family
def fused() -> None:
    for dtype in FLOATS:
        E, H, K, D, F = 96, 6, 2, 16, 130
        tables = normal(9, D // 2), normal(9, D // 2)
        forms = [[normal(n * D, E, dtype=dtype) for n in (H, K, K)],
                 [ops.quantize(normal(n * D, E), "int8-g32") for n in (H, K, K)]]  # fmt: skip
        for T in (1, 5, 40):
            x, caches = normal(T, E, dtype=dtype), [normal(3, 20, K, D, dtype=dtype)] * 2
            rope, slots = Rope(*tables, ints([1] * T)), ints(np.arange(T))
            cache = Cache(*caches, slots, ints([[0]]), ints([T]))
            for weights in forms:
                for head in (HeadNorms(), HeadNorms(rms(D), rms(D))):
                    fusion.attention_inputs(x, rms(E), weights, [None] * 3, head, rope, cache,
                                            head_dim=D)  # fmt: skip
            gate, up = (normal(F, E, dtype=dtype) for _ in range(2))
            fusion.products(x, rms(E), [gate, up], [None] * 2, "silu")
            fusion.products(x, rms(E), [gate], [None], dtype="float32")


@family
def losses() -> None:
    for dtype in FLOATS:
        for V in (33, 5001):
            x = normal(7, V, dtype=dtype, grad=True)
            targets = ints([0, V - 1, -100, 3, 3, 2, 1])
            ops.cross_entropy(x, targets, label_smoothing=0.1).backward()
            p = normal(V, dtype=dtype)
            adamw(p, x.grad[0], normal(V), normal(V) * 0 + 1, 1, lr=1e-3)


@family
def sampling() -> None:
    for V in (33, 5001, 40000):
        for B in (1, 3):
            logits = normal(B, V)
            f = [Tensor(np.full(B, v, np.float32), backend=gpu()) for v in (0.8, 0.9, 0.01)]
            k = ints([40] * B)
            seeds = Tensor(seed_words(list(range(B))), backend=gpu())
            ids = ops.sample(logits, f[0], k, f[1], f[2], seeds, ints([0] * B))
            filtered_probabilities(logits, f[0], k, f[1], f[2])
            ops.core.argmax(logits, -1)
            ops.top_logprobs(logits, ids, 20)
            seen = Tensor(np.zeros((B, V), np.uint8), backend=gpu())
            counts = ints(np.zeros((B, V)))
            ops.penalize(logits, seen, counts, *f)
            ops.add_bias(logits, ints([[0, V - 1, -1]] * B), normal(B, 3))
            ops.record_tokens(ids, seen, counts)
            ops.advance_rows(ints(np.ones((FIELDS, B))), ids)


def main() -> None:
    import cupy

    cupy.cuda.set_allocator(None)
    for name in sys.argv[1:] or FAMILIES:
        FAMILIES[name]()
        gpu().synchronize()
        print(name, "done", flush=True)


if __name__ == "__main__":
    main()
