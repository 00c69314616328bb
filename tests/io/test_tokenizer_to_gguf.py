"""Tokenizers as GGUF metadata: what is built from it gives the same ids, and nothing is guessed."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_pre_tokenizers import ORIGINALS, texts
from test_tokenizer_unigram import GOLDEN as UNIGRAM
from test_tokenizer_unigram import metadata as unigram
from test_tokenizer_wordpiece import CLS, SEP, bert
from test_tokenizer_wordpiece import metadata as wordpiece
from tokenizers import Tokenizer as Inner
from tokenizers import models, normalizers, pre_tokenizers, processors

from boostr.errors import TokenizerError
from boostr.io.detokenizer import BYTE_OF
from boostr.io.gguf import GGUFFile
from boostr.io.gguf_writer import write_gguf
from boostr.io.pre_tokenizers import PRE_TOKENIZERS
from boostr.io.special_tokens import SpecialTokens
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_to_gguf import gguf_tokenizer

GPT2 = ORIGINALS["gpt-2"]


def byte_bpe(stated: dict[str, Any], **model: Any) -> Inner:
    """A tokenizer of bytes without merges that cuts as stated; id 256 is a BOS, 257 an EOS."""
    state = {"type": "BPE", "vocab": dict(zip(BYTE_OF, range(256), strict=True)), "merges": []}
    pre = {"type": "Sequence", "pretokenizers": stated["pre_tokenizer"]}
    state |= {"ignore_merges": stated["ignore_merges"]} | model
    inner = Inner.from_str(
        json.dumps({"normalizer": stated["normalizer"], "pre_tokenizer": pre, "model": state})
    )
    inner.add_special_tokens(["<s>", "</s>"])
    return inner


def written(inner: Inner, rows: int = 260, **names: str) -> dict[str, Any]:
    return gguf_tokenizer(Tokenizer(inner, SpecialTokens(names), "folder"), rows)


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_class_is_recognised_by_its_regexes(name: str) -> None:
    inner = byte_bpe(ORIGINALS[name])
    made = written(inner, bos_token="<s>", eos_token="</s>")
    known, ours = PRE_TOKENIZERS[made["tokenizer.ggml.pre"]], PRE_TOKENIZERS[name]
    assert (known.patterns, known.of_bytes, known.nfc) == (ours.patterns, ours.of_bytes, ours.nfc)
    assert known.whole_words == ours.whole_words
    assert (made["tokenizer.ggml.bos_token_id"], made["tokenizer.ggml.add_bos_token"]) == (256, 0)
    again = Tokenizer.from_gguf(made)
    for text in texts():
        assert again.encode(text) == inner.encode(text).ids, text
    assert again.eos_ids == (257,) and again.vocab_size == 260


def cat(name: str, ignore_merges: bool) -> Inner:
    """With a token that no merges make."""
    vocab = dict(zip([*BYTE_OF, "Ġcat"], range(257), strict=True))
    return byte_bpe(ORIGINALS[name] | {"ignore_merges": ignore_merges}, vocab=vocab)


def test_whole_words_count_only_where_merges_do_not_make_them() -> None:
    unlike = byte_bpe(ORIGINALS["gpt-4o"] | {"ignore_merges": False})
    assert written(unlike)["tokenizer.ggml.pre"] == "gpt-4o"
    assert written(cat("gpt-4o", True))["tokenizer.ggml.pre"] == "gpt-4o"
    assert written(cat("gpt-2", False))["tokenizer.ggml.pre"] == "gpt-2"
    for name, ignore_merges in (("gpt-4o", False), ("gpt-2", True)):
        with pytest.raises(TokenizerError, match=r"^folder: no pre-tokenizer of GGUF that boostr"):
            written(cat(name, ignore_merges))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "NFKC"}}, r"no pre-tokenizer of GGUF.*ByteLevel.*knows default"),
        ({"pre_tokenizer": [{"type": "Split", "pattern": {"Regex": "x+"}, "invert": False,
                             "behavior": "Isolated"}, *GPT2["pre_tokenizer"]]}, r"'x\+'"),
        ({"pre_tokenizer": [{"type": "Split", "pattern": {"Regex": r"\p{N}"}, "invert": False,
                             "behavior": "Removed"}, *GPT2["pre_tokenizer"]]}, "cuts text as this"),
        ({"pre_tokenizer": [{"type": "Split", "pattern": {"Regex": r"\p{N}"}, "invert": True,
                             "behavior": "Removed"}, *GPT2["pre_tokenizer"]]}, "cuts text otherwi"),
        ({"pre_tokenizer": [GPT2["pre_tokenizer"][0] | {"add_prefix_space": True}]}, "no pre-toke"),
        ({"pre_tokenizer": [{"type": "WhitespaceSplit"}]}, "WhitespaceSplit"),
    ],
)  # fmt: skip
def test_what_has_no_name_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        written(byte_bpe(GPT2 | change))


def test_models_that_gguf_has_no_form_for() -> None:
    with pytest.raises(TokenizerError, match="WordLevel is not written to GGUF; BPE, Unigram"):
        written(Inner(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(TokenizerError, match="no pre-tokenizer"):
        written(byte_bpe(GPT2, end_of_word_suffix="</w>"))


def test_a_token_behind_a_text_that_is_not_the_eos() -> None:
    """As llama.cpp's converter says it: the token added is EOS, the other ends a turn."""
    inner = byte_bpe(GPT2)
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="$A <s>", special_tokens=[("<s>", 256)]
    )
    again = Tokenizer.from_gguf(written(inner, eos_token="</s>"))
    assert again.encode("a")[1:] == [256] and again.eos_ids == (256, 257)


