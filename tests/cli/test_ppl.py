"""boostr ppl: one line or one object, progress on terminals only, texts as they are."""

import json
from pathlib import Path

import pytest

from boostr import load, perplexity

FILE = Path(__file__).parents[1] / "data" / "lcet10.txt"


def test_a_line_and_an_object(boostr, tiny: str) -> None:
    args = ("ppl", tiny, "--text", str(FILE), "--chunks", "2")
    want = perplexity(load(tiny), FILE.read_bytes().decode(), chunks=2)
    result = boostr(*args)
    line = f"perplexity {want.value:.4f} ± {want.error:.4f} (2 chunks of 512 tokens, 510 of them"
    assert result.exit_code == 0 and result.stdout.startswith(line)
    assert "chunk/s" not in result.stderr  # a bar is for terminals
    done = json.loads(boostr(*args, "--json").stdout)
    assert (done["perplexity"], done["running"]) == (want.value, list(want.running))
    assert done["model"] == tiny and done["weight_bytes"] > 0


def test_packed_weights_and_smaller_chunks(boostr, tiny: str) -> None:
    args = ("--text", str(FILE), "--context", "64", "--chunks", "4", "--json")
    plain, packed = (
        json.loads(boostr("ppl", tiny, *args, *more).stdout)
        for more in ((), ("--quantize", "fp8", "--quantize-embeddings", "int8"))
    )
    assert plain["context"] == 64 and packed["quantize"] == "fp8"
    assert packed["weight_bytes"] < plain["weight_bytes"]
    assert packed["perplexity"] != plain["perplexity"]


def test_what_embeddings_become_is_said(boostr, tiny: str) -> None:
    """And a weight that the scheme cannot hold is refused by its name."""
    result = boostr("ppl", tiny, "--text", str(FILE), "--quantize", "int4-g32")
    assert "embedding and head become int8-g32 (--quantize-embeddings none" in result.stderr
    assert result.exit_code == 1 and "mlp.down_proj.weight: quantize: int4-g32" in result.stderr
    assert "multiple of 32 inputs, got 44" in result.stderr


def test_stdin_keeps_its_line_ends(boostr, tiny: str) -> None:
    text = FILE.read_bytes()[:2000]
    args = ("ppl", tiny, "--text", "-", "--context", "100", "--json")
    found = json.loads(boostr(*args, stdin=text).stdout)["perplexity"]
    assert found == perplexity(load(tiny), text.decode(), context=100).value


@pytest.mark.parametrize(
    "args", [(), ("--text", "never.txt"), ("--text", str(FILE), "--chunks", "0")]
)
def test_wrong_usage(boostr, tiny: str, args: tuple[str, ...]) -> None:
    assert boostr("ppl", tiny, *args).exit_code == 2


def test_what_is_no_text(boostr, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc\xff")
    result = boostr("ppl", tiny, "--text", str(tmp_path / "x"))
    assert result.exit_code == 1 and "not valid UTF-8: byte 3 is 0xff" in result.stderr
