"""The command itself: help, versions, exit codes, errors as one line, pipes and interrupts."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import HANG, command, environment, make_tiny

from boostr import __version__
from boostr.cli.app import VERBS


def test_help_names_every_verb(boostr) -> None:
    for flag in ("-h", "--help"):
        result = boostr(flag)
        assert result.exit_code == 0
        assert all(f"\n  {verb} " in result.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(boostr, verb: str) -> None:
    result = boostr(verb, "-h")
    assert result.exit_code == 0 and result.stdout.startswith(f"Usage: boostr {verb}")
    assert "--json" in result.stdout or verb == "chat"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_says_what_it_means(verb: str) -> None:
    for parameter in importlib.import_module(f"boostr.cli.{verb}").command.params:
        assert parameter.param_type_name == "argument" or parameter.help, parameter.name


def test_version(boostr, process) -> None:
    assert __version__ in boostr("--version").stdout
    assert __version__ in process("--version").out


@pytest.mark.parametrize(
    "args", [("rum", "x"), ("run",), ("run", "--no-such", "x"), ("run", "x", "y")]
)
def test_wrong_usage_exits_2(boostr, args: tuple[str, ...]) -> None:
    result = boostr(*args)
    assert result.exit_code == 2 and result.stdout == "" and "Usage: boostr" in result.stderr


def test_no_verb_shows_the_help(process) -> None:
    result = process()
    assert result.code == 2 and "Commands:" in result.err and "error" not in result.err


def test_help_imports_nothing_that_takes_long() -> None:
    heavy = ("numba", "llvmlite", "tokenizers", "jinja2", "huggingface_hub", "tqdm")
    code = (
        "import sys\nfrom boostr.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print(*(name for name in {heavy} if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-h"], env=environment(), capture_output=True, check=True
    )
    assert done.stdout.decode().splitlines()[-1] == ""


def test_an_error_inside_is_one_line_and_a_traceback_only_on_request(
    boostr, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("in the test")

    monkeypatch.setattr("boostr.io.hub.resolve", broken)
    from boostr.cli.app import app

    runner = importlib.import_module("click.testing").CliRunner()
    result = runner.invoke(app, ["pull", "x/y"])
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("boostr: error: unexpected ZeroDivisionError: in the test")
    assert result.stderr.count("\n") == 1
    monkeypatch.setenv("BOOSTR_DEBUG", "1")
    assert "Traceback" in runner.invoke(app, ["pull", "x/y"]).stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupt_exits_130_and_says_nothing(tiny: str) -> None:
    args = command("run", "-m", tiny, "hi", "--max-tokens", "4000")
    with subprocess.Popen(
        args, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        errors = running.communicate()[1].decode()
    assert running.returncode == 130
    assert "Traceback" not in errors and "error" not in errors and "tok/s" not in errors


@pytest.mark.parametrize("module", ["click", "boostr.cli.run", "numpy", "tokenizers"])
def test_an_interrupt_while_modules_load_says_nothing_either(tiny: str, module: str) -> None:
    code = (
        "import sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from boostr.cli import main; main()"
    )
    args = [sys.executable, "-c", code, "run", "-m", tiny, "hi"]
    done = subprocess.run(args, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 130 and (done.stdout + done.stderr).strip() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_kill_unwinds_what_runs(tiny: str) -> None:
    """As an error would, so that no scratch folder stays."""
    code = (
        "import os, signal, sys, tempfile; from boostr.cli import app, run\n"
        "def killed(*_, **__):\n"
        "    with tempfile.TemporaryDirectory() as scratch:\n"
        "        print(scratch, flush=True); os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "run.command.callback = killed; app.main()"
    )
    args = [sys.executable, "-c", code, "run", "-m", tiny, "hi"]
    done = subprocess.run(args, env=environment(), capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 143 and done.stderr == ""
    assert not Path(done.stdout.strip()).exists()


def test_kill_means_what_it_did_once_a_command_is_done(boostr) -> None:
    boostr("-h")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_a_reader_that_goes_away_is_no_error(tiny: str) -> None:
    args = command("run", "-m", tiny, "hi", "--max-tokens", "4000")
    with subprocess.Popen(
        args, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        assert running.stdout.read(1)
        running.stdout.close()
        errors = running.stderr.read().decode()
    assert running.returncode == 1
    assert "Traceback" not in errors and "rror" not in errors


def test_text_that_the_terminal_cannot_show_is_escaped(process, tiny: str) -> None:
    result = process(
        "run", "-m", tiny, "hi", "--max-tokens", "20", env={"PYTHONIOENCODING": "latin-1"}
    )
    assert result.code == 0 and "\\ufffd" in result.out


@pytest.mark.skipif(os.name == "nt", reason="needs sh")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("verb", ["run", "chat"])
def test_a_process_without_streams(tiny: str, closed: str, verb: str) -> None:
    """As a daemon starts one: there is nothing to read or to show, and that is no error."""
    args = command(verb, *(["-"] if verb == "run" else []), "-m", tiny, "--backend", "numpy")
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *args], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert "a bug of boostr" not in done.stderr and "Traceback" not in done.stderr
    assert done.returncode in (0, 1), done.stderr


def test_warnings_are_one_line(process, tmp_path) -> None:
    folder = make_tiny(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}')
    done = process("inspect", str(folder))
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("boostr: warning: ") and "model.safetensors is read" in line
