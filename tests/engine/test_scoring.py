"""Texts that are scored, as prompts among those of generations: each as it would be alone."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tiny_model import make_tiny

import boostr
from boostr.engine.request import Outbox
from boostr.engine.scoring import Scoring
from boostr.errors import BackendError, FallbackError, OptionError

LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 5.0, 9.0],
        "original_max_position_embeddings": 32}  # fmt: skip
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(3, 250, n).tolist() for n in (2, 3, 40, 17, 130, 300, 64)]


def load(folder, **options) -> Any:
    return boostr.load(folder, **options)


@pytest.fixture(scope="module")
def truth(folder):
    """Losses in float64 of float32 logits that no engine has seen."""
    module = load(folder, backend="numpy")
    return [expected(module.runner.logits(ids).numpy(), ids) for ids in TEXTS]


def expected(logits, ids):
    logits = logits[:-1].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(ids) - 1), ids[1:]]


def agree(found, wanted):
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_losses_of_many_texts(model, truth, monkeypatch):
    """Packed, in chunks, of the second half alone; none of them leaves anything behind."""
    agree(model.engine.losses(TEXTS), truth)
    monkeypatch.setattr(type(model.backend), "prefill_chunk", 16)
    cut = load(model.source, backend=model.backend)
    agree(cut.engine.losses(TEXTS), truth)
    for first in (1, 20, 150):
        chosen = [ids for ids in TEXTS if len(ids) > first + 1]
        wanted = [own[first:] for own in truth if len(own) > first]
        agree(cut.engine.losses(chosen, first), wanted)
    scheduler = cut.engine._scheduler
    assert [pool.free for pool in scheduler.pools] == cut.engine.pool.counts
    assert scheduler.idle and not cut.engine._live


def test_what_was_computed_before_is_judged_all_the_same(model, truth):
    """Blocks that a generation, or a score, has left are not taken; nor are those of a score."""
    for _ in range(2):
        model.generate(TEXTS[4], max_tokens=3)
        agree(model.engine.losses([TEXTS[4], TEXTS[4]]), [truth[4]] * 2)
    score = model.score(TEXTS[3])
    assert score.token_count == 16
    np.testing.assert_allclose(score.nll, truth[3].sum(), rtol=1e-4)


def test_texts_beside_generations(model, truth):
    """From threads of their own, in memory for few, so that some lose their rows meanwhile."""
    alone = [model.generate(ids, max_tokens=20).token_ids for ids in TEXTS]
    logits = model.logits(TEXTS[3])
    per_block = sum(model.engine.pool.block_bytes(g) for g in range(len(model.engine.pool.counts)))
    few = load(
        model.source, backend=model.backend, kv_memory=per_block * (700 // model.backend.kv_block)
    )
    jobs = [lambda ids=ids: few.generate(ids, max_tokens=20).token_ids for ids in TEXTS]
    jobs += [lambda ids=ids: few.engine.losses([ids])[0] for ids in TEXTS]
    jobs += [lambda: few.logits(TEXTS[3])] * 2
    with ThreadPoolExecutor(len(jobs)) as pool:
        for _ in range(2):
            found = [run.result() for run in [pool.submit(job) for job in jobs]]
            assert found[: len(TEXTS)] == alone
            agree(found[len(TEXTS) : 2 * len(TEXTS)], truth)
            for own in found[2 * len(TEXTS) :]:
                np.testing.assert_array_equal(own, logits)


def test_a_length_that_rope_depends_on(where, tmp_path):
    """A text is rotated by all of its tokens, the last one among them, which is not computed."""
    folder = make_tiny(tmp_path / "m", rope_scaling=LONG, max_position_embeddings=256)
    model = load(folder, backend=where)
    texts = [TEXTS[5][:n] for n in (32, 33, 200)]
    agree(model.engine.losses(texts), [expected(model.logits(ids), ids) for ids in texts])


def test_new_weights_give_new_losses(model, truth):
    agree(model.engine.losses([TEXTS[2]]), [truth[2]])
    head = model.module.lm_head
    head.weight = boostr.Tensor(np.zeros(head.weight.shape, "f4"), backend=model.backend)
    np.testing.assert_allclose(model.engine.losses([TEXTS[2]])[0], np.log(258), rtol=1e-4)


def test_a_pass_that_fails_is_told_to_those_who_scored(model, truth, monkeypatch):
    steps = type(model.engine.steps)
    with monkeypatch.context() as patched:

        def failing(self, parts):
            raise BackendError("no")

        patched.setattr(steps, "hidden", failing)
        with pytest.raises(BackendError, match="no"):
            model.score(TEXTS[2])
    agree(model.engine.losses([TEXTS[2]]), [truth[2]])
    with pytest.raises(OptionError, match="expected 2 to"):
        model.score([5])


def test_a_strict_caller_is_told_of_composites(where, folder, monkeypatch):
    monkeypatch.setattr(where, "kernel", lambda op: "no kernel today")
    model = load(folder, backend=where)
    with boostr.dispatch.strict():
        for wrong in (model.score, model.logits):
            with pytest.raises(FallbackError, match="no kernel today"):
                wrong(TEXTS[0])
    assert model.score(TEXTS[0]).token_count == 1


def test_an_interrupt_between_rounds_loses_no_call(model, monkeypatch):
    """It ends its own caller's; that of another thread is run once more."""
    logits, interrupts = model.logits(TEXTS[0]), [KeyboardInterrupt]
    runner = type(model.runner)
    compute = runner.logits

    def interrupted(self, ids):
        if interrupts:
            raise interrupts.pop()
        return compute(self, ids)

    monkeypatch.setattr(runner, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.logits(TEXTS[0])
    np.testing.assert_array_equal(model.logits(TEXTS[0]), logits)
    assert not model.engine._busy


def test_an_interrupt_of_another_begins_a_score_again(model, truth, monkeypatch):
    """Its caller waits meanwhile, and gets all of its losses once."""
    outbox = Outbox(model.engine._lock, 1)
    waiting = Scoring(TEXTS[5], 0, outbox)
    model.engine._inbox.append(waiting)
    hidden = type(model.engine.steps).hidden

    def interrupted(self, parts):
        monkeypatch.setattr(type(self), "hidden", hidden)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(model.engine.steps), "hidden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate([5, 6], max_tokens=4)
    assert not waiting.done
    model.generate([5, 6], max_tokens=4)
    while not outbox.ready:
        model.engine._round()
    assert [*outbox.pieces] == [waiting]
    agree([waiting.losses], [truth[5]])


def test_a_call_that_fails_is_its_own_callers_error(model):
    stream = model.stream([5, 6], max_tokens=6)
    next(stream)

    def fails():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        model.engine.between_rounds(fails)
    assert len([*stream]) == 5
