"""WordPiece from GGUF metadata, against the pipeline that transformers' BertTokenizer builds."""

from typing import Any

import numpy as np
import pytest
from test_tokenizer import TEXTS
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers

from boostr.errors import TokenizerError
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_wordpiece import as_marked, as_written

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789éÀß你好ไทยśक"
WORDS = ["the", "capital", "of", "is", "##ance", "##ital", "fr", "<b>", "##", "▁"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
VOCAB = [
    *SPECIAL,
    *LETTERS,
    *(f"##{letter}" for letter in LETTERS),
    *",.!?'/:()[]{}=$%&#_;",
    *WORDS,
]
TYPES = np.array([3] * 5 + [1] * (len(VOCAB) - 5), np.int32)
CASES = [(True, None), (False, None), (True, False), (False, True)]  # lowercase, strip_accents


def metadata(**changes: Any) -> dict[str, Any]:
    made = {
        "model": "bert", "pre": "jina-v2-en", "tokens": as_marked(VOCAB, TYPES),
        "token_type": TYPES, "unknown_token_id": UNK, "cls_token_id": CLS, "mask_token_id": MASK,
        "seperator_token_id": SEP, "padding_token_id": PAD,
    } | changes  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in made.items() if value is not None}


def bert(lowercase: bool, strip_accents: bool | None) -> Inner:
    inner = Inner(models.WordPiece({t: i for i, t in enumerate(VOCAB)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(  # type: ignore[assignment]
        clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=lowercase
    )
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.decoder = decoders.WordPiece(prefix="##")  # type: ignore[assignment]
    inner.add_special_tokens(SPECIAL)
    return inner


@pytest.mark.parametrize(("lowercase", "strip_accents"), CASES)
def test_ids_of_bert(lowercase: bool, strip_accents: bool | None) -> None:
    more = {"normalizer.lowercase": lowercase, "normalizer.strip_accents": strip_accents}
    ours, original = Tokenizer.from_gguf(metadata(**more)), bert(lowercase, strip_accents)
    for text in [*TEXTS, "The CAPITAL of Fránce is x[MASK]y", "a" * 101, "ß[SEP]ÀÀ"]:
        ids = original.encode(text).ids
        assert ours.encode(text, add_special_tokens=False) == ids, text
        assert ours.encode(text) == [CLS, *ids, SEP]
        assert ours.decode(ids, False) == original.decode(ids, skip_special_tokens=False)


def test_case_is_lost_unless_the_file_says_otherwise() -> None:
    assert Tokenizer.from_gguf(metadata()).encode("É") == [CLS, VOCAB.index("e"), SEP]


def test_special_tokens() -> None:
    ours = Tokenizer.from_gguf(metadata())
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]",
             "sep_token": "[SEP]", "mask_token": "[MASK]"}  # fmt: skip
    assert ours.special.names == names and (ours.pad_id, ours.bos_id) == (PAD, None)
    pair = ours.inner.encode("a", "b")
    assert pair.ids == [CLS, VOCAB.index("a"), SEP, VOCAB.index("b"), SEP]
    assert pair.type_ids == [0, 0, 0, 1, 1]
    by_bos = metadata(cls_token_id=None, bos_token_id=CLS, add_bos_token=False)
    assert Tokenizer.from_gguf(by_bos).encode("a") == [CLS, VOCAB.index("a"), SEP]


def test_marks_of_words_are_turned_both_ways() -> None:
    assert as_written(as_marked(VOCAB, TYPES), TYPES) == VOCAB
    assert as_marked(["the", "##ance", "[CLS]"], TYPES[[9, 9, 0]]) == ["▁the", "ance", "[CLS]"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unknown_token_id": None}, "WordPiece needs tokenizer.ggml.unknown_token_id"),
        ({"cls_token_id": None}, "asks to add cls_token_id, but does not set it"),
        ({"seperator_token_id": None}, "asks to add seperator_token_id"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_gguf(metadata(**changes), "f.gguf")
