"""The scheduler under every order of events: each job gets the tokens that it gets alone."""

from itertools import takewhile

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rounds_device import END, VOCABULARY, Owner, RoundsDevice, alone

from boostr.engine.blocks import BlockPool
from boostr.engine.job import Job
from boostr.engine.scheduler import Scheduler
from boostr.errors import OptionError

WINDOWS = ([None], [4], [None, 3], [1, None, 9], [6, 2], [])
SALTS = (b"", b"a")


def common(a, b):
    """Tokens that two jobs may share from the start."""
    if a.salt != b.salt or a.deterministic != b.deterministic:
        return 0
    pairs = zip(a.tokens, b.tokens, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


class Jobs(RuleBasedStateMachine):
    @initialize(
        windows=st.sampled_from(WINDOWS),
        size=st.integers(1, 4),
        rows=st.integers(1, 5),
        blocks=st.integers(6, 24),
        prefill=st.integers(1, 20),
        chunk=st.integers(1, 12),
        sharing=st.sampled_from((True, True, False)),
        ahead=st.integers(0, 3),
    )
    def start(self, windows, size, rows, blocks, prefill, chunk, sharing, ahead):
        self.windows = windows
        self.prefill, self.chunk, self.size, self.rows = prefill, chunk, size, rows
        self.sharing, self.ahead = sharing, range(rows + 2, rows + 2 + ahead)
        self.device = RoundsDevice(windows, size, prefill - prefill % size, rows)
        self._renew(blocks + 2 * group for group in range(len(windows)))
        self.jobs: list[Job] = []
        self.flying: list = []  # what the steps that nobody has read yet chose

    def _renew(self, counts):
        self.pools = [BlockPool(count, self.size) for count in counts]
        self.scheduler = Scheduler(
            self.pools, self.windows, self.rows, self.prefill, self._root(), self.sharing,
            self.chunk, ahead=self.ahead,
        )  # fmt: skip

    def _root(self):
        return str(self.device.version).encode()

    # --- what a client does ---

    @rule(
        family=st.integers(1, 2),
        length=st.integers(1, 20),
        tail=st.lists(st.integers(1, VOCABULARY - 1), max_size=2),
        limit=st.integers(1, 12),
        salt=st.sampled_from(SALTS),
        ends=st.booleans(),
        n=st.integers(1, 4),
        deterministic=st.booleans(),
    )
    def submit(self, family, length, tail, limit, salt, ends, n, deterministic):
        """n continuations of a prompt, which share its blocks and draw each in its own way."""
        prompt = [(i * i + family) % 3 + 1 for i in range(length)] + tail
        leader = None
        for seed in range(n):
            owner = Owner(ends, seed)
            job = Job(list(prompt), len(prompt), limit, salt, owner, deterministic, leader=leader)
            self._submit(job)
            leader = None if deterministic else leader or job

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0), tail=st.integers(1, VOCABULARY - 1))
    def next_turn(self, which, tail):
        before = self.jobs[which % len(self.jobs)]
        tokens = [*before.tokens, tail]
        same = before.deterministic
        self._submit(Job(tokens, len(tokens), 3, before.salt, before.owner, same))

    def _submit(self, job):
        try:
            self.scheduler.submit(job)
        except OptionError:
            needed = self.scheduler.blocks_for(job.prompt_length + job.limit - 1)
            if job.deterministic and not 0 < self.scheduler.cut <= self.chunk:
                return
            assert any(n > pool.count for n, pool in zip(needed, self.pools, strict=True))
        else:
            self.jobs.append(job)

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0))
    def cancel(self, which):
        job = self.jobs[which % len(self.jobs)]
        self.scheduler.cancel(job)
        assert job.state == "done"

    # --- what the engine does ---

    @rule(times=st.integers(1, 4))
    def steps(self, times):
        for _ in range(times):
            self._step()

    @rule()
    def steps_and_reads(self):
        for _ in range(8):
            self._step()
            self.read()

    def _step(self):
        before = {job: (job.state, job.preemptions, job.computed) for job in self.jobs}
        found = self.scheduler.plan()
        self._check_budget(found)
        self._check_order(before)
        assert {write[0] for write in found.writes} <= {job.row for job in self.jobs}
        assert self.flying or self.scheduler.idle or found.decoding or found.chunks, "stalled"
        self.flying.append(self.device.execute(found))

    @precondition(lambda self: self.flying)
    @rule()
    def read(self):
        for job, preemptions, token in self.flying.pop(0):
            if job.state != "running" or job.preemptions != preemptions:
                continue
            assert token is not None
            self.scheduler.accept(job, token)
            if job.accepted == job.limit or (job.owner.ends and token == END):
                assert job.tokens == alone(job)
                self.scheduler.finish(job)

    @rule(which=st.integers(0))
    def stop_string(self, which):
        running = [job for job in self.jobs if job.state == "running"]
        if running:
            self.scheduler.finish(running[which % len(running)])

    @rule(times=st.integers(1, 4))
    def steps_short_of_blocks(self, times):
        for _ in range(times):
            self._short_step()

    def _short_step(self):
        """Only the oldest who has a row gets blocks from the pools: others lose their rows."""
        oldest = next((job for job in self.jobs if job.row is not None), None)
        taken = []
        for group, pool in enumerate(self.pools if oldest else []):
            if oldest.state == "running":
                needed = oldest.computed // self.size + 1 - len(oldest.tables[group])
            else:
                most = self.scheduler.blocks_for(len(oldest.tokens))
                needed = most[group] - oldest.held(group)
            taken.append(pool.take(max(0, pool.free - max(0, needed))))
        self._step()
        for pool, blocks in zip(self.pools, taken, strict=False):
            pool.release(blocks)

    @rule(event=st.sampled_from(("failed_step", "other_model", "grow")))
    def rare(self, event):
        getattr(self, f"_{event}")()

    def _failed_step(self):
        self._renew([pool.count for pool in self.pools])
        self.device.lose_memory()
        self.flying.clear()
        self.jobs = [self._again(job) for job in self.jobs]

    def _again(self, job):
        """The rest of a job, for a new scheduler."""
        if job.state == "done":
            return job
        tokens = job.tokens[: job.prompt_length if job.deterministic else None]
        same = job.deterministic
        rest = Job(
            tokens, job.prompt_length, job.limit, job.salt, job.owner, same, leader=job.leader
        )
        self.scheduler.submit(rest)
        return rest

    def _other_model(self):
        self.device.version += 1
        self.scheduler.rehash(self._root())

    def _grow(self):
        for pool in self.pools:
            pool.grow(pool.count + 1)

    # --- what must hold ---

    def _check_budget(self, found):
        assert sum(chunk.stop - chunk.start for chunk in found.chunks) <= self.prefill
        for chunk in found.chunks:
            assert 0 < chunk.stop - chunk.start <= self.chunk
            assert chunk.final == (chunk.stop == len(chunk.job.tokens))

    def _check_order(self, before):
        """First come, first served, but for those whose prefix or leader is coming; the oldest
        never loses its row."""
        had = [job for job in self.jobs if before[job][0] in ("prefilling", "running")]
        if had:
            assert had[0].preemptions == before[had[0]][1]
        have = [job for job in self.jobs if job.row is not None]
        new = [job for job in have if before[job][0] == "waiting"]
        passed = [job for job in self.jobs if job.state == "waiting"]
        for job in passed if new else []:
            if job is self.jobs[-1] or self.jobs.index(job) > self.jobs.index(new[-1]):
                continue
            if job.leader is not None and job.leader.state == "prefilling":
                continue
            computed = {other: before[other][2] for other in have}
            assert self.sharing
            assert any(
                min(common(job, other), len(job.tokens) - 1) // self.size > done // self.size
                for other, done in computed.items()
            )

    @invariant()
    def rows_have_one_job(self):
        rows = [job.row for job in self.jobs if job.row is not None]
        assert len(set(rows)) == len(rows) and {*rows} <= {*range(self.rows), *self.ahead}
        for job in self.jobs:
            assert (job.row is not None) == (job.state in ("prefilling", "running"))
            assert job.accepted <= job.launched <= job.limit or job.state == "done"
            if job.state == "running":
                assert job.computed == job.prompt_length + job.launched - 1
            assert job.tokens == alone(job)[: len(job.tokens)]

    @invariant()
    def blocks_are_those_of_the_tables(self):
        for group, pool in enumerate(self.pools):
            owners: dict[int, list[tuple[Job, int]]] = {}
            for job in self.jobs:
                for column, block in enumerate(job.tables[group] if job.tables else []):
                    if block >= 0:
                        owners.setdefault(block, []).append((job, column))
            assert pool.free == pool.count - len(owners)
            assert all(pool._holders[block] == len(those) for block, those in owners.items())
            for (first, column), *others in owners.values():
                for other, same in others:
                    assert same == column and common(first, other) >= (column + 1) * self.size
                    assert min(first.computed, other.computed) >= (column + 1) * self.size

    def teardown(self):
        """Without new events every job ends, and everything is free."""
        if not hasattr(self, "scheduler"):
            return
        while self.flying:
            self.read()
        most = 2 * sum(len(job.tokens) + 2 * job.limit for job in self.jobs if job.state != "done")
        rounds = 0
        while not self.scheduler.idle:
            self._step()
            self.read()
            rounds += 1
            assert rounds <= most, "somebody starves"
        assert all(job.state == "done" for job in self.jobs)
        assert [pool.free for pool in self.pools] == [pool.count for pool in self.pools]


TestJobs = Jobs.TestCase
TestJobs.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
