"""Python's own values at the edge of the API: each works, or an OptionError names it."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tiny_model import make_tiny

import boostr
from boostr.engine.inputs import id_list, text_list
from boostr.engine.options import SamplingOptions
from boostr.errors import BoostrError, OptionError

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if not loop.last %};{% endif %}"
    "{% endfor %}{{ tools | length if tools }}{{ mood }}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return boostr.load(make_tiny(tmp_path_factory.mktemp("m") / "tiny", TEMPLATE), backend="numpy")


@pytest.mark.parametrize(
    "prompt", [[1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), np.array([1, 2, 3], np.uint8),
               [np.int64(1), np.int32(2), 3], range(1, 4)],
)  # fmt: skip
def test_token_ids_of_any_kind(model, prompt) -> None:
    expected = model.generate([1, 2, 3], max_tokens=3).token_ids
    assert model.generate(prompt, max_tokens=np.int64(3)).token_ids == expected
    assert np.array_equal(model.logits(prompt), model.logits([1, 2, 3]))
    assert model.score(prompt) == model.score([1, 2, 3])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([1.5], "whole numbers, got 1.5"), ([True], "whole numbers, got True"),
        ([None], "whole numbers, got None"), (["a"], "whole numbers, got 'a'"),
        (np.array([1.0]), "whole numbers"), (np.array([[1, 2]]), r"shape \(1, 2\)"),
        (np.array(3), r"shape \(\)"), (3, "got int"), (b"abc", "got bytes"), ({1: 2}, "got dict"),
        (HI, "pass them as messages="),
    ],
)  # fmt: skip
def test_what_is_no_prompt(model, prompt, message: str) -> None:
    for call in (model.generate, model.stream, model.score):
        with pytest.raises(OptionError, match=message):
            call(prompt)
    for call in (model.logits, model.hidden_states):
        with pytest.raises(OptionError, match=message):
            call(prompt)


@pytest.mark.parametrize(
    ("messages", "message"),
    [("hi", "got str"), (HI[0], "got dict"), ([], "at least one"), (3, "got int"),
     (["hi"], r"messages\[0\]"), ([{"content": "x"}], "'role'")],
)  # fmt: skip
def test_what_is_no_conversation(model, messages, message: str) -> None:
    with pytest.raises(BoostrError, match=message):
        model.generate(messages=messages)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [("abc", "got a text"), (HI, "got one conversation"), (None, "got NoneType"), (b"a", "bytes"),
     (np.array([1, 2]), "token ids of one prompt"), ([1, 2], "got int"), ({"a": 1}, "got dict"),
     (["a", None], "expected either")],
)  # fmt: skip
def test_a_batch_is_a_list_of_prompts(model, prompts, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        model.generate_batch(prompts, max_tokens=1)


def test_a_batch_of_every_kind_of_prompt(model) -> None:
    ids = model.tokenizer.encode("abc")
    prompts = ["abc", HI, ids, np.array(ids)]
    done = model.generate_batch((p for p in prompts), max_tokens=2)
    alone = model.generate("abc", max_tokens=2).token_ids
    assert [done[i].token_ids for i in (0, 2, 3)] == [alone] * 3
    assert done[1].token_ids == model.generate(messages=HI, max_tokens=2).token_ids


def test_options_that_are_none_and_options_that_are_not(model) -> None:
    plain = model.generate("x", max_tokens=2)
    assert model.generate("x", max_tokens=2, stop=None, logit_bias=None).text == plain.text
    for options, message in (({"top_k": 1}, "must be SamplingOptions, got dict"), ([], "expected")):
        with pytest.raises(OptionError, match=message):
            model.generate_batch(["x"], options=options)
    with pytest.raises(OptionError, match="unknown option 'max_token'"):
        model.generate("x", max_token=2)
    each = [SamplingOptions(max_tokens=1), SamplingOptions(max_tokens=2)]
    done = model.generate_batch(["x", "x"], options=each)
    assert [c.usage.completion_tokens for c in done] == [1, 2]


def test_what_the_template_is_given(model) -> None:
    text = model.tokenizer.encode
    tools = [{"type": "function", "function": {"name": "f"}}]
    seen = model.generate(
        messages=HI, tools=tools, template_arguments={"mood": np.float32(1.5)}, max_tokens=1
    )
    assert seen.usage.prompt_tokens == len(text("[user]hi11.5[assistant]", False))
    unfinished = [*HI, {"role": "assistant", "content": "well, "}]
    expected = model.generate("[user]hi;[assistant]well, ", max_tokens=3).token_ids
    assert model.generate(
        messages=unfinished, continue_final_message=True, max_tokens=3
    ).token_ids == expected  # fmt: skip
    (batched,) = model.generate_batch([unfinished], continue_final_message=True, max_tokens=3)
    assert batched.token_ids == expected
    streamed = model.stream(messages=unfinished, continue_final_message=True, max_tokens=3)
    assert [piece.token_id for piece in streamed] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tools": {"a": 1}}, "tools must be a list of dicts, got dict"),
        ({"template_arguments": {"messages": 1}}, "template_arguments must map"),
        ({"template_arguments": [1]}, "template_arguments must map"),
        ({"template_arguments": {1: 2}}, "template_arguments must map"),
    ],
)
def test_arguments_that_no_template_takes(model, arguments, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        model.generate(messages=HI, **arguments)
    with pytest.raises(OptionError, match="need messages"):
        model.generate("a prompt", **arguments)


def test_a_special_token_may_be_a_stop(model) -> None:
    """It gives no text, but the generation ends at it; also in the midst of a stop text."""
    bias = {model.tokenizer.token_to_id("<|im_start|>"): 100.0}
    done = model.generate("x", max_tokens=5, stop="<|im_start|>", logit_bias=bias)
    assert (done.text, done.finish_reason, done.usage.completion_tokens) == ("", "stop", 1)
    twice = model.generate("x", max_tokens=5, stop=["<|im_start|>" * 2], logit_bias=bias)
    assert (twice.text, twice.finish_reason, twice.usage.completion_tokens) == ("", "stop", 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", 3), ("model", b"x"), ("model", ["x"]), ("backend", 3), ("quantize", True),
     ("revision", 1), ("offline", "yes"), ("progress", None), ("quantize_embeddings", 3)],
)  # fmt: skip
def test_arguments_of_load(name: str, value) -> None:
    with pytest.raises(
        OptionError, match=rf"load: {name} must be .*, got {re.escape(repr(value))}"
    ):
        boostr.load(**{"model": "x", "offline": True, name: value})


@pytest.mark.parametrize("ids", [None, 3, "a", [1.5], ["a"], [None], [[1]]])
def test_what_cannot_be_decoded(model, ids) -> None:
    with pytest.raises(BoostrError, match="expected a list of whole numbers to decode"):
        model.tokenizer.decode(ids)
    assert model.tokenizer.decode(np.array([64, 65])) == model.tokenizer.decode([64, 65])


@pytest.mark.parametrize("messages", [None, 3, "hi", HI[0], iter(HI)])
def test_what_no_template_is_given(model, messages) -> None:
    with pytest.raises(BoostrError, match="messages must be a list of dicts"):
        model.tokenizer.apply_chat_template(messages)


def test_lists_of_texts() -> None:
    assert text_list(np.array(["a", "b"]), "embed") == ["a", "b"]
    assert text_list((t for t in "ab"), "embed") == ["a", "b"]
    for texts in ("ab", b"ab", {"a": 1}, 3, None, ["a", None], [b"a"]):
        with pytest.raises(OptionError, match="embed: "):
            text_list(texts, "embed")
    assert id_list([]) == []
