"""Folders without tokenizer.json: the ids that transformers gives for their files."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from boostr.errors import TokenizerError
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_files import tokenizer_file

DATA = Path(__file__).parent / "data" / "tokenizer_files.json"
GOLDEN = json.loads(DATA.read_text("utf-8"))


def folder_of(place: Path, name: str, **changes: Any) -> Path:
    """A folder of the golden file; a change to None leaves a key of the config out."""
    row = GOLDEN["folders"][name]
    if ".model" in str(row["files"].values()):
        pytest.importorskip("sentencepiece.sentencepiece_model_pb2", reason="boostr[sentencepiece]")
    for file, key in row["files"].items():
        text = GOLDEN["files"][key]
        content = base64.b64decode(text) if ".model" in key else text.encode()
        (place / file).write_bytes(content)
    config = {key: value for key, value in (row["config"] | changes).items() if value is not None}
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


@pytest.mark.parametrize("name", GOLDEN["folders"])
def test_ids_and_text_of_transformers(tmp_path: Path, name: str) -> None:
    ours, row = Tokenizer.from_folder(folder_of(tmp_path, name)), GOLDEN["folders"][name]
    for text, ids, decoded in zip(GOLDEN["texts"], row["ids"], row["decoded"], strict=True):
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == decoded
    pair = ours.inner.encode("a b", "c")
    assert [pair.ids, pair.type_ids] == row["pair"]
    assert ours.eos_ids == (() if row["eos"] is None else (row["eos"],))


@pytest.mark.parametrize(
    ("name", "model_type"), [("gpt2", "opt"), ("bert", "bert"), ("roberta", "roberta")]
)
def test_the_class_by_the_model(tmp_path: Path, name: str, model_type: str) -> None:
    folder = folder_of(tmp_path, name, tokenizer_class=None)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    text, ids = GOLDEN["texts"][3], GOLDEN["folders"][name]["ids"][3]
    assert Tokenizer.from_folder(folder).encode(text) == ids


def test_special_tokens_of_the_files_win(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "roberta", cls_token="<mask>", pad_token=None)
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<unk>"}')
    (folder / "added_tokens.json").write_text('{"<new>": 346, "<newer>": 345}')
    ours = Tokenizer.from_folder(folder)
    assert (ours.encode("")[0], ours.pad_id) == (4, 3)
    assert ours.encode("<new><newer>")[1:-1] == [346, 345]


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("gpt2", "vocab.json", "[]", "vocab.json: must map tokens to ids"),
        ("gpt2", "vocab.json", "{", "vocab.json: not JSON"),
        ("gpt2", "merges.txt", "#version: 0.2\na b c\n", "merges.txt: 'a b c' is no merge of two"),
        ("gpt2", "merges.txt", "#version: 0.2\n", "merges.txt: no merges"),
        ("gpt2", "merges.txt", "a zz\n", "vocabulary and merges do not fit"),
        ("bert", "vocab.txt", "a\n[UNK]\n", "no cls_token in the vocabulary"),
        ("bert", "vocab.txt", "a\nb\n", r"vocab.txt: has no unk_token '\[UNK\]'"),
        ("llama", "tokenizer.model", "x", "tokenizer.model: not a SentencePiece model"),
    ],
)
def test_files_that_cannot_be(
    tmp_path: Path, name: str, file: str, text: str, message: str
) -> None:
    folder = folder_of(tmp_path, name)
    (folder / file).write_text(text)
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "gpt2",
            {"tokenizer_class": "BlenderbotTokenizer"},
            "'BlenderbotTokenizer' is not known; k",
        ),
        ("gpt2", {"tokenizer_class": None}, "None is not known; known are GPT2Tokenizer"),
        ("gpt2", {"add_prefix_space": True}, "add_prefix_space = True is not supported"),
        (
            "gpt2",
            {"tokenizer_class": "LlamaTokenizer"},
            r"no SentencePiece model \(tokenizer.model",
        ),
        ("llama", {"tokenizer_class": "T5Tokenizer"}, "a model of type BPE; .* wants unigram"),
    ],
)
def test_folders_that_are_refused(
    tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(folder_of(tmp_path, name, **changes))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match=r"pip install boostr\[sentencepiece\]"):
        Tokenizer.from_folder(tmp_path)


def test_which_file_a_tokenizer_is_in(tmp_path: Path) -> None:
    assert tokenizer_file(tmp_path) is None
    for name in ("spiece.model", "vocab.txt", "tokenizer.json"):
        (tmp_path / name).write_bytes(b"")
        assert tokenizer_file(tmp_path) == name
