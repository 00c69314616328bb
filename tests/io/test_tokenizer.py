"""Tokenizers: from GGUF metadata as from tokenizer.json, streaming, folders, bad input."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import real_models
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers

from boostr.errors import TokenizerError
from boostr.io.detokenizer import BYTE_OF
from boostr.io.gguf import GGUFFile
from boostr.io.special_tokens import SpecialTokens
from boostr.io.tokenizer import Tokenizer

TEXTS = [
    "", " ", "The capital of France is", "Hello  world   \n\n\n  x",
    "\t\tdef f(x):\r\n    return x**2\n", "https://x.y/z?q=1&r=%20#s",
    "it's I'LL we'Ve don't 's", "1234567890 3.14159 1,000,000 x² ½ Ⅷ ٣٤",
    "你好 こんにちは 한국어 ไทย शक्ति",
    "é e\u0301 ﬁ Größe ÀÉ ǅ", "🤯👩‍👩‍👧‍👦 \U0001d54f", "<|im_start|>user\nhi<|im_end|>\n",
    "a_b.c(d)[e]{f}; // $100 == 100%",
    "\u00a0\u3000\u200b\u2028\ufeff", "\ufffd \x00\x07",
]  # fmt: skip
Train = Callable[[str], Inner]


@pytest.fixture(scope="module", params=["gpt-2", "smollm", "llama-bpe", "qwen2"])
def pair(request: pytest.FixtureRequest, train_bpe: Train) -> tuple[str, Inner, dict[str, Any]]:
    """(pre-tokenizer, the original tokenizer, the same as GGUF metadata)."""
    inner = train_bpe(request.param)
    state = json.loads(inner.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    types = np.ones(len(tokens), np.int32)
    types[:3] = 3
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]]
    return request.param, inner, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": request.param,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}{{ bos_token + m.content }}{% endfor %}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """A whole vocabulary without merges: ids 0-2 special, then one token a byte."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["<eot>", "<|im_start|>", "<|im_end|>", *BYTE_OF, "<x y>"],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.token_type": np.array([3, 3, 3] + [1] * 256 + [4], np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }


