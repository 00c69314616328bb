"""Sampling options are checked when they are made, by name."""

from __future__ import annotations

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
        ("logit_bias", {1: float("inf")}),
    ],
)  # fmt: skip
def test_out_of_range(name, value):
    with pytest.raises(OptionError, match=name):
        SamplingOptions(**{name: value})


def test_one_stop_text_is_a_list_of_one():
    assert SamplingOptions(stop="END").stop == ("END",)
