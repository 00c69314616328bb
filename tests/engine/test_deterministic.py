"""Requests whose bits do not depend on what else runs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_model import make_tiny

import boostr
from boostr import SamplingOptions
from boostr.errors import BackendError, OptionError

FORMS = (None, "int8", "w8a8", "int4-g32", "nf4")
SAME = SamplingOptions(
    max_tokens=20, temperature=1.0, seed=3, logprobs=2, deterministic=True, ignore_eos=True
)
PROMPT = [7 * i % 240 + 3 for i in range(300)]


@pytest.fixture
def model(tmp_path):
    return boostr.load(make_tiny(tmp_path / "model"), backend="numpy")


def bits(done):
    return done.token_ids, done.logprobs


def interrupt_prefill(monkeypatch, model):
    """The next pass over a prompt is an interrupt: all who run begin again."""
    steps = type(model.engine.steps)
    monkeypatch.setattr(steps, "prefill", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(model.stream([7], max_tokens=9))
    monkeypatch.undo()


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_in_any_company(tmp_path, form):
    """Alone, found in part, with others of its kind and with others, packed weights too."""
    folder = make_tiny(tmp_path / "model", hidden_size=64, intermediate_size=96)
    truth = bits(boostr.load(folder, backend="numpy", quantize=form).generate(PROMPT, options=SAME))
    model = boostr.load(folder, backend="numpy", quantize=form)
    plain = SamplingOptions(max_tokens=40, temperature=0.7, seed=1)
    for count in (0, 1, 4, 11):
        mixed = [PROMPT, *([i + 3] * (9 + 20 * i) for i in range(count)), PROMPT]
        options = [SAME, *([plain] * count), SAME]
        first, *_, last = model.generate_batch(mixed, options=options)
        assert bits(first) == bits(last) == truth
    assert last.timings.prompt_tokens == 300 - 256


def test_threads_change_no_bits(model):
    prompts = [PROMPT[:n] for n in (1, 40, 200)]
    truth = [bits(model.generate(prompt, options=SAME)) for prompt in prompts]
    start = threading.Barrier(6)

    def run(which):
        start.wait()
        if which < 3:
            return [bits(model.generate(prompts[which], options=SAME)) for _ in range(3)]
        return [model.generate([which] * 9 * i, max_tokens=9 * i) for i in (1, 2, 3)]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(run, range(6)))
    assert found[:3] == [[own] * 3 for own in truth]


def test_prefixes_that_decoding_left_are_not_its(model):
    """What a conversation's first turn computed token by token is computed again."""
    first = model.generate(PROMPT[:100], options=SAME, max_tokens=60)
    turn = [*PROMPT[:100], *first.token_ids, 5]
    model.generate(turn, max_tokens=1)
    found = model.generate(turn, options=SAME)
    assert found.timings.prompt_tokens == len(turn)
    model.engine._scheduler.rehash(b"none")
    assert bits(model.generate(turn, options=SAME)) == bits(found)


def test_each_of_several_choices_is_that_of_its_seed(model):
    done = model.generate(PROMPT, options=SAME, n=3)
    for i, choice in enumerate(done.choices):
        assert bits(choice) == bits(model.generate(PROMPT, options=SAME, seed=SAME.seed + i))


def test_penalties_of_others_are_not_counted_for_it(model):
    """Its row lies among those of a step, which it does not take part in."""
    heavy = {"frequency_penalty": 2.0, "repetition_penalty": 3.0, "temperature": 0.0}
    truth = bits(model.generate(PROMPT[:9], options=SAME, max_tokens=60, **heavy))
    same = SamplingOptions(max_tokens=60, logprobs=2, deterministic=True, ignore_eos=True,
                           frequency_penalty=2.0, repetition_penalty=3.0)  # fmt: skip
    plain = SamplingOptions(max_tokens=60, presence_penalty=0.1, ignore_eos=True)
    first, _ = model.generate_batch([PROMPT[:9], [5, 6]], options=[same, plain])
    assert bits(first) == truth


@pytest.mark.parametrize("ahead", [1, 3])
def test_steps_ahead_wait_for_its_tokens(model, ahead, monkeypatch):
    truth = bits(model.generate(PROMPT[:9], options=SAME))
    monkeypatch.setattr(type(model.backend), "run_ahead", ahead)
    plain = SamplingOptions(max_tokens=30)
    found, _ = model.generate_batch([PROMPT[:9], [5, 6]], options=[SAME, plain])
    assert bits(found) == truth


def test_output_that_is_made_again_is_delivered_once(model, monkeypatch):
    truth = model.generate(PROMPT[:40], options=SAME)
    stream = model.stream(PROMPT[:40], options=SAME)
    pieces = [next(stream) for _ in range(7)]
    interrupt_prefill(monkeypatch, model)
    pieces += stream
    assert [piece.token_id for piece in pieces] == truth.token_ids
    assert [piece.logprobs for piece in pieces] == truth.logprobs


def test_output_that_is_made_again_and_is_another_is_an_error(model, monkeypatch):
    stream = model.stream(PROMPT[:40], options=SAME, temperature=3.0)
    for _ in range(9):
        next(stream)
    (request,) = model.engine._live
    request.seed += 1
    interrupt_prefill(monkeypatch, model)
    with pytest.raises(BackendError, match=r"token \d of a deterministic request was \d+ and is"):
        list(stream)
    assert not model.engine._live


def test_other_backends_refuse_it_by_name(where, tmp_path):
    model = boostr.load(make_tiny(tmp_path / "model"), backend=where)
    if where.repeats_bits:
        assert len(model.generate([5], options=SAME, max_tokens=2).token_ids) == 2
        return
    with pytest.raises(OptionError, match=f"deterministic: {where.name} does not promise"):
        model.generate([5], options=SAME)
    with pytest.raises(OptionError, match="deterministic"):
        model.generate_batch([[5], [6]], options=[SamplingOptions(), SAME])


@pytest.mark.parametrize("value", [1, "yes", None])
def test_values_that_are_neither_are_refused(value):
    with pytest.raises(OptionError, match="deterministic must be True or False"):
        SamplingOptions(deterministic=value)
