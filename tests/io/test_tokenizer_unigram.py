"""Unigram from GGUF metadata: the ids and texts of the package sentencepiece itself."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boostr.errors import TokenizerError
from boostr.io.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parent / "data" / "unigram.json").read_text("utf-8"))
UNKNOWN, BOS, EOS = 0, 1, 2


def metadata(name: str, **changes: Any) -> dict[str, Any]:
    """What a GGUF file of a model of the golden file says."""
    model = GOLDEN["models"][name]
    made = model["metadata"] | {
        "model": "t5",
        "scores": np.array(model["metadata"]["scores"], np.float32),
        "token_type": np.array(model["metadata"]["token_type"], np.int32),
        "precompiled_charsmap": np.frombuffer(base64.b64decode(model["charsmap"]), np.int8),
        "unknown_token_id": UNKNOWN,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    made |= changes
    return {f"tokenizer.ggml.{key}": value for key, value in made.items() if value is not None}


@pytest.mark.parametrize("name", GOLDEN["models"])
def test_ids_and_text_of_sentencepiece(name: str) -> None:
    ours, model = Tokenizer.from_gguf(metadata(name)), GOLDEN["models"][name]
    for text, ids, decoded in zip(GOLDEN["texts"], model["ids"], model["decoded"], strict=True):
        if "\r\n" in text:  # one character to tokenizers' map of characters: one space, not two
            continue
        assert ours.encode(text, add_special_tokens=False) == ids, text
        if UNKNOWN not in ids:
            assert ours.decode(ids) == decoded
            stream = ours.stream()
            assert "".join([*map(stream.add, ids), stream.finish()]) == decoded


def test_eos_behind_a_text_unless_the_file_says_otherwise() -> None:
    """T5's way; XLM-R's has BOS too, and says how two texts are joined."""
    bare = Tokenizer.from_gguf(metadata("trimmed")).encode("sea", add_special_tokens=False)
    assert Tokenizer.from_gguf(metadata("trimmed")).encode("sea") == [*bare, EOS]
    ours = Tokenizer.from_gguf(metadata("trimmed", add_bos_token=True, add_sep_token=True))
    assert ours.encode("sea") == [BOS, *bare, EOS]
    assert ours.inner.encode("sea", "sea").ids == [BOS, *bare, EOS, EOS, *bare, EOS]
    assert set(ours.inner.encode("sea", "sea").type_ids) == {0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "tokenizer.ggml.scores must be 268 numbers"),
        ({"unknown_token_id": None}, "needs tokenizer.ggml.unknown_token_id"),
        ({"precompiled_charsmap": np.zeros(3, np.int8)}, "precompiled_charsmap is no map"),
        ({"precompiled_charsmap": np.zeros(3, np.int32)}, "precompiled_charsmap is no map"),
        ({"precompiled_charsmap": "x"}, "precompiled_charsmap is no map"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(metadata("trimmed", **changes), "f.gguf")
