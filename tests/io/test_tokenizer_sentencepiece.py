"""SentencePiece BPE from GGUF metadata: the ids and texts of the package sentencepiece itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from boostr.errors import TokenizerError
from boostr.io.gguf import GGUFFile
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_sentencepiece import merges_of_scores

GOLDEN = json.loads((Path(__file__).parent / "data" / "sentencepiece.json").read_text("utf-8"))
UNKNOWN, BOS, EOS = 0, 1, 2


def metadata(name: str, **changes: Any) -> dict[str, Any]:
    """What a GGUF file of a model of the golden file says."""
    made = {f"tokenizer.ggml.{key}": v for key, v in GOLDEN["models"][name]["metadata"].items()}
    made |= {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": np.array(made["tokenizer.ggml.scores"], np.float32),
        "tokenizer.ggml.token_type": np.array(made["tokenizer.ggml.token_type"], np.int32),
        "tokenizer.ggml.unknown_token_id": UNKNOWN,
        "tokenizer.ggml.bos_token_id": BOS,
        "tokenizer.ggml.eos_token_id": EOS,
    }
    made |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in made.items() if value is not None}


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_ids_of_sentencepiece(name: str) -> None:
    ours = Tokenizer.from_gguf(metadata(name))
    for text, ids in zip(GOLDEN["texts"], GOLDEN["models"][name]["ids"], strict=True):
        assert ours.encode(text, add_special_tokens=False) == ids, text


@pytest.mark.parametrize("named", [{"model": "gemma4"}, {"model": "gpt2", "pre": "gemma4"}])
def test_by_merges_as_by_scores(named: dict[str, str]) -> None:
    """Gemma 4's form: ranked merges instead of the scores, and no space before a text."""
    said = metadata("no prefix")
    tokens, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    merges = [" ".join(merge) for merge in merges_of_scores(said, tokens, types, "")]
    changes = {"scores": None, "add_space_prefix": None, "merges": merges, **named}
    ours = Tokenizer.from_gguf(metadata("no prefix", **changes))
    for text, ids in zip(GOLDEN["texts"], GOLDEN["models"]["no prefix"]["ids"], strict=True):
        assert ours.encode(text) == [BOS, *ids], text
    with pytest.raises(TokenizerError, match="vocabulary and merges do not fit"):
        Tokenizer.from_gguf(metadata("no prefix", **changes | {"merges": ["s zz"]}))


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_text_of_sentencepiece(name: str) -> None:
    """An unknown token is special to us and gives no text; SentencePiece writes a sign for it."""
    ours, model = Tokenizer.from_gguf(metadata(name)), GOLDEN["models"][name]
    pairs = list(zip(model["ids"], model["decoded"], strict=True))
    known = [pair for pair in pairs if UNKNOWN not in pair[0]]
    assert len(known) > 50
    for ids, text in known:
        assert ours.decode(ids) == text
        stream = ours.stream()
        assert "".join([*map(stream.add, ids), stream.finish()]) == text


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_from_a_file(tmp_path: Path, name: str) -> None:
    """The types that GGUF has for scores, token types and flags."""
    model = GOLDEN["models"][name]["metadata"]
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(model["tokens"])
    writer.add_token_scores(model["scores"])
    writer.add_token_types(model["token_type"])
    writer.add_add_space_prefix(model["add_space_prefix"])
    writer.add_remove_extra_whitespaces(model["remove_extra_whitespaces"])
    writer.add_bos_token_id(BOS)
    writer.add_unk_token_id(UNKNOWN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "m.gguf") as file:
        ours = Tokenizer.from_gguf(file.metadata)
    for text, ids in zip(GOLDEN["texts"][:60], GOLDEN["models"][name]["ids"], strict=False):
        assert ours.encode(text) == [BOS, *ids]


def test_bos_is_added_unless_the_file_says_otherwise() -> None:
    bare = Tokenizer.from_gguf(metadata("prefix")).encode("sea", add_special_tokens=False)
    assert Tokenizer.from_gguf(metadata("prefix")).encode("sea") == [BOS, *bare]
    changed = metadata("prefix", add_bos_token=False, add_eos_token=True)
    assert Tokenizer.from_gguf(changed).encode("sea") == [*bare, EOS]


