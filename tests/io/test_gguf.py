"""GGUF: values and views, every limit of the reader, and agreement with the gguf package."""

import gc
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boostr.errors import ModelFileError
from boostr.io.gguf import GGML_TYPES, GGUFFile

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {U8: "<B", I8: "<b", U16: "<H", I16: "<h", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?",
           U64: "<Q", I64: "<q", F64: "<d"}  # fmt: skip


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes, length: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw) if length is None else length) + raw


def pair(key: str, kind: int, value: Any) -> bytes:
    raw = value if isinstance(value, bytes) else struct.pack(FORMATS[kind], value)
    return string(key) + u32(kind) + raw


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + items


def info(name: str | bytes, dims: list[int], kind: int, offset: int = 0) -> bytes:
    raw = b"".join(map(u64, dims))
    return string(name) + u32(len(dims)) + raw + u32(kind) + u64(offset)


def pack(
    pairs: list[bytes], infos: list[bytes], data: bytes = b"", version: int = 3, align: int = 32
) -> bytes:
    head = b"GGUF" + u32(version) + u64(len(infos)) + u64(len(pairs))
    head += b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % align) + data if infos else head + data


def opened(tmp_path: Path, raw: bytes) -> GGUFFile:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw)
    return GGUFFile(path)


METADATA: dict[str, Any] = {
    "u8": 255, "i8": -128, "u16": 65535, "i16": -32768, "u32": 2**32 - 1, "i32": -(2**31),
    "f32": 0.5, "yes": True, "no": False, "text": "héllo", "none": "", "u64": 2**64 - 1,
    "i64": -(2**63), "f64": 1e300, "words": ["a", "", "ü"], "ints": [1, -2, 3],
    "bools": [True, False], "floats": [0.5, -1.5],
}  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A file made by the gguf package, and its plain tensors."""
    path = tmp_path / "w.gguf"
    writer = GGUFWriter(path, "llama")
    for key, value in METADATA.items():
        if isinstance(value, list):
            writer.add_array(key, value)
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(
            key := kind.replace("uint", "u").replace("int", "i"), METADATA[key]
        )
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 1e300)
    writer.add_bool("yes", True)
    writer.add_bool("no", False)
    writer.add_string("text", "héllo")
    tensors = {
        "f32": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "f16": np.arange(5, dtype=np.float16),
        "f64": np.arange(3, dtype=np.float64),
        "i8": np.arange(-3, 3, dtype=np.int8),
        "i32": np.arange(7, dtype=np.int32),
    }
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    brain = np.array([[1.0, -2.5]], ml_dtypes.bfloat16)
    writer.add_tensor("bf16", brain.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16)
    for kind, size in (("Q8_0", 34), ("Q4_1", 20), ("Q8_K", 292)):
        blocks = np.arange(3 * 2 * size, dtype=np.uint8).reshape(3, 2 * size)
        writer.add_tensor(kind, blocks, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, tensors | {"bf16": brain}


def test_metadata(written: tuple[Path, Any]) -> None:
    with GGUFFile(written[0]) as file:
        got = file.metadata
    assert got["general.architecture"] == "llama"
    for key, expected in METADATA.items():
        if key != "none":
            value = got[key].tolist() if isinstance(got[key], np.ndarray) else got[key]
            assert value == expected and type(value) is type(expected), key
    assert isinstance(got["words"], list) and isinstance(got["ints"], np.ndarray)
    assert got["bools"].dtype == np.bool_


def test_tensors(written: tuple[Path, dict[str, np.ndarray]]) -> None:
    path, tensors = written
    with GGUFFile(path) as file:
        for name, expected in tensors.items():
            tensor = file.tensors[name]
            assert (tensor.name, tensor.type) == (name, name.upper())
            assert tensor.shape == tensor.data.shape == expected.shape
            assert tensor.data.dtype == expected.dtype and not tensor.data.flags.writeable
            assert tensor.data.tobytes() == expected.tobytes()
        for kind, size in (("Q8_0", 34), ("Q4_1", 20)):
            tensor = file.tensors[kind]
            assert tensor.shape == (3, 64) and tensor.nbytes == 6 * size
            expected = np.arange(6 * size, dtype=np.uint8).reshape(3, 2 * size)
            np.testing.assert_array_equal(tensor.data, expected)
        assert file.tensors["Q8_K"].shape == (3, 256 * 2)  # known well enough to be listed
        with pytest.raises(
            ModelFileError, match="'Q8_K' is Q8_K; boostr reads F32, F16, BF16, Q8_0"
        ):
            file.tensors["Q8_K"].data  # noqa: B018


def test_views_are_no_copies_and_outlive_the_file(written: tuple[Path, Any]) -> None:
    with GGUFFile(written[0]) as file:
        tensor = file.tensors["f32"]
        data = tensor.data
        assert np.shares_memory(data, tensor.data)
    gc.collect()
    assert data.sum() == 276
    with pytest.raises(ModelFileError, match="after close"):
        tensor.data  # noqa: B018


def test_agrees_with_the_gguf_package(written: tuple[Path, Any]) -> None:
    with GGUFFile(written[0]) as file:
        ours = {
            name: (t.type, t.shape, t.nbytes, t.data.tobytes() if t.type != "Q8_K" else None)
            for name, t in file.tensors.items()
        }
    theirs = {
        t.name: (
            t.tensor_type.name,
            tuple(t.shape.tolist()[::-1]),
            t.n_bytes,
            t.data.tobytes() if t.tensor_type.name != "Q8_K" else None,
        )
        for t in GGUFReader(written[0]).tensors
    }
    assert ours == theirs and list(ours) == list(theirs)


def test_the_table_of_types_is_that_of_the_gguf_package() -> None:
    table = {kind.value: (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    # The package holds Q8_1 to have two floats; in ggml's C it has two halves.
    assert {k: v for k, v in table.items() if k in GGML_TYPES and k != 9} == {
        k: v for k, v in GGML_TYPES.items() if k in table and k != 9
    }
    assert set(table) - set(GGML_TYPES) == set()


def test_version_2_alignment_scalars_and_row_major_shapes(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32)
    pairs = [
        pair("general.alignment", U32, 4),
        pair(
            "nested",
            ARRAY,
            array(ARRAY, 2, (array(U8, 2, b"\1\2") + array(STRING, 1, string("x")))),
        ),
        pair("empty", ARRAY, array(F32, 0)),
    ]
    infos = [
        info("a", [3, 2], 0),
        info("s", [], 0, 24),
        info("e", [0, 3], 0, 28),
        info("b", [1], 24, 28),
    ]
    raw = pack(pairs, infos, values.tobytes() + struct.pack("<f", 7) + b"\x05", version=2, align=4)
    with opened(tmp_path, raw) as file:
        assert file.version == 2 and file.tensors["a"].data.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert file.tensors["s"].data.shape == () and file.tensors["s"].data == 7
        assert file.tensors["e"].data.shape == (3, 0) and file.tensors["b"].data.tolist() == [5]
        first, second = file.metadata["nested"]
        assert first.tolist() == [1, 2] and second == ["x"] and file.metadata["empty"].size == 0


def test_unaligned_tensors_come_aligned(tmp_path: Path) -> None:
    data = b"\x01" + np.array([1.5, 2.5], np.float32).tobytes()
    pairs = [pair("general.alignment", U32, 1)]
    infos = [info("b", [1], 24), info("a", [2], 0, 1)]
    for pad in range(4):
        raw = pack([*pairs, pair("pad", STRING, string("x" * pad))], infos, data, align=1)
        with opened(tmp_path, raw) as file:
            got = file.tensors["a"].data
        assert got.flags.aligned and not got.flags.writeable and got.tolist() == [1.5, 2.5]


HUGE = 2**61
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "only magic": (b"GGUF", "truncated"),
    "other magic": (b"GGML" + bytes(30), "magic"),
    "pickle": (b"PK\x03\x04" + bytes(30), "pickle"),
    "version 1": (b"GGUF" + u32(1) + bytes(30), "version 1"),
    "version 4": (b"GGUF" + u32(4) + bytes(30), "version 4"),
    "version 0": (b"GGUF" + u32(0) + bytes(30), "version 0"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(30), "big-endian"),
    "pairs": (b"GGUF" + u32(3) + u64(0) + u64(HUGE), "key-value pairs"),
    "pairs, all ones": (b"GGUF" + u32(3) + u64(0) + u64(2**64 - 1), "key-value pairs"),
    "tensors": (b"GGUF" + u32(3) + u64(HUGE) + u64(0), "tensor infos"),
    "key too long": (pack([string("k", HUGE)], []) + bytes(20), "over the limit"),
    "key past the end": (pack([string("k", 99) + bytes(20)], []), "metadata key"),
    "key not UTF-8": (pack([string(b"\xff") + u32(U8) + b"\0"], []), "UTF-8"),
    "key twice": (pack([pair("k", U8, 1), pair("k", U8, 1)], []), "'k' is there twice"),
    "value type": (pack([pair("k", 13, b"\0")], []), "unknown value type 13"),
    "value past the end": (pack([pair("key", U64, b"\0\0")], []), "'key'.*do not fit"),
    "string too long": (pack([pair("k", STRING, u64(HUGE))], []), "over the limit"),
    "string past the end": (pack([pair("k", STRING, u64(1000))], []), "do not fit"),
    "string not UTF-8": (pack([pair("k", STRING, string(b"\xc3"))], []), "UTF-8"),
    "bool 2": (pack([pair("k", BOOL, b"\2")], []), "bool must be 0 or 1"),
    "bools 2": (pack([pair("k", ARRAY, array(BOOL, 2, b"\0\2"))], []), "bool must be 0 or 1"),
    "array type": (pack([pair("k", ARRAY, array(13, 1) + b"\0")], []), "unknown value type 13"),
    "array count": (pack([pair("k", ARRAY, array(U8, HUGE))], []), "do not fit"),
    "array of u64 count": (pack([pair("k", ARRAY, array(U64, HUGE))], []), "do not fit"),
    "array of strings count": (pack([pair("k", ARRAY, array(STRING, HUGE))], []), "do not fit"),
    "array of strings past the end": (
        pack([pair("k", ARRAY, array(STRING, 2, string("a") + u64(99)))], []), "string 1 of 2"),
    "array of strings not UTF-8": (
        pack([pair("k", ARRAY, array(STRING, 1, string(b"\xff")))], []), "string 0 of 1"),
    "array of arrays count": (pack([pair("k", ARRAY, array(ARRAY, HUGE))], []), "do not fit"),
    "nesting": (pack([pair("k", ARRAY, array(ARRAY, 1) * 5000 + array(U8, 0))], []), "nest deeper"),
    "alignment 0": (pack([pair("general.alignment", U32, 0)], []), "alignment"),
    "alignment 3": (pack([pair("general.alignment", U32, 3)], []), "alignment"),
    "alignment large": (pack([pair("general.alignment", U32, 2**21)], []), "alignment"),
    "alignment text": (pack([pair("general.alignment", STRING, string("32"))], []), "alignment"),
    "tensor name too long": (pack([], [string("t", HUGE) + bytes(40)]), "over the limit"),
    "tensor twice": (pack([], [info("t", [1], 0)] * 2, bytes(4)), "'t' is there twice"),
    "five dimensions": (pack([], [info("t", [1] * 5, 0)], bytes(4)), "5 dimensions"),
    "dimensions, all ones": (pack([], [string("t") + b"\xff" * 40], bytes(4)), "dimensions"),
    "unknown type": (pack([], [info("t", [1], 99)], bytes(4)), "unknown ggml type 99"),
    "removed type": (pack([], [info("t", [32], 31)], bytes(4)), "Q4_0_4_4, which ggml removed"),
    "row no multiple": (pack([], [info("t", [33], 8)], bytes(99)), "no multiple of the 32 of Q8_0"),
    "size overflows": (pack([], [info("t", [2**32, 2**32], 0)], bytes(4)), "larger than any file"),
    "size overflows to 0": (pack([], [info("t", [2**62, 4], 24)]), "larger than any file"),
    "size, all ones": (pack([], [info("t", [2**64 - 1] * 4, 24)]), "larger than any file"),
    "offset, all ones": (pack([], [info("t", [1], 0, 2**64 - 32)], bytes(4)), "larger than any"),
    "offset unaligned": (pack([], [info("t", [1], 0, 4)], bytes(8)), "no multiple of 32"),
    "data past the end": (pack([], [info("t", [2], 0)], bytes(7)), "truncated"),
    "offset past the end": (pack([], [info("t", [1], 0, 2**40)], bytes(4)), "truncated"),
    "no data": (pack([], [info("t", [1], 0)]), "truncated"),
    "overlap": (pack([], [info("t", [9], 0), info("u", [1], 0, 32)], bytes(64)), "overlaps"),
    "same offset": (pack([], [info("t", [1], 0), info("u", [1], 0)], bytes(64)), "overlaps"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_malformed_files_are_refused(case: str, tmp_path: Path) -> None:
    raw, message = BAD[case]
    with pytest.raises(ModelFileError, match=message) as caught:
        opened(tmp_path, raw)
    assert "x.gguf" in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory with RLIMIT_AS")
def test_memory_stays_bounded_for_lying_counts(tmp_path: Path) -> None:
    paths = []
    for i, (raw, _) in enumerate(BAD.values()):
        paths.append(tmp_path / str(i))
        paths[-1].write_bytes(raw)
    script = """
