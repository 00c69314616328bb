"""The scheduler's rules, one by one. Every order of events: test_scheduler_states.py."""

import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import run, scheduler, short_of_blocks, spans, submitted

from boostr.engine.blocks import BlockPool
from boostr.engine.job import Job
from boostr.engine.scheduler import Scheduler
from boostr.errors import BackendError, OptionError

# --- rounds ---


def test_a_job_from_its_prompt_to_its_limit():
    plans = scheduler()
    assert plans.idle
    job = submitted(plans, 6, limit=3)
    assert (job.state, plans.idle) == ("waiting", False)

    found = plans.plan()
    assert spans(found) == [(job, 0, 6, True)]
    assert (found.decoding, found.cleared) == ([], [])
    assert found.writes == [(0, 0, 0, job.tables[0][0]), (0, 0, 1, job.tables[0][1])]
    assert (job.state, job.row, job.computed, job.launched) == ("running", 0, 6, 1)

    for launched in (2, 3):  # run ahead: nothing is accepted yet
        found = plans.plan()
        assert (found.decoding, found.chunks, found.writes) == ([job], [], [])
        assert (job.launched, job.computed) == (launched, 5 + launched)
    assert plans.plan().decoding == []
    for token in (5, 6, 7):
        plans.accept(job, token)
    assert (job.tokens[6:], job.accepted) == ([5, 6, 7], 3)
    plans.finish(job)
    assert (job.state, job.row, job.tables, plans.idle) == ("done", None, [], True)
    assert plans.plan().cleared == [0]
    assert plans.plan().cleared == []
    assert plans.pools[0].free == 100


def test_a_row_gets_a_block_when_its_next_token_needs_one():
    plans = scheduler(windows=(None, None))
    job = submitted(plans, 3)
    run(plans)
    assert run(plans).writes == []  # position 3
    first, second = job.tables
    assert run(plans).writes == [(0, 0, 1, first[1]), (0, 1, 1, second[1])]  # position 4
    assert [run(plans).writes for _ in range(3)] == [[], [], []]
    assert len(run(plans).writes) == 2


def test_chunks_keep_the_budget_in_order_of_arrival():
    plans = scheduler(prefill=10, chunk=6)
    a, b, c = submitted(plans, 8), submitted(plans, 7, first=50), submitted(plans, 3, first=90)
    assert spans(plans.plan()) == [(a, 0, 6, False), (b, 0, 4, False)]
    assert c.state == "waiting"
    assert spans(plans.plan()) == [(a, 6, 8, True), (b, 4, 7, True), (c, 0, 3, True)]
    found = plans.plan()
    assert (found.decoding, found.chunks) == ([a, b, c], [])


def test_a_round_decodes_and_prefills():
    plans = scheduler(prefill=4, chunk=4)
    a = submitted(plans, 4)
    plans.plan()
    b = submitted(plans, 8, first=50)
    found = plans.plan()
    assert (found.decoding, spans(found)) == ([a], [(b, 0, 4, False)])


def test_rows_are_the_lowest_free_ones_and_their_number_is_a_limit():
    plans = scheduler(rows=3)
    jobs = [submitted(plans, 2, first=10 * i) for i in range(5)]
    plans.plan()
    assert [job.row for job in jobs] == [0, 1, 2, None, None]
    plans.finish(jobs[2])
    plans.finish(jobs[0])
    found = plans.plan()
    assert found.cleared == [2, 0]
    assert [job.row for job in jobs] == [None, 1, None, 0, 2]


# --- admission ---


def test_admission_is_first_come_first_served():
    """A small job behind one that does not fit waits."""
    plans = scheduler(blocks=6)
    a, b = submitted(plans, 16, limit=5), submitted(plans, 12, limit=5, first=50)
    small = submitted(plans, 1, first=90, limit=1)
    run(plans)
    assert (a.state, b.state, small.state) == ("running", "waiting", "waiting")
    plans.finish(a)
    run(plans)
    assert (b.state, small.state) == ("running", "running")


def test_who_is_refused_and_leaves_lets_others_in():
    plans = scheduler(blocks=7)
    submitted(plans, 16, limit=5)
    large, small = submitted(plans, 12, limit=5, first=50), submitted(plans, 1, limit=1)
    run(plans)
    plans.cancel(large)
    run(plans)
    assert small.state == "running"


def test_every_row_has_a_block_in_reserve():
    """After rows that need r blocks more, n more rows leave a block for each."""
    plans = scheduler(blocks=8)
    jobs = [submitted(plans, 4, first=10 * i) for i in range(6)]
    run(plans)
    assert [job.state for job in jobs].count("running") == 4
    run(plans)  # each gets the block it needs for position 4, and none is preempted
    assert all(job.preemptions == 0 for job in jobs)


def test_a_row_that_has_all_it_will_need_keeps_none_in_reserve():
    plans = scheduler(blocks=6)
    jobs = [submitted(plans, 2, first=10 * i, limit=3) for i in range(6)]
    run(plans)
    assert [job.state for job in jobs] == ["running"] * 6 and not plans.pools[0].free


