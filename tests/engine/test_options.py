"""Sampling options are checked when they are made, by name."""

from __future__ import annotations

import numpy as np
import pytest

from boostr.engine.options import SamplingOptions
from boostr.errors import OptionError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1), ("temperature", float("nan")), ("temperature", "hot"),
        ("top_p", 2), ("top_p", 0), ("top_k", -1), ("top_k", 1.5), ("min_p", 1.1), ("min_p", -0.1),
        ("repetition_penalty", 0), ("max_tokens", 0), ("max_tokens", True), ("seed", -1),
        ("logprobs", 21), ("stop", ("",)), ("logit_bias", {"a": 1.0}),
        ("logit_bias", {1: float("inf")}), ("logit_bias", {1: "a"}), ("logit_bias", [1]),
        ("logit_bias", {-1: 1.0}), ("stop", 3), ("stop", ["a", 3]), ("stop", b"a"),
        ("stop", {"a": 1}), ("ignore_eos", 1), ("ignore_eos", None), ("temperature", None),
        ("max_tokens", None), ("max_tokens", np.float32(3)), ("max_tokens", np.array([3])),
        ("top_p", np.nan), ("seed", "7"), ("logprobs", True),
        ("top_k", 2**31), ("temperature", 1e39), ("repetition_penalty", 1e39),
        ("presence_penalty", -1e39), ("frequency_penalty", 1e39), ("logit_bias", {1: -1e39}),
    ],
)  # fmt: skip
def test_out_of_range(name, value):
    with pytest.raises(OptionError, match=name):
        SamplingOptions(**{name: value})


def test_one_stop_text_is_a_list_of_one():
    assert SamplingOptions(stop="END").stop == ("END",)
    assert SamplingOptions(stop=None).stop == ()
    assert SamplingOptions(stop=np.array(["a", "b"])).stop == ("a", "b")


def test_numbers_of_numpy_become_numbers_of_python():
    options = SamplingOptions(
        max_tokens=np.int64(3), temperature=np.float32(0.5), top_k=np.array(4), seed=np.uint32(7),
        logit_bias={np.int32(5): np.float32(1.5)},
    )  # fmt: skip
    values = (options.max_tokens, options.temperature, options.top_k, options.seed)
    assert values == (3, 0.5, 4, 7) and options.logit_bias == {5: 1.5}
    assert [type(v) for v in (*values, *options.logit_bias)] == [int, float, int, int, int]
    assert SamplingOptions(logit_bias=None).logit_bias == {}
