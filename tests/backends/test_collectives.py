"""Ranks: what they exchange, what they sum, and that none waits for one that has failed."""

import threading

import numpy as np
import pytest

from boostr import backends
from boostr.errors import BackendError, OptionError, RankError
from boostr.train import run_ranks


def test_ranks_exchange_values_in_their_order():
    def fn(rank):
        found = [rank.gather((i, rank.rank)) for i in range(50)]
        assert found == [[(i, r) for r in range(3)] for i in range(50)]
        return rank.rank, rank.size, threading.current_thread() is threading.main_thread()

    assert run_ranks(fn, [0, 1, 2], "numpy") == (0, 3, True)
    assert run_ranks(lambda rank: rank.gather("x"), "1", "numpy") == ["x"]


def test_sums_are_in_the_order_of_ranks():
    """Bit for bit, whoever comes first; scalars too, and every rank has them."""
    rng = np.random.default_rng(0)
    given = [[rng.standard_normal(shape, "f4") for shape in ((), (5,), (3, 2))] for _ in range(3)]

    def fn(rank):
        own = [np.array(x) for x in given[rank.rank]]
        rank.all_reduce(own)
        return rank.gather(own)

    for found in run_ranks(fn, "0,1,2", "numpy"):
        for total, a, b, c in zip(found, *given, strict=True):
            np.testing.assert_array_equal(total, a + b + c)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_ends_the_others(failing):
    ended = []

    def fn(rank):
        if rank.rank == failing:
            raise KeyError("the cause")
        try:
            rank.gather(1)
        except RankError:
            ended.append(rank.rank)
            raise

    with pytest.raises(KeyError, match="the cause") as caught:
        run_ranks(fn, [0, 1, 2], "numpy")
    assert sorted(ended) == sorted({0, 1, 2} - {failing})
    assert caught.value.__notes__ == [f"in rank {failing} of 3, on numpy"]


def test_a_rank_that_ends_early_is_told():
    def fn(rank):
        for _ in range(2 + rank.rank):
            rank.wait()

    with pytest.raises(RankError, match="rank 0 has ended while others go on"):
        run_ranks(fn, [0, 1], "numpy")


def test_refuses():
    with pytest.raises(OptionError, match=r"wgpu cannot sum over devices.*grad_accumulation = 2"):
        backends.open_ranks("wgpu", (0, 1))
    with pytest.raises(OptionError, match="backend cupy:1 names one"):
        backends.open_ranks("cupy:1", (0, 1))
    for wrong in ("0,0", "0,-1", [], "0,one", ""):
        with pytest.raises(OptionError, match="devices must be"):
            run_ranks(print, wrong, "numpy")
    with pytest.raises(BackendError, match="no backend 'cuda'"):
        backends.open_ranks("cuda", (0, 1))
