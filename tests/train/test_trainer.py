"""Trainer: runs that stop, are killed and go on; files, faults, and what is said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_model import ROOT, environment, make_tiny

import boostr
from boostr import train
from boostr.errors import DiskFullError, NumericsError, OptionError
from boostr.io.safetensors import open_safetensors, save
from boostr.io.scratch import alone_in
from boostr.train import TrainConfig, Trainer
from boostr.train import trainer as module

TEXTS = ["the cat sat on the mat", "a dog ran to the park", "the sun is hot", "rain falls down"]


@pytest.fixture
def folder(tmp_path):
    """A model with a tokenizer, and data beside it."""
    make_tiny(tmp_path / "tiny")
    for split, count in (("train", 8), ("valid", 2)):
        rows = [json.dumps({"text": text * 2}) for text in TEXTS * count]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    return tmp_path


def config(folder, **changes):
    options = {"data": str(folder), "batch_tokens": 256, "learning_rate": 1e-2}
    if not changes.get("full"):
        options["lora_rank"] = 4
    return TrainConfig(**{**options, "steps": 8, "log_every": 2, **changes})


def trainer(folder, out="run", **changes):
    own = config(folder, **changes)
    model = boostr.load(folder / "tiny", backend="numpy", trainable=own.full)
    return Trainer(model, own, folder / out)


def log(folder, out="run"):
    return [json.loads(line) for line in (folder / out / "log.jsonl").read_text().splitlines()]


def tensors(path):
    with open_safetensors(path) as file:
        return {name: np.array(file.tensor(name)) for name in file.names}


def test_an_adapter_is_trained_and_loaded(folder):
    said = []
    run = trainer(folder, steps=12, eval_every=4)
    before = run.evaluate()
    assert run.run(say=said.append)
    assert [p.step for p in said] == [2, 4, 6, 8, 10, 12] and said[-1].eval_loss < before - 0.5
    assert [p.eval_loss is None for p in said[:2]] == [True, False]
    rows = log(folder)
    assert [row["train/loss"] for row in rows] == [p.loss for p in said]
    assert rows[0]["train/learning_rate"] > 0 and rows[-1]["train/tokens_per_second"] > 0
    assert rows[-1]["train/tokens"] > 6 * 128 and rows[-1]["train/seconds_left"] == 0
    assert "train/mfu" not in rows[0] and "train/seconds_left" not in rows[0]
    again = boostr.load(folder / "tiny", backend="numpy", adapter=folder / "run")
    ids = again.tokenizer.encode(TEXTS[0])
    np.testing.assert_array_equal(again.logits(ids), run.model.logits(ids))
    assert TrainConfig.read(folder / "run" / "config.toml", {}) == run.config


def test_a_run_on_every_backend(folder, plain_backend):
    own = config(folder, batch_tokens=64, max_sequences=4, steps=2, log_every=1)
    assert Trainer(boostr.load(folder / "tiny", backend=plain_backend), own, folder / "run").run()
    assert [np.isfinite(row["train/loss"]) for row in log(folder)] == [True, True]


def test_a_whole_model_is_trained_and_loaded(folder):
    run = trainer(folder, full=True, optimizer="lion", schedule="wsd", learning_rate=1e-3)
    run.run()
    again = boostr.load(folder / "run" / "model", backend="numpy")
    ids = again.tokenizer.encode(TEXTS[0])
    np.testing.assert_array_equal(again.logits(ids), run.model.logits(ids))
    losses = [row["train/loss"] for row in log(folder)]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("full", "optimizer"),
    [(False, "adamw"), (True, "adamw"), (True, "muon"), (False, "adamw8bit")],
)
def test_resumed_is_uninterrupted(full, optimizer, folder):
    """Stopped in an epoch and gone on with in another process' stead: the same bits."""
    options = {
        "full": full,
        "optimizer": optimizer,
        "lora_dropout": 0.0 if full else 0.1,
        "steps": 0,
        "epochs": 3,
        "batch_tokens": 128,
    }
    whole = trainer(folder, "whole", **options)
    assert whole.steps % 3 == 0 and whole.run()
    stop_at = iter([False] * (whole.steps // 3 + 2) + [True])
    assert not trainer(folder, "parts", **options).run(stop=lambda: next(stop_at))
    assert not (folder / "parts" / "adapter_config.json").exists()
    later = trainer(folder, "parts", **options)
    assert later.run(resume=True)
    names = ["checkpoints/" + p.name for p in (folder / "whole" / "checkpoints").iterdir()]
    for name in [f"{n}/{file}.safetensors" for n in names for file in ("model", "optimizer")]:
        one, other = (tensors(folder / out / name) for out in ("whole", "parts"))
        assert one.keys() == other.keys()
        for key, array in one.items():
            np.testing.assert_array_equal(array, other[key])


def test_batches_of_a_step_are_counted(folder):
    """Half as many steps, of two batches each; the last one of an epoch may have the next's."""
    one, two = (
        trainer(folder, f"of-{n}", steps=0, epochs=1, batch_tokens=128, grad_accumulation=n)
        for n in (1, 2)
    )
    assert two.steps == (one.steps + 1) // 2 and two.run()
    state = folder / "of-2" / "checkpoints" / f"step-{two.steps:06d}" / "state.json"
    epoch, batch = json.loads(state.read_text())["values"]["position"]
    assert epoch * one.steps + batch == 2 * two.steps


def test_another_run_is_not_resumed(folder):
    trainer(folder).run(stop=iter([False, True]).__next__)
    with pytest.raises(OptionError, match="there is a run in this folder"):
        trainer(folder).run()
    with pytest.raises(OptionError, match="another learning_rate, seed"):
        trainer(folder, learning_rate=1e-3, seed=1).run(resume=True)
    packed = boostr.load(folder / "tiny", backend="numpy", quantize="int8")
    with pytest.raises(OptionError, match="another model"):
        Trainer(packed, config(folder), folder / "run").run(resume=True)
    weights = tensors(folder / "tiny" / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save(folder / "tiny" / "model.safetensors", weights)
    with pytest.raises(OptionError, match="another model"):
        trainer(folder).run(resume=True)
    with (folder / "train.jsonl").open("a") as file:
        file.write('\n{"text": "more"}')
    with pytest.raises(OptionError, match="another data"):
        trainer(folder).run(resume=True)


def test_checkpoints_that_stay(folder):
    trainer(folder, save_every=2, keep=3).run()
    found = sorted(p.name for p in (folder / "run" / "checkpoints").iterdir())
    assert found == ["step-000004", "step-000006", "step-000008"]


KILLED = """
import os, signal, sys
import boostr
from pathlib import Path
from boostr.io import safetensors
from boostr.train import Trainer, TrainConfig, state
folder = Path(sys.argv[1])
saves = [0]
def save(path, *rest):
    saves[0] += 1
    if saves[0] == 6:  # in the middle of the third checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    safetensors.save(path, *rest)
state.save = save
config = TrainConfig.read(folder / "run.toml", {})
Trainer(boostr.load(folder / "tiny", backend="numpy"), config, folder / "run").run()
"""


def test_killed_in_the_middle_of_a_save(folder):
    """What is there are whole checkpoints; going on gives what an uninterrupted run does."""
    own = config(folder, save_every=2)
    (folder / "run.toml").write_text(own.toml())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder)], env=environment(), cwd=ROOT, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    visible = [p.name for p in (folder / "run" / "checkpoints").glob("[!.]*")]
    assert sorted(visible) == ["step-000002", "step-000004"]
    assert trainer(folder, save_every=2).run(resume=True)
    assert trainer(folder, "whole", save_every=2).run()
    left = {p.name for p in (folder / "run" / "checkpoints").iterdir()}
    assert left == {"step-000006", "step-000008"}
    ends = [tensors(folder / out / "adapter_model.safetensors") for out in ("run", "whole")]
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in ends[1])


