"""Weights in several tensors: assembled without reading, cut, and written as they were."""

from __future__ import annotations

import numpy as np
import pytest

from boostr import backends, ops
from boostr.errors import ModelFileError
from boostr.models import plan
from boostr.models.assemble import assemble
from boostr.models.lazy import FromFile, Held, whole
from boostr.models.plan import LoadPlan
from boostr.quant.scheme import SCHEMES, QuantizedTensor
from boostr.tensor import Tensor

GROUP = 32
PARTS = tuple(ops.quantize(Tensor(np.ones((2, GROUP), np.float32)), "int8-g32").parts)


class Turned:
    """A method as GPTQ's: codes int8 [K, N] and scales [G, N], both the other way round."""

    parts = ("qweight", "scales")

    def shape(self, parts):
        return parts["qweight"].shape[::-1]

    def cut(self, parts, axis, index):
        scales = index
        if axis == 1:
            if index.start % GROUP or index.stop % GROUP:
                raise ModelFileError(f"columns can be cut at multiples of {GROUP}, got {index}")
            scales = range(index.start // GROUP, index.stop // GROUP)
        return {
            "qweight": parts["qweight"].take(1 - axis, index),
            "scales": parts["scales"].take(1 - axis, scales),
        }

    def weight(self, parts, backend):
        arrays = [parts[p].read(whole(parts[p].shape)).T.copy() for p in self.parts]
        made = {n: Tensor(a, backend=backend) for n, a in zip(PARTS, arrays, strict=True)}
        return QuantizedTensor(SCHEMES["int8-g32"], arrays[0].shape, made)

    def store(self, weight):
        if weight.scheme.name != "int8-g32":
            return None
        arrays = (weight.parts[name].numpy().T for name in PARTS)
        return dict(zip(self.parts, arrays, strict=True))


PLAN = LoadPlan((
    assemble("layers.{i}.{path}", Turned()),
    plan.rows("layers.{i}.qkv", [("layers.{i}.q", 4), ("layers.{i}.k", 2)]),
))  # fmt: skip


@pytest.fixture
def packed():
    w = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    return ops.quantize(Tensor(w, backend="numpy"), "int8-g32")


def checkpoint(packed):
    arrays = {
        "layers.0.proj.qweight": packed.parts[PARTS[0]].numpy().T,
        "layers.0.proj.scales": packed.parts[PARTS[1]].numpy().T,
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
    assert np.array_equal(ops.dequantize(got).numpy(), ops.dequantize(packed).numpy())


def test_rows_and_columns_are_cut_in_the_parts(packed):
    weight = PLAN.load(checkpoint(packed)[1]).weights["layers.0.proj.weight"]
    want = ops.dequantize(packed).numpy()
    part = weight.rows(1, 5).columns(32, 96).weight(backends.get("numpy"))
    assert np.array_equal(ops.dequantize(part).numpy(), want[1:5, 32:])  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match="multiples of 32"):
        weight.columns(0, 16)


def test_other_rules_cut_packed_weights(packed):
    stored = checkpoint(packed)[1]
    stored = {n.replace("proj", "qkv"): weight for n, weight in stored.items()}
    naming = PLAN.load(stored)
    want = ops.dequantize(packed).numpy()
    for name, rows in (("q", slice(0, 4)), ("k", slice(4, 6))):
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
    assert naming.problems == ["layers.0.proj: has qweight, but not scales"]


def test_packed_weights_are_not_turned(packed):
    naming = (PLAN + LoadPlan((plan.transpose("layers.{i}.proj"),))).load(checkpoint(packed)[1])
    with pytest.raises(ModelFileError, match="parts of one packed weight"):
        naming.weights["layers.0.proj.weight"].weight(backends.get("numpy"))
