"""Generation on a tiny model with a byte tokenizer: batches, stops, seeds, logprobs, limits."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.numpy
from tiny_model import make_tiny
from tokenizers import Tokenizer

import boostr
from boostr import SamplingOptions
from boostr.errors import BoostrError, NumericsError, OptionError, TokenizerError

pytestmark = pytest.mark.usefixtures("where")


@pytest.fixture(scope="module")
def model(where, tmp_path_factory):
    return boostr.load(make_tiny(tmp_path_factory.mktemp("tiny") / "model"), backend=where)


@pytest.fixture(scope="module")
def windowed(where, tmp_path_factory):
    """A mistral whose window of 6 makes its cache a ring that wraps many times."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    made = make_tiny(folder, model_type="mistral", sliding_window=6)
    return boostr.load(made, backend=where)


PROMPTS = ["a", "some words", "x" * 40, "The quick brown fox", "1, 2, 3", "é", "..", "longer " * 9]


def test_max_tokens_and_usage(model):
    completion = model.generate("some words", max_tokens=5)
    assert len(completion.token_ids) == completion.usage.completion_tokens == 5
    assert completion.usage.prompt_tokens == len("some words")
    assert completion.finish_reason == "length"
    assert completion.timings.decoded_tokens == 4


def test_eos_ends_and_is_no_text(model):
    options = SamplingOptions(max_tokens=9, logit_bias={257: 1e6})
    completion = model.generate("some words", options=options)
    assert (completion.token_ids, completion.text) == ([257], "")
    assert completion.finish_reason == "stop"
    longer = model.generate("some words", options=options, ignore_eos=True)
    assert longer.token_ids == [257] * 9 and longer.finish_reason == "length"


def test_stop_text_is_cut_and_ends(model):
    free = model.generate("some words", max_tokens=30).text
    stop = free[10:13]
    cut = model.generate("some words", max_tokens=30, stop=stop)
    assert cut.text == free[: free.index(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize("name", ["model", "windowed"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.9, "seed": 3},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 11},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    ],
    ids=["greedy", "temperature", "filters", "penalties"],
)
def test_batch_of_eight_equals_each_alone(name, changes, request):
    model = request.getfixturevalue(name)
    together = model.generate_batch(PROMPTS, max_tokens=20, **changes)
    alone = [model.generate(p, max_tokens=20, **changes) for p in PROMPTS]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [c.text for c in together] == [c.text for c in alone]


@pytest.mark.parametrize("name", ["model", "windowed"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0.9, "seed": 3}, {"temperature": 0.9, "seed": 3, "presence_penalty": 0.5}],
    ids=["greedy", "temperature", "penalties"],
)
def test_steps_ahead_of_the_host_change_nothing(name, changes, request, monkeypatch):
    """As on a GPU: some sequences end while steps that none will read are under way."""
    model = request.getfixturevalue(name)
    options = [
        SamplingOptions(max_tokens=n, stop=stop, **changes)
        for n, stop in ((3, ()), (17, ()), (30, ("e",)), (1, ()), (9, ()))
    ]
    prompts = PROMPTS[: len(options)]
    found = []
    for ahead in (0, 1, 2, 7):
        monkeypatch.setattr(type(model.backend), "run_ahead", ahead)
        together = model.generate_batch(prompts, options=options)
        one = model.generate(prompts[0], options=options[1])
        turns = [
            [p.token_id for p in model.stream(text, max_tokens=6, **changes)]
            for text in ("some words", "some words and more", "some other words")
        ]
        found.append(([c.token_ids for c in together], one.token_ids, turns))
    assert all(f == found[0] for f in found)


