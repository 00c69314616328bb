"""Slices by rank read their own bytes and no more, whatever rules a plan has.

A child process makes all other pages of the mapped file unreadable, so that one touched byte of
them ends it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants

from boostr import backends, ops
from boostr.errors import ModelFileError
from boostr.io.gguf import GGUFFile
from boostr.io.safetensors import SafetensorsFile, save
from boostr.models import plan
from boostr.models.gguf import gguf_weights
from boostr.models.lazy import whole
from boostr.models.plan import LoadPlan
from boostr.models.weights import stored_weights

WIDE = 8192  # inputs: rows of several pages in every dtype here
H, D = 4, 2
PLAN = LoadPlan((
    plan.heads("qkv", H, [("q", D), ("k", D), ("v", D)]),
    plan.transpose("conv"),
    plan.stack("x.{e}.w", "x.w"),
))  # fmt: skip
TENSORS = {"qkv.weight": (H * 3 * D, WIDE), "conv.weight": (8, WIDE), "x.0.w": (4, WIDE),
           "x.1.w": (4, WIDE)}  # fmt: skip
linux = pytest.mark.skipif(sys.platform != "linux", reason="forks, and calls mprotect")


def reads_only(base: int, size: int, ranges: Iterable[tuple[int, int]], read: Callable) -> bool:
    """Whether `read` lives when all of [base, base + size) but `ranges` is forbidden."""
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def protect(begin: int, end: int, how: int) -> None:
        begin = begin // mmap.PAGESIZE * mmap.PAGESIZE
        if mprotect(base + begin, end - begin, how):
            os._exit(2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other threads do not go along, which is as well
        child = os.fork()
    if child == 0:
        code = 1
        faulthandler.disable()
        protect(0, size, 0)
        for begin, end in ranges:
            protect(begin, end, mmap.PROT_READ)
        try:
            read()
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGSEGV, -signal.SIGBUS)
    return status == 0


def spans(begin, itemsize, rows, columns=(0, WIDE)):
    """Byte ranges of some columns of some rows of a matrix that begins at a byte."""
    return [
        (begin + (row * WIDE + columns[0]) * itemsize, begin + (row * WIDE + columns[1]) * itemsize)
        for row in rows
    ]


def rows_of(part):
    """The rows of q, k or v (part 0, 1, 2) in the packed tensor."""
    return [head * 3 * D + part * D + d for head in range(H) for d in range(D)]


@linux
@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        (lambda w: w["q.weight"], {"qkv.weight": (rows_of(0),)}),
        (lambda w: w["v.weight"].rows(2, 6), {"qkv.weight": (rows_of(2)[2:6],)}),
        (
            lambda w: w["k.weight"].columns(0, WIDE // 4),
            {"qkv.weight": (rows_of(1), (0, WIDE // 4))},
        ),
        (lambda w: w["conv.weight"].columns(2, 4), {"conv.weight": ([2, 3],)}),
        (lambda w: w["conv.weight"].rows(0, 2048), {"conv.weight": (range(8), (0, 2048))}),
        (lambda w: w["x.w"].rows(1, 2), {"x.0.w": ([1],), "x.1.w": ([1],)}),
        (lambda w: w["x.w"].take(0, range(1, 2)), {"x.1.w": (range(4),)}),
    ],
)
def test_only_the_bytes_of_a_slice_are_read(tmp_path, part, wanted):
    path = tmp_path / "x.safetensors"
    save(path, {name: np.ones(shape, np.float32) for name, shape in TENSORS.items()})
    with SafetensorsFile(path) as file:
        weight = part(PLAN.load(stored_weights(file, str(path))).weights)
        begins = {name: file.info(name).begin for name in TENSORS}
        base = file.tensor("x.0.w").ctypes.data - begins["x.0.w"]
        size = max(file.info(name).end for name in TENSORS)
        ranges = [r for name, where in wanted.items() for r in spans(begins[name], 4, *where)]
        read = lambda: weight.read(whole(weight.shape)).copy()  # noqa: E731
        assert reads_only(base, size, ranges, read)
        assert not reads_only(base, size, ranges[:-1], read)  # the guard does guard


@pytest.fixture
def blocks(tmp_path):
    """A matrix [8, WIDE] in Q8_0."""
    path = tmp_path / "x.gguf"
    writer = GGUFWriter(path, "llama")
    w = np.random.default_rng(0).standard_normal((8, WIDE)).astype(np.float32)
    kind = GGMLQuantizationType.Q8_0
    writer.add_tensor("w", quants.quantize(w, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_rows_and_columns_of_blocks(blocks):
    backend, half = backends.get("numpy"), WIDE // 2
    with GGUFFile(blocks) as file:
        weight = gguf_weights(file)["w"]
        got = weight.rows(2, 4).columns(half, half + 64).weight(backend)
        everything = ops.dequantize(weight.weight(backend)).numpy()  # type: ignore[arg-type]
    values = ops.dequantize(got).numpy()  # type: ignore[arg-type]
    assert np.array_equal(values, everything[2:4, half : half + 64])


@linux
def test_only_the_blocks_of_a_slice_are_read(blocks):
    with GGUFFile(blocks) as file:
        data = file.tensors["w"].data
        row, size = data.shape[1], blocks.stat().st_size
        base = data.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
        start = data.ctypes.data - base
        part = gguf_weights(file)["w"].rows(2, 4).columns(0, WIDE // 2)
        ranges = [(start + r * row, start + r * row + row // 2) for r in (2, 3)]
        read = lambda: part.read(whole(part.shape)).copy()  # noqa: E731
        assert reads_only(base, size, ranges, read)
        assert not reads_only(base, size, ranges[:-1], read)


def test_blocks_are_not_cut(blocks):
    with GGUFFile(blocks) as file:
        part = gguf_weights(file)["w"].columns(16, 64)
        with pytest.raises(ModelFileError, match=r"'w' is Q8_0; its columns .* multiples of 32"):
            part.read(whole(part.shape))