def test_two_tokens_before_a_text_are_refused() -> None:
    inner = byte_bpe(GPT2)
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> </s> $A", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    with pytest.raises(TokenizerError, match="cuts text otherwise"):
        written(inner)


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False, None])
def test_wordpiece(lowercase: bool, strip_accents: bool | None) -> None:
    inner = bert(lowercase, strip_accents)
    inner.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))  # type: ignore[assignment]
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = written(inner, inner.get_vocab_size() + 2, **names)
    again = Tokenizer.from_gguf(made)
    for text in texts():
        assert again.encode(text) == inner.encode(text).ids, text
    assert made["tokenizer.ggml.tokens"][-1].startswith("▁[PAD")
    read = Tokenizer.from_gguf(wordpiece(), "folder")
    tokens = gguf_tokenizer(read, read.vocab_size)["tokenizer.ggml.tokens"]
    assert tokens == wordpiece()["tokenizer.ggml.tokens"]


def test_wordpiece_that_is_not_berts() -> None:
    inner = bert(True, None)
    with pytest.raises(TokenizerError, match=r"one behind a text; .* and \['a'\] of the text 'a'"):
        written(inner)
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A", special_tokens=[("[CLS]", CLS)]
    )
    with pytest.raises(TokenizerError, match=r"and \['\[CLS\]', 'a'\] of the text 'a'"):
        written(inner)
    inner.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    with pytest.raises(TokenizerError, match="this one has Lowercase"):
        written(inner)


@pytest.mark.parametrize("name", UNIGRAM["models"])
def test_unigram(tmp_path: Path, name: str) -> None:
    said = unigram(name, add_bos_token=True, add_sep_token=True)
    ours = Tokenizer.from_gguf(said, "folder")
    made = gguf_tokenizer(ours, ours.vocab_size)
    write_gguf(tmp_path / "m.gguf", made, [])
    with GGUFFile(tmp_path / "m.gguf") as file:
        again = Tokenizer.from_gguf(file.metadata)
    for text in UNIGRAM["texts"]:
        assert again.encode(text) == ours.encode(text)
    assert again.inner.encode("sea", "sea").ids == ours.inner.encode("sea", "sea").ids
    for key in ("token_type", "scores", "precompiled_charsmap"):
        left, right = (data[f"tokenizer.ggml.{key}"] for data in (said, made))
        assert np.array_equal(left.view(right.dtype), right)


def test_unigram_of_a_folder() -> None:
    """XLM-R's pipeline: words that whitespace parts, and a token behind the pieces."""
    charsmap = base64.b64decode(UNIGRAM["models"]["trimmed"]["charsmap"])
    inner = Inner(models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("a", -1.0), ("▁a", -1.5)], 0))
    inner.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", "always")]
    )
    inner.normalizer = normalizers.Precompiled(charsmap)  # type: ignore[assignment]
    inner.add_special_tokens(["<mask>"])
    made = written(inner, 6, unk_token="<unk>", mask_token="<mask>")
    again = Tokenizer.from_gguf(made)
    for text in ("a", "  a  aa ", "xa x", "a<mask>a", ""):
        assert again.encode(text, False) == inner.encode(text).ids, text
    assert made["tokenizer.ggml.token_type"].tolist() == [2, 1, 1, 1, 3, 5]
    assert made["tokenizer.ggml.scores"].tolist() == [0, -2, -1, -1.5, -10000, -10000]
