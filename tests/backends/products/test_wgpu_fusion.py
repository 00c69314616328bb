"""The fused ops of a decoder layer on wgpu, by their kernels, against their composites on numpy."""

import itertools

import numpy as np
import pytest
from backends.products.test_gpu_gemv import weight
from conftest import skip_large
from draws import every, large, normal
from strict_wgpu import strict_wgpu
from tolerance import assert_close, rms

from boostr import Tensor, backends, dispatch
from boostr.nn import fusion
from boostr.operands import Cache, HeadNorms, Norm, Rope
from boostr.ops.core import concat

T_FEW, T_MANY, E, H, KH, D, F = 2, 12, 64, 4, 2, 16, 48
EPS = 1e-5


@pytest.fixture
def backend(request):
    with strict_wgpu() as found:
        skip_large(request, found)
        yield found


def end_to_end(backend, arrays):
    """Weights as a checkpoint's are laid out for this backend."""
    whole = concat([Tensor(a, backend=backend) for a in arrays])
    ends = np.cumsum([0, *map(len, arrays)]).tolist()
    return [whole[a:b] for a, b in itertools.pairwise(ends)]


def both(backend, name, arguments, **options):
    """The op's results on wgpu, by its kernel, and what the op means, on numpy."""
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
            named = {n: a(place) if callable(a) else a for n, a in options.items()}
            with dispatch.strict(place is backend), pytest.MonkeyPatch.context() as patch:
                if place is not backend:  # whose kernels round x to digits
                    host = backends.get(place)
                    patch.setattr(host, "kernel", lambda op: "the test wants composites")
                made = getattr(fusion, name)(*given, **named)
            made = made if isinstance(made, tuple) else (made,)
            caches = [t for a in given if isinstance(a, Cache) for t in (a.keys, a.values)]
            results.append([t.numpy() for t in (*made, *caches)])
    finally:
        backend._found[name] = kernel
    assert ran == [name]
    return zip(*results, strict=True)


def on(array):
    return lambda place: Tensor(array, backend=place)


def norm_of(array, kind="rms"):
    return lambda place: Norm(kind, Tensor(array, backend=place), None, EPS)


def cache_of(keys, values, slots, table, lens):
    return lambda place: Cache(
        *(Tensor(a, backend=place) for a in (keys, values, slots, table, lens))
    )


def weights(*arrays):
    def make(place):
        if place == "numpy":
            return [Tensor(a, backend="numpy") for a in arrays]
        return end_to_end(place, arrays)

    return make


