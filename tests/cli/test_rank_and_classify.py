"""boostr rerank and boostr classify: what the library says, as lines and as JSON."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from head_folders import DATA

from boostr import load

RERANKER, LABELS, TOKENS = (str(DATA / f"bert_{name}") for name in ("reranker", "labels", "tokens"))


def test_rerank(boostr) -> None:
    texts = ["a cat sat", "who is anna", "bad dogs"]
    model: Any = load(RERANKER)
    wanted = model.rerank("what is a cat ?", texts)
    args = ("rerank", RERANKER, "--query", "what is a cat ?", *texts)
    lines = [line.split("\t") for line in boostr(*args).stdout.splitlines()]
    assert [(int(i), text) for _, i, text in lines] == [(r.index, r.text) for r in wanted]
    assert [float(score) for score, *_ in lines] == pytest.approx([r.score for r in wanted], 1e-4)
    done = json.loads(boostr(*args, "--top-k", "2", "--json").stdout)
    assert done["ranked"] == [asdict(row) for row in wanted[:2]] and done["model"] == RERANKER
    prompted = json.loads(boostr(*args, "--prompt", "who , ", "--json").stdout)
    wanted = model.rerank("what is a cat ?", texts, prompt="who , ")
    assert prompted["ranked"] == [asdict(row) for row in wanted]


def test_classify(boostr) -> None:
    model: Any = load(LABELS)
    lines = boostr("classify", LABELS, "a cat", "bad").stdout.splitlines()
    wanted = model.classify(["a cat", "bad"])
    labels = [[cell.split()[0] for cell in line.split("\t")] for line in lines]
    assert labels == [list(scores) for scores in wanted]
    done = json.loads(boostr("classify", LABELS, "a cat", "--json").stdout)
    assert {row["label"]: row["score"] for row in done["labels"][0]} == wanted[0]


def test_classify_tokens(boostr) -> None:
    text = "who is anna , in paris ?"
    model: Any = load(TOKENS)
    (spans,) = model.classify([text])
    done = json.loads(boostr("classify", TOKENS, text, "--json").stdout)
    assert done["labels"] == [[asdict(span) for span in spans]] and spans
    line = boostr("classify", TOKENS, text).stdout
    assert f"{spans[0].start}:{spans[0].end} {spans[0].text!r}" in line


def test_texts_of_a_file(boostr, tmp_path) -> None:
    (tmp_path / "texts").write_bytes(b"a cat\r\nwho is\xe2\x80\xa8anna\n")
    given = boostr("classify", LABELS, "--file", str(tmp_path / "texts")).stdout
    assert given == boostr("classify", LABELS, "a cat", "who is\u2028anna").stdout
    assert (
        given == boostr("classify", LABELS, "--file", "-", stdin="a cat\nwho is\u2028anna").stdout
    )
    (tmp_path / "none").write_text("")
    result = boostr("rerank", RERANKER, "--query", "q", "--file", str(tmp_path / "none"))
    assert result.exit_code == 1 and "no lines" in result.stderr


def test_wrong_usage(boostr, tiny: str) -> None:
    for args in (("rerank", RERANKER, "text"), ("rerank", RERANKER, "--query", "q"), ("classify",),
                 ("classify", LABELS), ("classify", LABELS, "text", "--file", "x")):  # fmt: skip
        assert boostr(*args).exit_code == 2
    for args, message in (
        (("rerank", TOKENS, "--query", "q", "a"), "rerank: "),
        (("classify", tiny, "a"), "is a decoder"),
        (("rerank", tiny, "--query", "q", "a"), "does not say how it ranks"),
        (("rerank", RERANKER, "--query", "q", "a", "--template", "bge"), "says itself how"),
        (("run", "-m", LABELS, "a"), "is a classifier of texts; use"),
        (("embed", "-m", LABELS, "a"), "is a classifier of texts"),
    ):  # fmt: skip
        result = boostr(*args)
        assert result.exit_code == 1 and message in result.stderr, result.stderr