def test_gguf_gives_the_ids_of_the_original(pair: tuple[str, Inner, dict[str, Any]]) -> None:
    _, inner, metadata = pair
    ours = Tokenizer.from_gguf(metadata)
    rng = random.Random(0)
    pieces = [word for text in TEXTS for word in (text, text[: len(text) // 2], text[3:])]
    mixed = ["".join(rng.choices(pieces, k=6)) for _ in range(300)]
    for text in [*TEXTS, *mixed]:
        ids = ours.encode(text)
        assert ids == inner.encode(text).ids, text
        assert ours.decode(ids) == inner.decode(ids)
        assert ours.decode(ids, False) == inner.decode(ids, skip_special_tokens=False)


def test_gguf_round_trip(pair: tuple[str, Inner, dict[str, Any]]) -> None:
    pre, _, metadata = pair
    ours = Tokenizer.from_gguf(metadata)
    for text in TEXTS:
        expected = normalizers.NFC().normalize_str(text) if pre == "qwen2" else text
        assert ours.decode(ours.encode(text), skip_special_tokens=False) == expected


def test_gguf_special_tokens(pair: tuple[str, Inner, dict[str, Any]]) -> None:
    ours = Tokenizer.from_gguf(pair[2], "file.gguf")
    assert (ours.bos_id, ours.eos_ids, ours.pad_id) == (1, (2, 0), 0)
    assert ours.vocab_size == 600
    assert ours.token_to_id("<|im_end|>") == 2 and ours.id_to_token(2) == "<|im_end|>"
    assert ours.token_to_id("no such token") is None and ours.id_to_token(600) is None
    assert ours.id_to_token(-1) is None
    assert ours.is_special(0) and not ours.is_special(3) and not ours.is_special(10**6)
    assert ours.apply_chat_template([{"role": "user", "content": "x"}]) == "<|im_start|>x"


@pytest.mark.parametrize(
    ("pre", "flags", "before", "behind"),
    [
        ("smollm", {}, [], []),
        ("llama-bpe", {}, [1], []),
        ("llama-bpe", {"add_bos_token": False}, [], []),
        ("smollm", {"add_bos_token": True, "add_eos_token": True}, [1], [0]),
    ],
)
def test_gguf_adds_bos_and_eos(
    metadata: dict[str, Any], pre: str, flags: dict[str, bool], before: list[int], behind: list[int]
) -> None:
    more = {f"tokenizer.ggml.{key}": value for key, value in flags.items()}
    ours = Tokenizer.from_gguf({**metadata, "tokenizer.ggml.pre": pre, **more})
    bare = ours.encode("hi", add_special_tokens=False)
    assert len(bare) == 2 and ours.encode("hi") == [*before, *bare, *behind]
    assert ours.encode("") == [*before, *behind]


def test_gguf_user_defined_tokens_are_whole_but_not_special(metadata: dict[str, Any]) -> None:
    ours = Tokenizer.from_gguf(metadata)
    ids = ours.encode("a<x y><eot>")
    assert len(ids) == 3 and ids[1:] == [259, 0]
    assert ours.decode(ids) == "a<x y>" and ours.decode(ids, False) == "a<x y><eot>"
    assert not ours.is_special(259) and ours.eos_ids == (0, 2)  # <|im_end|> ends a turn, too


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        (["<|end|>", "<|return|>", "<|call|>"], (1, 2)), (["<|end|>", "<|return|>", "<z>"], (0, 1)),
        (["<turn|>", "<eos>", "</s>"], (0, 1, 2)), (["[EOS]", "<z>", "<EOT>"], (0, 2)),
    ],
)  # fmt: skip
def test_gguf_tokens_that_end_a_turn(
    metadata: dict[str, Any], texts: list[str], ends: tuple[int, ...]
) -> None:
    """By their text; gpt-oss goes on behind an <|end|>."""
    tokens = [*texts, *metadata["tokenizer.ggml.tokens"][3:]]
    changed = metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.eos_token_id": ends[0]}
    assert Tokenizer.from_gguf(changed).eos_ids == ends


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "tokenizer model None"),
        (
            {"model": "rwkv"},
            r"'rwkv' is not known; boostr builds.*'t5' \(unigram\).*tokenizer.json",
        ),
        ({"pre": None}, "pre is None; boostr knows default, gpt-2.*does not guess"),
        ({"pre": "falcon-h1"}, "pre is 'falcon-h1'"),
        ({"pre": 3}, "pre is 3"),
        ({"tokens": None}, "tokens must be a list of strings, got nothing"),
        ({"tokens": []}, "distinct"),
        ({"tokens": ["a", "a"]}, "1 of them repeated"),
        ({"tokens": np.arange(3)}, "got ndarray"),
        ({"merges": None}, "merges must be a list of strings"),
        ({"merges": ["ab"]}, "two tokens and a space"),
        ({"merges": ["a "]}, "two tokens and a space"),
        ({"merges": ["a zz"]}, "vocabulary and merges"),
        ({"merges": ["a b"]}, "vocabulary and merges"),
        ({"token_type": np.ones(3, np.int32)}, "260 integers"),
        ({"token_type": np.ones(260, np.float32)}, "260 integers"),
        ({"token_type": [1] * 260}, "260 integers"),
        ({"eos_token_id": 260}, r"eos_token_id must be in \[0, 260\), got 260"),
        ({"bos_token_id": -1}, "bos_token_id"),
        ({"bos_token_id": "1"}, "bos_token_id"),
        ({"bos_token_id": None, "add_bos_token": True}, "does not set it"),
    ],
)
def test_gguf_metadata_that_cannot_be_a_tokenizer(
    metadata: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    changed = {**metadata, **{f"tokenizer.ggml.{key}": value for key, value in change.items()}}
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_gguf(changed, "f.gguf")
    assert str(caught.value).startswith("f.gguf: ")


def test_gguf_named_chat_templates(metadata: dict[str, Any]) -> None:
    ours = Tokenizer.from_gguf(
        {**metadata, "tokenizer.chat_template": "a", "tokenizer.chat_template.tool_use": "b"}
    )
    messages = [{"role": "user", "content": "x"}]
    assert ours.apply_chat_template(messages) == "a"
    assert ours.apply_chat_template(messages, tools=[{"name": "f"}]) == "b"
    assert ours.apply_chat_template(messages, template="tool_use") == "b"
    with pytest.raises(TokenizerError, match=r"'rag' \(it has: default, tool_use\)"):
        ours.apply_chat_template(messages, template="rag")


def test_tools_for_a_template_that_takes_none(metadata: dict[str, Any]) -> None:
    ours = Tokenizer.from_gguf({**metadata, "tokenizer.chat_template": "a"})
    messages = [{"role": "user", "content": "x"}]
    with pytest.raises(TokenizerError, match="its chat template takes no tools"):
        ours.apply_chat_template(messages, tools=[{"name": "f"}])
    assert ours.apply_chat_template(messages, tools=[]) == "a"


def test_without_a_chat_template(metadata: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"it has: none.*--raw"):
        Tokenizer.from_gguf(metadata).apply_chat_template([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("messages", [[{"content": "x"}], ["x"], [{"role": 1}]])
def test_messages_must_have_roles(metadata: dict[str, Any], messages: Any) -> None:
    ours = Tokenizer.from_gguf({**metadata, "tokenizer.chat_template": "a"})
    with pytest.raises(TokenizerError, match=r"messages\[0\] must be a dict with a 'role'"):
        ours.apply_chat_template(messages)


def test_keys_that_are_none_are_left_out(metadata: dict[str, Any]) -> None:
    """As in transformers: an assistant turn that only calls tools has the content None."""
    source = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ m.name is defined or '' }};"
        "{% endfor %}"
    )
    ours = Tokenizer.from_gguf({**metadata, "tokenizer.chat_template": source})
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    messages = [
        {"role": "user", "content": "hi", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    assert ours.apply_chat_template(messages) == "user:hi;assistant:;"
    assert messages[1]["content"] is None


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"reasoning": "r"}, "rr"), ({"thinking": "t", "reasoning": "r"}, "tt"),
        ({"reasoning_content": "c", "thinking": "t"}, "tc"), ({"reasoning_content": None}, ""),
    ],
)  # fmt: skip
def test_reasoning_has_the_names_that_templates_read(
    metadata: dict[str, Any], message: dict[str, Any], expected: str
) -> None:
    """transformers 5.24: `reasoning_content`, and `thinking` where there is none."""
    source = "{{ messages[0].thinking }}{{ messages[0].reasoning_content }}"
    ours = Tokenizer.from_gguf({**metadata, "tokenizer.chat_template": source})
    assert ours.apply_chat_template([{"role": "assistant", **message}]) == expected


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        ("{{ messages[-1].content }}</s>", "go on ", "go on "),
        ("{{ messages[-1].content | trim }}</s>", "go on ", "go on"),
        ("{{ messages[-1].content | trim }}</s>", " go  on", "go  on"),
        ("{{ messages[-1].content[0].text }}</s>", [{"type": "text", "text": "a"}], "a"),
        ("{{ messages[-1].content }}{% if add_generation_prompt %}x{% endif %}", "", ""),
    ],
)
def test_the_final_message_goes_on(
    metadata: dict[str, Any], source: str, content: Any, expected: str
) -> None:
    ours = Tokenizer.from_gguf({**metadata, "tokenizer.chat_template": source})
    message = {"role": "assistant", "content": content}
    for part in (True, "content"):
        assert ours.apply_chat_template([message], continue_final_message=part) == expected


