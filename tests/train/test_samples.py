"""Samples: which tokens count, and that what is skipped, cut or split is counted."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import TEMPLATE, save_tokenizer

from boostr.errors import DataError, OptionError
from boostr.io.tokenizer import Tokenizer
from boostr.train.records import Row
from boostr.train.samples import SampleOptions, Samples

MARKED = TEMPLATE.replace(
    "{{ m.content }}<|im_end|>",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}",
)
# says after the last message what it does not say of others, and nothing before an answer
FORGETFUL = "{% for m in messages %}{{ m.role if loop.last else '' }}:{{ m.content }}|{% endfor %}"
EOS = 257


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    made = {}
    for name, template in (("plain", TEMPLATE), ("marked", MARKED), ("forgetful", FORGETFUL)):
        folder = tmp_path_factory.mktemp(name)
        save_tokenizer(folder, template)
        made[name] = Tokenizer.from_folder(folder)
    return made


def run(tokenizer, *rows, max_length=10_000, **options):
    """(samples, what made them)."""
    samples = Samples(tokenizer, SampleOptions(max_length, **options))
    return list(samples.of(Row(row, f"f:{i}") for i, row in enumerate(rows))), samples


def counted(tokenizer, sample):
    """The text of the tokens that count."""
    kept = sample.ids[sample.labels != -100]
    assert (sample.labels[sample.labels != -100] == kept).all()
    return tokenizer.decode(kept, skip_special_tokens=False)


def say(*turns):
    return {"messages": [{"role": r, "content": c} for r, c in turns]}


TALK = say(("user", "hé?"), ("assistant", "yes"), ("user", "so"), ("assistant", "nö"))
PARTS = say(("user", [{"type": "text", "text": "a"}]), ("assistant", "b"))


def test_text_and_its_end(tokenizers):
    tokenizer = tokenizers["plain"]
    (sample,), made = run(tokenizer, {"text": "añ"})
    assert tokenizer.decode(sample.ids[:-1]) == "añ" and sample.ids[-1] == EOS
    np.testing.assert_array_equal(sample.ids, sample.labels)
    assert made.counts == {"used": 1}


def test_generation_blocks_say_what_counts(tokenizers):
    tokenizer = tokenizers["marked"]
    (sample,), _ = run(tokenizer, TALK)
    assert counted(tokenizer, sample) == "yes<|im_end|>nö<|im_end|>"
    text = tokenizer.decode(sample.ids, skip_special_tokens=False)
    assert text == tokenizer.apply_chat_template(TALK["messages"], add_generation_prompt=False)


def test_prefixes_say_what_counts(tokenizers):
    tokenizer = tokenizers["plain"]
    (sample,), _ = run(tokenizer, TALK)
    assert counted(tokenizer, sample) == "yes<|im_end|>\nnö<|im_end|>\n"
    (sample,), _ = run(tokenizer, say(("assistant", "first"), ("user", "u")))
    assert counted(tokenizer, sample) == "<|im_start|>assistant\nfirst<|im_end|>\n"
    (sample,), _ = run(tokenizer, TALK, loss_on="all")
    assert (sample.labels == sample.ids).all()


def test_completions(tokenizers):
    tokenizer = tokenizers["plain"]
    (sample,), _ = run(tokenizer, {"prompt": "2+2=", "completion": "4é"})
    assert counted(tokenizer, sample) == "4é<|im_end|>" and sample.ids[-1] == EOS
    row = {"prompt": TALK["messages"][:1], "completion": TALK["messages"][1:2]}
    (sample,), _ = run(tokenizer, row)
    assert counted(tokenizer, sample) == "yes<|im_end|>\n"
    (sample,), _ = run(tokenizer, {"prompt": "a", "completion": "b"}, loss_on="all")
    assert counted(tokenizer, sample) == "ab<|im_end|>"


def test_tokens_as_given():
    rows = {"input_ids": [5, 6, 7]}, {"input_ids": [5, 6], "labels": [-100, 9]}
    samples, _ = run(None, *rows)
    assert [s.labels.tolist() for s in samples] == [[5, 6, 7], [-100, 9]]
    assert samples[0].ids.dtype == np.int32


def test_a_token_that_straddles_counts(tmp_path):
    """One token over the end of the prompt is the completion's."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers

    inner = Inner(models.WordLevel({"ab": 0, "cd": 1, "?": 2}, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(tmp_path)
    (sample,), _ = run(tokenizer, {"prompt": "cd a", "completion": "b"})
    assert sample.ids.tolist() == [1, 0] and sample.labels.tolist() == [-100, 0]


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("plain", say(("user", "a"), ("assistant", "")), "a message is empty"),
        ("plain", say(("human", "a"), ("gpt", "b")), "no message has the role assistant"),
        ("plain", {"messages": []}, "there are no messages"),
        ("plain", PARTS, "the chat template takes texts as content, not parts of one"),
        ("plain", {"text": " \n"}, "a text is empty"),
        ("plain", {"prompt": "a", "completion": ""}, "a completion is empty"),
        ("plain", {"input_ids": []}, "no tokens"),
        ("plain", {"input_ids": [4]}, "no token counts"),
        ("plain", {"input_ids": [4, 5, 6], "labels": [4, -100, -100]}, "no token counts"),
        ("forgetful", TALK, "the chat template gives for what comes before an answer"),
    ],
)
def test_what_nothing_is_learned_of_is_counted(name, bad, reason, tokenizers):
    """Beside what is used; alone it is an error with the same words."""
    good = {"input_ids": [1, 2]}
    samples, made = run(tokenizers[name], good, bad)
    assert len(samples) == 1 and made.counts["used"] == 1
    (found,) = made.counts.keys() - {"used"}
    assert found.startswith(reason) and made.examples[found].startswith("f:1")
    with pytest.raises(DataError, match=f"nothing to learn: 1 {reason}"):
        run(tokenizers[name], bad)
    with pytest.raises(DataError, match="nothing to learn: no rows"):
        run(tokenizers[name])


