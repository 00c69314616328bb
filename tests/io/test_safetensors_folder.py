"""Sharded safetensors checkpoints, choosing what to open, and writing."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from boostr.errors import BoostrError, ModelFileError
from boostr.io.safetensors import (
    INDEX,
    SINGLE,
    SafetensorsFile,
    SafetensorsFolder,
    open_safetensors,
    save,
)

TENSORS = {"w": np.ones((2, 3), np.float32), "b": np.zeros(3, ml_dtypes.bfloat16)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(tmp_path / SINGLE, TENSORS)
    return tmp_path / SINGLE


def shards(folder: Path, index: dict[str, str] | None = None) -> Path:
    """A checkpoint of two shards: a.safetensors {x, y}, b.safetensors {z}."""
    folder.mkdir(exist_ok=True)
    save(folder / "a.safetensors", {"x": np.ones(2, np.float32), "y": np.zeros(1, np.int8)})
    save(folder / "b.safetensors", {"z": np.full((2, 2), 3, np.float16)})
    weight_map = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    weight_map = index if index is not None else weight_map
    (folder / INDEX).write_text(json.dumps({"metadata": {"k": "v"}, "weight_map": weight_map}))
    return folder


def test_shards_have_the_interface_of_one_file(tmp_path: Path) -> None:
    with open_safetensors(shards(tmp_path)) as source:
        assert isinstance(source, SafetensorsFolder)
        assert source.names == ["x", "y", "z"] and source.metadata == {"k": "v"}
        assert source.shape("z") == (2, 2) and source.dtype("z") == np.float16
        assert source.tensor("z").tolist() == [[3, 3], [3, 3]]
        assert "x" in source and "w" not in source
        with pytest.raises(ModelFileError, match="no tensor 'w' among 3"):
            source.tensor("w")
        tensor = source.tensor("x")
    assert tensor.sum() == 2
    with pytest.raises(ModelFileError, match="after close"):
        source.tensor("x")


def test_open_takes_a_file_or_a_folder(file: Path) -> None:
    for path in (file, file.parent, str(file.parent)):
        with open_safetensors(path) as source:
            assert isinstance(source, SafetensorsFile)


@pytest.mark.parametrize("stale", ["shards", "index"])
def test_a_single_file_wins_over_an_index_and_says_so(tmp_path: Path, stale: str) -> None:
    save(shards(tmp_path) / SINGLE, {"x": np.full(3, 7, np.int8)})
    if stale == "index":  # a sharded version was there before, and its shards are gone
        for name in "ab":
            (tmp_path / f"{name}.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"model\.safetensors is read.*index\.json.*ignored"):
        source = open_safetensors(tmp_path)
    with source:
        assert source.names == ["x"] and source.tensor("x").tolist() == [7, 7, 7]


def test_what_a_shard_holds_beside_the_index_is_part_of_it(tmp_path: Path) -> None:
    with open_safetensors(shards(tmp_path, {"x": "a.safetensors", "z": "b.safetensors"})) as source:
        assert source.names == ["x", "z", "y"]
        assert source.tensor("y").tolist() == [0]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"x": "a.safetensors", "y": "a.safetensors", "z": "c.safetensors"}, "1 of 2 shards.*c.s"),
        ({"x": "a.safetensors", "y": "a.safetensors", "z": "a.safetensors"}, "in their shard: z"),
        ({"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}, "in their shard: x"),
        ({"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors", "u": "c.safetensors"},
         "1 of 3 shards"),
        ({}, "weight_map"),
        ({"x": 1}, "file names, not so for x"),
        ({"x": "../a.safetensors"}, "leads out of the folder"),
        ({"x": "sub/../../a.safetensors"}, "leads out of the folder"),
        ({"x": "/etc/passwd"}, "leads out of the folder"),
        ({"x": "C:\\a.safetensors"}, "leads out of the folder"),
        ({"x": "..\\a.safetensors"}, "leads out of the folder"),
        ({"x": ""}, "leads out of the folder"),
        ({"x": "a\0b"}, "leads out of the folder"),
    ],
)  # fmt: skip
def test_an_index_that_lies(tmp_path: Path, index: dict[str, str], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        open_safetensors(shards(tmp_path, index))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"weight_map": []}', '{"weight_map":{"a":"b","a":"b"}}']
)
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (shards(tmp_path) / INDEX).write_text(text)
    with pytest.raises(ModelFileError, match="index"):
        open_safetensors(tmp_path)


def test_a_malformed_shard_is_named(tmp_path: Path) -> None:
    path = shards(tmp_path) / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=r"b\.safetensors: not a valid .*download it again"):
        open_safetensors(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    save(tmp_path / "b.safetensors", {"z": np.ones(1, np.int8), "x": np.ones(2, np.float32)})
    with pytest.raises(ModelFileError, match=r"in two shards: x in b\.safetensors and a\."):
        open_safetensors(tmp_path)


def test_linked_shards_are_followed(tmp_path: Path) -> None:
    folder = shards(tmp_path / "model")
    (folder / "b.safetensors").rename(tmp_path / "elsewhere")
    (folder / "b.safetensors").symlink_to("../elsewhere")
    with open_safetensors(folder) as source:
        assert source.tensor("z").sum() == 12


@pytest.mark.parametrize("blobs", ["hub/models--o--n/blobs", "hub/blobs/ab"])
def test_links_of_a_hub_cache_are_followed(tmp_path: Path, blobs: str) -> None:
    snapshot, store = tmp_path / "hub/models--o--n/snapshots/abc", tmp_path / blobs
    snapshot.mkdir(parents=True)
    store.mkdir(parents=True)
    shards(snapshot)
    for name in ("a.safetensors", "b.safetensors", INDEX):
        (snapshot / name).rename(store / name)
        (snapshot / name).symlink_to(os.path.relpath(store / name, snapshot))
    with open_safetensors(snapshot) as source:
        assert source.tensor("x").sum() == 2


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=f"neither {INDEX} nor {SINGLE}"):
        open_safetensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin.*refuses.*save_file"):
        open_safetensors(tmp_path)


@pytest.mark.parametrize("head", [b"\x80\x02}q", b"\x80\x04\x95\x00", b"PK\x03\x04"])
def test_a_renamed_pickle_is_named_as_one(tmp_path: Path, head: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(head + bytes(100))
    with pytest.raises(ModelFileError, match="pickle"):
        open_safetensors(tmp_path)


def test_a_pointer_of_git_lfs_is_named_as_one(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 9\n"
    (tmp_path / SINGLE).write_text(pointer)
    with pytest.raises(ModelFileError, match="git lfs pull"):
        open_safetensors(tmp_path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        SafetensorsFile(tmp_path / "missing")
    with pytest.raises(ModelFileError, match="folder"):
        SafetensorsFile(tmp_path)


def test_save_takes_strided_arrays_and_leaves_nothing_behind(tmp_path: Path) -> None:
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    save(tmp_path / "x", {"t": base.T, "s": base[::2, ::-1], "big": base.astype(">f4")})
    with SafetensorsFile(tmp_path / "x") as st_file:
        np.testing.assert_array_equal(st_file.tensor("t"), base.T)
        np.testing.assert_array_equal(st_file.tensor("s"), base[::2, ::-1])
        np.testing.assert_array_equal(st_file.tensor("big"), base)
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "tensors",
    [{"a": np.zeros(2, object)}, {"a": np.zeros(2, "S3")},
     {"__metadata__": np.zeros(2, np.int8)}],
)  # fmt: skip
def test_save_refuses_and_keeps_the_old_file(tmp_path: Path, tensors: dict) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(BoostrError, match="cannot write"):
        save(tmp_path / "x", tensors)
    assert (tmp_path / "x").read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError("no space left")

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "x", TENSORS)
    assert (tmp_path / "x").read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]
