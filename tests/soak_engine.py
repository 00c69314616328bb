"""Many short requests through a tiny model: `python tests/soak_engine.py [COUNT]`. At the end all
blocks are free and the process has not grown."""

from __future__ import annotations

import random
import resource
import sys
import tempfile
from pathlib import Path

from tiny_model import make_tiny

import boostr


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = boostr.load(make_tiny(Path(folder) / "model"), backend="numpy")
    rng, peak = random.Random(0), 0
    for done in range(0, count, 64):
        prompts = [[rng.randrange(3, 250) for _ in range(rng.randrange(1, 9))] for _ in range(64)]
        model.generate_batch(prompts, max_tokens=rng.randrange(1, 4))
        if done == count // 4 // 64 * 64:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / peak - 1
    free = [pool.free for pool in model.engine._scheduler.pools]
    print(f"{count} requests; blocks free {free} of {model.engine.pool.counts}; grown {grown:.2%}")
    sys.exit(free != model.engine.pool.counts or grown > 0.01)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
