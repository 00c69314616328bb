"""Many short requests of all kinds through a tiny model: `python tests/soak_engine.py [COUNT]`. At
the end all blocks are free and the process has not grown."""

from __future__ import annotations

import random
import resource
import sys
import tempfile
from pathlib import Path

from tiny_model import make_tiny

import boostr
from boostr import SamplingOptions
from boostr.engine.model import LanguageModel

WAYS = [
    {},
    {"temperature": 0.9, "top_k": 20, "logprobs": 2},
    {"temperature": 1.2, "presence_penalty": 0.5, "n": 3},
    {"repetition_penalty": 1.3, "logit_bias": {9: 1.0}, "stop": ("e",)},
    {"temperature": 1.0, "deterministic": True},
]


def options(rng: random.Random) -> SamplingOptions:
    return SamplingOptions(max_tokens=rng.randrange(1, 4), **rng.choice(WAYS))  # type: ignore


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = boostr.load(make_tiny(Path(folder) / "model"), backend="numpy")
    assert isinstance(model, LanguageModel)
    rng, peak = random.Random(0), 0
    for done in range(0, count, 64):
        prompts = [[rng.randrange(3, 250) for _ in range(rng.randrange(1, 40))] for _ in range(63)]
        dropped = model.stream(prompts[0], max_tokens=50)
        next(dropped)
        model.generate_batch(prompts, options=[options(rng) for _ in prompts])
        dropped.close()
        if done <= count // 4:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / peak - 1
    model.generate([1], max_tokens=1)  # a round, in which the last stream leaves
    free = [pool.free for pool in model.engine._scheduler.pools]
    print(f"{count} requests; blocks free {free} of {model.engine.pool.counts}; grown {grown:.2%}")
    sys.exit(free != model.engine.pool.counts or grown > 0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
