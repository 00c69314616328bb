"""Which blocks the scheduler's jobs share, wait for, and give back behind a window."""

import pytest
from plans import run, scheduler, short_of_blocks, spans, submitted

from boostr.engine.job import Job

# --- windows ---


def test_blocks_behind_the_window_are_given_back():
    """Positions 3 .. 7 are seen from position 7, so block 0 (0 .. 3) goes when 8 is next."""
    plans = scheduler(windows=(None, 5))
    job = submitted(plans, 7)
    run(plans, 2)  # position 7
    full, seen = job.tables
    assert len(seen) == 2 and min(seen) >= 0
    found = run(plans)  # position 8 sees 4 .. 8
    assert (0, 1, 0, -1) in found.writes and seen[0] == -1
    assert len([block for block in full if block >= 0]) == 3
    assert plans.pools[1].free == 98
    run(plans, 4)
    assert seen[:2] == [-1, -1] and seen[2] >= 0


def test_long_prompts_pass_through_a_window():
    plans = scheduler(blocks=6, windows=(5,), prefill=8, chunk=8)
    job = submitted(plans, 80)
    for _ in range(10):
        run(plans)
        assert job.held(0) <= plans.blocks_for(80)[0] == 4
    assert job.state == "running"
    assert plans.pools[0].free == 6 - job.held(0)


# --- prefixes ---


def test_equal_prompts_share_full_blocks_and_leave_a_token_to_do():
    plans = scheduler()
    a = submitted(plans, 8)
    run(plans)
    b, longer = submitted(plans, 8), submitted(plans, 11)
    found = plans.plan()
    assert spans(found) == [(b, 4, 8, True), (longer, 8, 11, True)]
    assert (a.cached, b.cached, longer.cached) == (0, 4, 8)
    assert b.tables[0][0] == a.tables[0][0] and longer.tables[0][:2] == a.tables[0][:2]
    assert b.tables[0][1] != a.tables[0][1]
    assert plans.pools[0].free == 100 - 5  # three of a, one of each other


def test_output_is_found_by_the_next_turn():
    plans = scheduler()
    job = submitted(plans, 6, limit=7)
    run(plans, 7)
    plans.finish(job)
    turn = Job([*job.tokens, 5], 14, 3)
    plans.submit(turn)
    assert spans(plans.plan()) == [(turn, 12, 14, True)]


def test_a_token_is_entered_when_the_next_one_is_known():
    """A row that ended on the device does not write the token that ended it, although steps of it
    were planned."""
    plans = scheduler()
    job = submitted(plans, 6)
    for _ in range(4):
        plans.plan()
    assert job.computed == 9
    plans.accept(job, 7)
    plans.accept(job, 0)  # position 7, the last of its block
    plans.finish(job)
    turn = Job([*job.tokens, 5], 9, 3)
    plans.submit(turn)
    assert spans(plans.plan()) == [(turn, 4, 9, True)]


def test_salts_share_nothing():
    plans = scheduler()
    run_job = submitted(plans, 9, salt=b"a")
    run(plans)
    other, same = submitted(plans, 9, salt=b"b"), submitted(plans, 9, salt=b"a")
    assert spans(plans.plan()) == [(other, 0, 9, True), (same, 8, 9, True)]
    assert not set(other.tables[0]) & set(run_job.tables[0])


def test_sharing_can_be_off():
    plans = scheduler(sharing=False)
    a, b = submitted(plans, 9), submitted(plans, 9)
    assert spans(plans.plan()) == [(a, 0, 9, True), (b, 0, 9, True)]
    assert (b.cached, a.keys) == (0, None)


def test_a_job_waits_for_the_prefix_that_another_computes():
    plans = scheduler(prefill=8, chunk=4)
    a, b = submitted(plans, 10), submitted(plans, 10)
    other = submitted(plans, 2, first=50)
    assert spans(plans.plan()) == [(a, 0, 4, False), (other, 0, 2, True)]
    assert spans(plans.plan()) == [(a, 4, 8, False)]
    assert b.state == "waiting"
    assert spans(plans.plan()) == [(a, 8, 10, True), (b, 8, 10, True)]
    assert b.cached == 8