def poisoned(run, when):
    """The run, whose gradients are nan at these steps: a loss of a label count of nan."""
    inner, count = run._step, iter(range(1_000_000))

    def step(*batches):
        bad = when(next(count))
        weight = next(p for p in run.model.parameters() if p.requires_grad)
        kept = weight.numpy().copy()
        if bad:
            weight.assign(np.full(weight.shape, np.nan, np.float32))
        metrics = inner(*batches)
        if bad:
            weight.assign(kept)
        return metrics

    run._step = step
    return run


def test_a_step_that_is_not_finite_is_skipped(folder):
    said = []
    assert poisoned(trainer(folder), lambda i: i in (1, 4)).run(say=said.append)
    assert [p.skipped for p in said] == [1, 1, 2, 2]
    assert all(np.isfinite(p.loss) for p in said)
    adapter = tensors(folder / "run" / "adapter_model.safetensors")
    assert all(np.isfinite(array).all() for array in adapter.values())


def test_five_of_them_end_the_run(folder):
    with pytest.raises(NumericsError, match="not finite in 5 steps"):
        poisoned(trainer(folder), lambda i: i >= 2).run()
    assert not (folder / "run" / "adapter_config.json").exists()
    assert module.FATAL == 5 and os.path.exists(folder / "run" / "log.jsonl")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat = 1.0", "unknown key 'learning_rat'; did you mean learning_rate?"),
        ("steps = 1.5", "steps must be int, got 1.5"),
        ("full = 1", "full must be bool, got 1"),
        ("steps = -1", "steps must be 0 or more and below .*, got -1"),
        ("schedule = 'step'", "schedule must be one of constant, linear, cosine, wsd, got 'step'"),
        ("max_grad_norm = 0.0", "max_grad_norm must be above 0"),
        ("keep = 0", "keep must be above 0, got 0"),
        ("learning_rate = inf", "learning_rate must be 0 or more and below inf, got inf"),
        ("seed = 36893488147419103232", "seed must be 0 or more and below 9.22337e"),
        ("epochs = 0", "steps or epochs must be above 0"),
        ("full = true\nlora_rank = 4", "lora_rank: of an adapter, and full trains all weights"),
        ("a = ", "run.toml: "),
    ],
)
def test_config_files(text, words, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=words):
        TrainConfig.read(path, {})


