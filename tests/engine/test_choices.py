"""Several continuations of one prompt: each as alone with a seed of its own, the prompt once."""

from __future__ import annotations

import pytest
from tiny_model import make_tiny

import boostr
from boostr import SamplingOptions, env
from boostr.engine import kv_budget
from boostr.errors import OptionError

KINDS = {
    "full": {},
    "window": {"model_type": "mistral", "sliding_window": 6},
    "by length": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
                  "max_position_embeddings": 32},
}  # fmt: skip
SAMPLED = SamplingOptions(max_tokens=12, temperature=1.2, seed=5)
CHANGES = {
    "greedy": {"temperature": 0.0, "n": 3},
    "sampled": {"logprobs": 3},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
    "stops": {"stop": ("e", "a")},
    "last seed": {"seed": 2**63 - 2},
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", **KINDS[request.param])


def prompt_of(model, blocks):
    """So many blocks of tokens, and 3 more."""
    return [7 * i % 240 + 3 for i in range(blocks * model.backend.kv_block + 3)]


def free_blocks(model):
    return [pool.free for pool in model.engine._scheduler.pools]


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_each_choice_is_that_of_its_seed(model, changes):
    wanted = {"options": SAMPLED, "n": 4, **changes}
    done = model.generate("some words", **wanted)
    assert len(done.choices) == wanted["n"]
    for i, choice in enumerate(done.choices):
        seed = (wanted.get("seed", SAMPLED.seed) + i) % 2**63
        alone = model.generate("some words", **{**wanted, "n": 1, "seed": seed})
        assert alone.choices == (alone,)
        assert (choice.token_ids, choice.text) == (alone.token_ids, alone.text)
        assert (choice.finish_reason, choice.usage) == (alone.finish_reason, alone.usage)
        if changes.get("logprobs"):
            pairs = zip(choice.logprobs, alone.logprobs, strict=True)
            assert max(abs(a.logprob - b.logprob) for a, b in pairs) < 1e-4


def test_without_a_seed_every_choice_has_a_fresh_one(model):
    done = model.generate("some words", max_tokens=9, temperature=1.5, n=4)
    assert len({tuple(choice.token_ids) for choice in done.choices}) == 4


@pytest.mark.parametrize("blocks", [0, 3])
@pytest.mark.parametrize("kind", ["full", "by length"])
def test_the_prompt_is_computed_once(where, kind, blocks, tmp_path):
    changes = KINDS[kind] | {"max_position_embeddings": 1024}
    model = boostr.load(make_tiny(tmp_path / "model", **changes), backend=where)
    prompt = prompt_of(model, blocks)
    done = model.generate(prompt, options=SAMPLED, n=5)
    first, *others = (choice.timings.prompt_tokens for choice in done.choices)
    assert first == len(prompt) and others == [0] * 4
    fresh = boostr.load(tmp_path / "model", backend=where)
    alone = fresh.generate(prompt, options=SAMPLED, seed=9)
    assert done.choices[4].token_ids == alone.token_ids
    longer = model.generate([*prompt, 9], options=SAMPLED)
    assert longer.timings.prompt_tokens == (len(prompt) + 1 if kind == "by length" else 4)
    assert free_blocks(model) == model.engine.pool.counts


@pytest.mark.parametrize("kind", ["full", "by length"])
def test_room_is_made_for_the_prompt_once(where, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(kv_budget, "_LEAST_POSITIONS", 1)  # room for what is asked, no more
    length = 16 * where.kv_block
    changes = KINDS[kind] | {"max_position_embeddings": length + SAMPLED.max_tokens}
    model = boostr.load(make_tiny(tmp_path / "model", **changes), backend=where)
    model.generate(prompt_of(model, 1), options=SAMPLED)
    [small] = model.engine.pool.counts
    assert small <= 2
    model.generate([5] * length, options=SAMPLED, n=8)
    [count] = model.engine.pool.counts
    [one] = model.engine._scheduler.blocks_for(length + SAMPLED.max_tokens)
    assert one <= count <= 2 * (one + 8) < 8 * one


def test_a_stream_says_whose_a_piece_is(model):
    done = model.generate("some words", options=SAMPLED, n=3, stop="e")
    texts, ids, ends = [""] * 3, [[], [], []], [None] * 3
    for piece in model.stream("some words", options=SAMPLED, n=3, stop="e"):
        assert ends[piece.index] is None
        texts[piece.index] += piece.text
        ids[piece.index].append(piece.token_id)
        ends[piece.index] = piece.finish_reason
        assert (piece.timings is not None) == (piece.finish_reason is not None)
    assert texts == [choice.text for choice in done.choices]
    assert ids == [choice.token_ids for choice in done.choices]
    assert ends == [choice.finish_reason for choice in done.choices]


def test_a_batch_may_mix_counts(model):
    prompts = ["some words", [5, 6, 7], "x"]
    options = [SamplingOptions(max_tokens=n + 2, temperature=1, seed=n, n=n) for n in (3, 1, 2)]
    batch = model.generate_batch(prompts, options=options)
    assert [len(done.choices) for done in batch] == [3, 1, 2]
    for done, prompt, own in zip(batch, prompts, options, strict=True):
        alone = model.generate(prompt, options=own)
        assert [c.token_ids for c in done.choices] == [c.token_ids for c in alone.choices]


def test_choices_that_do_not_fit_are_computed_again(model, folder, where, monkeypatch):
    pool = model.engine.pool
    bytes_ = sum(pool.block_bytes(group) for group in range(len(pool.windows)))
    monkeypatch.setenv(env.KV_MEMORY.name, str(bytes_ * 5))
    prompt = [5] * min(model.backend.kv_block + 3, model.config.max_position_embeddings - 20)
    together = model.generate(prompt, options=SAMPLED, n=6, max_tokens=20)
    monkeypatch.delenv(env.KV_MEMORY.name)
    other = boostr.load(folder, backend=where)
    for i, choice in enumerate(together.choices):
        alone = other.generate(prompt, options=SAMPLED, max_tokens=20, seed=SAMPLED.seed + i)
        assert choice.token_ids == alone.token_ids
    assert free_blocks(model) == pool.counts


@pytest.mark.parametrize("first", [True, False])
def test_one_choice_may_leave_the_others(model, first):
    """Also the one that computes the prompt for all."""
    done = model.generate(prompt_of(model, 1)[-9:], options=SAMPLED, n=3)
    pieces, engine = model.stream(prompt_of(model, 1)[-9:], options=SAMPLED, n=3), model.engine
    found = [[], [], []]
    piece = next(pieces)
    found[piece.index].append(piece.token_id)
    by_index = {request.sequence.index: request for request in engine._live}
    engine._cancelled.append(by_index[0 if first else 2])
    kept = [1, 2] if first else [0, 1]
    while not all(len(found[i]) == len(done.choices[i].token_ids) for i in kept):
        piece = next(pieces)
        found[piece.index].append(piece.token_id)
    assert [found[i] for i in kept] == [done.choices[i].token_ids for i in kept]
    pieces.close()
    model.generate([9], max_tokens=1)  # a round, in which it leaves
    assert free_blocks(model) == engine.pool.counts


def test_a_closed_stream_ends_all_choices(model):
    pieces = model.stream("some words", options=SAMPLED, n=4)
    next(pieces)
    pieces.close()
    model.generate([9], max_tokens=1)
    assert not model.engine._live and free_blocks(model) == model.engine.pool.counts


@pytest.mark.parametrize("n", [0, 129, 1.5, True, None])
def test_counts_out_of_range_are_refused(n):
    with pytest.raises(OptionError, match="n must be"):
        SamplingOptions(n=n)
