"""The weights and tokens of tiny checkpoints, drawn the same on every machine from a seed.

Of the bits of a counter-based generator, which numpy keeps as they are, and by arithmetic that
IEEE rounds alike everywhere: no file of weights is needed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import numpy as np

Shapes = Mapping[str, Iterable[int]]
Rules = Mapping[str, tuple[float, float]]
LENGTHS = (1, 7, 40)  # of the sequences that models are run on
ROWS = (0, 7, 8, 17, 30, 47)  # of all their tokens, those whose outputs are kept
PROMPT = 5  # tokens that greedy decoding starts from


def _bits(seed: int, name: str, count: int) -> np.ndarray:
    return np.random.Philox(key=[seed, zlib.crc32(name.encode())]).random_raw(count) >> 40


def token_ids(seed: int, count: int, vocab_size: int) -> np.ndarray:
    """int32 [count] from 3 on: below lie special tokens."""
    return (_bits(seed, f"tokens {count}", count) % (vocab_size - 3) + 3).astype(np.int32)


def sequences(vocab_size: int) -> list[np.ndarray]:
    """One of each of LENGTHS."""
    return [token_ids(7, n, vocab_size) for n in LENGTHS]


def weights(seed: int, shapes: Shapes, rules: Rules) -> dict[str, np.ndarray]:
    """float32 arrays: uniform, of a mean and a spread (standard deviation) that names say.

    By default such that activations stay near 1, attention is not uniform, and logits are near 3.
    """
    drawn = {}
    for name, dims in shapes.items():
        shape = tuple(dims)
        mean, spread = _rule(name, shape, rules)
        noise = _bits(seed, name, math.prod(shape)).astype(np.float32) * 2**-23 - 1
        array = np.float32(mean) + noise * np.float32(spread * math.sqrt(3))
        drawn[name] = array.reshape(shape)
    return drawn


def _rule(name: str, shape: tuple[int, ...], rules: Rules) -> tuple[float, float]:
    for pattern, rule in rules.items():
        if fnmatchcase(name, pattern):
            return rule
    if name.endswith("bias"):
        return 0.0, 0.2
    if len(shape) < 2:
        return 1.0, 0.2
    if "embed" in name or "lm_head" in name:
        return 0.0, 0.5
    return 0.0, 1.4 / math.sqrt(shape[-1])
