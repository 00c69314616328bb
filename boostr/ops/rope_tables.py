"""Tables of cosines and sines for `rope`, with the context extensions that checkpoints ask for.

The formulas are those of Hugging Face transformers' `modeling_rope_utils`; the names are its
`rope_type`s. Two of them, dynamic and longrope, depend on the length of the sequence: a prompt of n
tokens is rotated as a sequence of n, and a token decoded at position p as the end of one of p + 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from boostr.errors import OptionError


@dataclass(frozen=True)
class RopeConfig:
    """What decides the tables.

    Attributes:
        rotary_dim: R, the dimensions of a head that are rotated (even).
        theta: base of the frequencies, theta^(-2i/R), above 0.
        max_positions: the model's context in tokens.
        rope_type: one of ROPE_TYPES.
        parameters: the scaling's own numbers under their Hugging Face names, and
            `frequency_factors` [R/2], which divide the frequencies (GGUF's rope_freqs).
    """

    rotary_dim: int
    theta: float = 10000.0
    max_positions: int = 2048
    rope_type: str = "default"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise OptionError(
                f"rope: unknown scaling type {self.rope_type!r}; known: {', '.join(ROPE_TYPES)}"
            )
        if self.rotary_dim % 2:
            raise OptionError(f"rope: the rotated dimensions must be even, got {self.rotary_dim}")
        for name, value in {"theta": self.theta, "factor": self.number("factor", 1.0)}.items():
            if not 0 < value < math.inf:
                raise OptionError(f"rope: {name} must be above 0 and finite, got {value}")

    @property
    def original_positions(self) -> int:
        """The context that the model was trained on before it was extended."""
        return int(self.parameters.get("original_max_position_embeddings") or self.max_positions)

    @property
    def context(self) -> int:
        """Tokens that the scaling reaches: `max_positions` and more, where a factor extends it.

        Configs differ in whether their context has the factor in it already; where that is open
        (linear, dynamic) the longer reading is taken, as nothing but quality stands against it.
        """
        if self.rope_type not in ("linear", "dynamic", "yarn"):
            return self.max_positions
        trained = self.original_positions if self.rope_type == "yarn" else self.max_positions
        return max(self.max_positions, int(trained * self.number("factor", 1.0)))

    @property
    def depends_on_length(self) -> bool:
        return self.rope_type in ("dynamic", "longrope")

    def number(self, name: str, default: float | None = None) -> float:
        """A parameter as a float; without a default it must be there."""
        value = self.parameters.get(name)
        if value is None:
            value = default
        if value is None:
            raise OptionError(f"rope: scaling {self.rope_type!r} needs the parameter {name!r}")
        try:
            return float(value)
        except (TypeError, ValueError):
            raise OptionError(f"rope: {name} must be a number, got {value!r:.80}") from None


def frequencies(config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """(inverse frequencies float64 [R/2], factor on cos and sin) for `length` tokens."""
    inverse, factor = ROPE_TYPES[config.rope_type](config, length)
    factors = config.parameters.get("frequency_factors")
    if factors is not None:
        if len(factors) != len(inverse):
            raise OptionError(
                f"rope: frequency_factors must be {len(inverse)} numbers, got {len(factors)}"
            )
        inverse = inverse / np.asarray(factors, np.float64)
    return inverse, factor


def prompt_tables(config: RopeConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos, sin float32 [length, R/2] for a prompt of `length` tokens."""
    inverse, factor = frequencies(config, length)
    return _tables(_angles(inverse, length), factor)


def decode_tables(config: RopeConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos, sin float32 [length, R/2] whose row p is for a token decoded at position p."""
    if not config.depends_on_length:
        return prompt_tables(config, length)
    rows = [frequencies(config, p + 1) for p in range(length)]
    angles = _angles(np.stack([inverse for inverse, _ in rows]), length)
    return _tables(angles, np.array([factor for _, factor in rows])[:, None])


def query_factors(config: RopeConfig, length: int) -> np.ndarray | None:
    """What queries are multiplied by after rope, float32 [length]: 1 + β·log(1 + ⌊p / trained⌋) at
    position p; None without the parameter `llama_4_scaling_beta`, β. Source: Llama 4."""
    beta = config.number("llama_4_scaling_beta", 0.0)
    if beta == 0:
        return None
    periods = np.arange(length) // config.original_positions
    return (1 + beta * np.log1p(periods)).astype(np.float32)


def _angles(inverse: np.ndarray, length: int) -> np.ndarray:
    # a float32 product, as transformers computes it: checkpoints were trained with that rounding
    return np.arange(length, dtype=np.float32)[:, None] * inverse.astype(np.float32)


def _tables(angles: np.ndarray, factor: Any) -> tuple[np.ndarray, np.ndarray]:
    angles = angles.astype(np.float64)
    return (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(
        np.float32
    )


def _plain(config: RopeConfig, theta: float | None = None) -> np.ndarray:
    exponents = np.arange(0, config.rotary_dim, 2) / config.rotary_dim
    return 1.0 / (theta or config.theta) ** exponents


def _default(config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    return _plain(config), 1.0


def _linear(config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    return _plain(config) / config.number("factor"), 1.0


def _dynamic(config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """NTK-aware: the base grows with the sequence once it outgrows the trained context."""
    factor, R = config.number("factor"), config.rotary_dim
    trained = config.original_positions
    ratio = factor * max(length, trained) / trained - (factor - 1)
    return _plain(config, config.theta * ratio ** (R / (R - 2))), 1.0


def _ntk(config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """A larger base whatever the length, and all turn slower. Source: Su, kexue.fm/archives/9706,
    as the code beside GTE's checkpoints has it."""
    if config.parameters.get("mixed_b") is not None:
        raise OptionError("rope: mixed_b of scaling 'ntk' is not supported")
    factor = config.number("factor")
    return _plain(config, config.theta * factor) / factor ** (2 / config.rotary_dim), 1.0


def _llama3(config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """Low frequencies are divided by `factor`, high ones kept, those between are blended."""
    inverse = _plain(config)
    factor = config.number("factor")
    low, high = config.number("low_freq_factor"), config.number("high_freq_factor")
    turns = config.original_positions * inverse / (2 * math.pi)
    smooth = (turns - low) / (high - low)
    blended = (1 - smooth) * inverse / factor + smooth * inverse
    return np.where(turns < low, inverse / factor, np.where(turns > high, inverse, blended)), 1.0


def _yarn(config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """Interpolate slow dimensions, keep fast ones, ramp between. Source: Peng et al. 2023, YaRN."""
    R, theta, trained = config.rotary_dim, config.theta, config.original_positions
    factor = config.number("factor", config.max_positions / trained)

    def dimension(turns: float) -> float:
        return R * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(config.number("beta_fast", 32))
    high = dimension(config.number("beta_slow", 1))
    if config.parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, R - 1)
    ramp = np.clip((np.arange(R // 2) - low) / max(high - low, 0.001), 0, 1)
    inverse = _plain(config)
    return inverse / factor * ramp + inverse * (1 - ramp), _yarn_factor(config, factor)


def _yarn_factor(config: RopeConfig, factor: float) -> float:
    given = config.parameters.get("attention_factor")
    if given is not None:
        return float(given)

    def scale(by: float = 1.0) -> float:
        return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = config.parameters.get("mscale"), config.parameters.get("mscale_all_dim")
    return scale(mscale) / scale(all_dim) if mscale and all_dim else scale()


def _longrope(config: RopeConfig, length: int) -> tuple[np.ndarray, float]:
    """A factor for each dimension, another set beyond the trained context. Source: LongRoPE."""
    trained = config.original_positions
    name = "long_factor" if length > trained else "short_factor"
    factors = np.asarray(config.parameters.get(name) or [], dtype=np.float64)
    if factors.shape != (config.rotary_dim // 2,):
        raise OptionError(
            f"rope: longrope's {name} must be {config.rotary_dim // 2} numbers, got {factors.size}"
        )
    extension = config.parameters.get("factor")
    if extension is None:
        extension = config.max_positions / trained
    attention = config.parameters.get("attention_factor")
    if attention is None:
        grown = extension > 1
        attention = math.sqrt(1 + math.log(extension) / math.log(trained)) if grown else 1.0
    return _plain(config) / factors, float(attention)


ROPE_TYPES = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "ntk": _ntk,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
