"""Random schedules: requests that come, are read and dropped in any order, in too little memory.

Deterministic ones give the bits that each gives alone. The others agree up to rounding: greedy ones
in their tokens, or the first that differs has as high a logit; all in the log-probabilities behind
equal beginnings. `--schedules N` plays N of them for each model, a fifth where all are
of that kind.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

import pytest
from tiny_model import make_tiny

import boostr
from boostr import SamplingOptions
from boostr.engine.blocks import most_blocks

KINDS = {
    "full": {},
    "window": {"model_type": "mistral", "sliding_window": 6},
    "both": {"model_type": "olmo3", "sliding_window": 21, "num_hidden_layers": 2,
             "layer_types": ["full_attention", "sliding_attention"]},
    "by length": {"max_position_embeddings": 256, "rope_scaling": {
        "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 5.0, 9.0],
        "original_max_position_embeddings": 32}},
}  # fmt: skip
WAYS = [
    {},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 2**63 - 1},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"temperature": 0.7, "frequency_penalty": 0.4, "seed": 8, "logit_bias": {9: 2.0}},
]
LENGTHS = (1, 2, 15, 16, 31, 33, 64, 70, 111)
LONGEST = 111 + 62
CHUNK, CUT = 64, 32  # tokens of a prompt, in which rows decode and not
TOLERANCE = 1e-4  # of logits up to 5


@dataclass
class Asked:
    """A request, and after how many pieces it is dropped."""

    prompt: list[int]
    options: SamplingOptions
    pieces: int | None


def asked(rng, deterministic):
    """Prompts that begin alike, options that differ in everything."""
    start = rng.randrange(3)
    prompt = [(start + 7 * i) % 240 + 3 for i in range(rng.choice(LENGTHS))]
    prompt += [rng.randrange(3, 250) for _ in range(rng.randrange(3))]
    options = SamplingOptions(
        max_tokens=rng.choice((1, 2, 9, 23, 60)), n=rng.choice((1, 1, 1, 2, 3)),
        stop=rng.choice(((), (), ("e",), ("a", "xy"))), logprobs=rng.choice((None, 0, 3)),
        deterministic=deterministic, **rng.choice(WAYS),
    )  # fmt: skip
    return Asked(prompt, options, rng.choice((None, None, None, 1, 3)))


def play(model, rng, schedule):
    """What each choice of each request got: (token, log-probabilities) in order."""
    found = [defaultdict(list) for _ in schedule]
    coming, streams = list(range(len(schedule))), {}
    while coming or streams:
        if coming and (not streams or rng.random() < 0.4):
            which = coming.pop(0)
            streams[which] = model.stream(schedule[which].prompt, options=schedule[which].options)
        which = rng.choice(list(streams))
        piece = next(streams[which], None)
        if piece is not None:
            found[which][piece.index].append((piece.token_id, piece.logprobs))
        if piece is None or sum(map(len, found[which].values())) == schedule[which].pieces:
            streams.pop(which).close()
    return found


class Alone:
    """Each request by itself, without anything of an earlier one."""

    def __init__(self, model):
        self.model, self.count = model, 0

    def __call__(self, prompt, options):
        self.count += 1
        self.model.engine._scheduler.rehash(b"request %d" % self.count)
        done = self.model.generate(prompt, options=options)
        return list(zip(done.token_ids, done.logprobs or [None] * 60, strict=False))


def check_rounded(model, prompt, options, got, truth):
    """Equal up to rounding as far as they are comparable; whether that is to the end."""
    for place, ((token, own), (other, its)) in enumerate(zip(got, truth, strict=False)):
        if own is not None:
            pairs = zip(own.top, its.top, strict=True)
            assert all(abs(a - b) < TOLERANCE for (_, a), (_, b) in pairs)
        if token != other:
            if not (options.temperature or options.penalizes):
                logits = model.logits([*prompt, *(t for t, _ in truth[:place])])[-1]
                assert abs(logits[token] - logits[other]) < TOLERANCE
            return False
    return True


@pytest.fixture(scope="module", params=KINDS)
def models(request, where, tmp_path_factory):
    folder = make_tiny(tmp_path_factory.mktemp("tiny") / "model", **KINDS[request.param])
    patch = pytest.MonkeyPatch()
    patch.setattr(type(where), "prefill_chunk", CHUNK)
    patch.setattr(type(where), "prefill_beside", CUT)
    yield boostr.load(folder, backend=where), Alone(boostr.load(folder, backend=where))
    patch.undo()


def test_every_schedule_gives_each_alone(models, pytestconfig):
    model, alone = models
    pool, promised = model.engine.pool, model.backend.repeats_bits
    least = most_blocks(LONGEST, pool.windows, pool.block_size, CHUNK)
    count = pytestconfig.getoption("--schedules")
    for number in range(count if promised else max(1, count // 5)):
        rng = random.Random(number)
        room = sum(pool.block_bytes(group) * count for group, count in enumerate(least))
        model.engine.kv_memory = int(room * rng.choice((1, 1, 1.5, 3)))
        schedule = [asked(rng, promised and rng.random() < 0.7) for _ in range(6)]
        for one, choices in zip(schedule, play(model, rng, schedule), strict=True):
            assert one.pieces or set(choices) == set(range(one.options.n))
            for index, options in enumerate(one.options.choices()):
                got, truth = choices[index], alone(one.prompt, options)
                where = f"schedule {number}, choice {index} of {one}"
                if options.deterministic:
                    assert got == truth[: len(got)], where
                elif not check_rounded(alone.model, one.prompt, options, got, truth):
                    continue
                assert one.pieces or len(got) == len(truth), where
    model.generate([1], max_tokens=1)  # a round, in which dropped streams leave
    free = [blocks.free for blocks in model.engine._scheduler.pools]
    assert free == model.engine.pool.counts and not model.engine._live
