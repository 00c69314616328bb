"""An interrupt (Ctrl-C) is its caller's alone, wherever in a round it comes."""

from __future__ import annotations

import threading
import time

import pytest
from interrupts import interrupt_once
from tiny_model import make_tiny

import boostr
from boostr import SamplingOptions
from boostr.engine import engine as engine_module
from boostr.engine.inputs import Chat
from boostr.engine.request import Outbox, Request
from boostr.engine.scheduler import Scheduler
from boostr.engine.steps import Steps
from boostr.engine.text import TextStream
from boostr.errors import BackendError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def model(where, folder):
    return boostr.load(folder, backend=where)


def free_blocks(model):
    return [pool.free for pool in model.engine._scheduler.pools]


def test_an_interrupt_is_its_callers_alone(model, monkeypatch):
    truth = model.generate([5, 6], max_tokens=9).token_ids
    other = model.stream([5, 6], max_tokens=9)
    found = [next(other).token_id]
    stream = model.stream([7], max_tokens=9)
    interrupt_once(monkeypatch, Steps, "decode")
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert found + [piece.token_id for piece in other] == truth


def test_one_that_comes_while_another_is_dealt_with_loses_nobody(model, monkeypatch):
    truth = model.generate([5, 6], max_tokens=9).token_ids
    other = model.stream([5, 6], max_tokens=9)
    found = [next(other).token_id]
    stream = model.stream([7], max_tokens=9)
    next(stream)
    interrupt_once(monkeypatch, Steps, "decode")
    interrupt_once(monkeypatch, Scheduler, "submit")  # of those who begin again
    for interrupted in stream, model.stream([7], max_tokens=9):
        with pytest.raises(KeyboardInterrupt):
            list(interrupted)
    assert found + [piece.token_id for piece in other] == truth


def test_one_behind_a_request_that_was_submitted_loses_nobody(model, monkeypatch):
    truth = model.generate([5, 6], max_tokens=4).token_ids
    options = SamplingOptions(max_tokens=4)
    (sequence,) = model._start(0, [5, 6], None, Chat(), options)
    outbox = Outbox(model.engine._lock, 1)
    model.engine._inbox.append(Request(sequence, outbox))  # another thread's
    interrupt_once(monkeypatch, Scheduler, "submit", behind=True)
    with pytest.raises(KeyboardInterrupt):
        model.generate([7], max_tokens=4)
    model.generate([7], max_tokens=9)
    assert [piece.token_id for piece in outbox.pieces] == truth


def test_one_between_a_token_and_its_text_ends_that_request(model, monkeypatch):
    """Its text would lack something, and its caller could not know."""
    truth = model.generate([5, 6], max_tokens=4).token_ids
    other = model.stream([5, 6], max_tokens=9)
    next(other)
    interrupt_once(monkeypatch, TextStream, "add")
    with pytest.raises(KeyboardInterrupt):
        list(model.stream([7], max_tokens=9))
    with pytest.raises(BackendError, match=r"interrupt .* between a token and its text"):
        list(other)
    assert model.generate([5, 6], max_tokens=4).token_ids == truth
    assert free_blocks(model) == model.engine.pool.counts


def test_a_caller_whose_notice_was_lost_goes_on(model, monkeypatch):
    """An interrupt came when who ran rounds was about to wake this one."""
    monkeypatch.setattr(engine_module, "_PATIENCE", 0.01)
    engine = model.engine
    engine._busy = True
    waits = threading.Thread(target=model.generate, args=([5],), kwargs={"max_tokens": 2})
    waits.daemon = True
    waits.start()
    while not engine._waiting:
        time.sleep(0.001)
    engine._busy = False
    waits.join(60)
    assert not waits.is_alive()


def test_an_interrupted_waiter_leaves_the_rounds_to_others(model):
    """Threads that wait are woken although one of them is gone."""
    engine, seen = model.engine, []

    class Interrupted(BaseException):
        pass

    def wait_once(outbox):
        raise Interrupted

    outbox = Outbox(engine._lock)
    outbox.turn.wait = lambda timeout: wait_once(outbox)  # type: ignore[method-assign]
    with engine._lock:
        engine._busy = True
        with pytest.raises(Interrupted):
            engine._wait_for_turn(outbox)
        engine._busy = False
    assert not engine._waiting
    seen.append(model.generate([5, 6], max_tokens=3).token_ids)
    assert len(seen[0]) == 3


def test_a_round_that_breaks_off_in_delivery_loses_nobody(model, monkeypatch):
    """The request had ended when the interrupt came: it is not begun again."""
    truth = model.generate([5, 6], max_tokens=4).token_ids
    interrupt_once(monkeypatch, type(model.engine._scheduler), "finish")
    with pytest.raises(KeyboardInterrupt):
        list(model.stream([5, 6], max_tokens=4))
    assert model.generate([5, 6], max_tokens=4).token_ids == truth
    assert free_blocks(model) == model.engine.pool.counts