def test_a_flag_wins_over_the_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('data = "a\\"b\\\\c"\nlearning_rate = 1\nsteps = 5\n')
    read = TrainConfig.read(path, {"steps": 7})
    assert (read.data, read.learning_rate, read.steps) == ('a"b\\c', 1, 7)
    path.write_text(read.toml())
    assert TrainConfig.read(path, {}) == read


def test_a_config_of_any_text_is_read_as_it_was_written(tmp_path):
    path, own = tmp_path / "run.toml", TrainConfig(sample='"é\r\n\t\0\x7f\\n')
    path.write_text(own.toml(), encoding="utf-8")
    assert TrainConfig.read(path, {}) == own


def test_refuses(folder):
    with pytest.raises(OptionError, match="max_length 300: a step has 256 tokens"):
        trainer(folder, max_length=300)
    (folder / "ids").mkdir()
    (folder / "ids" / "a.jsonl").write_text('{"input_ids": [1, 258]}')
    with pytest.raises(boostr.errors.DataError, match="label 258, and the vocabulary"):
        trainer(folder, data=str(folder / "ids"))
    with pytest.raises(OptionError, match="sample has 5000 tokens, and the model's context holds"):
        trainer(folder, sample="a" * 5000, sample_every=1)
    (folder / "valid.jsonl").unlink()
    with pytest.raises(boostr.errors.DataError, match="there is no valid split"):
        trainer(folder, eval_every=1)


def test_a_line_is_of_all_steps_since_the_last_also_where_states_were_saved(folder):
    for out, changes in (("plain", {}), ("saved", {"save_every": 3})):
        assert trainer(folder, out, steps=4, log_every=4, **changes).run()
    plain, saved = (log(folder, out)[0]["train/loss"] for out in ("plain", "saved"))
    assert plain == saved


def test_a_run_that_is_to_be_shorter_than_it_is_has_ended(folder):
    assert trainer(folder, steps=2).run()
    assert trainer(folder, steps=1).run(resume=True)


