"""safetensors: values and views, every rule of the format, shards, writing; against the library."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boostr.errors import ModelFileError
from boostr.io.safetensors import (
    SINGLE,
    SafetensorsFile,
    save,
)

TENSORS = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([1.5, -2.0], np.float16),
    "brain": np.array([[1.0, -3.0]], ml_dtypes.bfloat16),
    "f8": np.array([1.0, 0.5, 448.0], ml_dtypes.float8_e4m3fn),
    "f8b": np.array([1.0, 0.5], ml_dtypes.float8_e5m2),
    "i8": np.array([-1, 2, 3], np.int8),
    "i64": np.array([2**40], np.int64),
    "flag": np.array([True, False]),
    "scalar": np.float64(2.5).reshape(()),
    "empty": np.zeros((0, 7), np.float32),
}


def pack(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def row(dtype: str = "U8", shape: object = (1,), offsets: object = (0, 1)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save(tmp_path / SINGLE, TENSORS, {"format": "np", "é": "ü"})
    return tmp_path / SINGLE


def test_round_trip_of_values_shapes_dtypes_and_metadata(file: Path) -> None:
    with SafetensorsFile(file) as st_file:
        assert sorted(st_file.names) == sorted(TENSORS)
        assert st_file.metadata == {"format": "np", "é": "ü"}
        for name, expected in TENSORS.items():
            got = st_file.tensor(name)
            assert got.dtype == st_file.dtype(name) == expected.dtype
            assert got.shape == st_file.shape(name) == expected.shape
            assert got.tobytes() == expected.tobytes()
            assert got.flags.aligned and not got.flags.writeable
        assert "w" in st_file and "x" not in st_file


def test_views_are_no_copies_and_outlive_the_file(file: Path) -> None:
    with SafetensorsFile(file) as st_file:
        tensor = st_file.tensor("w")
        assert np.shares_memory(tensor, st_file.tensor("w"))
    gc.collect()
    assert tensor.sum() == 66
    with pytest.raises(ValueError, match="read-only"):
        tensor[0] = 1
    with pytest.raises(ModelFileError, match="after close"):
        st_file.tensor("w")


def test_the_library_reads_what_we_write(file: Path) -> None:
    names = [
        name for name in TENSORS if name not in ("brain", "f8", "f8b")
    ]  # no numpy dtypes there
    with safetensors.safe_open(file, framework="np") as theirs:
        assert sorted(theirs.keys()) == sorted(TENSORS)
        for name in names:
            np.testing.assert_array_equal(theirs.get_tensor(name), TENSORS[name])


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {"a": np.arange(5, dtype=np.int32), "b": np.ones((2, 3), np.float16)}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", {"k": "v"})
    with SafetensorsFile(tmp_path / "x.safetensors") as ours:
        assert ours.metadata == {"k": "v"}
        for name, expected in tensors.items():
            np.testing.assert_array_equal(ours.tensor(name), expected)


def test_unaligned_tensors_come_aligned(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F64","shape":[2],"data_offsets":[1,17]},"b":'
    header += b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    for pad in range(8):
        data = b"\x07" + np.array([1.5, 2.5]).tobytes()
        (tmp_path / "x").write_bytes(pack(header + b" " * pad, data))
        with SafetensorsFile(tmp_path / "x") as st_file:
            tensor = st_file.tensor("a")
            assert tensor.flags.aligned and not tensor.flags.writeable
            assert tensor.tolist() == [1.5, 2.5]


BAD = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "header over 100 MB": pack(b"{}", length=100_000_001),
    "header of 2**64 - 1": pack(b"{}", length=2**64 - 1),
    "header past the end": pack(b"{}", length=3),
    "header of 0": pack(b""),
    "a list": pack(b"[]"),
    "not UTF-8": pack(b'{"\xff":1}'),
    "not JSON": pack(b"{a}"),
    "cut JSON": pack(b'{"a":'),
    "not a number": pack(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"b":NaN}}', b"x"),
    "duplicate field": pack(b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "deep nesting": pack(b'{"a":' * 100_000),
    "surrogate": pack(b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "metadata no object": pack({"__metadata__": []}),
    "metadata no string": pack({"__metadata__": {"a": 1}}),
    "row no object": pack({"a": 1}),
    "row empty": pack({"a": {}}),
    "unknown dtype": pack({"a": row("F31")}, b"x"),
    "dtype no string": pack({"a": row(["U8"])}, b"x"),  # type: ignore[arg-type]
    "shape no list": pack({"a": row(shape=1)}, b"x"),
    "shape negative": pack({"a": row(shape=[-1])}, b"x"),
    "shape float": pack({"a": row(shape=[1.0])}, b"x"),
    "shape bool": pack({"a": row(shape=[True])}, b"x"),
    "shape overflows": pack({"a": row(shape=[2**32, 2**32], offsets=[0, 0])}),
    "shape overflows to 1": pack({"a": row(shape=[2**63 + 1, 2], offsets=[0, 2])}, b"xx"),
    "shape huge list": pack({"a": row(shape=[2**63] * 50_000)}, b"x"),
    "offsets one": pack({"a": row(offsets=[0])}, b"x"),
    "offsets negative": pack({"a": row(offsets=[-1, 0])}, b"x"),
    "offsets swapped": pack({"a": row(shape=[0], offsets=[1, 0])}, b"x"),
    "offsets past the end": pack({"a": row(shape=[2], offsets=[0, 2])}, b"x"),
    "size differs": pack({"a": row("F32", [1], [0, 2])}, b"xx"),
    "sub-byte remainder": pack({"a": row("F4", [3], [0, 1])}, b"x"),
    "overlap": pack({"a": row(shape=[2], offsets=[0, 2]), "b": row(offsets=[1, 2])}, b"xx"),
    "same bytes twice": pack({"a": row(), "b": row()}, b"x"),
    "hole before": pack({"a": row(offsets=[1, 2])}, b"xx"),
    "hole between": pack({"a": row(), "b": row(offsets=[2, 3])}, b"xxx"),
    "trailing bytes": pack({"a": row()}, b"xx"),
    "trailing bytes, no tensors": pack({}, b"x"),
    "long integer in a key of nobody": pack(
        b'{"a":{"dtype":"U8","data_offsets":[0,1],"shape":[1],"more":%b}}' % (b"9" * 5000), b"x"
    ),
    "long integer": pack(b'{"a":{"dtype":"U8","data_offsets":[0,0],"shape":[%b]}}' % (b"9" * 5000)),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_are_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD[case])
    with pytest.raises(ModelFileError, match=r"bad\.safetensors") as caught:
        SafetensorsFile(path)
    assert len(str(caught.value)) < 1500


def library_accepts(data: bytes) -> bool:
    try:
        safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return False
    return True


def we_accept(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        with SafetensorsFile(path) as st_file:
            for name in st_file.names:
                st_file.shape(name)
    except ModelFileError:
        return False
    return True


@pytest.mark.parametrize(
    "data",
    [
        pack({}),
        pack({"__metadata__": {}}),
        pack(b"{}   "),
        pack(b"{}\n"),
        pack({"a": row(shape=[])}, b"x"),
        pack({"a": row(shape=[0, 5], offsets=[0, 0])}),
        pack({"b": row(), "a": row(shape=[0], offsets=[0, 0])}, b"x"),
        pack({"b": row(), "c": row(shape=[0], offsets=[1, 1])}, b"x"),
        pack({"b": row(offsets=[1, 2]), "a": row()}, b"xx"),
        pack({"a": row("F4", [2], [0, 1])}, b"x"),
        pack({"a": {**row(), "more": 1}}, b"x"),
        pack({"a": row(shape=[1] * 80)}, b"x"),
        pack(b" {}"),
        pack(b'{"a":%b,"a":%b}' % ((json.dumps(row()).encode(),) * 2), b"x"),
    ],
)  # fmt: skip
def test_odd_files_that_are_valid(data: bytes, tmp_path: Path) -> None:
    assert library_accepts(data)
    assert we_accept(tmp_path / "x", data)


def test_what_the_file_may_hold_and_we_do_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(
        pack({"a": row("F4", [2], [0, 1]), "b": row(shape=[1] * 80, offsets=[1, 2])}, b"xx")
    )
    with SafetensorsFile(tmp_path / "x") as st_file:
        with pytest.raises(ModelFileError, match="'a' is F4; boostr reads F64"):
            st_file.tensor("a")
        with pytest.raises(ModelFileError, match="'b'"):
            st_file.tensor("b")
        with pytest.raises(ModelFileError, match="no tensor 'c' among 2"):
            st_file.tensor("c")
        info = st_file.info("a")
        assert (info.dtype, info.shape, info.end - info.begin) == ("F4", (2,), 1)


sizes = st.one_of(st.integers(-2, 9), st.sampled_from([2**31, 2**32, 2**63, 2**64]), st.floats())
rows = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["U8", "F32", "BF16", "F4", "F8_E4M3", "X", None]),
        "shape": st.one_of(st.lists(sizes, max_size=4), st.none()),
        "data_offsets": st.one_of(st.lists(sizes, max_size=3), st.none()),
    },
)
good_rows = st.lists(
    st.tuples(st.sampled_from(["U8", "F32", "BF16"]), st.integers(0, 4)), max_size=4
)


def build(parts: list[tuple[str, int]]) -> bytes:
    """A valid file of one-dimensional tensors."""
    header, offset = {}, 0
    for i, (dtype, count) in enumerate(parts):
        size = count * {"U8": 1, "F32": 4, "BF16": 2}[dtype]
        header[f"t{i}"] = row(dtype, [count], [offset, offset + size])
        offset += size
    return pack(header, bytes(offset))


FUZZ = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@FUZZ
@given(st.dictionaries(st.text(max_size=3), rows, max_size=3), st.binary(max_size=12))
def test_lying_headers(tmp_path: Path, header: dict[str, object], data: bytes) -> None:
    raw = pack(header, data)
    assert we_accept(tmp_path / "x", raw) == library_accepts(raw)


@FUZZ
@given(good_rows, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3))
def test_mutated_bytes(
    tmp_path: Path, parts: list[tuple[str, int]], changes: list[tuple[int, int]]
) -> None:
    raw = bytearray(build(parts))
    for at, value in changes:
        raw[at % len(raw)] = value
    assert we_accept(tmp_path / "x", bytes(raw)) == library_accepts(bytes(raw))


@FUZZ
@given(good_rows, st.integers(0, 400))
def test_truncated_files(tmp_path: Path, parts: list[tuple[str, int]], cut: int) -> None:
    raw = build(parts)
    short = raw[: cut % (len(raw) + 1)]
    assert we_accept(tmp_path / "x", short) == (short == raw)


@FUZZ
@given(st.binary(max_size=200))
def test_random_bytes(tmp_path: Path, raw: bytes) -> None:
    assert we_accept(tmp_path / "x", raw) == library_accepts(raw)
    framed = pack(raw)
    assert we_accept(tmp_path / "x", framed) <= library_accepts(framed)


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory with RLIMIT_AS")
def test_memory_stays_bounded_for_lying_headers(tmp_path: Path) -> None:
    cases = ["header over 100 MB", "header of 2**64 - 1", "shape overflows", "shape huge list"]
    paths = [tmp_path / str(i) for i in range(len(cases))]
    for path, case in zip(paths, cases, strict=True):
        path.write_bytes(BAD[case])
    script = """
import resource, sys
from boostr.errors import ModelFileError
from boostr.io.safetensors import SafetensorsFile
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for path in sys.argv[1:]:
    try:
        SafetensorsFile(path)
    except ModelFileError:
        continue
    sys.exit(f"accepted {path}")
"""
    subprocess.run([sys.executable, "-c", script, *map(str, paths)], check=True)


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    """Bytes 80 02 begin a pickle, and a file whose header has 640 bytes."""
    raw = pack(json.dumps({"a": row()}).encode().ljust(640), b"x")
    assert raw.startswith(b"\x80\x02")
    assert we_accept(tmp_path / "x", raw)
