"""How many programs an engine records, and what memory they take."""

from __future__ import annotations

import random

import boostr
from boostr import SamplingOptions
from boostr.engine.passes import Variant


def test_few_programs_serve_batches_of_all_lengths(model):
    rng = random.Random(1)
    lengths = rng.sample(range(32, 513, 32), 16)
    options = [SamplingOptions(max_tokens=3 + 2 * i) for i in range(16)]

    def prompts():
        return [[rng.randrange(3, 250) for _ in range(n)] for n in lengths]

    model.generate_batch(prompts(), options=options)
    steps = model.engine.steps
    assert steps.captures <= 6
    before = steps.captures
    model.generate_batch(prompts(), options=options)
    assert model.engine.steps is steps
    assert steps.captures == before


def test_programs_of_all_sizes_take_the_memory_of_few(model, folder, where):
    """Sizes are powers of two, so that all together take at most about twice the largest."""
    variants = [Variant(sampled=s, logprobs=p) for s in (False, True) for p in (False, True)]
    alone = boostr.load(folder, backend=where).engine.steps
    model.generate([5], max_tokens=1)
    for variant in variants:
        for rows in model.backend.row_buckets[:5]:
            model.engine.steps.decode(rows, 20, variant)
    alone.pool.grow(model.engine.pool.counts)
    alone.decode(model.backend.row_buckets[4], 20, variants[-1])
    one, every = (steps.programs.arena.nbytes for steps in (alone, model.engine.steps))
    assert one <= every <= 3 * one
