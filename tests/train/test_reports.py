"""What a run leaves beside its weights: samples, README.md, loss.png; what trackers are told."""

from __future__ import annotations

import json
import sys
import types

import pytest
from tiny_model import make_tiny

import boostr
from boostr.errors import OptionError
from boostr.train import TrainConfig, Trainer
from boostr.train.card import card
from boostr.train.trackers import find_trackers, log_all


@pytest.fixture
def trainer(tmp_path):
    """trainer(**changes of the config) -> a run of two steps."""
    make_tiny(tmp_path / "tiny")
    (tmp_path / "train.jsonl").write_text("\n".join([json.dumps({"text": "the cat sat"})] * 8))

    def make(**changes):
        own = {"batch_tokens": 64, "steps": 4, "log_every": 2, "lora_rank": 2, **changes}
        config = TrainConfig(data=str(tmp_path / "train.jsonl"), **own)
        model = boostr.load(tmp_path / "tiny", backend="numpy")
        return Trainer(model, config, tmp_path / "run")

    return make


class Project(types.ModuleType):
    """wandb's interface, and trackio's; what it was told."""

    def __init__(self, name):
        super().__init__(name)
        self.told = []

    def init(self, **options):
        self.told.append(("init", options))

    def log(self, values, step):
        self.told.append((step, values))

    def finish(self):
        self.told.append("finish")


class Board(types.ModuleType):
    """tensorboardX's; what its writers were told."""

    def __init__(self):
        super().__init__("tensorboardX")
        self.told = told = []

        class SummaryWriter:
            def __init__(self, folder):
                told.append(folder)

            def add_text(self, name, text):
                told.append((name, text))

            def add_scalar(self, name, value, step):
                told.append((name, value, step))

            def close(self):
                told.append("close")

        self.SummaryWriter = SummaryWriter


def test_what_a_run_leaves(trainer, tmp_path, monkeypatch):
    board, project = Board(), Project("wandb")
    monkeypatch.setitem(sys.modules, "tensorboardX", board)
    monkeypatch.setitem(sys.modules, "wandb", project)
    run = trainer(sample="the cat", sample_every=2, sample_tokens=3, report_to="tensorboard, wandb")
    assert not board.told and not project.told  # nothing before it runs
    assert run.run()
    samples = (run.out / "samples.txt").read_text().split("\n\n")[:-1]
    assert [text.split(":")[0] for text in samples] == ["step 2", "step 4"]
    last = run.model.generate("the cat", max_tokens=3, temperature=0.0).text
    assert samples[1] == f"step 4: the cat{last}"
    rows = [json.loads(line) for line in (run.out / "log.jsonl").read_text().splitlines()]
    steps = [row.pop("step") for row in rows]
    (_, options), *logged, end = project.told
    assert options["name"] == "run" and options["config"]["sample"] == "the cat"
    assert logged == list(zip(steps, rows, strict=True)) and end == "finish"
    losses = [told[1:] for told in board.told if told[0] == "train/loss"]
    assert losses == [(row["train/loss"], step) for step, row in zip(steps, rows, strict=True)]
    assert board.told[0] == str(run.out / "tensorboard") and board.told[-1] == "close"
    text = (run.out / "README.md").read_text()
    assert run.config.data in text and "4 steps" in text


def test_a_card_loads_what_it_says(trainer, tmp_path, monkeypatch):
    run = trainer()
    run.run()
    text = (run.out / "README.md").read_text()
    code = text.split("```python")[1].split("```")[0]
    monkeypatch.chdir(run.out)
    monkeypatch.setenv("BOOSTR_BACKEND", "numpy")
    found = {}
    exec(code, found)
    ids = found["model"].tokenizer.encode("the cat")
    assert (found["model"].logits(ids) == run.model.logits(ids)).all()
    assert 'load("model")' in card(TrainConfig(data="x", full=True), "org/name", 3, "0" * 64)


def test_values_that_are_not_finite_are_not_told():
    project = Project("trackio")
    log_all([project], {"step": 3, "train/loss": None, "train/tokens": 5})
    assert project.told == [(3, {"train/tokens": 5})]


def test_a_curve(tmp_path):
    pytest.importorskip("matplotlib")
    from boostr.train.curve import draw_losses

    rows = [{"step": i, "train/loss": 1 / i} for i in (1, 2, 3)] + [{"step": 4, "eval/loss": 0.1}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    draw_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("options", "missing", "words"),
    [
        ({"report_to": "mlflow"}, None, "report_to must be of tensorboard, wandb, trackio"),
        ({"report_to": "wandb"}, "wandb", "report_to wandb needs wandb .*pip install wandb"),
        ({"report_to": "tensorboard"}, "tensorboardX", "pip install tensorboardX"),
        ({"plot": True}, "matplotlib.figure", r"plot needs matplotlib .*boostr\[plot\]"),
        ({"sample_every": 2}, None, "sample_every needs a sample"),
    ],
)
def test_refuses(options, missing, words, trainer, tmp_path, monkeypatch):
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)  # importing it is an ImportError
    with pytest.raises(OptionError, match=words):
        trainer(**options)
    assert not (tmp_path / "run").exists() and find_trackers("") == []
