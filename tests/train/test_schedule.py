"""Schedules against their formulas."""

import math

import pytest

from boostr.errors import OptionError
from boostr.train.schedule import SCHEDULES, schedule


def test_factors():
    rates = {name: [schedule(name, 10)(i) for i in range(11)] for name in SCHEDULES}
    assert rates["constant"] == [1] * 11
    assert rates["linear"] == pytest.approx([1 - i / 10 for i in range(11)])
    assert rates["cosine"] == pytest.approx(
        [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(11)]
    )
    assert rates["wsd"] == pytest.approx([1] * 9 + [0.5, 0])


@pytest.mark.parametrize(("warmup", "steps"), [(4, 4), (0.2, 4), (0, 0), (0.04, 1)])
def test_warmup(warmup, steps):
    factor = schedule("linear", 20, warmup)
    assert [factor(i) for i in range(steps)] == [(i + 1) / steps for i in range(steps)]
    assert factor(steps) == 1 and factor(19) == pytest.approx(1 / (20 - steps))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("step", 10), "one of constant"),
        (("linear", 10, 11), "0 to 10"),
        (("linear", 10, -1), "0 to"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(OptionError, match=words):
        schedule(*arguments)


def test_one_step():
    assert schedule("cosine", 1, 1)(0) == 1
