"""boostr train: options as keys, what is said, and that what it makes runs."""

import json
import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from boostr.cli import train
from boostr.cli.app import app


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("boostr.train.data.cache_folder", lambda: tmp_path / "datasets")
    rows = [{"prompt": f"{i}+1=", "completion": f"{i + 1}"} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"prompt": "x", "completion": ""}\n')
    return str(path)


SMALL = ("--batch-tokens", "128", "--steps", "4", "--log-every", "2", "--backend", "numpy")


def test_a_run_and_its_adapter(boostr, tiny: str, data: str, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    done = boostr("train", tiny, "--data", data, "-o", out, *SMALL)
    assert done.exit_code == 0 and done.stdout.startswith(f"trained {out} in ")
    assert "40 samples of 301 tokens; 1: a completion is empty" in done.stderr
    assert "4 steps of 128 tokens" in done.stderr and "step 4/4  loss " in done.stderr
    assert " tok/s  " in done.stderr and "  0 s left" in done.stderr and "MFU" not in done.stderr
    asked = ("1+1=", "--raw", "--max-tokens", "2", "--json", "--backend", "numpy")
    assert boostr("run", "-m", tiny, "--adapter", out, *asked).exit_code == 0
    again = boostr("train", tiny, "--data", data, "-o", out, *SMALL)
    assert again.exit_code == 2 and "there is a run in this folder" in again.stderr
    more = boostr(
        "train", tiny, "--data", data, "-o", out, *SMALL, "--steps", "6", "--resume", "--json",
        "--peak-tflops", "1",
    )  # fmt: skip
    assert json.loads(more.stdout)["finished"] and "step 6/6" in more.stderr
    assert "  MFU " in more.stderr


def test_two_devices_make_the_run_of_one(boostr, tiny: str, data: str, tmp_path: Path) -> None:
    """And one rank speaks for both."""
    both, one = str(tmp_path / "both"), str(tmp_path / "one")
    done = boostr("train", tiny, "--data", data, "-o", both, *SMALL, "--devices", "0,1")
    assert done.exit_code == 0 and "4 steps of 256 tokens" in done.stderr
    assert done.stdout.count("trained ") == done.stderr.count("step 4/4") == 1
    alone = boostr("train", tiny, "--data", data, "-o", one, *SMALL, "--grad-accumulation", "2")
    assert alone.exit_code == 0
    weights = [(Path(out) / "adapter_model.safetensors").read_bytes() for out in (both, one)]
    assert weights[0] == weights[1]


def test_ctrl_c_saves_on_all_devices(tiny: str, data: str, tmp_path: Path, monkeypatch) -> None:
    line = train._line

    def interrupted(now):
        signal.raise_signal(signal.SIGINT)
        return line(now)

    monkeypatch.setattr(train, "_line", interrupted)
    args = ["train", tiny, "--data", data, "-o", str(tmp_path / "run"), *SMALL, "--devices", "0,1"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 130 and done.stdout.startswith("stopped, --resume goes on: ")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]


def test_keys_of_a_file(boostr, tiny: str, data: str, tmp_path: Path) -> None:
    """Flags win; --dry-run makes nothing and shows what counts."""
    file, out = tmp_path / "run.toml", tmp_path / "run"
    file.write_text(f"data = {json.dumps(data)}\nsteps = 9\nbatch_tokens = 128\nlora_rank = 2\n")
    args = ("train", tiny, "--config", str(file), "-o", str(out), "--backend", "numpy")
    done = boostr(*args, "--steps", "3", "--dry-run")
    assert done.exit_code == 0 and "3 steps of 128 tokens" in done.stderr
    assert "+1=" in done.stdout and not out.exists()
    assert " of memory: " in done.stderr and " of gradients, " in done.stderr
    file.write_text("step = 9")
    wrong = boostr(*args)
    assert wrong.exit_code == 2 and "unknown key 'step'; did you mean steps?" in wrong.stderr


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        ((), 2, "--data is needed"),
        (("--data", "nowhere"), 1, "no such file or folder"),
        (("--data", "DATA", "--schedule", "step"), 2, "'step' is not one of"),
        (("--data", "DATA", "--lora-rank", "0"), 2, "lora_rank must be above 0, got 0"),
        (("--data", "DATA", "--lora-targets", "q_proj,nix"), 2, "'nix'; this model has down_proj"),
        (("--data", "DATA", "--loss-on", "assistant"), 1, "no assistant that could count alone"),
        (("--data", "DATA", "--full", "--quantize", "int8"), 2, "packed weights cannot be trained"),
        (("--data", "DATA", "--devices", "0,a"), 2, "devices must be numbers with commas between"),
        (
            ("--data", "DATA", "--devices", "0,1", "--lora-targets", "nix"),
            2,
            "no module is a target",
        ),
    ],
)
def test_refuses(boostr, tiny: str, data: str, tmp_path: Path, args, code: int, part: str) -> None:
    args = [data if arg == "DATA" else arg for arg in args]
    result = boostr("train", tiny, "-o", str(tmp_path / "run"), *args, "--backend", "numpy")
    assert result.exit_code == code and part in result.stderr
    assert not (tmp_path / "run").exists()


def test_wgpu_has_no_ranks(boostr, tiny: str, data: str, tmp_path: Path) -> None:
    args = ("--data", data, "-o", str(tmp_path / "run"), "--backend", "wgpu", "--devices", "0,1")
    result = boostr("train", tiny, *args)
    assert result.exit_code == 2 and "grad_accumulation = 2 makes the same step" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop(
    boostr, tiny: str, data: str, tmp_path: Path, monkeypatch, capfd, number: int
) -> None:
    """Ends with the step that it is at, and its state is saved."""
    from boostr.cli import train

    monkeypatch.setattr(train, "_line", lambda now: os.kill(os.getpid(), number) or "line")
    done = boostr("train", tiny, "--data", data, "-o", str(tmp_path / "run"), *SMALL)
    assert done.exit_code == 130 and "stopped, --resume goes on: " in done.stdout
    assert "Ctrl-C again leaves at once" in capfd.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir()
