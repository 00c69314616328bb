"""boostr quantize: what it says, and that its folder runs."""

import json
from pathlib import Path

import pytest


def test_a_line_an_object_and_a_model_that_runs(boostr, tiny: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = boostr("quantize", tiny, "-o", out, "--scheme", "int8")
    assert result.exit_code == 0 and "tensor/s" not in result.stderr
    assert result.stdout.startswith(f"{out}: ") and "7 int8" in result.stdout
    assert "embedding as stored" in result.stdout and "head as stored" in result.stdout
    done = boostr("run", "-m", out, "hi", "--max-tokens", "2", "--json")
    same = boostr("run", "-m", tiny, "hi", "--max-tokens", "2", "--json", "--quantize", "int8")
    assert json.loads(done.stdout)["text"] == json.loads(same.stdout)["text"]
    args = ("--scheme", "w8a8", "--quantize-embeddings", "int8", "--json")
    made = json.loads(boostr("quantize", tiny, "-o", str(tmp_path / "b"), *args).stdout)
    assert made["tables"] == {"head": "int8", "embedding": "as stored"}
    assert made["weight_bytes"] < made["source_bytes"] and made["scheme"] == "w8a8"


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (("--scheme", "int8"), 2, "'-o'"),
        (("-o", "OUT"), 2, "'--scheme'"),
        (("-o", "OUT", "--scheme", "int7"), 1, "unknown scheme 'int7'"),
        (("-o", "OUT", "--scheme", "int4-g32"), 1, "44 inputs"),
        (("-o", ".", "--scheme", "int8"), 1, "exists already"),
    ],
)
def test_refuses(boostr, tiny: str, tmp_path: Path, args: tuple, code: int, part: str) -> None:
    args = tuple(str(tmp_path / "x") if arg == "OUT" else arg for arg in args)
    result = boostr("quantize", tiny, *args)
    assert result.exit_code == code and part in result.stderr
    assert not (tmp_path / "x").exists()
