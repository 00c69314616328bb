"""Weights in several tensors: assembled without reading, cut, and written as they were."""

from __future__ import annotations

import numpy as np
import pytest

from boostr import backends, dtypes, ops
from boostr.errors import ModelFileError
from boostr.models import plan
from boostr.models.assemble import assemble
from boostr.models.lazy import FromFile, Held, whole
from boostr.models.plan import LoadPlan
from boostr.quant.formats.fields import EACH, Axis, Field
from boostr.quant.formats.layout import Layout
from boostr.quant.scheme import SCHEMES
from boostr.tensor import Tensor

GROUP = 32


class Turned:
    """A method as GPTQ's: codes int8 [K, N] and scales [G, N], both the other way round."""

    name = "turned"
    marks = ("qweight",)
    parts = ("qweight", "scales")

    def layout(self, module, tensors):
        K, N = tensors["qweight"].shape
        return self._layout(N, K)

    def _layout(self, N, K):
        codes = Field("qweight", EACH, EACH, (dtypes.int8,), turned=True)
        scales = Field("scales", EACH, Axis(GROUP), (dtypes.float32,), turned=True)
        fields = {"codes": codes, "scales": scales}
        return Layout((N, K), SCHEMES["int8-g32"], fields, stored=lambda numbers: numbers)

    def written(self, module, weight):
        return self._layout(*weight.shape).written(weight)


PLAN = LoadPlan((
    assemble(Turned()),
    plan.rows("layers.{i}.qkv", [("layers.{i}.q", 4), ("layers.{i}.k", 2)]),
    plan.heads("layers.{i}.heads", 2, [("layers.{i}.hq", 2), ("layers.{i}.hk", 1)]),
    plan.interleaved("layers.{i}.both", ["layers.{i}.gate", "layers.{i}.up"]),
))  # fmt: skip


@pytest.fixture
def packed():
    w = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    return ops.quantize(Tensor(w, backend="numpy"), "int8-g32")


def checkpoint(packed):
    arrays = {
        "layers.0.proj.qweight": packed.parts["codes"].numpy().T,
        "layers.0.proj.scales": packed.parts["scales"].numpy().T,
        "norm.scales": np.ones(3, np.float32),
    }
    return arrays, {n: FromFile("tiny", n, a.shape, lambda a=a: a) for n, a in arrays.items()}


def test_parts_become_one_weight(packed):
    naming = PLAN.load(checkpoint(packed)[1])
    assert naming.problems == [] and sorted(naming.weights) == [
        "layers.0.proj.weight",
        "norm.scales",
    ]
    weight = naming.weights["layers.0.proj.weight"]
    assert weight.shape == (6, 96)
    got = weight.weight(backends.get("numpy"))
    assert np.array_equal(ops.dequantize(got).numpy(), ops.dequantize(packed).numpy())  # type: ignore[arg-type]


def test_rows_and_columns_are_cut_in_the_parts(packed):
    weight = PLAN.load(checkpoint(packed)[1]).weights["layers.0.proj.weight"]
    want = ops.dequantize(packed).numpy()
    part = weight.rows(1, 5).columns(32, 96).weight(backends.get("numpy"))
    assert np.array_equal(ops.dequantize(part).numpy(), want[1:5, 32:])  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="multiples of 32"):
        weight.columns(0, 16)


@pytest.mark.parametrize(
    ("stored_as", "parts"),
    [
        ("qkv", {"q": [0, 1, 2, 3], "k": [4, 5]}),
        ("heads", {"hq": [0, 1, 3, 4], "hk": [2, 5]}),
        ("both", {"gate": [0, 2, 4], "up": [1, 3, 5]}),
    ],
)
def test_other_rules_cut_packed_weights(stored_as, parts, packed):
    stored = {n.replace("proj", stored_as): w for n, w in checkpoint(packed)[1].items()}
    naming = PLAN.load(stored)
    want = ops.dequantize(packed).numpy()
    for name, rows in parts.items():
        got = naming.weights[f"layers.0.{name}.weight"].weight(backends.get("numpy"))
        assert np.array_equal(ops.dequantize(got).numpy(), want[rows])  # type: ignore[arg-type]


def test_what_is_saved_is_the_checkpoint(packed):
    want, _ = checkpoint(packed)
    held = {
        "layers.0.proj.weight": Held("layers.0.proj.weight", packed),
        "norm.scales": Held("norm.scales", want["norm.scales"]),
    }
    saved = PLAN.save(held)
    assert sorted(saved) == sorted(want)
    assert all(np.array_equal(saved[n].read(whole(saved[n].shape)), want[n]) for n in want)


def test_a_part_that_is_missing_is_a_problem(packed):
    stored = checkpoint(packed)[1]
    del stored["layers.0.proj.scales"]
    naming = PLAN.load(stored)
    assert naming.problems == ["layers.0.proj (turned): scales missing"]


def test_packed_weights_are_not_turned(packed):
    naming = (PLAN + LoadPlan((plan.transpose("layers.{i}.proj"),))).load(checkpoint(packed)[1])
    with pytest.raises(ModelFileError, match="parts of one packed weight"):
        naming.weights["layers.0.proj.weight"].weight(backends.get("numpy"))
