"""The arena of CUDA's programs, over a pool that only counts."""

from types import SimpleNamespace

import pytest


@pytest.fixture
def arena(monkeypatch):
    cupy = pytest.importorskip("cupy")
    from boostr.backends.cupy.runtime.arena import Arena

    asked = []

    def malloc(size):
        asked.append(size)
        return SimpleNamespace(ptr=len(asked) << 40, device_id=0)

    pool = SimpleNamespace(malloc=malloc)
    monkeypatch.setattr(cupy.cuda, "MemoryPool", lambda: pool)
    made = Arena()
    made.asked = asked
    return made


def test_small_pieces_lie_apart_from_large_ones(arena):
    pieces = [arena.malloc(n) for n in (0, 1, 1 << 20, (1 << 20) + 1)]
    assert arena.asked == [4 << 20, 2 << 20] and arena.nbytes == 6 << 20
    assert [p.ptr for p in pieces] == [1 << 40, (1 << 40) + 512, (1 << 40) + 1024, 2 << 40]


def test_what_comes_back_is_used_again(arena):
    first, second = arena.malloc(6 << 20), arena.malloc(2 << 20)
    del first
    parts = [arena.malloc(2 << 20) for _ in range(3)]
    assert [p.ptr - (1 << 40) for p in parts] == [0, 2 << 20, 4 << 20]
    assert arena.nbytes == 8 << 20 and second.ptr == 2 << 40


def test_a_program_begins_with_all_and_keeps_what_is_its_own(arena):
    """An array of an earlier program that goes later gives nothing back a second time."""
    old = arena.malloc(2 << 20)
    arena.begin()
    new = arena.malloc(2 << 20)
    assert new.ptr == old.ptr
    del old
    assert arena.malloc(2 << 20).ptr != new.ptr