def test_a_job_does_not_wait_for_a_prefix_that_is_not_coming_any_more():
    plans = scheduler(prefill=4, chunk=4)
    a, b = submitted(plans, 10), submitted(plans, 10)
    plans.plan()
    plans.cancel(a)
    assert spans(plans.plan()) == [(b, 4, 8, False)]


def test_who_waited_for_a_prefix_keeps_its_place():
    """Chunks go by arrival, not by admission."""
    plans = scheduler(prefill=8, chunk=4)
    a, b = submitted(plans, 6), submitted(plans, 30)
    late = submitted(plans, 30, first=50)
    assert spans(plans.plan()) == [(a, 0, 4, False), (late, 0, 4, False)]
    assert [chunk.job for chunk in plans.plan().chunks] == [a, late, b]
    assert [chunk.job for chunk in plans.plan().chunks] == [b, late]


def test_a_window_needs_only_what_the_next_token_sees():
    plans = scheduler(windows=(None, 5), prefill=4, chunk=4)
    a = submitted(plans, 21)
    run(plans, 6)
    assert a.tables[1][:4] == [-1] * 4
    b = submitted(plans, 21)
    found = plans.plan()
    assert spans(found) == [(b, 20, 21, True)]
    assert b.tables[1][:5] == [-1, -1, -1, -1, a.tables[1][4]]
    assert [write for write in found.writes if write[:2] == (1, 1)] == [
        (1, 1, column, block) for column, block in enumerate(b.tables[1])
    ]


def known(pool, job):
    """Which of a job's full blocks a pool still has."""
    return [pool.find(key) is not None for key in job.keys]


@pytest.mark.parametrize("lost_by_window, cached", ((False, 16), (True, 0)))
def test_a_hit_is_one_in_every_group(lost_by_window, cached):
    """What one group has lost shortens the hit of all, until it suits each."""
    plans = scheduler(windows=(5, None, 9), prefill=4, chunk=4)
    a = submitted(plans, 21)
    run(plans, 6)
    plans.finish(a)
    seen, full, _ = plans.pools
    full.release(full.take(full.free - 4))
    assert known(full, a) == [True] * 4 + [False]
    if lost_by_window:  # what it keeps is the block that 16 tokens do not reach
        seen.release(seen.take(seen.free - 1))
        assert known(seen, a) == [False] * 4 + [True]
    b = submitted(plans, 21)
    plans.plan()
    assert b.cached == cached


def test_another_model_finds_nothing_of_the_old_one():
    plans = scheduler(blocks=8, prefill=16, chunk=16)
    oldest, old = submitted(plans, 3, first=50), submitted(plans, 9)
    run(plans)
    refused = submitted(plans, 9, salt=b"x")
    plans.plan()
    assert refused.keys  # of the old model
    short_of_blocks(plans)
    assert known(plans.pools[0], old) == [True, True]
    plans.rehash(b"new")
    plans.pools[0].grow(20)
    assert spans(plans.plan()) == [(old, 0, 10, True), (refused, 0, 6, False)]
    run(plans, 4)
    plans.cancel(oldest)
    again, same = submitted(plans, 9), submitted(plans, 9, salt=b"x")
    # those who waited run under the new model
    assert spans(plans.plan()) == [(again, 8, 9, True), (same, 8, 9, True)]


def test_a_job_that_goes_on_under_another_model_is_not_shared():
    plans = scheduler()
    _, old = submitted(plans, 3, limit=30, first=50), submitted(plans, 6, limit=30)
    run(plans)
    plans.rehash(b"new")
    run(plans, 9)
    new = Job(old.tokens[:13], 13, 3)
    plans.submit(new)
    assert spans(plans.plan()) == [(new, 0, 13, True)]
    plans.pools[0].share(new.tables[0])  # so that their keys stay
    plans.finish(new)
    short_of_blocks(plans)  # old needs one for position 16
    assert spans(plans.plan()) == [(old, 12, 16, True)]  # it is computed again, and may share