def test_prompts_on_their_way_keep_what_they_will_need():
    plans = scheduler(blocks=6, windows=(8,), prefill=4, chunk=4)
    a = submitted(plans, 24)
    run(plans)
    assert plans.pools[0].free == 5 and plans.blocks_for(24) == [4]
    b = submitted(plans, 8, first=50)
    plans.prefill_tokens = 8  # of which b could have half
    run(plans)
    assert (a.state, b.state) == ("prefilling", "waiting")


def test_what_can_never_run_is_refused():
    plans = scheduler(blocks=4)
    with pytest.raises(OptionError, match="12 tokens and 6 new ones need 5 blocks of 4, there are"):
        submitted(plans, 12, limit=6)
    submitted(plans, 12, limit=5)  # the last token is never computed
    with pytest.raises(OptionError, match="0 tokens"):
        submitted(plans, 0)
    with pytest.raises(OptionError, match="limit 0"):
        submitted(plans, 3, limit=0)
    with pytest.raises(BackendError, match="once; this one is waiting"):
        job = submitted(plans, 3)
        plans.submit(job)
    with pytest.raises(OptionError, match="one size"):
        Scheduler([BlockPool(2, 4), BlockPool(2, 8)], [None, 3], 1, 8, b"")
    with pytest.raises(OptionError, match="start at 1"):
        scheduler(rows=0)


