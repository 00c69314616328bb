"""Dataset and Packs: tokenized once, whole samples, full batches, and an order of two numbers."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from tiny_model import save_tokenizer

from boostr.errors import DataError, DiskFullError, OptionError
from boostr.io.tokenizer import Tokenizer
from boostr.train import Dataset, Packs, Position
from boostr.train import data as module
from boostr.train.records import rows_of


def written(path, lengths, seed=0):
    rng = np.random.default_rng(seed)
    with path.open("w") as file:
        for n in lengths:
            ids = rng.integers(3, 199, n)
            labels = np.where(rng.random(n) < 0.5, ids, -100)
            labels[-1] = ids[-1]
            row = {"input_ids": ids.tolist(), "labels": labels.tolist()}
            file.write(json.dumps(row) + "\n")
    return path


def opened(tmp_path, lengths, **options):
    return Dataset.open(
        written(tmp_path / "a.jsonl", lengths), None, **{"max_length": 4096, **options}
    )


def test_tokenized_once(tmp_path, datasets, monkeypatch):
    save_tokenizer(tmp_path, None)
    tokenizer = Tokenizer.from_folder(tmp_path)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": ""}\n{"text": "three"}\n')
    first = Dataset.open(path, tokenizer, max_length=16)
    assert len(first) == 2 and dict(first.counts) == {"used": 2, "a text is empty": 1}
    assert tokenizer.decode(first[1].ids) == "three" and first.lengths.tolist() == [4, 6]
    monkeypatch.setattr(module, "rows_of", None)  # what is there is not read again
    again = Dataset.open(path, tokenizer, max_length=16)
    assert again.key == first.key and again.counts == first.counts
    np.testing.assert_array_equal(again[0].labels, first[0].labels)
    monkeypatch.setattr(module, "rows_of", rows_of)
    keys = {first.key, Dataset.open(path, tokenizer, max_length=17).key}
    path.write_text('{"text": "one"}\n')
    keys.add(Dataset.open(path, tokenizer, max_length=16).key)
    tokenizer.lower_case()
    keys.add(Dataset.open(path, tokenizer, max_length=16).key)
    assert len(keys) == 4 == len(list(datasets.iterdir()))
    with pytest.raises(IndexError):
        first[2]


def test_a_cache_is_whole_or_not_there(tmp_path, datasets, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"input_ids": [1, 2]}\n{"input_ids": "x"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        Dataset.open(path, None, max_length=8)
    assert not list(datasets.iterdir())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(DiskFullError, match=r"datasets/.* its disk has 0.0 MB left"):
        Dataset.open(path, None, max_length=8)
    with pytest.raises(DataError, match="there is no valid split"):
        Dataset.open(path, None, max_length=8, split="valid")


def pairs(ids, labels):
    return Counter(zip(ids.tolist(), labels.tolist(), strict=True))


@pytest.mark.parametrize("sequences", [512, 3])
def test_every_sample_once_and_whole(sequences, tmp_path):
    """(token, label) of all batches are those of the data; each segment is a sample."""
    lengths = np.random.default_rng(1).integers(2, 60, 300)
    data = opened(tmp_path, lengths)
    packs = Packs(data, 128, sequences)
    wanted = Counter(tuple(data[i].ids.tolist()) for i in range(len(data)))
    found, counts = Counter[tuple](), Counter[tuple]()
    for epoch in (0, 1):
        walk = packs.batches(Position(epoch, 0))
        for _ in packs.epoch(epoch):
            _, batch = next(walk)
            assert len(batch) <= 128 and len(batch.lengths) <= sequences
            for start, stop in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
                found[tuple(batch.input_ids[start:stop].tolist())] += 1
                np.testing.assert_array_equal(
                    batch.position_ids[start:stop], np.arange(stop - start)
                )
            counts += pairs(batch.input_ids, batch.labels)
    assert found == wanted + wanted
    whole = pairs(np.concatenate([data[i].ids for i in range(300)]),
                  np.concatenate([data[i].labels for i in range(300)]))  # fmt: skip
    assert counts == whole + whole


def test_fill(tmp_path):
    lengths = np.random.default_rng(2).integers(32, 257, 3000)  # as 256 to 2048 in 16384
    packs = Packs(opened(tmp_path, lengths), 2048)
    assert all(packs.fill(epoch) > 0.98 for epoch in range(3))


def test_the_order_is_of_seed_and_epoch(tmp_path):
    data = opened(tmp_path, np.random.default_rng(3).integers(2, 60, 200))
    one, same, other = Packs(data, 128), Packs(data, 128), Packs(data, 128, seed=1)

    def order(packs, epoch):
        return np.concatenate(packs.epoch(epoch)).tolist()

    assert order(one, 5) == order(same, 5)
    orders = [order(one, 0), order(one, 1), order(other, 0)]
    assert all(sorted(own) == list(range(200)) for own in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_going_on_from_a_position(tmp_path):
    """Across the end of an epoch, what comes behind a position is what would have come."""
    data = opened(tmp_path, np.random.default_rng(4).integers(2, 60, 50))
    walk = Packs(data, 128).batches()
    steps = [next(walk) for _ in range(2 * len(Packs(data, 128).epoch(0)) + 3)]
    assert {position.epoch for position, _ in steps} == {0, 1, 2}
    for k in (0, 3, len(steps) // 2, len(steps) - 2):
        later = Packs(data, 128).batches(Position(*steps[k][0]))
        for position, batch in steps[k + 1 :]:
            again, same = next(later)
            assert again == position
            np.testing.assert_array_equal(same.input_ids, batch.input_ids)
            np.testing.assert_array_equal(same.labels, batch.labels)


def test_a_sample_that_no_batch_holds(tmp_path):
    data = opened(tmp_path, [5, 40])
    with pytest.raises(OptionError, match="samples of 40 tokens; raise tokens"):
        Packs(data, 32)
