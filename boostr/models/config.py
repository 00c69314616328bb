"""Configs of checkpoints: `config.json` of transformers 4 and 5 brought to one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from boostr.errors import ModelFileError, OptionError
from boostr.ops.rope_tables import RopeConfig

_MISSING = object()


class RawConfig:
    """A config.json with typed access. Keys that no model reads stay inert, whatever they say."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        nested = raw.get("text_config")
        self.raw = {**raw, **nested} if isinstance(nested, Mapping) else dict(raw)
        self.source = source

    def get(self, name: str, kind: type, default: Any = _MISSING) -> Any:
        """The value of a key as `kind`; without a default it must be there. null is absent."""
        value = self.raw.get(name)
        if value is None:
            if default is _MISSING:
                raise ModelFileError(f"{self.source}: config lacks {name!r}")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ModelFileError(
                f"{self.source}: config {name!r} must be {kind.__name__}, got {value!r}"
            )
        return value

    def size(self, name: str, default: Any = _MISSING) -> Any:
        """A count, which must be 1 or more; or the default."""
        value = self.get(name, int, default)
        if value is not None and value < 1:
            raise ModelFileError(f"{self.source}: config {name!r} must be 1 or more, got {value}")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids that may be one number, a list or absent."""
        value = self.raw.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            raise ModelFileError(f"{self.source}: config {name!r} must be token ids, got {value!r}")
        return tuple(values)


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder of Llama's line is made of; Hugging Face's names.

    Attributes:
        sliding_window: tokens that each layer's attention sees, None for all; one entry a layer.
        qkv_bias, output_bias, mlp_bias: which linear layers have one.
        qk_norm: whether q and k are normalised by head.
        rope_layout: how rotated pairs lie; "interleaved" for GGUF's llama.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope: RopeConfig
    sliding_window: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    rope_layout: str = "split-half"
    bos_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelFileError(
                f"config: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )

    @classmethod
    def from_hf(cls, config: RawConfig, **overrides: Any) -> DecoderConfig:
        """From a config.json of Llama's form; a family passes what differs as `overrides`."""
        heads = config.size("num_attention_heads")
        hidden = config.size("hidden_size")
        layers = config.size("num_hidden_layers")
        head_dim = config.size("head_dim", None) or hidden // heads
        positions = config.size("max_position_embeddings", 2048)
        values: dict[str, Any] = {
            "model_type": config.get("model_type", str),
            "vocab_size": config.size("vocab_size"),
            "hidden_size": hidden,
            "intermediate_size": config.size("intermediate_size"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": config.size("num_key_value_heads", None) or heads,
            "head_dim": head_dim,
            "rms_norm_eps": config.get("rms_norm_eps", float, 1e-6),
            "hidden_act": config.get("hidden_act", str, "silu"),
            "max_position_embeddings": positions,
            "tie_word_embeddings": config.get("tie_word_embeddings", bool, False),
            "rope": rope_config(config, head_dim, positions),
            "sliding_window": (None,) * layers,
            "bos_token_ids": config.ids("bos_token_id"),
            "eos_token_ids": config.ids("eos_token_id"),
            "extra": config.raw,
        }
        return cls(**{**values, **overrides})


def rope_config(config: RawConfig, head_dim: int, max_positions: int) -> RopeConfig:
    """Rope from either spelling: v5's `rope_parameters`, or `rope_theta` with `rope_scaling`."""
    parameters = config.raw.get("rope_parameters") or config.raw.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise ModelFileError(
            f"{config.source}: rope parameters must be a table, got {parameters!r}"
        )
    if "full_attention" in parameters:  # v5, by layer type: alike for all, or a model reads them
        kinds = [p for p in parameters.values() if isinstance(p, Mapping)]
        if any(p != kinds[0] for p in kinds):
            raise ModelFileError(
                f"{config.source}: rope parameters that differ by layer type are not known for "
                f"model_type {config.raw.get('model_type')!r}"
            )
        parameters = kinds[0]
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = parameters.get("rope_theta") or config.get("rope_theta", float, 10000.0)
    partial = parameters.get("partial_rotary_factor") or config.get(
        "partial_rotary_factor", float, 1.0
    )
    merged = dict(parameters)
    if merged.get("original_max_position_embeddings") is None:
        original = config.get("original_max_position_embeddings", int, None)
        merged["original_max_position_embeddings"] = original
    try:
        return RopeConfig(int(head_dim * partial), float(theta), max_positions, kind, merged)
    except OptionError as error:
        raise ModelFileError(f"{config.source}: {error}") from None


def layer_windows(config: RawConfig) -> tuple[int | None, ...]:
    """Sliding windows of a family with `use_sliding_window`, `max_window_layers`, `layer_types`."""
    layers = config.size("num_hidden_layers")
    window = config.size("sliding_window", None)
    if window is None or not config.get("use_sliding_window", bool, False):
        return (None,) * layers
    kinds = config.raw.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", int, 28)
        return tuple(window if i >= first else None for i in range(layers))
    known = {"full_attention": None, "sliding_attention": window}
    if len(kinds) != layers or any(k not in known for k in kinds):
        raise ModelFileError(
            f"{config.source}: layer_types must be {layers} of {list(known)}, got {kinds}"
        )
    return tuple(known[k] for k in kinds)
