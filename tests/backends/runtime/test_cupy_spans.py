"""Where an arena's pieces lie: never two in one place, and all of a segment again at the end."""

import itertools

import numpy as np
import pytest

from boostr.backends.cupy.runtime.spans import Spans


def overlap(held: list[tuple[int, int, int]]) -> bool:
    """Whether two of (segment, start, size) share a byte."""
    ordered = sorted(held)
    return any(a[0] == b[0] and a[1] + a[2] > b[1] for a, b in itertools.pairwise(ordered))


def test_the_smallest_range_that_holds_a_piece():
    spans = Spans()
    assert spans.take(1) is None
    for size in (100, 10, 50):
        spans.add(size)
    assert spans.take(50) == (2, 0)
    assert spans.take(20) == (0, 0) and spans.take(9) == (1, 0)
    assert spans.take(81) is None and spans.take(80) == (0, 20)


def test_neighbours_become_one():
    spans = Spans()
    spans.add(30)
    pieces = [spans.take(10) for _ in range(3)]
    assert pieces == [(0, 0), (0, 10), (0, 20)]
    for number in (0, 2, 1):
        spans.give(pieces[number], 10)
    assert spans.take(30) == (0, 0)


def test_segments_do_not_become_one():
    spans = Spans()
    spans.add(10)
    spans.add(10)
    a, b = spans.take(10), spans.take(10)
    spans.give(a, 10)
    spans.give(b, 10)
    assert spans.take(11) is None


def test_all_is_free_for_the_next_program():
    spans = Spans()
    spans.add(64)
    assert spans.take(40) == (0, 0)
    spans.free_all()
    assert spans.take(64) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_never_share_a_byte(seed):
    rng, spans, held = np.random.default_rng(seed), Spans(), []
    for _ in range(400):
        if held and rng.random() < 0.5:
            segment, start, size = held.pop(int(rng.integers(len(held))))
            spans.give((segment, start), size)
            continue
        size = int(rng.integers(1, 200))
        place = spans.take(size)
        if place is None:
            spans.add(size + int(rng.integers(0, 100)))
            place = spans.take(size)
        assert place is not None and place[1] + size <= spans.sizes[place[0]]
        held.append((*place, size))
        assert not overlap(held)
    for segment, start, size in held:
        spans.give((segment, start), size)
    assert sorted(spans.take(n) for n in spans.sizes) == [(i, 0) for i in range(len(spans.sizes))]
