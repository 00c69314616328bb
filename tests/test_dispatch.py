"""Which kernel runs, why not, strict mode, coverage and the debug report."""

import os
import subprocess
import sys

import numpy as np
import pytest
from draws import refused

from boostr import Tensor, backends, dispatch
from boostr.backends import Kernel
from boostr.dispatch import OPS, Op, coverage, strict
from boostr.errors import BackendError, FallbackError
from boostr.ops import core, rms_norm
from boostr.quant.scheme import SCHEMES, QuantizedTensor

REFUSAL = "head_dim 80 not in 64, 128"


@pytest.fixture
def numpy():
    return backends.get("numpy")


@pytest.fixture
def twice(monkeypatch, numpy):
    """An op that doubles, and a kernel that serves two elements and marks its work."""

    def supports(x):
        return None if x.size == 2 else REFUSAL

    kernel = Kernel(run=lambda x: x * 2 + 1000, supports=supports)
    found = numpy.kernel
    monkeypatch.setattr(numpy, "kernel", lambda op: kernel if op == "test_twice" else found(op))
    yield Op("test_twice", lambda x: x * 2)
    del OPS["test_twice"]


def two(n):
    return Tensor(np.ones(n, np.float32), backend="numpy")


def test_the_kernel_runs_where_it_can(twice):
    assert twice(two(2)).tolist() == [1002, 1002]
    assert twice(two(3)).tolist() == [2, 2, 2]


def test_strict_refuses_a_fallback_by_its_reason(twice):
    with strict():
        assert twice(two(2)).tolist() == [1002, 1002]
        with refused(FallbackError, "test_twice[numpy]", REFUSAL, "strict"):
            twice(two(3))
        with strict(False):
            assert twice(two(3)).tolist() == [2, 2, 2]
    assert twice(two(3)).tolist() == [2, 2, 2]


def test_strict_from_the_environment(twice, monkeypatch):
    monkeypatch.setenv("BOOSTR_STRICT", "1")
    with pytest.raises(FallbackError):
        twice(two(3))
    with strict(False):
        twice(two(3))


def test_strict_names_an_op_without_any_kernel(monkeypatch, numpy):
    monkeypatch.setattr(numpy, "kernel", lambda op: "no kernel is written")
    with strict(), refused(FallbackError, "rms_norm[numpy]", "no kernel is written"):
        rms_norm(two(2), two(2))


def test_primitives_are_never_a_fallback(monkeypatch, numpy):
    monkeypatch.setattr(numpy, "kernel", lambda op: "none")
    with strict():
        assert (two(2) + core.exp(two(2))).shape == (2,)


def test_coverage(twice, numpy):
    found = coverage(numpy)
    assert coverage("numpy") == found
    assert set(found) == set(OPS) and list(found) == sorted(found)
    assert found["test_twice"] is None
    families = {
        *("rms_norm", "rope", "varlen_attention", "paged_attention", "linear", "quantize"),
        *("embedding", "swiglu", "softmax", "sample", "cross_entropy", "kv_write"),
    }
    assert families <= set(found)
    assert all(reason is None or reason for reason in found.values())


def test_jit_off_covers_nothing(monkeypatch):
    from boostr.backends.numpy import NumpyBackend

    monkeypatch.setenv("BOOSTR_JIT", "0")
    assert all(coverage(NumpyBackend()).values())


def test_debug_reports_each_reason_once(twice, monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "_reported", set())
    twice(two(3))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("BOOSTR_DEBUG", "1")
    for _ in range(3):
        twice(two(3))
    assert capsys.readouterr().err == f"boostr: test_twice[numpy] runs its composite: {REFUSAL}\n"


def test_an_op_needs_a_tensor(twice):
    with refused(BackendError, "test_twice", "at least one tensor"):
        twice(3)


def test_tensors_are_found_inside_lists_and_weights():
    a, b = two(2), two(2)
    codes = Tensor(np.zeros((1, 32), np.int8), backend="numpy")
    scales = Tensor(np.zeros((1, 1), np.float16), backend="numpy")
    weight = QuantizedTensor(SCHEMES["q8_0"], (1, 32), {"codes": codes, "scales": scales})
    found = list(dispatch.tensors_in((a, [b, (a, 3)], weight, None)))
    assert [id(t) for t in found] == [id(t) for t in (a, b, a, codes, scales)]


def test_repr(twice):
    assert repr(twice) == "Op(test_twice)"


@pytest.mark.parametrize(("level", "shown"), [(1, False), (2, True), (3, True)])
def test_debug_times_each_kernel(level, shown):
    pytest.importorskip("numba")
    code = (
        "import numpy as np, boostr\n"
        "x = boostr.Tensor(np.ones((3, 8), np.float32), backend='numpy')\n"
        "boostr.ops.rms_norm(x, x[0])"
    )
    environment = {**os.environ, "BOOSTR_DEBUG": str(level)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ("GB/s" in run.stderr) == shown
    assert ("items by" in run.stderr) == (level == 3)
