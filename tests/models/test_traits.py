"""What is said of families is what they are."""

from __future__ import annotations

import pytest

from boostr.errors import ModelFileError
from boostr.models import FAMILIES
from boostr.models.traits import text_parts, traits


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_something_to_say(name):
    said = traits(name)
    assert said.model_type == name and said.about.endswith(".")
    assert all((said.kind, said.block, said.positions, said.windows, said.mlp, said.state))
    assert (said.head == "none") == ("generate" not in said.kind)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama", {"block": "pre-norm, RMS norms", "positions": "rope θ 10000", "windows": "none",
                   "mlp": "gated silu", "head": "its own", "state": "keys and values"}),
        ("gemma3_text", {"block": "sandwich, RMS + 1 norms, norms of q and k by head",
                         "positions": "rope θ 10000, rope θ 1e+06",
                         "windows": "4096 in 22 of 26 layers", "head": "tied"}),
        ("gpt_neox", {"block": "parallel, pre-norm, layer norms", "mlp": "gelu with biases",
                      "positions": "rope θ 10000 of 25% of a head", "gguf": ("gptneox",)}),
        ("olmo2", {"block": "post-norm, RMS norms, norms of q and k over all heads"}),
        ("bert", {"kind": "embed", "block": "post-norm of the sum, layer norms",
                  "positions": "learned", "state": "nothing", "gguf": ("bert",)}),
    ],
)  # fmt: skip
def test_traits(name, words):
    said = traits(name)
    assert {key: getattr(said, key) for key in words} == words


def test_text_parts_are_families():
    assert text_parts()["gemma3"] == "gemma3_text" and set(text_parts().values()) <= set(FAMILIES)


def test_an_unknown_type_says_the_nearest_and_how_to_add_one():
    with pytest.raises(ModelFileError, match=r"nearest: 'qwen3'.*has .*llama.*docs/adding\.md"):
        traits("qwen4")
