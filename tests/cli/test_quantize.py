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
        (("-o", "OUT", "--scheme", "int7"), 2, "unknown scheme 'int7'"),
        (("-o", "OUT", "--scheme", "INT8-G64"), 2, "did you mean 'int8-g64'?"),
        (("-o", "OUT", "--scheme", "q4_k_m"), 2, "did you mean 'gguf:Q4_K_M'?"),
        (("-o", "OUT.gguf", "--scheme", "gguf:q5_k_s"), 2, "did you mean 'Q5_K_S'?"),
        (("-o", "OUT", "--scheme", "gguf:Q8_0"), 2, "expected NAME.gguf, got x"),
        (("-o", "OUT.gguf", "--scheme", "int8"), 2, "is a folder; expected another name, got x."),
        (("-o", "OUT", "--scheme", "int8", "--quantize-embeddings", "int3"), 2, "'int3'"),
        (
            ("-o", "OUT", "--scheme", "nf4", "--quantize-embeddings", "same"),
            2,
            "linear layers only",
        ),
        (("-o", "OUT", "--scheme", "int4-g32"), 1, "44 inputs"),
        (("-o", ".", "--scheme", "int8"), 2, "exists already"),
    ],
)
def test_refuses(boostr, tiny: str, tmp_path: Path, args: tuple, code: int, part: str) -> None:
    args = tuple(arg.replace("OUT", str(tmp_path / "x")) for arg in args)
    result = boostr("quantize", tiny, *args)
    assert result.exit_code == code and part in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("-o", "OUT.gguf", "--type", "Q9"), "'Q9' is not known"),
        (("-o", "OUT.gguf", "--type", "q8_0"), "did you mean 'Q8_0'?"),
        (("-o", "OUT"), "expected NAME.gguf"),
        (("-o", "."), "exists already"),
    ],
)
def test_convert_refuses(boostr, tiny: str, tmp_path: Path, args: tuple, part: str) -> None:
    result = boostr("convert", tiny, *(arg.replace("OUT", str(tmp_path / "x")) for arg in args))
    assert result.exit_code == 2 and part in result.stderr and "boostr convert" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("default")
def test_convert_counts_types(boostr, tiny: str, tmp_path: Path) -> None:
    out = str(tmp_path / "m.gguf")
    result = boostr("convert", tiny, "-o", out, "--type", "Q4_0")
    assert result.exit_code == 0 and "1 in F16 for Q4_0" in result.stderr
    assert "7 Q4_0" in result.stdout and "1 F16" in result.stdout
    made = json.loads(boostr("convert", out, "-o", str(tmp_path / "back"), "--json").stdout)
    assert made["types"] == {"bfloat16": 9}


def test_words_for_tables_mean_the_same_in_every_verb(boostr, tiny: str, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("to be or not to be, that is the question")
    schemes = ("--quantize", "int8", "--quantize-embeddings")
    sizes = {}
    for word in ("none", "same"):
        out = str(tmp_path / word)
        made = boostr("quantize", tiny, "-o", out, "--scheme", "int8", schemes[2], word, "--json")
        tables = json.loads(made.stdout)["tables"]
        assert tables["head"] == {"none": "as stored", "same": "int8"}[word]
        args = ("--text", str(text), "--context", "16", *schemes, word, "--json")
        sizes[word] = json.loads(boostr("ppl", tiny, *args).stdout)["weight_bytes"]
    assert sizes["same"] < sizes["none"]
