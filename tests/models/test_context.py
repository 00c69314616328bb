"""How long a text may be: rope scaling extends the context; both spellings of it at once."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
from conftest import open_backend
from tiny_model import CONFIG, make_tiny

import boostr
from boostr.engine.load import load_module
from boostr.engine.model import LanguageModel
from boostr.errors import OptionError
from boostr.models import family
from boostr.models.config import RawConfig


def config(**changes):
    raw = {**CONFIG, "max_position_embeddings": 64, **changes}
    return family("llama", "t").read_config(RawConfig(raw, "t"))  # type: ignore[attr-defined]


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 64), ({"type": "linear", "factor": 4.0}, 256),
        ({"type": "dynamic", "factor": 2}, 128),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"type": "yarn", "factor": 4.0}, 256),
        # the context has the factor in it already
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        ({**LLAMA3, "original_max_position_embeddings": 8}, 64),
    ],
)  # fmt: skip
def test_the_context_that_scaling_reaches(scaling, context: int) -> None:
    assert config(rope_scaling=scaling).max_position_embeddings == context
    assert config(rope_parameters=scaling).max_position_embeddings == context


@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
def test_a_prompt_in_the_extended_context(tmp_path, kind: str) -> None:
    scaling = {"type": kind, "factor": 4.0, "original_max_position_embeddings": 64}
    folder = make_tiny(tmp_path / "m", max_position_embeddings=64, rope_scaling=scaling)
    model = boostr.load(folder, backend="numpy")
    ids = np.random.default_rng(5).integers(0, 256, 100)
    assert model.generate(ids, max_tokens=1).token_ids == [model.logits(ids)[-1].argmax()]
    with pytest.raises(OptionError, match="the prompt has 256 tokens, and the model's context"):
        model.generate(np.zeros(256, np.int64))


def test_no_row_of_a_table_of_positions_serves_twice(tmp_path) -> None:
    module: Any = load_module(
        cases.checkpoint(cases.named("gpt2/plain"), tmp_path), backend="numpy"
    )
    model = LanguageModel(module, None, open_backend("numpy"), "tiny")
    context = model.config.max_position_embeddings
    assert len(model.logits([5] * context)) == context
    for call in (model.logits, model.hidden_states):
        with pytest.raises(OptionError, match=f"vectors of {context} positions, got {context + 1}"):
            call([5] * (context + 1))


def test_both_spellings_of_rope() -> None:
    """A config of transformers 5 that somebody extended by hand: there rope_scaling wins."""
    newer = {"rope_type": "default", "rope_theta": 5000.0}
    both = config(rope_parameters=newer, rope_scaling={"type": "linear", "factor": 4.0})
    rope = both.ropes["full"]
    assert (rope.rope_type, rope.theta, rope.number("factor")) == ("linear", 5000.0, 4.0)
    for empty in (None, {}):
        rope = config(rope_parameters=newer, rope_scaling=empty).ropes["full"]
        assert (rope.rope_type, rope.theta) == ("default", 5000.0)


def test_both_spellings_where_layers_have_ropes_of_their_own() -> None:
    """rope_scaling is of the full layers; source: Gemma3TextConfig of transformers 5.23."""
    raw = {
        "model_type": "gemma3_text", "hidden_size": 16, "num_hidden_layers": 6, "head_dim": 8,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
        "rope_scaling": {"type": "linear", "factor": 8.0},
    }  # fmt: skip
    ropes = family("gemma3_text", "t").read_config(RawConfig(raw, "t")).ropes  # type: ignore
    full, local = ropes["full"], ropes["local"]
    assert (full.rope_type, full.theta, full.number("factor")) == ("linear", 5000.0, 8.0)
    assert (local.rope_type, local.theta) == ("default", 300.0)
