"""Tokenizers of model folders: tokenizer.json and what lies around it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, models, normalizers, processors
from tokenizers import Tokenizer as Inner

from boostr.errors import TokenizerError
from boostr.io.special_tokens import SpecialTokens
from boostr.io.tokenizer import Tokenizer

Train = Callable[[str], Inner]


def folder_of(tmp_path: Path, inner: Inner, **files: Any) -> Path:
    inner.save(str(tmp_path / "tokenizer.json"))
    for name, value in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path


def test_folder(tmp_path: Path, train_bpe: Train) -> None:
    inner = train_bpe("smollm")
    inner.enable_truncation(3)
    inner.enable_padding(length=50)
    config = {
        "eos_token": {"content": "<|im_end|>"},
        "bos_token": "<|im_start|>",
        "pad_token": None,
        "unk_token": "<not there>",
        "chat_template": "{{ bos_token }}{{ messages[0].content }}",
    }
    ours = Tokenizer.from_folder(folder_of(tmp_path, inner, tokenizer_config=config))
    text = "one two three four five six"
    assert ours.decode(ours.encode(text)) == text  # neither truncated nor padded
    assert (ours.bos_id, ours.eos_ids, ours.pad_id) == (1, (2,), None)
    assert ours.special.names == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert ours.apply_chat_template([{"role": "user", "content": "x"}]) == "<|im_start|>x"
    assert ours.vocab_size == 600


def test_folder_with_tokenizer_json_only(tmp_path: Path, train_bpe: Train) -> None:
    ours = Tokenizer.from_folder(folder_of(tmp_path, train_bpe("gpt-2")))
    assert ours.special == SpecialTokens() and ours.decode(ours.encode("hi")) == "hi"


def test_folder_special_tokens_map(tmp_path: Path, train_bpe: Train) -> None:
    names = {"eos_token": "<|endoftext|>", "pad_token": {"content": "<|im_end|>"}}
    folder = folder_of(
        tmp_path,
        train_bpe("gpt-2"),
        special_tokens_map=names,
        tokenizer_config={"eos_token": "hi"[0]},
    )
    ours = Tokenizer.from_folder(folder)  # tokenizer_config.json wins
    assert ours.eos_ids == (ours.token_to_id("h"),) and ours.pad_id == 2
    assert ours.is_special(ours.eos_ids[0])


@pytest.mark.parametrize(
    ("flags", "before", "behind"),
    [
        ({"add_bos_token": True}, [1], []),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ({"add_bos_token": False}, [], []),
        ({"add_bos_token": None, "add_eos_token": True}, [], [2]),
        ({}, [], []),
    ],
)
def test_folder_adds_bos_and_eos(
    tmp_path: Path, train_bpe: Train, flags: dict[str, bool], before: list[int], behind: list[int]
) -> None:
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", **flags}
    ours = Tokenizer.from_folder(folder_of(tmp_path, train_bpe("gpt-2"), tokenizer_config=config))
    assert ours.encode("x") == [*before, *ours.encode("x", False), *behind]


@pytest.mark.parametrize(
    ("flags", "before", "behind"),
    [
        ({}, [1], []),
        ({"add_eos_token": False}, [1], []),
        ({"add_bos_token": None, "add_eos_token": None}, [1], []),
        ({"add_eos_token": True}, [1], [2]),
        ({"add_bos_token": False}, [], []),
    ],
)
def test_folder_whose_tokenizer_adds_bos(
    tmp_path: Path, train_bpe: Train, flags: dict[str, Any], before: list[int], behind: list[int]
) -> None:
    """A flag that is missing or null leaves what tokenizer.json does."""
    inner = train_bpe("gpt-2")
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", **flags}
    ours = Tokenizer.from_folder(folder_of(tmp_path, inner, tokenizer_config=config))
    assert ours.encode("x") == [*before, *ours.encode("x", False), *behind]


def test_folder_that_surrounds_texts_otherwise(tmp_path: Path, train_bpe: Train) -> None:
    """Flags that say what is so already leave [CLS] and [SEP] where they are."""
    inner = train_bpe("gpt-2")
    inner.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<|im_start|> $A <|im_end|>",
        special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)],
    )
    config = {"bos_token": "<|endoftext|>", "add_bos_token": False, "add_eos_token": False}
    ours = Tokenizer.from_folder(folder_of(tmp_path, inner, tokenizer_config=config))
    assert ours.encode("x") == [1, *ours.encode("x", False), 2]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "hallo é e"), ({"do_lower_case": False}, "Hallo É E"),
        ({"do_lower_case": None}, "hallo é e"),
        ({"do_lower_case": True, "strip_accents": True}, "hallo e e"),
        ({"strip_accents": True}, "hallo e e"),
    ],
)  # fmt: skip
def test_folder_of_bert(tmp_path: Path, config: dict[str, Any], text: str) -> None:
    """As transformers: BERT's normalizer is set by tokenizer_config.json where that speaks."""
    vocab = ["[UNK]", *"abcdefghijklmnopqrstuvwxyzHEÉé"]
    inner = Inner(models.WordPiece({t: i for i, t in enumerate(vocab)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(strip_accents=False)  # type: ignore[assignment]
    folder = folder_of(tmp_path, inner, tokenizer_config=config)
    ours = Tokenizer.from_folder(folder)
    assert ours.inner.normalizer.normalize_str("Hallo É E") == text  # type: ignore


def test_folder_flags_of_added_tokens(tmp_path: Path, train_bpe: Train) -> None:
    """tokenizer_config.json wins over tokenizer.json; a token is normalized unless special."""
    inner = train_bpe("gpt-2")
    inner.add_tokens([AddedToken("<m>", normalized=False), AddedToken("<n>", lstrip=True)])
    decoder = {"600": {"content": "<m>", "lstrip": True, "special": True},
               "601": {"content": "<n>"}, "602": {"content": "<o>", "special": False}}  # fmt: skip
    config = {"added_tokens_decoder": decoder}
    ours = Tokenizer.from_folder(folder_of(tmp_path, inner, tokenizer_config=config))
    assert ours.decode(ours.encode("a  <m>"), False) == "a<m>" and ours.is_special(600)
    assert ours.decode(ours.encode("a  <n>")) == "a  <n>"
    added = ours.inner.get_added_tokens_decoder()
    assert [added[i].normalized for i in (600, 601, 602)] == [False, True, True]


def test_folder_special_tokens_without_a_name(tmp_path: Path, train_bpe: Train) -> None:
    config = {"additional_special_tokens": ["h", {"content": "i"}, "<not there>"],
              "extra_special_tokens": {"image_token": "j"}}  # fmt: skip
    ours = Tokenizer.from_folder(folder_of(tmp_path, train_bpe("gpt-2"), tokenizer_config=config))
    assert ours.decode(ours.encode("h i j k")) == "   k" and ours.vocab_size == 600


def test_folder_added_tokens(tmp_path: Path, train_bpe: Train) -> None:
    decoder = {
        "0": {"content": "<|endoftext|>", "special": True},
        "601": {"content": "<b>", "special": False},
        "600": {"content": "<a>", "special": True},
    }
    config = {"added_tokens_decoder": decoder}
    ours = Tokenizer.from_folder(folder_of(tmp_path, train_bpe("gpt-2"), tokenizer_config=config))
    ids = ours.encode("<a><b>")
    assert ids == [600, 601] and ours.vocab_size == 602 and ours.decode(ids) == "<b>"


def test_folder_chat_templates(tmp_path: Path, train_bpe: Train) -> None:
    rows = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    folder = folder_of(tmp_path, train_bpe("gpt-2"), tokenizer_config={"chat_template": rows})
    assert Tokenizer.from_folder(folder).special.templates == {"default": "a", "tool_use": "b"}
    (folder / "chat_template.jinja").write_text("c")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("d")
    (folder / "additional_chat_templates" / "._rag.jinja").write_bytes(b"\0\5\x16\7\xff")  # macOS
    expected = {"default": "c", "tool_use": "b", "rag": "d"}
    assert Tokenizer.from_folder(folder).special.templates == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer"),
        ("tokenizer.json", b"\xff", "tokenizer.json: cannot be read"),
        ("tokenizer_config.json", "[]", "expected a JSON object"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: not JSON"),
        ("tokenizer_config.json", "[" * 100_000, "not JSON"),
        ("tokenizer_config.json", '{"eos_token": 5}', "eos_token must be a string"),
        ("tokenizer_config.json", '{"add_bos_token": "yes"}', "add_bos_token must be true or"),
        ("tokenizer_config.json", '{"split_special_tokens": true}', "split_special_tokens = True"),
        ("tokenizer_config.json", '{"model_max_length": -1}', "must be 1 or more, got -1"),
        ("tokenizer_config.json", '{"eos_token": "<no>"}', "'<no>' is not in the vocabulary"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template must be a string"),
        ("tokenizer_config.json", '{"chat_template": [5]}', "chat_template must be a string"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a"}]}', "chat_template must"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder must"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"a": {"content": "b"}}}', "must map"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"900": {"content": "<b>"}}}',
         "must have id 900, but tokenizer.json gives 600"),
        ("special_tokens_map.json", "1", "expected a JSON object"),
        ("chat_template.jinja", b"\xff\xfe", "chat_template.jinja: cannot be read"),
    ],
)  # fmt: skip
def test_folder_with_a_malformed_file(
    tmp_path: Path, train_bpe: Train, name: str, text: str | bytes, message: str
) -> None:
    folder_of(tmp_path, train_bpe("gpt-2"))
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_folder_without_any_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"json: no such file, nor vocab.*save_pretrained"):
        Tokenizer.from_folder(tmp_path)


def test_added_token_flags_are_kept(tmp_path: Path, train_bpe: Train) -> None:
    inner = train_bpe("gpt-2")
    inner.add_special_tokens([AddedToken("<m>", lstrip=True)])
    ours = Tokenizer.from_folder(folder_of(tmp_path, inner, tokenizer_config={"mask_token": "<m>"}))
    assert ours.decode(ours.encode("a  <m>"), False) == "a<m>"