def test_a_batch_may_mix_options_and_lengths(model):
    options = [
        SamplingOptions(max_tokens=3),
        SamplingOptions(max_tokens=17, temperature=1.0, seed=5),
        SamplingOptions(max_tokens=9, repetition_penalty=1.4),
        SamplingOptions(max_tokens=1),
    ]
    together = model.generate_batch(PROMPTS[:4], options=options)
    alone = [model.generate(p, options=o) for p, o in zip(PROMPTS, options, strict=False)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [len(c.token_ids) for c in together] == [3, 17, 9, 1]


def test_seeds(model):
    draw = [model.generate("some", max_tokens=24, temperature=2.0, seed=s).text for s in (1, 1, 2)]
    assert draw[0] == draw[1] != draw[2]
    fresh = {model.generate("some", max_tokens=24, temperature=2.0).text for _ in range(3)}
    assert len(fresh) == 3


def test_stream_is_generate(model):
    pieces = list(model.stream("some words", max_tokens=12))
    completion = model.generate("some words", max_tokens=12)
    assert "".join(p.text for p in pieces) == completion.text
    assert [p.token_id for p in pieces] == completion.token_ids
    assert [p.finish_reason for p in pieces[:-1]] == [None] * 11
    assert pieces[-1].finish_reason == "length"


def test_a_stream_can_be_abandoned(model):
    stream = model.stream("some words", max_tokens=12)
    first = next(stream)
    stream.close()
    assert first.token_id == model.generate("some words", max_tokens=1).token_ids[0]


def test_logprobs_are_the_models_own(model):
    completion = model.generate("some words", max_tokens=3, logprobs=4, logit_bias={65: 50.0})
    assert completion.logprobs is not None
    ids = model.encode("some words")
    for entry, token in zip(completion.logprobs, completion.token_ids, strict=True):
        logits = model.logits(ids)[-1].astype(np.float64)
        log_p = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert entry.token_id == token == 65
        assert entry.logprob == pytest.approx(log_p[token], abs=1e-4)
        assert [i for i, _ in entry.top] == np.argsort(-log_p)[:4].tolist()
        ids.append(token)


def test_score_is_the_cross_entropy_of_logits(model):
    text = "The quick brown fox jumps over the lazy dog. " * 4  # more than one chunk
    ids = model.encode(text)
    logits = model.logits(ids).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -log_p[np.arange(len(ids) - 1), ids[1:]].sum()
    score = model.score(text)
    assert score.nll == pytest.approx(expected, rel=1e-5)
    assert score.token_count == len(ids) - 1


def test_a_prompt_longer_than_a_chunk(model):
    ids = (model.encode("abcdefgh") * 200)[:1500]
    completion = model.generate(ids, max_tokens=4)
    best = []
    for _ in range(4):
        best.append(int(model.logits([*ids, *best])[-1].argmax()))
    assert completion.token_ids == best


def test_the_context_limits_prompt_and_answer(model):
    context = model.config.max_position_embeddings
    with pytest.raises(OptionError, match=f"context holds {context}"):
        model.generate([1] * context)
    near = model.generate([1] * (context - 2), max_tokens=9)
    assert len(near.token_ids) == 2 and near.finish_reason == "length"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate(), OptionError, "either a prompt or messages"),
        (lambda m: m.generate(""), OptionError, "empty"),
        (lambda m: m.generate("a", temperatur=1), OptionError, "unknown option 'temperatur'"),
        (lambda m: m.generate([300]), TokenizerError, "token id 300"),
        (lambda m: m.generate([-1]), TokenizerError, "token id -1"),
        (lambda m: m.generate("\udcff"), TokenizerError, "surrogate"),
        (lambda m: m.generate("a", logit_bias={999: 1.0}), OptionError, "token 999"),
        (lambda m: m.logits([]), OptionError, "at least one"),
        (lambda m: m.score("a"), OptionError, "expected 2"),
        (lambda m: m.embed(["a"]), OptionError, "decoder"),
        (
            lambda m: m.generate_batch(["a"], options=[SamplingOptions()] * 2),
            OptionError,
            "expected 1",
        ),
    ],
)
def test_bad_calls(model, call, error, message):
    with pytest.raises(error, match=message) as raised:
        call(model)
    assert isinstance(raised.value, BoostrError)


def test_an_empty_batch_is_empty(model):
    assert model.generate_batch([]) == []


def test_messages_go_through_the_template(model):
    messages = [{"role": "user", "content": "hi"}]
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    assert model.encode(None, messages) == ids
    one, two = model.generate_batch([messages, "hi"], max_tokens=4)
    assert one.token_ids == model.generate(ids, max_tokens=4).token_ids
    assert two.token_ids == model.generate("hi", max_tokens=4).token_ids


# -- logits that are not finite ------------------------------------------------------------------
@pytest.fixture(scope="module")
def damaged(where, tmp_path_factory):
    """A model that knows no vector for "!": after it all logits are nan."""
    folder = make_tiny(tmp_path_factory.mktemp("tiny") / "model")
    weights = dict(safetensors.numpy.load_file(folder / "model.safetensors"))
    mark = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("!")
    weights["model.embed_tokens.weight"][mark] = np.nan
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    return boostr.load(folder, backend=where), mark


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.8, "top_k": 9, "seed": 1}])
def test_nan_logits_end_with_an_error(damaged, changes):
    model, mark = damaged
    with pytest.raises(NumericsError, match=r"after 0 generated tokens.*float32"):
        model.generate("hi!", max_tokens=9, **changes)
    forced = {"logit_bias": {mark: 1e6}, **changes}
    seen = []
    with pytest.raises(NumericsError, match="after 1 generated tokens"):
        seen.extend(piece.token_id for piece in model.stream("hi", max_tokens=9, **forced))
    assert model.generate("hi", max_tokens=9, **changes).finish_reason == "length"


def test_nan_logits_end_one_of_a_batch(damaged):
    model, _ = damaged
    prompts = ["hi", "hi!", "some words"]
    alone = [model.generate(p, max_tokens=6).token_ids for p in (prompts[0], prompts[2])]
    good, bad, also_good = model.generate_batch(prompts, max_tokens=6)
    assert [good.token_ids, also_good.token_ids] == alone
    assert (bad.finish_reason, bad.token_ids, bad.text) == ("error", [], "")
    assert good.finish_reason == also_good.finish_reason == "length"


def test_nan_logits_of_a_choice_count_its_own_tokens(damaged):
    model, mark = damaged
    forced = {"logit_bias": {mark: 1e6}, "n": 3}
    with pytest.raises(NumericsError, match="after 1 generated tokens"):
        list(model.stream("hi", max_tokens=9, **forced))
    (done,) = model.generate_batch(["hi"], max_tokens=9, **forced)
    assert [(c.finish_reason, c.token_ids) for c in done.choices] == [("error", [mark])] * 3


def test_nan_logits_change_nothing_for_those_that_come_after(damaged):
    model, mark = damaged
    before = model.generate("hi there", max_tokens=9).token_ids
    with pytest.raises(NumericsError):
        list(model.stream("hi", max_tokens=9, logit_bias={mark: 1e6}))
    assert model.generate("hi there", max_tokens=9).token_ids == before
