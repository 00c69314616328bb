"""Shapes of models to measure with random weights, and what is asked of them on every GPU."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from boostr.engine.runner import Runner
from boostr.models import family
from boostr.models.config import RawConfig

MODELS: dict[str, dict[str, Any]] = {
    "135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "tie_word_embeddings": True, "rope_theta": 100000.0,
    },
    "1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": True, "rope_theta": 500000.0,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "tie_word_embeddings": False, "rope_theta": 500000.0,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
        "tie_word_embeddings": True, "rope_theta": 10000.0,
    },
}  # fmt: skip


def decoder_module(config: dict[str, Any]) -> Any:
    """A Llama of that config, its weights still to be loaded."""
    raw = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, **config}
    made = family("llama", "random")
    return made(made.read_config(RawConfig(raw, "random")))


def step_bytes(runner: Runner, batch: int, length: int) -> int:
    """Bytes that a decode step must read: all matrices but an untied embedding, and the cache."""
    module: Any = runner.module
    weights = module.weights()
    skipped = [] if module.lm_head is None else ["model.embed_tokens.weight"]
    matrices = sum(w.nbytes for name, w in weights.items() if name not in skipped)
    states = [state for kept in module.states() for state in kept]
    row = sum(state.bytes_per_token(module.activation_dtype) for state in states)
    return matrices + batch * length * row


def prompts(batch: int, length: int, vocab: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, vocab, (batch, length)).tolist()


def prefill_rate(runner: Runner, length: int, repetitions: int) -> float:
    """Tokens per second of one prompt of `length`, until its last logits are on the device.

    Of prompts after the first three, in which kernels are compiled and the pass is recorded.
    """
    cache = runner.new_cache(1, length)
    tokens = prompts(1, length, runner.module.config.vocab_size)
    seconds = []
    for _ in range(repetitions + 3):
        runner.backend.synchronize()
        start = time.perf_counter()
        runner.prefill(cache, [0], tokens)
        runner.backend.synchronize()
        seconds.append(time.perf_counter() - start)
    return length / statistics.median(seconds[3:])
