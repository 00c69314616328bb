"""What one pass does for several jobs: it begins those of one prompt, and takes prompts along that
have no row to decode in yet."""

from plans import run, scheduler, short_of_blocks, spans, submitted

from boostr.engine.job import Job

# --- jobs of one prompt ---


def choices(plans, length, count=3, **changes):
    first = submitted(plans, length, **changes)
    return [first, *(submitted(plans, length, leader=first, **changes) for _ in range(count - 1))]


def test_jobs_of_one_prompt_begin_with_the_first():
    plans = scheduler()
    a, b, c = choices(plans, 6)
    found = plans.plan()
    assert spans(found) == [(a, 0, 6, True)] and found.chunks[0].alike == [b, c]
    assert [job.tables[0][0] for job in (b, c)] == [a.tables[0][0]] * 2
    assert len({job.tables[0][1] for job in (a, b, c)}) == 3
    assert found.copies == [(j.row, 0, a.tables[0][1], j.tables[0][1]) for j in (b, c)]
    assert [(j.state, j.computed, j.launched, j.row) for j in (a, b, c)] == [
        ("running", 6, 1, row) for row in range(3)
    ]
    assert (a.cached, b.cached, plans.pools[0].free) == (0, 6, 100 - 4)
    found = plans.plan()
    assert (found.decoding, found.copies) == ([a, b, c], [])


def test_a_block_that_is_full_is_not_copied():
    plans = scheduler()
    a, b, _ = choices(plans, 8)
    found = plans.plan()
    assert found.copies == [] and a.tables == b.tables
    found = plans.plan()
    assert len({job.tables[0][2] for job in found.decoding}) == 3


def test_behind_a_window_only_what_is_seen_is_shared():
    plans = scheduler(windows=(None, 5), prefill=4, chunk=4)
    a, b = choices(plans, 15, 2)
    for _ in range(3):
        plans.plan()
        assert b.state == "waiting"
    found = plans.plan()
    assert found.chunks[0].alike == [b] and b.tables[1][:2] == [-1, -1]
    assert b.tables[1][2] == a.tables[1][2] and b.held(1) == 2
    assert {copy[1] for copy in found.copies} == {0, 1}


def test_who_has_no_room_for_its_block_is_computed_later():
    plans = scheduler(blocks=4)
    a, b, c = choices(plans, 6, limit=2)
    found = plans.plan()
    assert found.chunks[0].alike == [b, c] and not plans.pools[0].free
    plans = scheduler(blocks=3)
    a, b, c = choices(plans, 6, limit=2)
    found = plans.plan()
    assert (found.chunks[0].alike, c.state) == ([b], "waiting")
    plans.finish(a)
    assert spans(plans.plan()) == [(c, 4, 6, True)]


def test_a_leader_that_leaves_or_has_begun_leads_no_more():
    plans = scheduler(prefill=4, chunk=4)
    a, b, c = choices(plans, 6)
    plans.plan()
    plans.cancel(a)
    assert spans(plans.plan()) == [(b, 4, 6, True), (c, 4, 6, True)]
    late = submitted(plans, 6, leader=b)
    assert spans(plans.plan()) == [(late, 4, 6, True)]


def test_a_leader_of_another_scheduler_is_none():
    """As after a failed step: jobs are made anew, and what they were says nothing."""
    plans = scheduler(prefill=4, chunk=4)
    old = submitted(plans, 6)
    plans.plan()
    assert old.state == "prefilling"
    plans = scheduler()
    job = submitted(plans, 6, leader=old)
    assert spans(plans.plan()) == [(job, 0, 6, True)]


def test_preempted_choices_go_on_alone():
    plans = scheduler()
    a, b, c = choices(plans, 7)
    run(plans, 2)
    short_of_blocks(plans)  # each needs one for position 8
    assert [job.state for job in (a, b, c)] == ["running", "waiting", "waiting"]
    found = plans.plan()
    assert [(chunk.job, chunk.alike) for chunk in found.chunks] == [(b, []), (c, [])]


# --- prompts that are computed ahead of a row to decode in ---


def test_a_pass_takes_prompts_along():
    plans = scheduler(rows=2, ahead=(8, 9))
    jobs = [submitted(plans, 3, first=10 * i) for i in range(5)]
    found = run(plans)
    assert [chunk.job for chunk in found.chunks] == jobs[:4]
    assert [job.row for job in jobs] == [0, 1, 8, 9, None]
    assert [job.accepted for job in jobs] == [1, 1, 1, 1, 0]
    found = run(plans)
    assert (found.decoding, found.chunks) == (jobs[:2], [])
    plans.finish(jobs[1])
    found = run(plans)  # no pass is made for the last one, for which there is room now
    assert (found.moves, found.cleared) == ([(jobs[2], 8, 1)], [])
    assert (found.decoding, found.chunks) == ([jobs[0], jobs[2]], [])
    plans.finish(jobs[0])
    plans.finish(jobs[2])
    found = run(plans)
    assert (found.moves, found.cleared) == ([(jobs[3], 9, 0)], [1])
    assert (found.decoding, spans(found)) == ([jobs[3]], [(jobs[4], 0, 3, True)])


def test_only_whole_prompts_ride_along():
    plans = scheduler(rows=1, prefill=8, ahead=(3, 4))
    _, long = submitted(plans, 5), submitted(plans, 4, first=50)
    plans.plan()
    assert long.state == "waiting"
    plans = scheduler(rows=1, prefill=8, chunk=4, ahead=(3, 4))
    _, long = submitted(plans, 2), submitted(plans, 6, first=50)  # two chunks
    plans.plan()
    assert long.state == "waiting"
    plans = scheduler(rows=1, prefill=8, chunk=8, ahead=(3, 4))
    submitted(plans, 5)
    plans.submit(Job([50, 51], 2, 5, deterministic=True))
    assert len(plans.plan().chunks) == 1


def test_who_loses_its_row_on_the_way_is_cleared_there():
    plans = scheduler(rows=2, ahead=(5,))
    jobs = [submitted(plans, 4, first=10 * i) for i in range(3)]
    run(plans)
    plans.finish(jobs[1])
    found = short_of_blocks(plans)  # for the next token of the first
    assert (found.decoding, jobs[2].state) == ([jobs[0]], "waiting")
    assert found.moves == [] and set(found.cleared) == {1, 5}


def test_rows_that_close_up_are_those_that_decode():
    plans = scheduler(rows=3, ahead=(6,))
    jobs = [submitted(plans, 3, first=10 * i) for i in range(4)]
    run(plans)
    plans.cancel(jobs[0])
    assert plans.move_down(1) == (jobs[2], 2)
    assert (jobs[2].row, jobs[3].row) == (0, 6)
