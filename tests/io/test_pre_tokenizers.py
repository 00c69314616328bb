"""The pre-tokenizers that a GGUF file names cut as those of the models' own tokenizer.json do.

data/pre_tokenizers.json has the normalizer and pre-tokenizer of a checkpoint of each class as its
tokenizer.json has them; of exaone-moe and jais-2 as llama.cpp quotes them.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tokenizer import TEXTS
from tokenizers import Tokenizer as Inner

from boostr.errors import TokenizerError
from boostr.io.detokenizer import BYTE_OF
from boostr.io.pre_tokenizers import PRE_TOKENIZERS
from boostr.io.tokenizer import Tokenizer

ORIGINALS = json.loads((Path(__file__).parent / "data" / "pre_tokenizers.json").read_text("utf-8"))
MORE = [
    "1234567 12345678 999 ١٢٣٤٥ ³³³ ½½½½ 1,234,567.89", "x1y22z333 a1234b", "   \n\n \t \r\n  end ",
    "it's IT'S we'LL 'sure '' `` 'S", "CamelCaseWORDSandMore XMLHttpRequest iPhone", "नमस्ते दुनिया",
    "漢字かなカナ漢字 한국어text混ぜ", "a.b,c!d?e…f。g，h、i।j۔k،l", "//// path/to/x\n/y ==\r\n",
    "ǅ ʼn ﬁ 𝐀𝐛 Ⴀ é̂", "нещо на Български ò", " " * 70 + "x", "(a) [b] {c} <d>\n\n\n(e)",
    "“q” ‘r’ —：；（x）", "ㄅㄆ ㄱㄴ ︰",
]  # fmt: skip


def byte_vocabulary(pre: str, **more: Any) -> dict[str, Any]:
    """A whole vocabulary without merges: one token a byte, as GGUF metadata."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*BYTE_OF, "<s>"],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": np.array([1] * 256 + [3], np.int32),
        "tokenizer.ggml.bos_token_id": 256,
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


def texts() -> list[str]:
    rng, words = random.Random(0), [*TEXTS, *MORE]
    pieces = [word for text in words for word in (text, *text.split(" "), " ", "\n", "7")]
    return [*words, *("".join(rng.choices(pieces, k=6)) for _ in range(200))]


@pytest.mark.parametrize("name", ORIGINALS)
def test_pieces_of_the_original(name: str) -> None:
    stated = ORIGINALS[name]
    original = Inner.from_str(
        json.dumps({
            "normalizer": stated["normalizer"],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": stated["pre_tokenizer"]},
            "model": {"type": "BPE", "vocab": {}, "merges": []},
        })
    )  # fmt: skip
    ours = Tokenizer.from_gguf(byte_vocabulary(name)).inner
    for text in texts():
        cut, expected = (
            t.pre_tokenizer.pre_tokenize_str(  # type: ignore[union-attr]
                t.normalizer.normalize_str(text) if t.normalizer else text
            )
            for t in (ours, original)
        )
        assert [piece for piece, _ in cut] == [piece for piece, _ in expected], text
    assert PRE_TOKENIZERS[name].whole_words == stated["ignore_merges"]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_nothing_is_lost(name: str) -> None:
    """Every class gives all bytes of a text, composed if its models compose."""
    ours = Tokenizer.from_gguf(byte_vocabulary(name))
    for text in [*TEXTS, *MORE]:
        normalizer = ours.inner.normalizer
        expected = normalizer.normalize_str(text) if normalizer else text
        assert ours.decode(ours.encode(text, False), False) == expected
    assert ours.encode("") == ([256] if PRE_TOKENIZERS[name].add_bos else [])


def test_digits_in_groups_from_the_right() -> None:
    """SuperBPE's second regex matches nothing, before each group of three."""
    ours = Tokenizer.from_gguf(byte_vocabulary("superbpe")).inner
    cut = ours.pre_tokenizer.pre_tokenize_str("a1234567 12")  # type: ignore[union-attr]
    assert [piece for piece, _ in cut] == ["a", "1", "234", "567", "Ġ", "12"]


def test_whole_words_are_taken_without_merges() -> None:
    """A token that no merges make: llama-bpe finds it, dbrx, of the same regex, does not."""
    tokens = [*BYTE_OF, "<s>", "Ġcat"]
    changes = {"tokens": tokens, "token_type": np.array([1] * 256 + [3, 1], np.int32)}
    for name, expected in (("llama-bpe", 1), ("dbrx", 4)):
        ours = Tokenizer.from_gguf(byte_vocabulary(name, **changes))
        assert len(ours.encode(" cat", False)) == expected


@pytest.mark.parametrize("pre", ["falcon-h1", "afmoe", "", None, 3])
def test_names_that_are_not_known(pre: Any) -> None:
    with pytest.raises(TokenizerError, match=r"pre is .*boostr knows default, gpt-2.*gemma4"):
        Tokenizer.from_gguf(byte_vocabulary(pre))
