"""Memory for weights: pieces that begin at cache lines and do not overlap."""

import gc
from itertools import pairwise

import numpy as np

from boostr.backends.numpy.runtime import slabs


def bounds(x):
    return x.ctypes.data, x.ctypes.data + x.nbytes


def test_pieces_lie_apart():
    shapes = [(3, 5), (1,), (0, 4), (1000, 77), (9 << 20,), (7 << 20,), (20 << 20,), (2, 2)]
    made = [slabs.take(shape, dtype) for shape in shapes for dtype in ("u1", "f2", "f4")]
    assert [x.shape for x in made] == [shape for shape in shapes for _ in range(3)]
    assert all(x.ctypes.data % 64 == 0 for x in made if x.nbytes)
    places = sorted(bounds(x) for x in made if x.nbytes)
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    for i, x in enumerate(made):
        x[...] = i
    assert all((x == i).all() for i, x in enumerate(made))


def test_a_slab_goes_with_its_last_piece():
    first, second = slabs.take((100,), "f4"), slabs.take((100,), "f4")
    assert abs(first.ctypes.data - second.ctypes.data) < 4096
    first[:] = 7
    del second
    gc.collect()
    assert np.all(first == 7)
    del first
    gc.collect()
    assert slabs._last is not None and slabs._last() is None
