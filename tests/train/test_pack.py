"""pack: where tokens, labels and sequences lie."""

import numpy as np
from draws import refused

from boostr import train
from boostr.errors import OptionError, ShapeError


def test_layout():
    batch = train.pack([[5, 6, 7], [8], [9, 10]], [[5, -100, 7], [8], [9, 11]])
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6] and batch.lengths.tolist() == [3, 1, 2]
    assert batch.targets.tolist() == [-100, 7, -100, -100, 11, -100]
    assert batch.target_count == 2 and len(batch) == 6
    for field in (batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens):
        assert field.dtype == np.int32


def test_labels_are_the_ids_by_default():
    batch = train.pack([[1, 2, 3], [4, 5]])
    assert batch.targets.tolist() == [2, 3, -100, 5, -100] and batch.target_count == 3


def test_refuses():
    with refused(OptionError, "pack", "at least one token"):
        train.pack([])
    with refused(OptionError, "pack", "at least one token"):
        train.pack([[1], []])
    with refused(ShapeError, "pack", "[1, 2]", "[1, 1]"):
        train.pack([[1], [2, 3]], [[1], [2]])
    with refused(OptionError, "pack", "integers", "float64"):
        train.pack([[1.5]])
    with refused(OptionError, "pack", "integers", "int64"):
        train.pack([[1, 2**32 + 5]])
    with refused(OptionError, "pack", "labels must be integers", "float64"):
        train.pack([[1, 2]], [[1.5, 2]])