def test_empty_results_of_tools_are_fine(tokenizers):
    row = say(("user", "a"), ("tool", ""), ("assistant", "b"))
    assert len(run(tokenizers["plain"], row)[0]) == 1


def test_a_template_that_fails(tokenizers, tmp_path):
    save_tokenizer(tmp_path, "{{ raise_exception('no ' ~ messages[0].role) }}")
    tokenizer = Tokenizer.from_folder(tmp_path)
    with pytest.raises(DataError, match=r"2 the chat template fails \(f:0: .*no user"):
        answer = ("assistant", "b")
        run(tokenizer, say(("user", "a"), answer), say(("system", "a"), answer))


def test_too_long(tokenizers):
    tokenizer, ten = tokenizers["plain"], {"input_ids": list(range(10))}
    samples, made = run(tokenizer, ten, max_length=4)  # tokens are split
    assert [s.ids.tolist() for s in samples] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert made.counts == {"used": 3, "split": 1}
    samples, made = run(tokenizer, ten, max_length=9)
    assert [len(s.ids) for s in samples] == [9] and made.counts["no token counts"] == 1
    samples, made = run(tokenizer, ten, max_length=4, too_long="truncate")
    assert [s.ids.tolist() for s in samples] == [[0, 1, 2, 3]] and made.counts["truncated"] == 1
    good = {"input_ids": [1, 2]}
    _, made = run(tokenizer, good, ten, max_length=4, too_long="skip")
    assert made.counts == {"used": 1, "longer than 4 tokens": 1}
    with pytest.raises(DataError, match=r"f:0: .* tokens, at most 9 fit; raise max_length"):
        run(tokenizer, TALK, max_length=9)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "a"}, "expected columns messages; prompt and completion; .*got instr"),
        ({}, "got none"),
        ({"text": None}, "got none"),
        ({"text": 3}, "text must be a text, got 3"),
        ({"messages": "hi"}, "messages must be a list of messages, each with a role"),
        ({"messages": [{"from": "human"}]}, "each with a role"),
        ({"prompt": "a", "completion": [{"role": "assistant"}]}, "must both be texts, or both"),
        ({"prompt": "a", "completion": 1}, "completion must be a text or a list of messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "got .*chosen"),
        ({"input_ids": [1.5, 2]}, "input_ids must be a list of whole numbers"),
        ({"input_ids": [1, -2]}, "must be 0 or more"),
        ({"input_ids": [1, 2], "labels": [1]}, "labels must be as many as input_ids, 2, got 1"),
        ({"input_ids": [1, 2, 3], "labels": [1, -5, 3]}, "labels must be 0 or more, got -5"),
        ({"input_ids": [1, 2**32 + 5]}, "input_ids must be of 32 bits, got 4294967301"),
        ({"input_ids": [[1, 2], [3]]}, "must be a list of whole numbers"),
        (say(("user", {"a": 1}), ("assistant", "a")), "a text or parts as content"),
        ({"zeta": 1, "alpha": 2, "none": None}, "got zeta, alpha"),
    ],
)
def test_columns_that_are_wrong(row, words, tokenizers):
    with pytest.raises(DataError, match=r"f:1: .*" + words):
        run(tokenizers["plain"], {"text": "a"}, row)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 1}, "max_length must be 2 or more"),
        ({"loss_on": "user"}, "loss_on must be one of assistant, completion, all, got 'user'"),
        ({"too_long": "cut"}, "too_long must be one of split, truncate, skip, error, got 'cut'"),
    ],
)
def test_options(options, words, tokenizers):
    with pytest.raises(OptionError, match=words):
        run(tokenizers["plain"], {"text": "a"}, **options)
    with pytest.raises(DataError, match="rows of text have no assistant"):
        run(tokenizers["plain"], {"text": "a"}, loss_on="assistant")
