"""The tiny model, and two ways to run the command line: in this process, and as one of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from tiny_model import command, environment, make_tiny

from boostr.cli import INTERRUPTED
from boostr.cli.app import app


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the tiny model."""
    return str(make_tiny(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def boostr() -> Callable[..., Result]:
    """Runs the command line in this process. Whatever happens, there must be no traceback."""

    def run(*args: str, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(app, list(args), input=stdin)
        assert isinstance(result.exception, SystemExit | None), result.exception
        assert "Traceback" not in result.output and "a bug of boostr" not in result.stderr
        if result.exit_code not in (0, INTERRUPTED):
            assert "boostr: error: " in result.stderr
        return result

    return run


@pytest.fixture
def process() -> Callable[..., SimpleNamespace]:
    """Runs `python -m boostr` as a process of its own: (code, out, err)."""

    def run(
        *args: str | bytes, stdin: bytes = b"", env: dict[str, str] | None = None
    ) -> SimpleNamespace:
        done = subprocess.run(
            command(*args), input=stdin, env=environment(env), capture_output=True, check=False
        )
        out, err = (data.decode(errors="replace") for data in (done.stdout, done.stderr))
        assert "Traceback" not in err and "a bug of boostr" not in err
        return SimpleNamespace(code=done.returncode, out=out, err=err)

    return run
