"""Rows of files: what is read, in which order, and what is said of what is malformed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from boostr.errors import DataError
from boostr.train.records import files_of, rows_of


def read(path):
    return [row.columns for row in rows_of(files_of(path))]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_lines_end_in_any_way(tmp_path):
    """CRLF, blank lines, a BOM, no end to the last line, and one of a megabyte."""
    long = "x" * 1_000_000
    rows = [{"text": "é\u2028"}, {"text": long}, {"text": "end"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\ufeff" + lines[0] + "\r\n\r\n  \n" + lines[1] + "\n" + lines[2]
    assert read(write(tmp_path / "a.jsonl", text)) == rows


def test_json_is_a_list_or_lines(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}]
    assert read(write(tmp_path / "a.json", json.dumps(rows, indent=1))) == rows
    assert read(write(tmp_path / "b.json", '{"text": "a"}\n{"text": "b"}')) == rows


def test_a_text_file_is_a_document(tmp_path):
    assert read(write(tmp_path / "a.txt", "one\r\ntwo\n")) == [{"text": "one\ntwo\n"}]


def test_bare_ids_are_refused(tmp_path):
    """A file of its own, or the only one of a folder; beside others it is none of the data."""
    np.arange(4, dtype=np.uint16).tofile(tmp_path / "train.bin")
    for path in (tmp_path, tmp_path / "train.bin"):
        with pytest.raises(DataError, match=r"train\.bin: bare token ids.*np\.fromfile"):
            files_of(path)
    write(tmp_path / "train.txt", "a")
    assert [p.name for p in files_of(tmp_path)] == ["train.txt"]


def test_arrays_of_ids(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1, 2], [3, 4]], np.uint16))
    assert [row["input_ids"].tolist() for row in read(tmp_path / "a.npy")] == [[1, 2], [3, 4]]
    np.save(tmp_path / "b.npy", np.array([1.5]))
    with pytest.raises(DataError, match="token ids"):
        read(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "c.npy")


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    from pyarrow import Table

    rows = [{"text": "a", "tags": ["x"]}, {"text": "b", "tags": []}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == rows
    with pytest.raises(DataError, match="not parquet"):
        read(write(tmp_path / "b.parquet", "text"))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ', r"a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"a.jsonl:2: not UTF-8: byte 10 is 0xff"),
        ("a.jsonl", '{"text": "a"}\n["a"]', r"a.jsonl:2: expected an object of columns, got list"),
        ("a.jsonl", '{"text": "a", "text": "b"}', "a.jsonl:1: not JSON: key 'text' is there twice"),
        ("a.jsonl", r'{"text": "\ud83d"}', "a.jsonl:1: .* is half of a surrogate pair"),
        ("a.json", '"a"', "expected a list of objects, got str"),
        ("a.json", '[{"text": "a"}, 3]', r"a.json\[1\]: expected an object"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.txt", b"\xc3(", "not UTF-8: byte 0"),
        ("a.csv", "text\na", "ends with .jsonl, .json, .txt, .npy, .parquet"),
    ],
)
def test_malformed(name, data, words, tmp_path):
    with pytest.raises(DataError, match=words):
        read(write(tmp_path / name, data))


@pytest.mark.parametrize(
    ("files", "split", "found"),
    [
        (["train.jsonl", "valid.jsonl", "test.json"], "train", ["train.jsonl"]),
        (["train.jsonl", "validation.jsonl"], "valid", ["validation.jsonl"]),
        (["train.jsonl"], "valid", []),
        (["data/train-00001-of-2.parquet", "data/train-00000-of-2.parquet", "data/test-0.parquet"],
         "train", ["data/train-00000-of-2.parquet", "data/train-00001-of-2.parquet"]),
        (["train/b.txt", "train/a.txt", "dev/a.txt"], "train", ["train/a.txt", "train/b.txt"]),
        (["train/b.txt", "dev/a.txt"], "valid", ["dev/a.txt"]),
        (["b.txt", "a.jsonl", "training.md", ".hidden/c.txt"], "train", ["a.jsonl", "b.txt"]),
        (["trainees.txt", "a.txt"], "train", ["a.txt", "trainees.txt"]),
    ],
)  # fmt: skip
def test_splits_of_a_folder(files, split, found, tmp_path):
    for name in files:
        write(tmp_path / name, "x")
    assert [str(p.relative_to(tmp_path)) for p in files_of(tmp_path, split)] == found


def test_nothing_to_train_on(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"no training data|no such file"):
            files_of(path)
    write(tmp_path / "test.txt", "x")
    with pytest.raises(DataError, match="no training data"):
        files_of(tmp_path)
    with pytest.raises(DataError, match="split must be one of train, valid, test, got 'dev'"):
        files_of(tmp_path, "dev")
