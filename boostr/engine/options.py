"""SamplingOptions: how the next token is chosen and when generation stops. Checked when made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from boostr.errors import OptionError


@dataclass(frozen=True)
class SamplingOptions:
    """Options of one generation.

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
        logit_bias: token id -> number added to its logit.
        seed: of the draws; None takes a fresh one.
        stop: texts that end the generation; they are not part of the result.
        ignore_eos: go on past end-of-sequence tokens.
        logprobs: None, or how many most likely tokens to report for each token, with the chosen
        one.
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

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        _check("max_tokens", self.max_tokens, 1, math.inf, whole=True)
        _check("temperature", self.temperature, 0, math.inf)
        _check("top_k", self.top_k, 0, math.inf, whole=True)
        _check("top_p", self.top_p, 0, 1, open_below=True)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, math.inf, open_below=True)
        _check("presence_penalty", self.presence_penalty, -math.inf, math.inf)
        _check("frequency_penalty", self.frequency_penalty, -math.inf, math.inf)
        if self.seed is not None:
            _check("seed", self.seed, 0, 2**63 - 1, whole=True)
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, 0, 20, whole=True)
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise OptionError(f"stop must be texts that are not empty, got {list(self.stop)}")
        for token, bias in self.logit_bias.items():
            if not isinstance(token, int) or not math.isfinite(bias):
                raise OptionError(
                    f"logit_bias must map token ids to numbers, got {token!r}: {bias}"
                )

    @property
    def penalizes(self) -> bool:
        """Whether the logits must be changed before they are used."""
        return bool(
            self.repetition_penalty != 1
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
        )


def _check(
    name: str, value: float, low: float, high: float, *, whole: bool = False,
    open_below: bool = False,
) -> None:  # fmt: skip
    kinds = int if whole else int | float
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise OptionError(f"{name} must be a {'whole ' if whole else ''}number, got {value!r}")
    inside = low < value if open_below else low <= value
    if not (inside and value <= high) or (not whole and not math.isfinite(value)):
        above = f"above {low:g}" if open_below else f"{low:g} or more"
        bounds = above if high == math.inf else f"{above}, at most {high:g}"
        raise OptionError(f"{name} must be {bounds}, got {value}")
