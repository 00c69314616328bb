"""Blocks of a prompt that are known are not computed again, and that changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from draws import normal, refused

import boostr
from boostr import Tensor
from boostr.errors import BackendError
from boostr.operands import LowRank

TURNS = ["Hello there. ", "A second, rather longer question about things? ", "x", "And so on: " * 9]


def last(model, prompt, **changes):
    """(token ids, the last piece) of a stream."""
    pieces = list(model.stream(prompt, **changes))
    return [piece.token_id for piece in pieces], pieces[-1]


@pytest.mark.parametrize("stop_after", [None, 4])
def test_turns_say_the_same_as_without(model, folder, where, stop_after):
    text = []
    for turn in TURNS:
        text += model.encode(turn)
        ids = []
        for piece in model.stream(text, max_tokens=9):
            ids.append(piece.token_id)
            if len(ids) == stop_after:
                break
        fresh = boostr.load(folder, backend=where).generate(text, max_tokens=9).token_ids
        assert ids == fresh[: len(ids)]
        text += ids


def test_only_blocks_that_are_new_are_computed(model):
    size = model.backend.kv_block
    first = model.encode("some words to begin with, " * 12)
    answer, _ = last(model, first, max_tokens=size + 4)
    follow = [*first, *answer, *model.encode("more")]
    _, end = last(model, follow, max_tokens=2)
    known = (len(first) + len(answer) - 1) // size * size
    assert end.timings.prompt_tokens == len(follow) - known


def test_another_prompt_starts_over_where_they_part(model, folder, where):
    size = model.backend.kv_block
    shared = (model.encode("some words and others ") * 99)[: 2 * size + 3]
    last(model, [*shared, 1, 2, 3], max_tokens=12)
    for tail in ([4, 5], [], [1, 2, 9]):
        ids, end = last(model, [*shared, *tail], max_tokens=12)
        fresh = boostr.load(folder, backend=where).generate([*shared, *tail], max_tokens=12)
        assert ids == fresh.token_ids
        assert end.timings.prompt_tokens == 3 + len(tail)


def test_the_same_prompt_again_computes_its_last_block(model):
    size = model.backend.kv_block
    prompt = (model.encode("abc") * size)[: 2 * size]
    once, first = last(model, prompt, max_tokens=1)
    again, second = last(model, prompt, max_tokens=1)
    assert once == again and np.isfinite(second.timings.prompt_seconds)
    assert (first.timings.prompt_tokens, second.timings.prompt_tokens) == (2 * size, size)


def test_prompts_of_a_batch_share_what_they_begin_with(model):
    size = model.backend.kv_block
    shared = (model.encode("The same system prompt. ") * 99)[: 3 * size]
    prompts = [[*shared, i] for i in range(4)]
    found = model.generate_batch(prompts, max_tokens=3)
    computed = sorted(c.timings.prompt_tokens for c in found)
    assert computed == [1, 1, 1, 3 * size + 1]
    assert [c.token_ids for c in found] == [
        model.generate(p, max_tokens=3).token_ids for p in prompts
    ]


def said(model, prompt):
    """(token ids, the log-probability of the first): such that tell weights apart, tokens of tiny
    models may all be the same."""
    done = model.generate(prompt, max_tokens=8, logprobs=0)
    return done.token_ids, done.logprobs[0].logprob


def assert_same(found, wanted):
    assert found[0] == wanted[0] and abs(found[1] - wanted[1]) < 1e-4


def assert_differ(found):
    """Each from the one before it."""
    gaps = np.diff([logprob for _, logprob in found])
    assert len(gaps) and np.abs(gaps).min() > 1e-3


def test_weights_that_change_are_used_at_once(model, folder, where, rng):
    """Another tensor in a weight's place, and other values in the same one."""
    prompt = (model.encode("some words ") * 99)[: 3 * model.backend.kv_block]
    found = [said(model, prompt)]
    layer = model.module.model.layers[0].self_attn.v_proj
    values = layer.weight.numpy().copy()
    for factor in (-3.0, 5.0):
        if factor < 0:
            layer.weight = Tensor(values * factor, backend=model.backend)
        else:
            layer.weight.assign(values * np.float32(factor))
        found.append(said(model, prompt))
        other = boostr.load(folder, backend=where)
        other.module.model.layers[0].self_attn.v_proj.weight = Tensor(
            values * np.float32(factor), backend=model.backend
        )
        assert_same(found[-1], said(other, prompt))
    down, up = (
        Tensor(normal(rng, shape, scale=3), backend=model.backend)
        for shape in ((2, values.shape[1]), (values.shape[0], 2))
    )
    layer.weight = LowRank(layer.weight, down, up)
    found.append(said(model, prompt))
    up.assign(normal(rng, up.shape, scale=9))
    found.append(said(model, prompt))
    assert_differ(found)


def test_parts_that_are_replaced_are_used_at_once(model, folder, where):
    """A layer, a part of one, a weight where there was none: as in a model that was made so."""
    prompt = (model.encode("some words ") * 99)[: 3 * model.backend.kv_block]
    other = boostr.load(folder, backend=where)
    layer, its = model.module.model.layers, other.module.model.layers
    weight = its[0].mlp.down_proj.weight
    its[0].mlp.down_proj.weight = Tensor(-2 * weight.numpy(), backend=model.backend)
    bias = Tensor(np.arange(weight.shape[0], dtype=np.float32) / 9, backend=model.backend)
    found = [said(model, prompt)]

    def replace_layer():
        layer[0] = its[0]

    def replace_part():
        layer[0].mlp = boostr.load(folder, backend=where).module.model.layers[0].mlp

    def add_bias():
        layer[0].mlp.down_proj.bias = bias

    for change in (replace_layer, replace_part, add_bias):
        change()
        found.append(said(model, prompt))
        fresh = boostr.load(folder, backend=where)
        fresh.module.model.layers[0] = layer[0]
        assert_same(found[-1], said(fresh, prompt))
    assert_differ(found)


def test_layers_that_keep_something_else_are_refused(model):
    model.generate([5], max_tokens=2)
    layers = model.module.model.layers
    layers.append(layers[0])
    for _ in range(2):
        with refused(BackendError, "keep something else of a sequence", "load it anew"):
            model.generate([5], max_tokens=2)
    layers.pop()
    assert len(model.generate([5], max_tokens=2).token_ids) == 2
