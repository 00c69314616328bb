"""Kernels are compiled once, kept on disk and loaded without numba."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
from boostr.backends.numpy.runtime import jit

ROOT = Path(__file__).parents[3]

SCRIPT = """
import sys
import numpy as np
from boostr.backends.numpy.runtime import jit, threads
from boostr.backends.numpy.kernels.runtime import layout
from boostr.quant.forms import Form
x, w, y = np.arange(40, dtype="f4"), np.ones((3, 40), "f4"), np.zeros(3, "f4")
p = np.zeros(layout.LINEAR_PARAMS, np.int64)
p[[layout.X, layout.LDX, layout.CODES, layout.CODES + 1]] = x.ctypes.data, 40, w.ctypes.data, 160
p[[layout.Y, layout.LDY, layout.M, layout.N, layout.K]] = y.ctypes.data, 3, 1, 3, 40
calls = threads.Calls()
calls.add(jit.kernel("linear.gemv", form=Form("f32"), columns=1), p, 3, 1)
threads.pool().run(calls.freeze().records)
assert (y == 780).all(), y
print(jit.compiled, jit.loaded, "numba" in sys.modules, "llvmlite" in sys.modules)
"""


def run_script(cache, script=SCRIPT):
    """(stdout words, stderr) of a fresh process with its own cache."""
    variables = {**os.environ, "BOOSTR_CACHE": str(cache), "BOOSTR_NUM_THREADS": "2"}
    variables.pop("BOOSTR_DEBUG", None)
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def test_second_process_compiles_nothing(tmp_path):
    first, said = run_script(tmp_path)
    assert int(first[0]) > 0
    assert said.count("\n") == 1 and "compiling CPU kernels" in said
    second, said = run_script(tmp_path)
    assert (second[0], second[1], second[2]) == ("0", first[0], "False")
    assert said == ""
    if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
        assert second[3] == "False", "a warm start should not load LLVM"


@pytest.mark.parametrize("damage", ("cut", "flip", "empty", "other"))
def test_damaged_files_are_compiled_again(tmp_path, damage):
    first, _ = run_script(tmp_path)
    for path in (tmp_path / "kernels").iterdir():
        data = bytearray(path.read_bytes())
        if damage == "cut":
            data = data[: len(data) // 2]
        elif damage == "flip":
            data[len(data) - 1] ^= 1
        elif damage == "empty":
            data = bytearray()
        else:
            data = bytearray(b"something else" * 100)
        path.write_bytes(data)
    second, _ = run_script(tmp_path)
    assert second[0] == first[0]
    third, _ = run_script(tmp_path)
    assert third[0] == "0"


def test_cache_that_cannot_be_written(tmp_path):
    """A file stands where the folder should be: root may write anywhere, but not there."""
    (tmp_path / "file").write_text("")
    out, said = run_script(tmp_path / "file")
    assert int(out[0]) > 0
    assert said.count("cannot keep compiled kernels") == 1
    assert "BOOSTR_CACHE" in said


def test_fork(tmp_path):
    """A child has none of its parent's threads and must not wait for them."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    child = """
import os
pid = os.fork()
y[:] = 0
threads.pool().run(calls.freeze().records)
assert (y == 780).all()
if pid == 0:
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
"""
    run_script(tmp_path, SCRIPT + child)


@pytest.mark.parametrize(
    ("cpu", "lines", "tile", "dot"),
    (
        ("neoverse-n1", "Features\t: fp asimd asimddp", (12, 2), "sdot"),
        ("cortex-a72", "Features\t: fp asimd", (12, 2), ""),
        ("generic", "Features\t: fp asimd asimddp", (12, 2), ""),  # numba would not compile it
        ("generic", "", (12, 2), ""),
    ),
)
def test_what_llvm_does_not_list_of_an_aarch64(cpu, lines, tile, dot):
    """LLVM 20 never lists dot products, and nothing at all where /proc/cpuinfo cannot be read."""
    for listed in ("", "+crc,+lse,-sve", "+neon,-sve"):
        found = jit.Target(cpu, jit._arm_features(cpu, listed, lines))
        assert (found.lanes, found.tile, found.int8_dot, found.converts_f16) == (4, tile, dot, True)
        assert all(found.has(name[1:]) for name in listed.split(",") if name[:1] == "+")
        assert found.features.count("neon") == 1