import resource, sys
from boostr.errors import ModelFileError
from boostr.io.gguf import GGUFFile
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (size, size))
for path in sys.argv[1:]:
    try:
        GGUFFile(path)
    except ModelFileError:
        continue
    sys.exit(f"accepted {path}")
"""
    subprocess.run([sys.executable, "-c", script, *map(str, paths)], check=True)


VALID = pack(
    [pair("general.architecture", STRING, string("llama")), pair("n", U32, 7),
     pair("words", ARRAY, array(STRING, 2, string("ab") + string("c"))),
     pair("ints", ARRAY, array(I32, 3, bytes(12))), pair("flag", BOOL, True)],
    [info("a", [2, 3], 0), info("b", [32, 2], 8, 32), info("c", [4], 28, 128)],
    bytes(200),
)  # fmt: skip
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
FUZZ = settings(max_examples=500, deadline=None, suppress_health_check=CHECKS)


def survives(tmp_path: Path, raw: bytes) -> bool:
    """True if the file opens; no error other than ModelFileError may escape."""
    try:
        with opened(tmp_path, raw) as file:
            for tensor in file.tensors.values():
                try:
                    assert tensor.data.nbytes == tensor.nbytes <= len(raw)
                except ModelFileError as error:
                    assert "boostr reads" in str(error)
    except ModelFileError:
        return False
    return True


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), max_size=4))
def test_mutated_bytes(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    raw = bytearray(VALID)
    for at, value in changes:
        raw[at] = value
    survives(tmp_path, bytes(raw))


@FUZZ
@given(st.integers(0, len(VALID) - 8), st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
def test_lying_integers(tmp_path: Path, at: int, value: int) -> None:
    survives(tmp_path, VALID[:at] + u64(value) + VALID[at + 8 :])


@FUZZ
@given(st.integers(0, len(VALID)))
def test_truncated_files(tmp_path: Path, size: int) -> None:
    data_end = len(VALID) - 200 + 128 + 4 * 8
    assert survives(tmp_path, VALID[:size]) == (size >= data_end)


@FUZZ
@given(st.binary(max_size=300))
def test_random_bytes_behind_a_good_start(tmp_path: Path, raw: bytes) -> None:
    survives(tmp_path, b"GGUF" + u32(3) + raw)


scalars = st.one_of(st.booleans(), st.text(max_size=5), st.integers(-(2**31), 2**31 - 1))
lists = st.one_of(
    st.lists(st.text(max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=4),
)
keys = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None, suppress_health_check=CHECKS)
@given(
    st.dictionaries(keys, st.one_of(scalars, lists), max_size=4),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_reads_what_the_gguf_package_writes(
    tmp_path: Path, metadata: dict[str, Any], shape: list[int]
) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(f"t.{key}", value)
        elif isinstance(value, bool):
            writer.add_bool(f"t.{key}", value)
        elif isinstance(value, int):
            writer.add_int32(f"t.{key}", value)
        else:
            writer.add_string(f"t.{key}", value)
    tensor = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    writer.add_tensor("w", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "x.gguf") as file:
        for key, value in metadata.items():
            got = file.metadata.get(f"t.{key}", "")  # the writer leaves empty strings out
            assert (got.tolist() if isinstance(got, np.ndarray) else got) == value
        np.testing.assert_array_equal(file.tensors["w"].data, tensor)