def test_text_that_goes_on_keeps_its_space() -> None:
    """The first token of a whole text gives no space; the first of what follows a prompt does."""
    ours = Tokenizer.from_gguf(metadata("prefix"))
    whole = ours.encode("sea shells by the sea")
    for cut in range(1, len(whole)):
        stream = ours.stream(after=whole[:cut])
        text = "".join([*map(stream.add, whole[cut:]), stream.finish()])
        assert ours.decode(whole[:cut]) + text == "sea shells by the sea"


def test_control_tokens_are_parsed_and_text_behind_one_begins_anew() -> None:
    """As in llama.cpp and in transformers' Llama 2: each run of text has the space before it."""
    ours = Tokenizer.from_gguf(metadata("prefix"))
    sea = ours.encode("sea", add_special_tokens=False)
    assert ours.encode("<s>sea</s>sea", add_special_tokens=False) == [BOS, *sea, EOS, *sea]
    assert ours.decode([BOS, *sea, EOS]) == "sea"
    assert ours.eos_ids == (EOS,) and ours.bos_id == BOS


def test_an_html_tag_is_no_end_of_turn() -> None:
    """Gemma's vocabulary has "</s>" as a user-defined token: what strikes text out in HTML."""
    tokens = list(GOLDEN["models"]["no prefix"]["metadata"]["tokens"])
    tokens[EOS], tokens[tokens.index("</b>")] = "<eos>", "</s>"
    ours = Tokenizer.from_gguf(metadata("no prefix", tokens=tokens))
    assert ours.eos_ids == (EOS,)
    assert ours.decode(ours.encode("sea</s>sea")) == "sea</s>sea"


def test_runs_of_spaces_share_a_score() -> None:
    """As in the files of Llama 2 and Mistral: they are made from the left, as long as may be."""
    runs = [" ", "  ", "   ", "    ", "      "]  # 1 to 4 and 6
    tokens = ["<unk>", "<s>", "</s>", *(run.replace(" ", "\u2581") for run in runs), "a"]
    changes = {
        "tokens": tokens, "token_type": np.array([2, 3, 3, 1, 1, 1, 1, 1, 1], np.int32),
        "scores": np.array([0, 0, 0, -9, -9, -9, -9, -9, -1], np.float32),
    }  # fmt: skip
    ours = Tokenizer.from_gguf(metadata("no prefix", **changes))
    one, two, three, four, six = range(3, 8)
    for count, expected in enumerate(
        ([one], [two], [three], [four], [four, one], [six], [six, one], [six, two], [six, three],
         [six, four], [six, four, one], [six, six]), 1,
    ):  # fmt: skip
        assert ours.encode(" " * count, False) == expected


def test_an_end_of_turn_that_is_called_user_defined_is_a_control_token() -> None:
    """Old Gemma files do; llama.cpp overrides them."""
    tokens = list(GOLDEN["models"]["no prefix"]["metadata"]["tokens"])
    at = tokens.index("[INST]")
    tokens[at] = "<end_of_turn>"
    ours = Tokenizer.from_gguf(metadata("no prefix", tokens=tokens))
    assert ours.eos_ids == (EOS, at) and ours.is_special(at)
    assert ours.encode("sea<end_of_turn>")[-1] == at


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "tokenizer.ggml.scores must be 700 numbers"),
        ({"scores": np.zeros(3, np.float32)}, "tokenizer.ggml.scores must be 700 numbers"),
        ({"scores": np.full(700, np.nan, np.float32)}, "tokenizer.ggml.scores must be 700"),
        ({"scores": np.full(700, -1000, np.float32)}, "have one score, -1000"),
        ({"scores": ["x"] * 700}, "tokenizer.ggml.scores must be 700 numbers"),
    ],
)
def test_scores_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(metadata("prefix", **changes), "f.gguf")


def test_without_bytes_there_must_be_an_unknown_token() -> None:
    with pytest.raises(TokenizerError, match="neither 256 byte tokens nor an unknown_token_id"):
        Tokenizer.from_gguf(metadata("no bytes", unknown_token_id=None))
    Tokenizer.from_gguf(metadata("prefix", unknown_token_id=None))