@given(
    length=st.integers(1, 60), window=st.integers(1, 20), size=st.integers(1, 8),
    chunk=st.integers(1, 20),
)  # fmt: skip
def test_blocks_for_is_the_most_that_any_chunks_hold(length, window, size, chunk):
    plans = scheduler(size=size, windows=(None, window), chunk=chunk)

    def touched(start):
        first, last = max(0, start - window + 1), min(length, start + chunk) - 1
        return last // size - first // size + 1

    whole, most = plans.blocks_for(length)
    assert whole == len({position // size for position in range(length)})
    assert most >= max(touched(start) for start in range(length))
    if length > window + chunk + 2 * size:
        assert most == max(touched(start) for start in range(length))


def test_without_pools_rows_are_the_limit():
    """As for a model whose layers keep no keys and values."""
    plans = scheduler(windows=(), rows=1)
    a, b = submitted(plans, 9, limit=3), submitted(plans, 9)
    assert spans(run(plans)) == [(a, 0, 9, True)]
    run(plans, 2)
    plans.finish(a)
    assert spans(run(plans)) == [(b, 0, 9, True)]
    assert (a.accepted, b.cached) == (3, 0)


# --- preemption ---


def test_out_of_blocks_the_youngest_goes_back_to_the_head_with_its_tokens():
    plans = scheduler(blocks=5)
    a, b = submitted(plans, 7), submitted(plans, 4, first=50)
    c = submitted(plans, 4, first=90)
    run(plans, 2)  # a has 2 blocks and 8 tokens computed, b 2 and 5
    assert (a.state, b.state, c.state) == ("running", "running", "waiting")
    plans.pools[0].take(1)  # none is left
    found = plans.plan()
    assert found.decoding == [a]
    assert found.cleared == [1]
    assert {write[0] for write in found.writes} == {0}
    assert (b.state, b.row, b.computed, b.preemptions) == ("waiting", None, 0, 1)
    assert (b.tokens, b.launched) == ([50, 51, 52, 53, 7, 7], 2)
    plans.accept(a, 7)
    plans.finish(a)
    found = plans.plan()
    assert [chunk.job for chunk in found.chunks] == [b, c]
    assert found.chunks[0].stop == 6 and b.launched == 3 and found.chunks[0].final


def test_the_youngest_may_be_a_prompt():
    plans = scheduler(blocks=20, prefill=4, chunk=4)
    a, b = submitted(plans, 4), submitted(plans, 40, first=50)
    run(plans, 2)
    assert (a.state, b.state) == ("running", "prefilling")
    plans.pools[0].take(plans.pools[0].free)
    run(plans, 4)
    assert (a.preemptions, b.preemptions) == (0, 1)


def test_who_is_preempted_is_behind_who_came_before():
    """Even where the other has not had a row yet."""
    plans = scheduler(prefill=8, chunk=4)
    oldest = submitted(plans, 3, first=90)
    plans.plan()
    a, same, late = submitted(plans, 6), submitted(plans, 6), submitted(plans, 6, first=50)
    plans.plan()
    assert (same.state, late.state) == ("waiting", "prefilling")
    found = short_of_blocks(plans)
    assert (found.decoding, spans(found)) == ([oldest], [(a, 4, 6, True)])
    assert (same.state, late.state) == ("waiting", "waiting")
    assert [chunk.job for chunk in plans.plan().chunks] == [same, late]


def test_a_preempted_job_finds_its_own_blocks():
    plans = scheduler()
    _, job = submitted(plans, 3, first=50), submitted(plans, 9)
    run(plans, 5)
    plans.plan()  # in flight when it loses its row
    assert (job.launched, job.accepted) == (6, 5)
    assert short_of_blocks(plans).cleared == [1]
    assert (job.launched, job.accepted) == (5, 5)
    assert spans(plans.plan()) == [(job, 12, 14, True)]
    assert job.cached == 0  # what it once computed itself
    plans.accept(job, 1)
    with pytest.raises(BackendError, match="none in flight"):
        plans.accept(job, 1)


def test_the_oldest_is_never_preempted():
    plans = scheduler(blocks=4)
    a, b = submitted(plans, 4, limit=13), submitted(plans, 4, limit=13, first=50)
    run(plans, 13)
    assert (a.preemptions, a.accepted) == (0, 13)
    assert b.preemptions >= 1


def test_those_preempted_in_a_round_keep_the_order_of_arrival():
    plans = scheduler(rows=4, prefill=16)
    jobs = [submitted(plans, 4, first=10 * i) for i in range(6)]
    run(plans)
    found = short_of_blocks(plans)  # each needs a block for position 4
    assert (found.decoding, found.cleared) == (jobs[:2], [3, 2])
    assert {job.state for job in jobs[2:]} == {"waiting"}
    assert [chunk.job for chunk in plans.plan().chunks] == jobs[2:4]


def test_the_rest_of_a_job_goes_on_in_another_scheduler():
    """As after a failed step, when nothing on the device is sure."""
    plans = scheduler()
    job = submitted(plans, 9)
    run(plans, 2)
    rest, plans = Job(list(job.tokens), job.prompt_length, job.limit), scheduler()
    plans.submit(rest)
    assert spans(run(plans)) == [(rest, 0, 11, True)]  # nothing is known in its pools
    assert (rest.launched, rest.accepted, plans.pools[0].free) == (3, 3, 97)
    run(plans, 7)
    assert (plans.plan().decoding, rest.accepted) == ([], rest.limit)


# --- leaving ---


def test_cancel_in_any_state():
    plans = scheduler(rows=2, prefill=4, chunk=4)
    running, prefilling = submitted(plans, 3), submitted(plans, 9, first=50)
    waiting = submitted(plans, 3, first=90)
    plans.plan()
    assert (running.state, prefilling.state) == ("running", "prefilling")
    for job in (waiting, prefilling, running, running):
        plans.cancel(job)
        assert (job.state, job.row) == ("done", None)
    assert plans.idle and plans.pools[0].free == 100
    assert plans.plan().cleared == [1, 0]
    with pytest.raises(BackendError, match="done cannot finish"):
        plans.finish(running)
    with pytest.raises(BackendError, match="job that is done"):
        plans.accept(running, 1)


# --- cost ---


def calls_of(function):
    """How many functions, of Python or C, a call of `function` calls."""
    events = []
    sys.setprofile(lambda frame, event, argument: events.append(event))
    try:
        function()
    finally:
        sys.setprofile(None)
    return sum(event in ("call", "c_call") for event in events)


def steady(rows, length):
    """A scheduler whose rows all decode, none at the end of a block."""
    plans = scheduler(blocks=rows * (length // 4 + 40), rows=rows, prefill=1 << 20, chunk=1 << 20)
    jobs = [submitted(plans, length + 1, limit=100, first=i * length) for i in range(rows)]
    run(plans, 2)
    return plans, jobs


@pytest.mark.parametrize("length", (8, 800))
def test_a_decoding_row_costs_a_call_in_most_rounds(length):
    plans, _ = steady(64, length)
    assert calls_of(plans.plan) < 64 + 30
    plans, jobs = steady(1, length)
    plans.plan()
    assert calls_of(lambda: plans.accept(jobs[0], 7)) < 8
    assert calls_of(plans.plan) < 30


def test_a_round_copies_no_tokens():
    plans, jobs = steady(8, 4000)
    tracemalloc.start()
    try:
        run(plans, 12)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
    assert len(jobs[0].tokens) == 4015


def test_waiting_for_a_prefix_costs_little():
    """The blocks of those who wait are not looked up in each round, and who is far behind not at
    all."""
    plans = scheduler(blocks=250, prefill=8, chunk=4, rows=4)
    jobs = [submitted(plans, 800) for _ in range(1000)]
    plans.plan(), plans.plan()
    assert {job.state for job in jobs[1:]} == {"waiting"}
    assert calls_of(plans.plan) < 100


def test_waiting_for_room_costs_little():
    plans = scheduler(blocks=250, prefill=800, chunk=800)
    submitted(plans, 800), submitted(plans, 100, first=3000)
    for _ in range(3):
        plans.plan()
    job = submitted(plans, 900)  # its first 800 tokens are there
    plans.plan(), plans.plan()
    assert job.state == "waiting"
    assert calls_of(plans.plan) < 60