@pytest.mark.parametrize("T", (T_FEW, T_MANY))
@pytest.mark.parametrize("head_norms", (False, True))
@pytest.mark.parametrize("write", (False, True))
@pytest.mark.parametrize("before", (False, True))
def test_attention_inputs(backend, rng, T, head_norms, write, before):
    x = normal(rng, (T, E))
    norm = norm_of(normal(rng, (E,))) if before else None
    parts = [normal(rng, (n * D, E), "bfloat16", 0.1) for n in (H, KH, KH)]
    own = [norm_of(normal(rng, (D,))) for _ in range(2 * head_norms)]
    cos, sin = normal(rng, (40, D // 2)), normal(rng, (40, D // 2))
    rows, slots = np.arange(T, dtype=np.int32) + 3, np.arange(T, dtype=np.int32)[::-1].copy()
    caches = [normal(rng, (3, 8, KH, D)) for _ in range(2)]
    tables = lambda place: Rope(*(on(a)(place) for a in (cos, sin, rows)))  # noqa: E731
    to = cache_of(*caches, slots, slots[None, :1], slots[:1]) if write else None
    norms = lambda place: HeadNorms(*(n(place) for n in own))  # noqa: E731
    arguments = [on(x), norm, weights(*parts), [None] * 3, norms, tables, to]
    for got, want in both(backend, "attention_inputs", arguments, head_dim=D):
        assert_close(got, want, dtype="float32", reduce=E, scale=rms(want) / np.sqrt(E) * 4)


@pytest.mark.parametrize("T", (T_FEW, T_MANY))
@pytest.mark.parametrize("activation", ("silu", "gelu", "gelu_tanh"))
def test_gated(backend, rng, T, activation):
    gate, up = (normal(rng, (F, E), "bfloat16", 0.1) for _ in range(2))
    arguments = [on(normal(rng, (T, E))), norm_of(normal(rng, (E,))), weights(gate, up)]
    for got, want in both(backend, "products", [*arguments, [None] * 2], activation=activation):
        assert_close(got, want, dtype="float32", reduce=E, scale=rms(want) / np.sqrt(E) * 4)


# stored otherwise than the others: v as in half of the layers of a Q4_K_M, a gate of a UD file
MIXED = ("q4_0", "q4_0", "q8_0"), ("q6_k", "float32", "q4_1"), ("bfloat16", "int8", "int8")


@pytest.mark.parametrize(("forms", "head_norms"), every(
    list(zip(MIXED, (False, True, False), strict=True)), MIXED, (False, True)
), ids=str)  # fmt: skip
def test_attention_inputs_of_mixed_forms(backend, rng, forms, head_norms):
    T, E = T_FEW, 256
    stored = [
        weight("numpy", rng, form, n * D, E)[0] for form, n in zip(forms, (H, KH, KH), strict=True)
    ]
    own = [norm_of(normal(rng, (D,))) for _ in range(2 * head_norms)]
    cos, sin = normal(rng, (40, D // 2)), normal(rng, (40, D // 2))
    rows, slots = np.arange(T, dtype=np.int32) + 3, np.arange(T, dtype=np.int32)[::-1].copy()
    tables = lambda place: Rope(*(on(a)(place) for a in (cos, sin, rows)))  # noqa: E731
    to = cache_of(
        *(normal(rng, (3, 8, KH, D)) for _ in range(2)), slots, slots[None, :1], slots[:1]
    )
    norms = lambda place: HeadNorms(*(n(place) for n in own))  # noqa: E731
    parts = lambda place: [w.to(place) for w in stored]  # noqa: E731
    arguments = [on(normal(rng, (T, E))), norm_of(normal(rng, (E,))), parts, [None] * 3, norms]
    for got, want in both(backend, "attention_inputs", [*arguments, tables, to], head_dim=D):
        assert_close(got, want, dtype="float32", reduce=E, scale=rms(want) / np.sqrt(E) * 4)


PAIRS = ("q6_k", "q4_1"), ("float32", "q8_0"), ("w8a8", "q8_0")


@pytest.mark.parametrize(("forms", "activation"), every(
    list(zip(PAIRS, ("silu", "gelu", "silu"), strict=True)), PAIRS, ("silu", "gelu")
), ids=str)  # fmt: skip
def test_gated_of_mixed_forms(backend, rng, forms, activation):
    E = 256
    stored = [weight("numpy", rng, form, F, E)[0] for form in forms]
    arguments = [on(normal(rng, (T_FEW, E))), norm_of(normal(rng, (E,)))]
    bias = on(normal(rng, (F,)))
    arguments += [lambda place: [w.to(place) for w in stored], lambda place: [None, bias(place)]]
    for got, want in both(backend, "products", arguments, activation=activation):
        # an input on the border of two integers may go to either
        dtype = "bfloat16" if "w8a8" in forms else "float32"
        assert_close(got, want, dtype=dtype, reduce=E, scale=rms(want) / np.sqrt(E) * 4)


def test_more_arrays_than_a_gpu_binds(rng):
    """Dawn takes 16: what does not fit falls apart into its parts."""
    with strict_wgpu(bindings=9, strict=False) as backend:
        gate, up = (weight(backend, rng, "q6_k", F, 256)[0] for _ in range(2))
        x = on(normal(rng, (T_FEW, 256)))(backend)
        reason = backend.kernel("products").supports(
            x, None, [gate, up], [None] * 2, "silu", x.dtype
        )
        assert reason == "10 arrays at once, the GPU binds 9"


def test_head(backend, rng):
    arguments = [on(normal(rng, (T_FEW, E), "bfloat16")), norm_of(normal(rng, (E,)))]
    arguments += [weights(normal(rng, (70, E), "bfloat16")), [None]]
    for got, want in both(backend, "products", arguments, dtype="float32"):
        # the composite rounds the normalised rows to bfloat16
        assert_close(got, want, dtype="bfloat16", reduce=E, scale=rms(want) / np.sqrt(E))


@pytest.mark.parametrize("tokens", (1, 40))
@pytest.mark.parametrize(
    "option",
    ({}, {"softcap": 3.0}, {"sinks": True}, large({"alibi_slopes": True}), {"scale": 0.1}),
    ids=str,
)
@pytest.mark.parametrize("added", (False, True))
def test_attention_and_its_projection(backend, rng, tokens, option, added):
    B = 2
    q, residual = normal(rng, (B, H, D)), normal(rng, (B, E))
    caches = [normal(rng, (B, 64, KH, D)) for _ in range(2)]
    cu, table = np.arange(B + 1, dtype=np.int32), np.arange(B, dtype=np.int32)[:, None].copy()
    lens = np.array([tokens, tokens + 7], np.int32)
    w, b = normal(rng, (E, H * D), "bfloat16", 0.1), normal(rng, (E,))
    cache = cache_of(*caches, np.zeros(B, np.int32), table, lens)
    arguments = [on(q), cache, on(cu), on(w), on(b), on(residual) if added else None]
    option = {n: on(normal(rng, (H,))) if v is True else v for n, v in option.items()}
    for got, want in both(backend, "attend", arguments, **option):
        assert_close(got, want, dtype="float32", reduce=H * D, scale=rms(want))
