"""Memory of the wgpu backend: size classes, reuse, what programs keep, what happens at its end."""

import gc

import numpy as np
import pytest
from conftest import open_backend
from draws import refused

from boostr import dtypes
from boostr.backends.wgpu.runtime.buffers import Arena, Pool, size_class
from boostr.errors import BackendError, DTypeError, OutOfMemoryError


@pytest.fixture
def gpu():
    return open_backend("wgpu")


def test_size_classes_waste_little():
    assert size_class(0) == size_class(256) == 256
    for nbytes in (257, 1000, 4097, 70_000, 5 << 20, (1 << 24) + 1, 123_456_789):
        size = size_class(nbytes)
        assert nbytes <= size <= max(nbytes * 1.25 + 256, nbytes + (1 << 16)) and size % 64 == 0
        assert size_class(size) == size


class FakeGpu:
    _internal = None


def pool_of(limit=1 << 40):
    """A pool over memory that ends at `limit` bytes, and the events that it caused."""
    events = []

    def make(nbytes):
        if pool.allocated + nbytes > limit:
            raise OutOfMemoryError("full")
        return FakeGpu()

    pool = Pool(make, lambda: 7, lambda b: events.append("drop"), lambda: events.append("relieve"))
    return pool, events


def test_memory_is_used_again_when_its_last_view_dies():
    pool, _ = pool_of()
    first = pool.take(1000)
    block, view = first.block, first
    del first
    assert pool.take(1000).block is not block  # the view still lives
    del view
    again = pool.take(900)
    assert again.block is block and block.serial == 7
    assert pool.count == 2


def test_weights_have_their_own_size_and_are_not_kept():
    pool, events = pool_of()
    weight = pool.take(1_000_001, exact=True)
    assert weight.block.size == 1_000_016
    del weight
    pool.drain()
    assert pool.allocated == 0 and events == ["drop"]


def test_when_memory_ends_the_idle_blocks_are_given_back_first():
    pool, events = pool_of(limit=1 << 20)
    for nbytes in (300_000, 400_000):
        del (taken := [pool.take(nbytes)])[0]
        del taken
    kept = pool.take(900_000)
    assert events == ["drop", "drop", "relieve"] and kept.block.size >= 900_000
    with refused(OutOfMemoryError, "full"):
        pool.take(900_000)


def test_sizes_that_change_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("boostr.backends.wgpu.runtime.buffers._SPARE", 0)
    pool, events = pool_of()
    for nbytes in range(20 << 20, 40 << 20, 1 << 20):
        pool.take(nbytes)
    pool.drain()
    assert pool.allocated <= 1.5 * (39 << 20) and "drop" in events
    kept = [pool.take(39 << 20) for _ in range(4)]
    before = events.count("drop")
    for _ in range(3):  # work that repeats finds all of its memory again
        kept.clear()
        kept = [pool.take(39 << 20) for _ in range(4)]
    assert events.count("drop") == before and pool.count <= 5


def test_a_programs_memory_serves_only_the_program():
    pool, _ = pool_of()
    arena = Arena(pool)
    buffer = arena.take(100)
    block = buffer.block
    del buffer
    assert pool.take(100).block is not block  # idle, but the program writes to it again
    kept = arena.take(100)
    assert kept.block is block
    del arena
    assert pool.take(100).block is not block  # still seen
    del kept
    assert pool.take(100).block is block


def test_programs_of_an_arena_have_all_of_it_each():
    pool, _ = pool_of()
    arena = Arena(pool)
    first = [arena.take(size) for size in (100, 100, 5000)]
    arena.begin()
    second = [arena.take(size) for size in (100, 5000, 100)]
    assert {b.block.uid for b in first} == {b.block.uid for b in second}
    assert all(map(arena.owns, second))
    with refused(BackendError, "another program of the same arena"):
        arena.owns(first[0])
    del first  # what they had is not free, as the second has it
    third = arena.take(100)
    assert third.block.uid not in {b.block.uid for b in second}


def test_out_of_memory_names_the_array_and_its_size(gpu):
    with refused(OutOfMemoryError, gpu.device, "1048576.0 MiB", "[1073741824, 256]", "--quantize"):
        gpu.empty((1 << 30, 1 << 8), np.float32)


@pytest.mark.parametrize("dtype", ["float64", "int64", "float8_e4m3", "uint16"])
def test_dtypes_that_no_kernel_reads_are_refused(gpu, dtype):
    with refused(DTypeError, gpu.device, "holds no"):
        gpu.from_numpy(np.zeros(2, dtypes.parse(dtype)))
    with refused(DTypeError, gpu.device, "holds no"):
        gpu.empty((2,), dtypes.parse(dtype))


def test_used_memory_falls_when_tensors_die(gpu):
    gc.collect()
    gpu.release_memory()
    before = gpu.used_memory()
    held = gpu.from_numpy(np.zeros(1 << 20, np.float32))
    assert gpu.used_memory() == before + (1 << 22)
    del held
    gpu.release_memory()
    assert gpu.used_memory() == before
