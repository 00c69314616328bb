"""The fused ops of a decoder layer on wgpu, by their kernels, against their composites on numpy."""

import itertools

import numpy as np
import pytest
from draws import normal
from strict_wgpu import strict_wgpu
from tolerance import assert_close, rms

from boostr import Tensor, dispatch, ops
from boostr.ops.core import concat

T_FEW, T_MANY, E, H, KH, D, F = 2, 12, 64, 4, 2, 16, 48
EPS = 1e-5


@pytest.fixture
def backend():
    with strict_wgpu() as found:
        yield found


def end_to_end(backend, arrays):
    """Weights as a checkpoint's are laid out for this backend."""
    whole = concat([Tensor(a, backend=backend) for a in arrays])
    ends = np.cumsum([0, *map(len, arrays)]).tolist()
    return [whole[a:b] for a, b in itertools.pairwise(ends)]


def both(backend, name, arguments, **options):
    """The op's results on wgpu, by its kernel, and on numpy."""
    kernel = backend.kernel(name)
    ran = []

    class Watched:
        supports = staticmethod(kernel.supports)

        @staticmethod
        def run(*args, **rest):
            ran.append(name)
            return kernel.run(*args, **rest)

    backend._found[name] = Watched
    try:
        results = []
        for place in (backend, "numpy"):
            given = [a(place) if callable(a) else a for a in arguments]
            with dispatch.strict(place is backend):
                made = getattr(ops, name)(*given, **options)
            made = made if isinstance(made, tuple) else (made,)
            caches = [a for a in given if isinstance(a, Tensor) and a.ndim == 4]
            results.append([t.numpy() for t in (*made, *caches)])
    finally:
        backend._found[name] = kernel
    assert ran == [name]
    return zip(*results, strict=True)


def on(array):
    return lambda place: Tensor(array, backend=place)


def weights(*arrays):
    def make(place):
        if place == "numpy":
            return [Tensor(a, backend="numpy") for a in arrays]
        return end_to_end(place, arrays)

    return make


@pytest.mark.parametrize("T", (T_FEW, T_MANY))
@pytest.mark.parametrize("head_norms", (False, True))
@pytest.mark.parametrize("write", (False, True))
def test_qkv(backend, rng, T, head_norms, write):
    x, norm = normal(rng, (T, E)), normal(rng, (E,))
    parts = [normal(rng, (n * D, E), "bfloat16", 0.1) for n in (H, KH, KH)]
    own = [on(normal(rng, (D,))) if head_norms else None for _ in range(2)]
    cos, sin = normal(rng, (40, D // 2)), normal(rng, (40, D // 2))
    rows, slots = np.arange(T, dtype=np.int32) + 3, np.arange(T, dtype=np.int32)[::-1].copy()
    caches = [normal(rng, (3, 8, KH, D)) for _ in range(2)]
    tables = [on(cos), on(sin), on(rows)]
    to = [on(caches[0]), on(caches[1]), on(slots)] if write else []
    norms = lambda place: [None if n is None else n(place) for n in own]  # noqa: E731
    arguments = [on(x), on(norm), weights(*parts), [None] * 3, norms, *tables, *to]
    name = "qkv_rope_write" if write else "qkv_rope"
    for got, want in both(backend, name, arguments, head_dim=D, eps=EPS):
        assert_close(got, want, dtype="float32", reduce=E, scale=rms(want) / np.sqrt(E) * 4)


@pytest.mark.parametrize("T", (T_FEW, T_MANY))
@pytest.mark.parametrize("activation", ("silu", "gelu", "gelu_tanh"))
def test_gated(backend, rng, T, activation):
    gate, up = (normal(rng, (F, E), "bfloat16", 0.1) for _ in range(2))
    pair = weights(gate, up)
    x, norm, made = on(normal(rng, (T, E))), on(normal(rng, (E,))), {}

    def part(i):
        def take(place):
            key = str(place)
            made.setdefault(key, pair(place))
            return made[key][i]

        return take

    for got, want in both(
        backend, "norm_gated_linear", [x, norm, part(0), part(1)], eps=EPS, activation=activation
    ):
        assert_close(got, want, dtype="float32", reduce=E, scale=rms(want) / np.sqrt(E) * 4)


def test_head(backend, rng):
    arguments = [on(normal(rng, (T_FEW, E), "bfloat16")), on(normal(rng, (E,)))]
    arguments += [on(normal(rng, (70, E), "bfloat16"))]
    for got, want in both(backend, "norm_linear", arguments, eps=EPS, dtype="float32"):
        # the composite rounds the normalised rows to bfloat16
        assert_close(got, want, dtype="bfloat16", reduce=E, scale=rms(want) / np.sqrt(E))


@pytest.mark.parametrize("tokens", (1, 40))
def test_attention_and_its_projection(backend, rng, tokens):
    B = 2
    q, residual = normal(rng, (B, H, D)), normal(rng, (B, E))
    caches = [normal(rng, (B, 64, KH, D)) for _ in range(2)]
    cu, table = np.arange(B + 1, dtype=np.int32), np.arange(B, dtype=np.int32)[:, None].copy()
    lens = np.array([tokens, tokens + 7], np.int32)
    w, b = normal(rng, (E, H * D), "bfloat16", 0.1), normal(rng, (E,))
    arguments = [on(a) for a in (q, *caches, cu, table, lens, w, b, residual)]
    for got, want in both(backend, "paged_attention_linear", arguments):
        assert_close(got, want, dtype="float32", reduce=H * D, scale=rms(want))
