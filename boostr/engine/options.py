"""SamplingOptions: how the next token is chosen and when generation stops. Checked when made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from boostr.errors import OptionError

Bounds = tuple[float, float, bool, bool]  # least, most, whole number, whether the least is out
_SEEDS = 2**63
_MOST_INT, _MOST_FLOAT = 2**31 - 1, float(np.finfo(np.float32).max)  # of what devices are given
_MOST_CHOICES = 128  # as OpenAI's API has it
_BOUNDS: dict[str, Bounds] = {
    "n": (1, _MOST_CHOICES, True, False),
    "max_tokens": (1, math.inf, True, False),
    "temperature": (0, _MOST_FLOAT, False, False),
    "top_k": (0, _MOST_INT, True, False),
    "top_p": (0, 1, False, True),
    "min_p": (0, 1, False, False),
    "repetition_penalty": (0, _MOST_FLOAT, False, True),
    "presence_penalty": (-_MOST_FLOAT, _MOST_FLOAT, False, False),
    "frequency_penalty": (-_MOST_FLOAT, _MOST_FLOAT, False, False),
    "seed": (0, _SEEDS - 1, True, False),
    "logprobs": (0, 20, True, False),
}


@dataclass(frozen=True)
class SamplingOptions:
    """Options of one generation. Numbers may be numpy's; they are kept as Python's.

    The order is: penalties and bias on the logits, temperature, top-k, top-p, min-p, then a draw
    that depends only on `seed` and on how many tokens came before.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 takes the most likely token; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens whose probabilities reach p together; 1 keeps all.
        min_p: keep tokens at least min_p times as likely as the most likely; 0 keeps all.
        repetition_penalty: logits of tokens in prompt or output are divided by it (multiplied when
            negative); 1 is off.
        presence_penalty, frequency_penalty: subtracted from a token's logit once it is in the
            output,
            and once more for each time it is; 0 is off.
        logit_bias: token id -> number added to its logit; None is {}.
        seed: of the draws; None takes a fresh one.
        stop: text or texts that end the generation, special tokens among them; they are not part
            of the result. None is ().
        ignore_eos: go on past end-of-sequence tokens.
        logprobs: None, or how many most likely tokens to report for each token, with the chosen
        one.
        deterministic: tokens and logprobs have the same bits whatever else runs, and whatever ran
            before; only on backends that promise it (numpy). It shares no pass with others, so many
            at once take as long as one after the other.
        n: continuations of the prompt, which is computed once. The i-th draws with
            seed + i, as one alone with that seed would; without a seed each has a fresh one.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name, bounds in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None or self.__dataclass_fields__[name].default is not None:
                object.__setattr__(self, name, number(name, value, bounds))
        for name in ("ignore_eos", "deterministic"):
            value = getattr(self, name)
            if not isinstance(value, bool | np.bool_):
                raise OptionError(f"{name} must be True or False, got {value!r:.80}")
        object.__setattr__(self, "stop", _stop_texts(self.stop))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    def choices(self) -> list[SamplingOptions]:
        """The options of each of the n continuations."""
        if self.n == 1:
            return [self]
        seeds = [None if self.seed is None else (self.seed + i) % _SEEDS for i in range(self.n)]
        return [replace(self, n=1, seed=seed) for seed in seeds]

    @property
    def penalizes(self) -> bool:
        """Whether the logits must be changed before they are used."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
        )


def number(name: str, value: Any, bounds: Bounds) -> int | float:
    """A Python number within its bounds; numpy's numbers are taken, too.

    Raises:
        OptionError: no number, or out of bounds; `name` is what the message begins with.
    """
    low, high, whole, open_below = bounds
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        value = value.item()
    kinds = int if whole else int | float
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise OptionError(f"{name} must be a {'whole ' if whole else ''}number, got {value!r:.80}")
    inside = low < value if open_below else low <= value
    if not (inside and value <= high) or (not whole and not math.isfinite(value)):
        above = f"above {low:g}" if open_below else f"{low:g} or more"
        allowed = above if high == math.inf else f"{above}, at most {high:g}"
        raise OptionError(f"{name} must be {allowed}, got {value}")
    return value


def _stop_texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else () if value is None else value
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | Mapping):
        raise OptionError(f"stop must be a text or a list of texts, got {value!r:.80}")
    texts = tuple(texts)
    if any(not isinstance(text, str) or not text for text in texts):
        raise OptionError(f"stop must be texts that are not empty, got {value!r:.80}")
    return texts


def _biases(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionError(f"logit_bias must map token ids to numbers, got {value!r:.80}")
    ids, free = (0, math.inf, True, False), (-_MOST_FLOAT, _MOST_FLOAT, False, False)
    return {
        int(number("logit_bias: a token id", token, ids)): float(
            number(f"logit_bias: the bias of token {token}", bias, free)
        )
        for token, bias in value.items()
    }