@pytest.mark.parametrize("content", [None, 3, [], [{"type": "image"}]])
def test_a_final_message_without_text(metadata: dict[str, Any], content: Any) -> None:
    ours = Tokenizer.from_gguf(
        {**metadata, "tokenizer.chat_template": "{{ messages[-1].content }}"}
    )
    with pytest.raises(TokenizerError, match="must have a text to continue"):
        ours.apply_chat_template([{"role": "a", "content": content}], continue_final_message=True)
    hides = Tokenizer.from_gguf({**metadata, "tokenizer.chat_template": "hidden"})
    with pytest.raises(TokenizerError, match="does not show the text of the last message"):
        hides.apply_chat_template([{"role": "a", "content": "b"}], continue_final_message=True)


def test_template_variables(metadata: dict[str, Any]) -> None:
    """`tools` and `documents` are None, not missing, where there are none."""
    source = "{{ eos_token }}{{ thinking }}{{ [tools, documents] }}{{ add_generation_prompt }}"
    ours = Tokenizer.from_gguf({**metadata, "tokenizer.chat_template": source})
    got = ours.apply_chat_template([], thinking=False, add_generation_prompt=False)
    assert got == "<eot>False[None, None]False"


@pytest.mark.parametrize("text", ["a\udcff", "\ud800", "x" * 1000 + "\udfff"])
def test_half_surrogates_are_refused(metadata: dict[str, Any], text: str) -> None:
    with pytest.raises(TokenizerError, match=f"UTF-8: character {len(text) - 1} is"):
        Tokenizer.from_gguf(metadata).encode(text)


