"""Sampler: the options of B sequences as tensors, so that choosing tokens is part of a program."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from boostr import ops
from boostr.backends.base import Backend
from boostr.engine.options import SamplingOptions
from boostr.errors import OptionError
from boostr.ops.sampling import add_bias, penalize, record_tokens, sample, seed_words
from boostr.tensor import Tensor


class Sampler:
    """Chooses the next token of each of B sequences, in place on the device.

    Args:
        options: of each sequence.   prompts: token ids of each, for the repetition penalty.
        vocab_size: V, columns of the logits.
    """

    def __init__(
        self,
        backend: Backend,
        options: Sequence[SamplingOptions],
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
    ) -> None:
        self.backend = backend
        self._greedy = all(o.temperature == 0 for o in options)
        self._penalizes = any(o.penalizes for o in options)
        B = len(options)
        self._state: dict[str, Tensor] = {}
        self._put("draws", np.zeros(B, np.int32))
        if not self._greedy:
            seeds = [secrets.randbits(63) if o.seed is None else o.seed for o in options]
            self._put("seeds", seed_words(seeds))
            for name, dtype in (
                ("temperature", "f4"),
                ("top_k", "i4"),
                ("top_p", "f4"),
                ("min_p", "f4"),
            ):
                self._put(name, np.array([getattr(o, name) for o in options], dtype))
        if self._penalizes:
            self._add_penalties(options, prompts, vocab_size)

    def _add_penalties(self, options, prompts, vocab_size: int) -> None:
        seen = np.zeros((len(options), vocab_size), np.uint8)
        biases = max(len(o.logit_bias) for o in options)
        bias_ids = np.full((len(options), biases), -1, np.int32)
        bias = np.zeros(bias_ids.shape, np.float32)
        for row, (chosen, prompt) in enumerate(zip(options, prompts, strict=True)):
            seen[row, list(prompt)] = 1
            for n, (token, value) in enumerate(chosen.logit_bias.items()):
                if not 0 <= token < vocab_size:
                    raise OptionError(f"logit_bias: token {token} is not in 0..{vocab_size - 1}")
                bias_ids[row, n], bias[row, n] = token, value
        self._put("seen", seen)
        self._put("counts", np.zeros_like(seen, dtype=np.int32))
        self._put("bias_ids", bias_ids)
        self._put("bias", bias)
        for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
            self._put(name, np.array([getattr(o, name) for o in options], np.float32))

    def _put(self, name: str, value: np.ndarray) -> None:
        self._state[name] = Tensor(value, backend=self.backend)

    @property
    def draws(self) -> Tensor:
        """int32 [B]: tokens chosen so far, which is the counter of the next draw."""
        return self._state["draws"]

    @property
    def penalizes(self) -> bool:
        """Whether what was chosen changes what is likely."""
        return self._penalizes

    def choose(self, logits: Tensor) -> Tensor:
        """Token ids int32 [B] from logits [B, V], -1 where these are not finite; capturable."""
        s = self._state
        if self._penalizes:
            logits = penalize(
                logits, s["seen"], s["counts"], s["repetition_penalty"], s["presence_penalty"],
                s["frequency_penalty"],
            )  # fmt: skip
            add_bias(logits, s["bias_ids"], s["bias"])
        if self._greedy:
            ids = ops.greedy(logits)
        else:
            ids = sample(
                logits, s["temperature"], s["top_k"], s["top_p"], s["min_p"], s["seeds"], s["draws"]
            )
        if self._penalizes:
            record_tokens(ids, s["seen"], s["counts"])
        return ids

    def select(self, rows: Sequence[int], drawn: Sequence[int]) -> Sampler:
        """The sampler of some of the sequences, of which each has drawn that many tokens."""
        chosen = object.__new__(Sampler)
        chosen.backend = self.backend
        chosen._greedy, chosen._penalizes = self._greedy, self._penalizes
        chosen._state = {}
        for name, tensor in self._state.items():
            chosen._put(name, tensor.numpy()[list(rows)])
        chosen._put("draws", np.array(drawn, np.int32))
        return chosen
