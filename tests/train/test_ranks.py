"""Ranks train as one with all their batches; on the CPU, where the sums are bit for bit those."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from train.conftest import CONFIG

import boostr
from boostr import train
from boostr.errors import NumericsError, OptionError
from boostr.io.safetensors import open_safetensors
from boostr.train.objectives import log_probabilities

LENGTHS = ((9, 1, 4, 17), (31,), (2, 2, 20), (5, 5, 5, 5, 11), (2,), (12, 18))


@pytest.fixture
def batches(rng):
    """Of different numbers of labels that count, one of them of none."""
    packs = [[rng.integers(0, 50, n).tolist() for n in lengths] for lengths in LENGTHS]
    labels = [[list(ids) for ids in pack] for pack in packs]
    labels[3] = [[-100] * len(ids) for ids in packs[3]]
    return [train.pack(*pair) for pair in zip(packs, labels, strict=True)]


def steps(make, batches, rank=None, *, batches_of_a_step=2, prepare=lambda model: None, **options):
    """Metrics of steps on all batches, and the weights then."""
    model = make(**options)
    prepare(model)
    optimizer, ranks = train.AdamW(model.parameters(), lr=3e-3), rank.size if rank else 1
    step = train.compile_step(
        model, optimizer, tokens=31, max_sequences=5, rank=rank,
        grad_accumulation=batches_of_a_step // ranks,
    )  # fmt: skip
    found = []
    for i in range(0, len(batches), batches_of_a_step):
        own = batches[i : i + batches_of_a_step]
        metrics = step(*(own[rank.rank :: ranks] if rank else own))
        found.append((metrics.loss, metrics.grad_norm, metrics.target_count))
    return found, {name: p.numpy().copy() for name, p in model.named_parameters()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_two_ranks_are_one_with_two_batches(make, batches):
    one, weights = steps(make, batches)
    assert one[1][2] == batches[2].target_count  # all of one rank's labels do not count
    for found, own in train.run_ranks(
        lambda rank: rank.gather(steps(make, batches, rank)), "0,1", "numpy"
    ):
        assert found == one
        assert_equal(own, weights)


def test_ranks_have_one_loss_scale(batches):
    """A scale that is too large for some: all skip the step, and go on with the half of it."""

    def run(rank):
        model = boostr.create("llama", CONFIG, 3, backend="numpy", dtype="float16")
        optimizer, own = train.AdamW(model.parameters(), lr=3e-3), batches[:2]
        ranks = rank.size if rank else 1
        step = train.compile_step(
            model, optimizer, tokens=31, max_sequences=5, rank=rank, grad_accumulation=2 // ranks
        )
        found = []
        for scale in (2.0**40, 2.0**10):
            optimizer.loss_scale.value.assign(np.float32(scale))
            for _ in range(2):
                metrics = step(*(own[rank.rank :: ranks] if rank else own))
                found.append((metrics.loss, metrics.grad_norm, metrics.loss_scale))
        return np.array(found)

    one = run(None)
    assert np.isnan(one[0, 1]) and one[1, 2] == 2.0**39 and np.isfinite(one[2:]).all()
    for found in train.run_ranks(lambda rank: rank.gather(run(rank)), "0,1", "numpy"):
        np.testing.assert_array_equal(found, one)


def test_ranks_with_several_batches_and_dropout(make, batches):
    """Four batches of a step, with the masks of one rank; sums are in another order."""

    def prepare(model):
        train.add_lora(model, r=4, target_modules=["layers.1.mlp.up_proj"], dropout=0.3)

    def found(rank=None):
        return steps(make, batches[:4] * 2, rank, batches_of_a_step=4, prepare=prepare)

    one, weights = found()
    metrics, own = train.run_ranks(found, [0, 1], "numpy")
    np.testing.assert_allclose(metrics, one, rtol=1e-5)
    for name, array in weights.items():
        np.testing.assert_allclose(own[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_16_bits_are_summed_in_float32(make, batches, dtype):
    """Those of float16 times the scale of losses."""
    one, weights = steps(make, batches[:2], dtype=dtype)
    metrics, own = train.run_ranks(
        lambda rank: steps(make, batches[:2], rank, dtype=dtype), "0,1", "numpy"
    )
    assert metrics == one
    assert_equal(own, weights)


def test_a_step_that_is_not_finite_moves_no_rank(make, batches):
    def fn(rank):
        model = make()
        optimizer = train.SGD(model.parameters())
        step = train.compile_step(model, optimizer, tokens=31, max_sequences=5, rank=rank)
        weight = next(model.parameters())
        kept = weight.numpy().copy()
        if rank.rank == 1:
            weight.assign(np.full_like(kept, np.nan))
        norm = step(batches[rank.rank]).grad_norm
        weight.assign(kept)
        return rank.gather((norm, [p.numpy().copy() for p in model.parameters()]))

    for norm, weights in train.run_ranks(fn, "0,1", "numpy"):
        assert np.isnan(norm)
        for array, p in zip(weights, make().parameters(), strict=True):
            np.testing.assert_array_equal(array, p.numpy())


def test_ranks_with_other_weights_are_refused(make):
    def fn(rank):
        model = make(initializer_range=0.2 + 0.1 * rank.rank)
        return train.compile_step(model, train.SGD(model.parameters()), tokens=31, rank=rank)

    with pytest.raises(OptionError, match="the ranks' weights differ"):
        train.run_ranks(fn, "0,1", "numpy")


# -- Trainer -------------------------------------------------------------------------------------


@pytest.fixture
def runs(make, tmp_path, monkeypatch, rng):
    """run(out, ranks, resume=, stop=, **config) -> whether it was finished."""
    folders = SimpleNamespace(cache_dir=lambda: tmp_path)  # of data, beside kernels that all share
    monkeypatch.setattr("boostr.train.data.env", folders)
    for split, count in (("train", 60), ("valid", 9)):
        rows = [{"input_ids": rng.integers(0, 50, 3 + i % 14).tolist()} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(out, ranks, *, resume=False, stop=lambda rank: lambda: False, say=None, **changes):
        options = {"data": str(tmp_path), "batch_tokens": 48, "log_every": 2}
        config = train.TrainConfig(**{**options, "lora_dropout": 0.1, "eval_every": 4, **changes})

        def fn(rank=None):
            model = make(num_hidden_layers=1)
            train.add_lora(model, r=4, target_modules=["up_proj"])
            trainer = train.Trainer(model, config, tmp_path / out, rank)
            return trainer.run(resume=resume, stop=stop(rank), say=say)

        return fn() if ranks == 1 else train.run_ranks(fn, range(ranks), "numpy")

    return run


def result(folder):
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    path = folder / "adapter_model.safetensors"
    with open_safetensors(path) as file:
        return log, {name: np.array(file.tensor(name)) for name in file.names}


def test_a_run_on_two_is_one_of_twice_the_batches(runs, tmp_path):
    said = []
    assert runs("two", 2, say=said.append, devices="0,1")
    assert runs("one", 1, grad_accumulation=2)
    (log, adapter), (log_of_one, adapter_of_one) = (result(tmp_path / n) for n in ("two", "one"))
    assert_equal(adapter, adapter_of_one)
    assert len(said) == len(log)  # of one rank alone
    for row, other in zip(log, log_of_one, strict=True):
        assert row.keys() == other.keys()
        for key in ("step", "train/loss", "train/grad_norm", "train/tokens", "eval/loss"):
            assert row.get(key, 0) == pytest.approx(other.get(key, 0), rel=1e-6), key


def test_a_stopped_run_goes_on_with_another_number_of_devices(runs, tmp_path):
    """Where one rank is told to stop all do, at the same step; the order goes on where it was."""
    asked = iter([False] * 3 + [True])
    only_0 = lambda rank: (lambda: next(asked)) if rank.rank == 0 else (lambda: False)  # noqa: E731
    assert not runs("parts", 2, stop=only_0)
    assert [p.name for p in (tmp_path / "parts" / "checkpoints").iterdir()] == ["step-000003"]
    with pytest.raises(OptionError, match="another grad_accumulation"):
        runs("parts", 1, resume=True)
    assert runs("parts", 1, resume=True, grad_accumulation=2)
    assert runs("one", 1, grad_accumulation=2)
    assert_equal(result(tmp_path / "parts")[1], result(tmp_path / "one")[1])


def test_a_rank_that_fails_ends_the_run(runs, tmp_path):
    def stop(rank):
        def asked():
            if rank.rank == 1:
                raise MemoryError("no room")
            return False

        return asked

    with pytest.raises(MemoryError, match="no room"):
        runs("run", 2, stop=stop)
    assert not (tmp_path / "run" / "adapter_config.json").exists()


def test_steps_that_are_not_finite_end_all_ranks(runs):
    with pytest.raises(NumericsError, match="5 steps one after the other"):
        runs("run", 2, learning_rate=1e38, schedule="constant", warmup=0.0, max_grad_norm=1e30)


class Rows(list):
    """As a dataset."""

    kind, width, name = "sample", 1, "rows"

    @property
    def lengths(self):
        return np.array([len(ids) for ids in self])

    def __getitem__(self, index):
        ids = super().__getitem__(index)
        return ids, ids


def test_ranks_share_what_a_reference_says(make, rng):
    """Each sample's log-probability is that of one rank."""
    data = Rows([rng.integers(0, 50, 3 + i % 9).astype(np.int32) for i in range(11)])

    def fn(rank):
        return log_probabilities(make(), train.Packs(data, 24), rank)

    one, two = (train.run_ranks(fn, devices, "numpy") for devices in ("0", "0,1"))
    np.testing.assert_array_equal(two, one)
    assert (one < 0).all() and len(one) == 11


def test_ranks_recompute_where_one_has_no_room(runs, monkeypatch):
    found = []
    monkeypatch.setattr(train.Trainer, "_has_room", lambda self: self.rank.rank == 0)
    monkeypatch.setattr(
        train.Trainer, "_begun", lambda self, resume: found.append(self.model.recompute) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        runs("run", 2, recompute="auto")
    assert "layer" in found and "none" not in found


def test_devices_need_ranks(runs):
    with pytest.raises(OptionError, match="devices 0,1: each has a Trainer of its own"):
        runs("run", 1, devices="0,1")