@pytest.mark.parametrize("text", [None, 3, b"bytes", ["a"]])
def test_only_text_is_encoded(metadata: dict[str, Any], text: Any) -> None:
    with pytest.raises(TokenizerError, match="expected a str to encode, got"):
        Tokenizer.from_gguf(metadata).encode(text)


def test_ids_out_of_range(metadata: dict[str, Any]) -> None:
    ours = Tokenizer.from_gguf(metadata)
    assert ours.decode([10**6]) == ours.stream().add(10**6) == ""
    assert ours.decode(np.array(ours.encode("hi"), np.int64)) == "hi"
    for bad in (-1, 2**32):
        with pytest.raises(TokenizerError, match=f"token ids must be .*got {bad}"):
            ours.decode([1, bad])


def pieces_of(tokenizer: Tokenizer, ids: list[int], skip: bool = True) -> list[str]:
    stream = tokenizer.stream(skip_special_tokens=skip)
    return [*(stream.add(id_) for id_ in ids), stream.finish()]


def test_stream_never_gives_half_a_character(metadata: dict[str, Any]) -> None:
    ours = Tokenizer.from_gguf(metadata)  # one token for each byte
    pieces = pieces_of(ours, ours.encode("aé🤯\ufffd"))
    assert pieces == ["a", "", "é", "", "", "", "🤯", "", "", "\ufffd", ""]


def test_stream_ends_a_character_that_was_cut_off(metadata: dict[str, Any]) -> None:
    ours = Tokenizer.from_gguf(metadata)
    stream = ours.stream()
    for id_ in ours.encode("🤯")[:3]:
        assert stream.add(id_) == ""
    assert stream.finish() == "\ufffd" and stream.finish() == ""
    assert stream.add(ours.encode("x")[0]) == "x"  # and starts anew


@pytest.fixture(scope="module")
def trained(train_bpe: Train) -> Tokenizer:
    return Tokenizer(train_bpe("smollm"), SpecialTokens())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 599), max_size=40), st.booleans())
def test_stream_gives_what_decode_gives(trained: Tokenizer, ids: list[int], skip: bool) -> None:
    ours = trained
    assert "".join(pieces_of(ours, ids, skip)) == ours.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_round_trip_of_any_text(trained: Tokenizer, text: str) -> None:
    ours = trained
    ids = ours.encode(text)
    assert ours.decode(ids, False) == text == "".join(pieces_of(ours, ids, False))


def byte_fallback() -> Tokenizer:
    """The decoder of Llama 2: "▁" for spaces, `<0xE2>` for bytes."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {
        token: 256 + i for i, token in enumerate(["▁Hello", "▁world", "!", "▁", "é", "<unk>"])
    }
    inner = Inner(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    strip = decoders.Strip(" ", 1, 0)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    )
    return Tokenizer(inner, SpecialTokens())


def test_stream_of_other_decoders() -> None:
    ours = byte_fallback()
    assert pieces_of(ours, [256, 257, 258, 260]) == ["Hello", " world", "!", "é", ""]
    ids = [256, *"🤯".encode(), 257, *"é".encode(), 258, *"🤯".encode()[:2]]
    pieces = pieces_of(ours, ids)
    assert "".join(pieces) == "Hello🤯 worldé!\ufffd\ufffd" == ours.decode(ids)
    assert pieces[1:6] == ["", "", "", "🤯", " world"]
    garbage = pieces_of(ours, [0x80] * 100)
    assert sum(map(len, garbage[:-1])) > 50  # is given in time, and not held back for ever
    assert all(not piece for piece in pieces_of(ours, [10**6] * 100))


# Ids that llama.cpp gives for the same file.
SMOLLM2 = {
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "12345 héllo 🤯 \n\n   x  y\t\tz 你好": [
        33, 34, 35, 36, 37, 294, 2756, 31394, 15107, 114, 124, 38028, 256, 1792, 216, 329, 197, 197,
        106, 216, 18645, 250, 48392, 138,
    ],
    "Hello 123 <|im_end|> x": [19556, 216, 33, 34, 35, 216, 2, 1792],
    "def f(x):\n    return x**2\n": [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 198],
}  # fmt: skip


def test_smollm2() -> None:
    path = real_models.smollm2()
    with GGUFFile(path) as file:
        ours = Tokenizer.from_gguf(file.metadata, path.name)
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (49152, 1, (2, 0))
    for text, ids in SMOLLM2.items():
        assert ours.encode(text) == ids
        assert ours.decode(ids, False) == text == "".join(pieces_of(ours, ids, False))
    prompt = ours.apply_chat_template([{"role": "user", "content": "hi"}])
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
