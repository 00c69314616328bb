"""A conversation's cache: what is kept is not processed again, and changes nothing that is said."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_model import make_tiny

import boostr

TURNS = ["Hello there. ", "A second, rather longer question about things? ", "x", "And so on: " * 9]


@pytest.fixture(scope="module", params=["full", "window"])
def model(where, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    window = {"model_type": "mistral", "sliding_window": 6} if request.param == "window" else {}
    return boostr.load(make_tiny(folder, **window), backend=where)


def talk(model, prompt_cache, stop_after=None):
    """Token ids of the answers of a conversation whose prompts each contain all before."""
    text, answers = [], []
    for turn in TURNS:
        text += model.encode(turn)
        ids = []
        for piece in model.stream(text, max_tokens=9, prompt_cache=prompt_cache):
            ids.append(piece.token_id)
            if len(ids) == stop_after:
                break
        text += ids
        answers.append(ids)
    return answers


@pytest.mark.parametrize("stop_after", [None, 4])
def test_turns_say_the_same_as_without(model, stop_after):
    assert talk(model, model.new_prompt_cache(), stop_after) == talk(model, None, stop_after)


def test_only_new_tokens_are_processed(model):
    cache = model.new_prompt_cache()
    first = model.encode("some words to begin with, ")
    answer = [p.token_id for p in model.stream(first, max_tokens=4, prompt_cache=cache)]
    assert cache.token_count == len(first) + 3
    follow = [*first, *answer, *model.encode("more")]
    last = list(model.stream(follow, max_tokens=2, prompt_cache=cache))[-1]
    assert last.timings.prompt_tokens == len(follow) - (len(first) + 3)


def test_another_prompt_starts_over_where_they_part(model):
    cache = model.new_prompt_cache()
    list(model.stream("some words and others", max_tokens=12, prompt_cache=cache))
    for prompt in ("some words but no more", "quite different", "some"):
        ids = [p.token_id for p in model.stream(prompt, max_tokens=12, prompt_cache=cache)]
        assert ids == model.generate(prompt, max_tokens=12).token_ids


def test_the_same_prompt_again_processes_one_token(model):
    cache = model.new_prompt_cache()
    once = list(model.stream("ab", max_tokens=1, prompt_cache=cache))
    again = list(model.stream("ab", max_tokens=1, prompt_cache=cache))
    assert [p.token_id for p in once] == [p.token_id for p in again]
    assert again[-1].timings.prompt_tokens == 1
    assert np.isfinite(again[-1].timings.prompt_seconds)
