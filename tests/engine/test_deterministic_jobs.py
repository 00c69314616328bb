"""Jobs whose passes do not depend on others: where prompts are cut, what is shared, what is made
again."""

import pytest
from plans import run, scheduler, short_of_blocks, spans, submitted

from boostr.engine.job import Job
from boostr.errors import OptionError


def deterministic(plans, tokens, limit=10):
    job = Job(list(tokens), len(tokens), limit, deterministic=True)
    plans.submit(job)
    return job


def test_prompts_are_cut_at_their_own_places():
    """Whatever is left of the budget: a chunk waits until it fits as a whole."""
    plans = scheduler(prefill=11, chunk=11)
    assert plans.cut == 8
    first, job = submitted(plans, 9, first=50), deterministic(plans, range(20))
    assert spans(plans.plan()) == [(first, 0, 9, True)]
    found = [span for _ in range(3) for span in spans(plans.plan())]
    assert found == [(job, 0, 8, False), (job, 8, 16, False), (job, 16, 20, True)]


def test_others_use_the_budget_that_is_too_small_for_a_chunk():
    plans = scheduler(prefill=11, chunk=11)
    first, job = submitted(plans, 6, first=50), deterministic(plans, range(20))
    last = submitted(plans, 9, first=70)
    assert spans(plans.plan()) == [(first, 0, 6, True), (last, 0, 5, False)]
    assert spans(plans.plan()) == [(job, 0, 8, False), (last, 5, 8, False)]


def test_the_next_token_waits_for_the_one_before():
    plans = scheduler()
    job, other = deterministic(plans, range(5)), submitted(plans, 5, first=50)
    plans.plan()
    assert plans.plan().decoding == [other]
    plans.accept(job, 7)
    assert plans.plan().decoding == [job, other]
    assert plans.plan().decoding == [other]


@pytest.mark.parametrize("lost, cached", [(0, 16), (1, 8), (3, 0)])
def test_whole_chunks_are_shared(lost, cached):
    plans = scheduler(prefill=8, chunk=8)
    job = deterministic(plans, range(22), limit=3)
    run(plans, 4)
    plans.finish(job)
    pool = plans.pools[0]
    pool.release(pool.take(pool.free - 4 + lost))
    again = deterministic(plans, range(22))
    plans.plan()
    assert again.cached == cached


def test_neither_output_nor_the_rest_of_a_prompt_is_shared():
    plans = scheduler(prefill=8, chunk=8)
    job = deterministic(plans, range(12))
    run(plans, 7)
    assert len(job.tokens) == 18
    turn = deterministic(plans, [*job.tokens, 5])
    assert spans(plans.plan()) == [(turn, 8, 16, False)]


def test_other_jobs_share_nothing_with_them():
    plans = scheduler(prefill=8, chunk=8)
    plain = submitted(plans, 17)
    run(plans, 3)
    job = deterministic(plans, range(17))
    run(plans, 3)
    assert (job.cached, set(job.tables[0]) & set(plain.tables[0])) == (0, set())
    late = [submitted(plans, 17), deterministic(plans, range(17))]
    plans.plan()
    assert [other.tables[0][:4] for other in late] == [plain.tables[0][:4], job.tables[0][:4]]


def test_nobody_waits_for_blocks_that_will_not_be_shared():
    """The rest behind the last whole chunk is everybody's own."""
    plans = scheduler(prefill=8, chunk=8)
    a, b = deterministic(plans, range(15)), deterministic(plans, range(15))
    found = [span for _ in range(3) for span in spans(plans.plan())]
    assert found == [(a, 0, 8, False), (a, 8, 15, True), (b, 8, 15, True)]
    assert b.tables[0][:2] == a.tables[0][:2]


def test_one_that_loses_its_row_makes_its_output_again():
    plans = scheduler(blocks=10, prefill=8, chunk=8)
    first, job = submitted(plans, 3, limit=30, first=50), deterministic(plans, range(9))
    run(plans, 5)
    assert job.accepted == 3
    while job.preemptions == 0:
        short_of_blocks(plans)
        for running in (first, job):
            if running.state == "running" and running.launched > running.accepted:
                plans.accept(running, 7)
    assert job.tokens == list(range(9)) and job.launched == 0
    run(plans)
    assert job.state == "running" and job.accepted == 1


def test_chunks_that_are_too_short_are_refused():
    plans = scheduler(prefill=8, chunk=7)
    with pytest.raises(OptionError, match="8 tokens at a time; here a chunk has 7 at most"):
        deterministic(plans, range(3))
    plans = scheduler(prefill=3, chunk=3)
    with pytest.raises(OptionError, match="0 tokens at a time"):
        deterministic(plans, range(3))
