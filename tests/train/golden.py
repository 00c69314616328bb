"""What torch is compared on: gradients of a loss of the tiny checkpoints, and curves of training.

The loss of a decoder is the cross-entropy of the sequences of seeded.py, one of one token among
them, some labels masked; of an encoder the product of its last states with noise.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import seeded

DATA = Path(__file__).parent / "data" / "torch.npz"
BF16_DATA = DATA.with_name("bf16.npz")
BF16_CASE = "llama/tied"
CURVES = (
    "llama/tied",
    "qwen2/tied",
    "qwen3/untied",
    "mistral/window",
    "gemma2/softcaps",
    "gpt2/plain",
)
STEPS, DECAY, CLIP = 100, 0.1, 1.0


def labels(ids: np.ndarray) -> np.ndarray:
    """Every fifth does not count."""
    return np.where(np.arange(len(ids)) % 5 == 3, -100, ids)


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return _projection("noise", math.prod(shape)).reshape(shape).astype(np.float32)


def _projection(name: str, count: int) -> np.ndarray:
    return seeded._bits(1, name, count).astype(np.float64) * 2.0**-23 - 1


def summary(name: str, gradient: np.ndarray) -> np.ndarray:
    """float64 [3]: the norm of a gradient, and two projections of it."""
    flat = gradient.reshape(-1)
    sides = [_projection(f"{name} {i}", flat.size) @ flat for i in range(2)]
    return np.array([np.linalg.norm(flat), *sides])


def rate(step: int) -> float:
    """The learning rate: 10 steps up, then a cosine down."""
    return 3e-3 * min((step + 1) / 10, 0.5 * (1 + math.cos(math.pi * step / STEPS)))


def step_sequences(step: int, vocab_size: int) -> list[np.ndarray]:
    """The data of a step: new lengths and tokens in each, of eight texts."""
    lengths = (1, 5 + step % 7, 23 - step % 4)
    return [seeded.token_ids(100 + step % 8, n, vocab_size) for n in lengths]
