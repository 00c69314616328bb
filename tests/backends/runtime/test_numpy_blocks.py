"""Memory that goes from a dead result to a new one."""

import numpy as np
import pytest

from boostr import Tensor, ops
from boostr.backends.numpy.runtime import blocks

SHAPE = (300, 200)  # 240 kB


def test_memory_of_a_dead_array_is_used_again():
    first = blocks.empty(SHAPE, np.float32)
    address = first.ctypes.data
    del first
    again = blocks.empty((SHAPE[1], SHAPE[0]), np.int32)
    assert again.ctypes.data == address and again.dtype == np.int32 and again.flags.writeable


def test_memory_of_a_view_that_lives_is_not():
    first = blocks.empty(SHAPE, np.float32)
    first[:] = 1
    view = first[10:20].T
    del first
    others = [blocks.empty(SHAPE, np.float32) for _ in range(3)]
    for other in others:
        other[:] = 2
    assert (view == 1).all()


def test_few_blocks_of_a_size_wait():
    arrays = [blocks.empty((blocks.MOST // 4,), np.float32) for _ in range(5)]
    kept = {x.ctypes.data for x in arrays[-2:]}
    arrays.reverse()  # the last to die are those that wait
    while arrays:
        arrays.pop()
    free = blocks._free[blocks.MOST]
    assert len(free) == 2 and {raw.ctypes.data for raw in free} == kept


@pytest.mark.parametrize("nbytes", [0, blocks.LEAST - 1, blocks.MOST + 1])
def test_other_sizes_are_the_c_librarys(nbytes):
    assert blocks.empty((nbytes,), np.uint8).base is None


def test_results_of_kernels_are_handed_on():
    x = Tensor(np.zeros((512, 256), np.float32), backend="numpy")
    y = ops.silu(x)
    address = y.numpy().ctypes.data
    del y
    assert ops.silu(x).numpy().ctypes.data == address
