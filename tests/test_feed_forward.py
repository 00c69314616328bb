"""The gradient of a feed-forward block, whose inner result is computed again: `nn/fusion.py`."""

import pytest
from draws import leaves, normal

from boostr.autograd import gradcheck
from boostr.nn import fusion

T, E, F = 3, 4, 5


@pytest.mark.parametrize("frozen", ((), ("down",), ("first",), ("first", "second", "x")), ids=str)
@pytest.mark.parametrize("count", (1, 2))
@pytest.mark.parametrize("activation", sorted(set(fusion.ACTIVATIONS.values())))
def test_gradient(activation, count, frozen, backend64, rng):
    shapes = {"x": (T, E), "first": (F, E), "second": (F, E), "down": (E, F), "bias": (E,)}
    parts = dict(
        zip(shapes, leaves(backend64, *(normal(rng, s) for s in shapes.values())), strict=True)
    )
    for name in frozen:
        parts[name].requires_grad = False
    names = [n for n in shapes if n != "second" or count == 2]

    def block(*given):
        p = dict(zip(names, given, strict=True))
        weights = [p[n] for n in ("first", "second")[:count]]
        return fusion.feed_forward(
            p["x"], None, weights, [None] * count, activation, p["down"], p["bias"], p["x"], 0.5
        )

    gradcheck(block, [parts[n] for n in names])
