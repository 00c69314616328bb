"""An explicit budget for keys and values is kept to the block, whatever windows layers have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import make_tiny

import boostr
from boostr.engine.blocks import most_blocks
from boostr.engine.kv_budget import wanted_room
from boostr.env import human_bytes
from boostr.errors import OptionError

SIZE, CHUNK = 16, 512
MIXED = {"model_type": "smollm3", "use_sliding_window": True}
MIXES = {
    "as Gemma 3": MIXED | {
        "num_hidden_layers": 6, "sliding_window": 32,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    },
    "as gpt-oss": MIXED | {
        "num_hidden_layers": 2, "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "window alone": {"model_type": "mistral", "sliding_window": 24},
}  # fmt: skip


class Pool:
    """What a budget asks of a pool: groups (window, bytes of a block), bytes of a row."""

    block_size = SIZE

    def __init__(self, groups, row_bytes):
        self.windows, self._each = zip(*groups, strict=True)
        self.counts, self.rows = [0] * len(groups), SimpleNamespace(count=0, row_bytes=row_bytes)

    def block_bytes(self, group):
        return self._each[group]

    @property
    def nbytes(self):
        return self.bytes_of([*self.counts, self.rows.count])

    def bytes_of(self, counts):
        sizes = [*self._each, self.rows.row_bytes]
        return sum(n * b for n, b in zip(counts, sizes, strict=True))

    def least(self, length):
        """Blocks, and a row, for one job whose prompt is cut as finely as can be."""
        return [*most_blocks(length, self.windows, SIZE, SIZE), 1]

    def take(self, room):
        self.counts, self.rows.count = room.counts, room.rows


BACKEND = SimpleNamespace(
    prefill_chunk=CHUNK, free_memory=lambda: 1 << 30, row_buckets=(1, 2, 4, 8), sequence_rows=8
)
POOLS = st.builds(
    Pool,
    st.lists(
        st.tuples(st.sampled_from((None, 1, 20, 128, 4096)), st.integers(1, 900)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from((0, 1, 700, 90_000)),
)


@given(POOLS, st.lists(st.integers(1, 9000), min_size=1, max_size=9), st.integers(0, 2_000_000))
def test_a_budget_is_used_up_and_never_exceeded(pool, lengths, budget):
    if pool.bytes_of(pool.least(max(lengths))) > budget:
        with pytest.raises(OptionError, match=f"allows {human_bytes(budget)} for .* are needed"):
            wanted_room(pool, lengths, BACKEND, budget)
        return
    room = wanted_room(pool, lengths, BACKEND, budget)
    has = [*room.counts, room.rows]
    rest = budget - pool.bytes_of(has)
    assert rest >= 0
    sums = [0] * len(has)
    for length in lengths:
        need = [*most_blocks(length, pool.windows, SIZE, room.chunk), bool(pool.rows.row_bytes)]
        assert all(a >= n for a, n in zip(has, need, strict=True))
        sums = [a + b for a, b in zip(sums, need, strict=True)]
    sums[-1] = min(sums[-1], BACKEND.sequence_rows)
    sizes = [*map(pool.block_bytes, range(len(pool.counts))), pool.rows.row_bytes]
    for count, wanted, size in zip(has, sums, sizes, strict=True):
        assert count >= wanted or rest < size  # room for one more is left only to who needs none
    pool.take(room)
    assert wanted_room(pool, lengths, BACKEND, budget) == room


@given(POOLS, st.integers(1, 9000), st.integers(1, 9000), st.floats(0.3, 1))
def test_a_budget_that_falls_is_kept_to(pool, first, second, part):
    pool.take(wanted_room(pool, [first], BACKEND, 1 << 40))
    budget = int(pool.nbytes * part)
    try:
        room = wanted_room(pool, [second], BACKEND, budget)
    except OptionError:
        assert pool.bytes_of(pool.least(second)) > budget
    else:
        assert pool.bytes_of([*room.counts, room.rows]) <= budget


@pytest.fixture(scope="module", params=MIXES)
def folder(request, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", **MIXES[request.param])


def test_the_least_budget_gives_the_same_tokens(where, folder):
    """Layers with a window keep few blocks, where prompts are cut fine enough."""
    free, tight = (boostr.load(folder, backend=where) for _ in range(2))
    prompts = [[7 + i] * 90 + [i, 9, 4 * i] for i in range(3)]
    truth = [free.generate(p, max_tokens=40).token_ids for p in prompts]
    pool = tight.engine.pool
    size = pool.block_size
    least = most_blocks(93 + 40, pool.windows, size, size)
    budget = sum(pool.block_bytes(g) * n for g, n in enumerate(least))
    tight.engine.kv_memory = budget - 1
    with pytest.raises(OptionError, match="are needed"):
        tight.generate(prompts[0], max_tokens=40)
    tight.engine.kv_memory = budget
    found = tight.generate_batch(prompts, max_tokens=40)
    assert [c.token_ids for c in found] == truth
    assert tight.engine.pool.nbytes == budget


def test_a_prompt_that_is_shared_counts_for_who_wants_more_tokens(where, folder):
    free, tight = (boostr.load(folder, backend=where) for _ in range(2))
    prompt, pool = [7 * i % 240 + 3 for i in range(200)], tight.engine.pool
    options = [boostr.SamplingOptions(max_tokens=n) for n in (1, 100)]
    truth = [free.generate(prompt, options=own).token_ids for own in options]
    least = most_blocks(200 + 100, pool.windows, pool.block_size, pool.block_size)
    tight.engine.kv_memory = sum(pool.block_bytes(g) * n for g, n in enumerate(least))
    found = tight.generate_batch([prompt, prompt], options=options)
    assert [c.token_ids for c in found] == truth


def test_a_pool_shrinks_when_the_budget_does(where, folder):
    model = boostr.load(folder, backend=where)
    truth = model.generate([5] * 300, max_tokens=9).token_ids
    before = model.engine.pool.nbytes
    model.engine.kv_memory = before // 3
    assert model.generate([5] * 300, max_tokens=9).token_ids == truth
    assert before // 3 - max(map(model.engine.pool.block_bytes, (0,))) < model.engine.pool.nbytes
    assert model.engine.pool.nbytes <= before // 3
    model.engine.kv_memory = None
    assert model.generate([5] * 300, max_tokens=9).token_ids == truth
    assert model.engine.pool.nbytes == before