@pytest.mark.parametrize(("free", "chosen"), [(1 << 40, "none"), (1 << 10, "layer")])
def test_layers_are_computed_again_if_memory_is_short(free, chosen, folder, monkeypatch):
    """What is measured for it is no part of the run, whose steps are as without."""
    options = {"steps": 2, "batch_tokens": 64, "lora_dropout": 0.2, "log_every": 1}
    plain = trainer(folder, "plain", recompute=chosen, **options)
    monkeypatch.setattr(type(plain.model.backend), "free_memory", lambda self: free)
    run = trainer(folder, recompute="auto", **options)
    assert (run.model.recompute, run.config.recompute) == (chosen, "auto")
    assert plain.run() and run.run()
    losses = [[row["train/loss"] for row in log(folder, out)] for out in ("plain", "run")]
    assert losses[0] == losses[1]
    monkeypatch.setattr(type(plain.model.backend), "free_memory", lambda self: None)
    with pytest.raises(OptionError, match="numpy does not say how much memory is free"):
        trainer(folder, "third", recompute="auto", **options)


def test_time_is_of_training(folder, monkeypatch):
    """Evaluation does not count as time of steps."""
    run = trainer(folder, eval_every=2, steps=4)
    monkeypatch.setattr(run, "evaluate", lambda: time.sleep(0.2) or 1.0)
    said = []
    run.run(say=said.append)
    assert said[-1].eval_loss == 1.0


@pytest.mark.parametrize(
    ("load", "changes", "words"),
    [
        ({"trainable": True}, {}, "without full an adapter would"),
        ({}, {"full": True, "lora_rank": 16}, "load it with trainable=True"),
        ({"adapter": "run"}, {}, "load it with trainable=True"),
        ({"adapter": "run", "trainable": True}, {"full": True}, "merge it first"),
        ({"adapter": "run", "trainable": True}, {"lora_rank": 8}, "an adapter already, of rank 4"),
    ],
)
def test_a_model_is_as_it_is_to_be_trained(folder, load, changes, words):
    """Else what was trained could not be written in the end."""
    made = boostr.load(folder / "tiny", backend="numpy")
    train.add_lora(made, r=4)
    made.save_adapter(folder / "run")
    if "adapter" in load:
        load = {**load, "adapter": folder / "run"}
    model = boostr.load(folder / "tiny", backend="numpy", **load)
    with pytest.raises(OptionError, match=words):
        Trainer(model, config(folder, **changes), folder / "out")


def test_a_callback_that_fails_loses_nothing(folder):
    def fails(progress):
        raise ConnectionError("no network")

    with pytest.raises(ConnectionError, match="no network"):
        trainer(folder).run(say=fails)
    assert (folder / "run" / "checkpoints" / "step-000002").is_dir()
    with (folder / "run" / "log.jsonl").open("a") as file:
        file.write('{"step": 7}\n{"step": 8, "trai')  # made again, and torn
    assert trainer(folder).run(resume=True)
    assert [row["step"] for row in log(folder)] == [2, 4, 6, 8]


def test_a_folder_is_of_one_run(folder):
    (folder / "run").mkdir()
    with alone_in(folder / "run"), pytest.raises(OptionError, match="another run is at work"):
        trainer(folder).run()
    with alone_in(folder / "run"):  # which is over
        pass
    with pytest.raises(OptionError, match=r"train.jsonl: the folder of a run .* and a file is"):
        trainer(folder, "train.jsonl").run()


def test_a_disk_without_room(folder, monkeypatch):
    """Is said before the first step, not after the last."""
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(DiskFullError, match=r"it takes 0\.\d MB, and its disk has 0.0"):
        trainer(folder).run(stepped=lambda done, steps: pytest.fail("a step was made"))


def test_nothing_finite_is_no_adapter(folder):
    """Fewer steps than five, and weights that no longer are numbers."""
    with pytest.raises(NumericsError, match="not finite in 2 steps"):
        poisoned(trainer(folder, steps=2), lambda i: True).run()
    run = trainer(folder, "other", steps=1)
    run.run()
    weight = next(p for p in run.model.parameters() if p.requires_grad)
    weight.assign(np.full(weight.shape, np.inf, np.float32))
    with pytest.raises(NumericsError, match=r"lora_A.weight: numbers that are nan or infinite"):
        run.model.save_adapter(folder / "broken")
    assert not (folder / "broken").exists()
