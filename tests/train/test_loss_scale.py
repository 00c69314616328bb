"""The loss scale of float16: what it saves, when it moves, and that a run keeps it."""

import numpy as np
import pytest
from draws import normal
from train.conftest import CONFIG

import boostr
from boostr import Tensor, train
from boostr.errors import NumericsError
from boostr.train import loss_scale
from boostr.train.loss_scale import FLOOR, LossScale
from boostr.train.step import StepMetrics

SMALL = {**CONFIG, "num_hidden_layers": 1}
KINDS = (train.AdamW, train.AdamW8bit, train.SGD, train.Lion, train.Muon)


class Faint(train.NextToken):
    """A loss whose gradients are below what float16 knows."""

    def loss(self, inputs, count):
        return super().loss(inputs, count * 3e7)


def made(backend, dtype="float16", **options):
    model = boostr.create("llama", SMALL, 3, backend=backend, dtype=dtype)
    optimizer = train.AdamW(model.parameters(), lr=1e-3)
    return model, optimizer, train.compile_step(model, optimizer, tokens=9, **options)


def test_when_it_moves(backend, monkeypatch):
    monkeypatch.setattr(loss_scale, "_PATIENCE", 2)
    scale, seen = LossScale(backend), []
    for norm in (1.0, np.inf, 1.0, 1.0, 1.0, np.nan, 1.0):
        scale.update(Tensor(np.float32(norm), backend=backend))
        seen.append((np.log2(scale.value.item()), scale.finite.item()))
    assert seen == [(16, 1), (15, 0), (15, 1), (16, 0), (16, 1), (15, 0), (15, 1)]
    for start, norm, end in ((FLOOR, np.nan, FLOOR), (2.0**24, 1.0, 2.0**24)):
        scale.value.assign(np.float32(start))
        scale.update(Tensor(np.float32(norm), backend=backend))
        assert scale.value.item() == end


@pytest.mark.parametrize("accumulated", [1, 2])
def test_small_gradients_are_not_lost(accumulated, backend, rng):
    """Losses and norms are those of float32, which has no scale; without it gradients are gone."""
    batches = [train.pack([rng.integers(0, 50, 9).tolist()]) for _ in range(accumulated)]
    found = {}
    for name, dtype, scale in (("wide", "float32", None), ("f16", "float16", None),
                               ("plain", "float16", FLOOR)):  # fmt: skip
        model, optimizer, _ = made(backend, dtype)
        step = train.compile_step(
            model, optimizer, tokens=9, grad_accumulation=accumulated, objective=Faint(model)
        )
        assert (optimizer.loss_scale is None) is (name == "wide")
        if scale is not None:
            optimizer.loss_scale.value.assign(np.float32(scale))
        metrics = step(*batches)
        found[name] = metrics.loss, metrics.grad_norm, metrics.loss_scale
    assert [found[name][2] for name in found] == [1.0, 2.0**16, FLOOR]
    np.testing.assert_allclose(found["f16"][:2], found["wide"][:2], rtol=2e-2)
    assert abs(found["plain"][1] / found["wide"][1] - 1) > 0.3  # flushed, or rounded up


def test_too_large_a_scale_moves_nothing(backend, rng):
    """The loss is what it is, and the next step has half the scale."""
    batch = train.pack([rng.integers(0, 50, 9).tolist()])
    model, optimizer, step = made(backend)
    optimizer.loss_scale.value.assign(np.float32(2.0**40))
    before = [p.numpy().copy() for p in model.parameters()]
    want = step.measure(batch) / batch.target_count
    first, second = step(batch), step(batch)
    assert not np.isfinite(first.grad_norm) and first.loss == pytest.approx(want, rel=1e-3)
    assert (first.loss_scale, second.loss_scale) == (2.0**40, 2.0**39)
    assert all(map(np.array_equal, before, (p.numpy() for p in model.parameters())))
    optimizer.loss_scale.value.assign(np.float32(64))
    assert np.isfinite(step(batch).grad_norm)
    assert not all(map(np.array_equal, before, (p.numpy() for p in model.parameters())))


def test_a_state_keeps_it(tmp_path):
    model, optimizer, _ = made("numpy")
    optimizer.loss_scale.value.assign(np.float32(8))
    optimizer.loss_scale.finite.assign(np.int32(17))
    train.save_state(tmp_path / "state", model, optimizer)
    again, other, _ = made("numpy")
    later = train.AdamW(again.parameters())  # whose step is not compiled yet
    for own in (other, later):
        train.load_state(tmp_path / "state", again, own)
        assert [t.item() for t in own.loss_scale.tensors().values()] == [8, 17]


def test_only_failures_at_the_floor_end_a_run():
    """Twenty steps in a row that halved the scale are none; five that could not halve it are."""
    run = object.__new__(train.Trainer)
    run._skipped, run._in_a_row, run._unsaid, run.steps = 0, 0, [], 100
    for scale, count in ((2.0, 20), (FLOOR, 4)):
        numbers = [lambda: np.float32(1), lambda: np.float32(np.nan), lambda s=scale: np.array(s)]
        run._pending = [StepMetrics(numbers, 1)] * count
        run._read()
    assert (run._skipped, run._in_a_row) == (24, 4)
    run._pending = [StepMetrics(numbers, 1)]
    with pytest.raises(NumericsError, match="5 steps"):
        run._read()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_gradients_are_scaled_in_float32(kind, stored, rng):
    """As float32 gradients that are smaller by it; nan ones move nothing."""
    values, gradient = normal(rng, (4, 6), stored), normal(rng, (4, 6), stored)
    scale, ends = np.float32(1e-3), []
    norm = Tensor(np.float32(1), backend="numpy")
    for own, factor in ((gradient, scale), (gradient.astype("f4") * scale, np.float32(1))):
        p = Tensor(values.copy(), backend="numpy", requires_grad=True)
        optimizer = kind([p], 0.05)
        for given in (norm, norm * np.nan):
            p.grad = Tensor(own, backend="numpy")
            optimizer.step(norm=given, grad_scale=Tensor(factor, backend="numpy") * given)
            ends.append(optimizer._masters.get(0, p).numpy().copy())
    np.testing.assert_array_equal(ends[:2], ends[2:])
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.isfinite(ends).all() and (ends[0] != values).any()
