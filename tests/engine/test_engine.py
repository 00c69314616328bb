"""Sequences that join and leave one batch: each is as it would be alone."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from interleaved import read_side_by_side
from interrupts import interrupt_once
from tiny_model import make_tiny

import boostr
from boostr import SamplingOptions, env
from boostr.backends.base import Kernel
from boostr.engine.inputs import Chat
from boostr.engine.request import Outbox, Request
from boostr.errors import BackendError, FallbackError, OptionError

OPTIONS = [
    {},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 11},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"stop": ("e",)},
]


def free_blocks(model):
    return [pool.free for pool in model.engine._scheduler.pools]


def requests(rng, count):
    """Prompts and options that differ in everything."""
    for _ in range(count):
        prompt = [rng.randrange(3, 250) for _ in range(rng.choice((1, 2, 7, 20, 45)))]
        yield prompt, SamplingOptions(max_tokens=rng.choice((1, 2, 9, 23)), **rng.choice(OPTIONS))


def test_every_interleaving_gives_each_alone(model, folder, where):
    """Threads start, read slowly and drop streams, while the cache is too small for all."""
    rng = random.Random(5)
    wanted = list(requests(rng, 24))
    alone = boostr.load(folder, backend=where)
    truth = [alone.generate(p, options=o).token_ids for p, o in wanted]
    model.engine.pool.grow([7] * len(model.engine.pool.windows))
    model.engine._renew()
    taken = [rng.choice((None, None, 1, 3)) for _ in wanted]
    found = read_side_by_side(model, wanted, taken, 5)
    for got, ids, count in zip(found, truth, taken, strict=True):
        assert got == ids[: count or len(ids)]
    model.generate([1], max_tokens=1)  # a round, in which dropped streams leave
    assert free_blocks(model) == model.engine.pool.counts


def test_rows_of_prompts_computed_ahead_are_not_stepped(where, folder, monkeypatch):
    """Also where as many rows as are decoded at most are no bucket of theirs."""
    prompts = [[30 + i, 31, 32] for i in range(7)]
    alone = boostr.load(folder, backend=where)
    truth = [alone.generate(p, max_tokens=9).token_ids for p in prompts]
    monkeypatch.setattr(where, "sequence_rows", 3)
    model = boostr.load(folder, backend=where)
    found = model.generate_batch(prompts, max_tokens=9)
    assert [c.token_ids for c in found] == truth


def test_sequences_that_do_not_fit_wait_or_are_computed_again(model, folder, where, monkeypatch):
    pool = model.engine.pool
    monkeypatch.setenv(env.KV_MEMORY.name, str(sum(pool.block_bytes(g) for g in (0,)) * 6))
    prompts = [[i + 3] * 20 for i in range(5)]
    together = model.generate_batch(prompts, max_tokens=30)
    assert max(pool.counts) <= 6
    monkeypatch.delenv(env.KV_MEMORY.name)
    alone = boostr.load(folder, backend=where)
    assert [c.token_ids for c in together] == [
        alone.generate(p, max_tokens=30).token_ids for p in prompts
    ]


def test_a_request_larger_than_the_budget_is_refused(model, monkeypatch):
    monkeypatch.setenv(env.KV_MEMORY.name, str(model.engine.pool.block_bytes(0)))
    if len(model.engine.pool.windows) == 1 and model.engine.pool.windows[0] is None:
        with pytest.raises(OptionError, match=r"BOOSTR_KV_MEMORY\) allows .* lower max_tokens"):
            model.generate([5] * 100, max_tokens=100)
    monkeypatch.setenv(env.KV_MEMORY.name, "much")
    with pytest.raises(OptionError, match="an amount such as 512M or 4G, got 'much'"):
        model.generate([5], max_tokens=3)
    monkeypatch.delenv(env.KV_MEMORY.name)
    assert len(model.generate([5], max_tokens=3).token_ids) == 3


def test_a_dropped_stream_frees_its_row(model):
    stream = model.stream([5, 6, 7], max_tokens=50)
    next(stream)
    del stream
    gc.collect()
    model.generate([9], max_tokens=2)
    assert not model.engine._live
    assert free_blocks(model) == model.engine.pool.counts


def test_a_closed_stream_stops_though_its_frame_lives(model, monkeypatch):
    """As in Python 3.12.3, which keeps what the frame of a closed generator refers to."""
    pieces, kept = model.engine.pieces, []
    monkeypatch.setattr(model.engine, "pieces", lambda *args: kept.append(pieces(*args)) or kept[0])
    stream = model.stream([5, 6, 7], max_tokens=50)
    next(stream)
    stream.close()
    monkeypatch.undo()
    model.generate([9], max_tokens=2)
    assert not model.engine._live


def test_a_step_that_fails_ends_those_that_ran_and_no_others(model, monkeypatch):
    truth = model.generate([5, 6], max_tokens=9).token_ids
    stream = model.stream([5, 6], max_tokens=9)
    assert next(stream).token_id == truth[0]
    broken = monkeypatch.context()
    with broken as patch:

        def fail(*args):
            raise BackendError("the device is gone")

        patch.setattr(type(model.engine.steps), "decode", fail)
        with pytest.raises(BackendError, match="the device is gone"):
            list(stream)
    assert model.generate([5, 6], max_tokens=9).token_ids == truth
    assert free_blocks(model) == model.engine.pool.counts


def hide_kernel(monkeypatch, backend, name):
    """The op has its composite alone from now on."""
    kernel = backend.kernel
    assert isinstance(kernel(name), Kernel)
    hidden = lambda op: "the test wants composites" if op == name else kernel(op)  # noqa: E731
    monkeypatch.setattr(backend, "kernel", hidden)


@pytest.mark.parametrize("recorded", [False, True])
def test_strict_callers_are_told_of_composites_and_no_others(where, folder, monkeypatch, recorded):
    """Also of those in a program that others have recorded; a stream beside them goes on."""
    prompts = [5, 6], [7] * 9
    model = boostr.load(folder, backend=where)
    with boostr.strict():
        truth = [model.generate(prompt, max_tokens=12).token_ids for prompt in prompts]
    hide_kernel(monkeypatch, model.backend, "embedding")
    model = boostr.load(folder, backend=where)
    if recorded:
        for prompt in prompts * 2:  # passes of prompts are recorded the second time
            model.generate(prompt, max_tokens=12)
        assert any("embedding" in line for line in model.engine.steps.decoding.composites())
    beside = model.stream(prompts[1], max_tokens=12)
    found = [next(beside).token_id for _ in range(3)]
    said = r"embedding.*the test wants composites"
    with boostr.strict(), pytest.raises(FallbackError, match=said):
        model.generate(prompts[0], max_tokens=12)
    with boostr.strict():
        asked = model.stream(prompts[0], max_tokens=12)
    with pytest.raises(FallbackError, match=said):
        next(asked)
    found += [next(beside).token_id for _ in range(3)]
    assert model.generate(prompts[0], max_tokens=12).token_ids == truth[0]
    assert found + [piece.token_id for piece in beside] == truth[1]
    assert not model.engine._live and free_blocks(model) == model.engine.pool.counts


def test_threads_join_one_batch(model, monkeypatch):
    """Requests that arrive while others run are decoded with them."""
    rows = []
    steps = type(model.engine.steps)
    decode = steps.decode

    def watched(self, count, *args):
        rows.append(count)
        return decode(self, count, *args)

    monkeypatch.setattr(steps, "decode", watched)
    start = threading.Barrier(4)

    def run(i):
        start.wait()
        return model.generate([i + 3] * 4, max_tokens=40).token_ids

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(4)))
    assert max(rows) > 1
    monkeypatch.setattr(steps, "decode", decode)
    assert found == [model.generate([i + 3] * 4, max_tokens=40).token_ids for i in range(4)]


def test_a_model_that_is_dropped_frees_its_memory(where, folder):
    model = boostr.load(folder, backend=where)
    model.generate_batch([[5], [6, 7]], max_tokens=4, temperature=1.0, presence_penalty=0.1)
    gone = weakref.ref(model.engine.pool)
    gc.collect()
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_an_engine_of_its_own(folder):
    model = boostr.load(folder, backend="numpy")
    truth = model.generate([5, 6], max_tokens=5).token_ids
    stream = model.stream([5, 6], max_tokens=5)
    next(stream)
    others = [stream, model.stream([5, 6], max_tokens=5)]  # one has begun, one not
    child = os.fork()
    if child == 0:
        for other in others:
            try:
                next(other)
                os._exit(2)
            except BackendError:
                """Both are the parent's."""
        same = model.generate([5, 6], max_tokens=5).token_ids == truth
        os._exit(0 if same and not model.engine._inbox else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_rows_close_up_when_others_leave(model, monkeypatch):
    """A long answer in a high row goes on in a low one, in a narrower step."""
    widths = []
    steps = type(model.engine.steps)
    decode = steps.decode

    def watched(self, count, *args):
        widths.append(count)
        return decode(self, count, *args)

    options = [SamplingOptions(max_tokens=4)] * 8 + [
        SamplingOptions(max_tokens=40, temperature=0.9, seed=1, presence_penalty=0.3)
    ]
    prompts = [[3 + i, 9] for i in range(9)]
    alone = model.generate(prompts[-1], options=options[-1]).token_ids
    monkeypatch.setattr(steps, "decode", watched)
    assert model.generate_batch(prompts, options=options)[-1].token_ids == alone
    assert max(widths) == 9 and widths[-1] == 1


def test_a_stream_may_be_collected_while_the_engine_works(model):
    """Closing takes no lock: the collector may do it inside of one."""
    stream = model.stream([5, 6, 7], max_tokens=50)
    next(stream)
    with model.engine._lock:
        stream.close()
    assert len(model.generate([9], max_tokens=2).token_ids) == 2
    assert not model.engine._live


def generations(model, *wanted):
    """Sequences for the engine itself: (prompt, options) each."""
    groups = [model._start(i, ids, None, Chat(), own) for i, (ids, own) in enumerate(wanted)]
    return [sequence for group in groups for sequence in group]


def test_a_moved_row_inherits_no_penalties(where, folder, monkeypatch):
    """A row goes where one with a bias was, while a neighbour has penalties."""
    model = boostr.load(folder, backend=where)
    truth = model.generate([30, 31, 32], max_tokens=30).token_ids
    monkeypatch.setattr(type(model.backend), "run_ahead", 2)
    monkeypatch.setattr(type(model.backend), "prefill_chunk", 16)
    model = boostr.load(folder, backend=where)
    short = SamplingOptions(max_tokens=1, logit_bias={200: 100.0})
    both = generations(model, ([5] * 16, short), ([30, 31, 32], SamplingOptions(max_tokens=30)))
    found, pieces = [], model.engine.pieces(both)
    while len(found) < 4:
        piece = next(pieces)
        found += [piece.token_id] if piece.index == 1 else []
    next(other := model.stream([9, 9], max_tokens=30, presence_penalty=0.1))
    found += [piece.token_id for piece in pieces if piece.index == 1]
    other.close()
    assert found == truth


def test_a_request_that_does_not_fit_takes_no_other_with_it(where, folder):
    model = boostr.load(folder, backend=where)
    engine = model.engine
    engine.kv_memory = sum(map(engine.pool.block_bytes, range(len(engine.pool.windows)))) * 3
    context = model.config.max_position_embeddings
    (big,) = generations(model, ([5] * (context - 60), SamplingOptions(max_tokens=50)))
    outbox = Outbox(engine._lock)
    engine._inbox.append(Request(big, outbox))
    small = len(model.generate([5] * 4, max_tokens=4).token_ids)
    assert small == 4
    if engine.pool.windows == (None,):
        assert isinstance(outbox.pieces[0], OptionError)


def test_a_strict_request_that_waits_stops_nobody(where, folder, monkeypatch):
    model = boostr.load(folder, backend=where)
    hide_kernel(monkeypatch, model.backend, "embedding")
    first = model.stream([5] * 20, max_tokens=20)
    next(first)
    monkeypatch.setattr(model.engine._scheduler, "_free_rows", [])  # so that the next one waits
    with boostr.strict():
        (waits,) = generations(model, ([6] * 20, SamplingOptions(max_tokens=4)))
        model.engine._inbox.append(Request(waits, Outbox(model.engine._lock)))
    assert len(list(first)) == 19


def test_tables_by_length_are_the_same_after_a_restart(where, tmp_path, monkeypatch):
    """Keys of the prompt are rotated by its length, also when they are computed again."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 5.0, 9.0],
            "original_max_position_embeddings": 32}  # fmt: skip
    folder = make_tiny(tmp_path / "m", rope_scaling=rope, max_position_embeddings=256)
    model = boostr.load(folder, backend=where)
    prompt = [(7 * i) % 240 + 3 for i in range(20)]
    truth = model.generate(prompt, max_tokens=60).token_ids
    stream = model.stream(prompt, max_tokens=60)
    found = [next(stream).token_id for _ in range(30)]
    interrupt_once(monkeypatch, type(model.engine.steps), "decode")
    with pytest.raises(KeyboardInterrupt):
        list(model.stream([7], max_tokens=9))
    assert found + [piece.token_id for piece in stream] == truth
