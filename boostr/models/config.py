"""Configs of checkpoints: `config.json` of transformers 4 and 5 brought to one form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from boostr.errors import ModelFileError, OptionError
from boostr.nn.specs import (
    AttentionSpec,
    EmbeddingSpec,
    HeadSpec,
    LayerNorms,
    LayerSpec,
    MLPSpec,
    NormSpec,
)
from boostr.ops.rope_tables import RopeConfig

_MISSING = object()


class RawConfig:
    """A config.json with typed access. Of keys that no family reads `io/settings.py` says more.

    Attributes:
        given: as it was read.   raw: with the keys of a `text_config` over those around it, but for
            `tie_word_embeddings`, of which the outer one counts.
        source: for messages.
    """

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        nested = raw.get("text_config")
        self.given, self.raw, self.source = raw, dict(raw), source
        if isinstance(nested, Mapping):
            tied = {k: raw[k] for k in ("tie_word_embeddings",) if raw.get(k) is not None}
            self.raw |= {**nested, **tied}

    def filled(self, **defaults: Any) -> RawConfig:
        """This config with a family's own defaults for the keys that it leaves out; as in
        transformers a null is no such key."""
        return RawConfig({**defaults, **self.raw}, self.source)

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
        if kind is float and not 0 <= value < math.inf:  # Python's json reads NaN and Infinity
            raise ModelFileError(
                f"{self.source}: config {name!r} must be finite and 0 or more, got {value}"
            )
        return value

    def size(self, name: str, default: Any = _MISSING) -> Any:
        """A count, which must be 1 or more; or the default."""
        value = self.get(name, int, default)
        if value is not None and value < 1:
            raise ModelFileError(f"{self.source}: config {name!r} must be 1 or more, got {value}")
        return value

    def factor(self, name: str, default: Any = _MISSING) -> float:
        """A number above 0."""
        value = self.get(name, float, default)
        if not value > 0:
            raise ModelFileError(f"{self.source}: config {name!r} must be above 0, got {value}")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """Token ids that may be one number, a list or absent."""
        value = self.raw.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            raise ModelFileError(f"{self.source}: config {name!r} must be token ids, got {value!r}")
        return tuple(values)


@dataclass(frozen=True)
class ModelConfig:
    """What a model is made of.

    Attributes:
        vocab_size, hidden_size: V, E.
        max_position_embeddings: the context in tokens, as far as the scaling of the rope reaches.
        layers: one spec a layer.   ropes: the tables that they name.   norm: after the last layer.
        head: of logits; None: the model gives none.
        extra: the config.json, as it was read.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    layers: tuple[LayerSpec, ...]
    norm: NormSpec | None
    head: HeadSpec | None
    ropes: Mapping[str, RopeConfig]
    embedding: EmbeddingSpec = field(default_factory=EmbeddingSpec)
    bos_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)


# -- what most families read alike: Llama's keys and defaults, of which each says what differs -----
def rms_norm(config: RawConfig, **changes: Any) -> NormSpec:
    """The RMS norm of a config."""
    return replace(NormSpec(config.get("rms_norm_eps", float, 1e-6)), **changes)


def attention(config: RawConfig, **changes: Any) -> AttentionSpec:
    """Grouped-query attention as most configs write it."""
    heads = config.size("num_attention_heads")
    spec = {
        "heads": heads,
        "kv_heads": config.size("num_key_value_heads", None) or heads,
        "head_dim": config.size("head_dim", None) or config.size("hidden_size") // heads,
        "layout": config.get("rope_layout", str, "split-half"),
    }
    return AttentionSpec(**{**spec, **changes})


def mlp(config: RawConfig, **changes: Any) -> MLPSpec:
    """A gated MLP."""
    spec = {
        "hidden": config.size("intermediate_size"),
        "act": config.get("hidden_act", str, "silu"),
        "bias": config.get("mlp_bias", bool, False),
    }
    return MLPSpec(**{**spec, **changes})


def alibi_slopes(heads: int, most: float = 8.0) -> tuple[float, ...]:
    """ALiBi's slopes: 2**(-most · i / n) for i from 1 to n, the next power of 2; fewer heads have
    every second of them first. Source: Press et al. 2021, arXiv:2108.12409."""
    n = 1 << (heads - 1).bit_length()
    slopes = [2.0 ** (-most * i / n) for i in range(1, n + 1)]
    return tuple(slopes if n == heads else (slopes[1::2] + slopes[::2])[:heads])


def pre_norm_layer(config: RawConfig, mixer: AttentionSpec) -> LayerSpec:
    """Llama's layer around a mixer."""
    norm = rms_norm(config)
    return LayerSpec(mixer, mlp(config), LayerNorms(before_mixer=norm, before_mlp=norm))


def by_layer(layer: LayerSpec, mixers: Sequence[AttentionSpec]) -> tuple[LayerSpec, ...]:
    """The layer once around each mixer; alike ones are one object."""
    kinds = {mixer: replace(layer, mixer=mixer) for mixer in mixers}
    return tuple(kinds[mixer] for mixer in mixers)


def decoder_config(config: RawConfig, layers: Sequence[LayerSpec], **changes: Any) -> ModelConfig:
    """The whole: Llama's head and rope around these layers, and what a family has otherwise."""
    positions = config.size("max_position_embeddings", 2048)
    values: dict[str, Any] = {
        "model_type": config.get("model_type", str),
        "vocab_size": config.size("vocab_size"),
        "hidden_size": config.size("hidden_size"),
        "max_position_embeddings": positions,
        "layers": tuple(layers),
        "bos_token_ids": config.ids("bos_token_id"),
        "eos_token_ids": config.ids("eos_token_id"),
        "extra": config.raw,
    }
    if "norm" not in changes:
        values["norm"] = rms_norm(config)
    if "head" not in changes:
        values["head"] = HeadSpec(config.get("tie_word_embeddings", bool, False))
    if "ropes" not in changes:
        values["ropes"] = {"full": rope_config(config, layers[0].mixer.head_dim, positions)}
    made = ModelConfig(**{**values, **changes})
    context = min(
        (rope.context for rope in made.ropes.values()), default=made.max_position_embeddings
    )
    return replace(made, max_position_embeddings=context)


_NAMED = (  # read apart
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "max_position_embeddings",
)  # fmt: skip


def rope_config(
    config: RawConfig,
    head_dim: int,
    max_positions: int,
    *,
    theta: float = 10000.0,
    partial: float = 1.0,
    layer_type: str | None = None,
) -> RopeConfig:
    """Rope from either spelling: v5's `rope_parameters`, or `rope_theta` with `rope_scaling`.

    Args:
        theta, partial: a family's defaults for what its config leaves out.
        layer_type: whose parameters to read where v5 has them by layer type; None: alike for all.
    """
    parameters = _rope_parameters(config, layer_type)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    kind = "longrope" if kind == "su" else kind  # its name of 2024
    theta = parameters.get("rope_theta") or config.get("rope_theta", float, theta)
    partial = parameters.get("partial_rotary_factor") or config.get(
        "partial_rotary_factor", float, partial
    )
    own = {k: v for k, v in parameters.items() if k not in _NAMED and v is not None}
    original = config.get("original_max_position_embeddings", int, None)
    if original is not None:  # it wins over the table's, as in transformers
        own["original_max_position_embeddings"] = original
    try:
        return RopeConfig(int(head_dim * partial), float(theta), max_positions, kind, own)
    except OptionError as error:
        raise ModelFileError(f"{config.source}: {error}") from None


def local_ropes(
    config: RawConfig, head_dim: int, theta: float, local_theta: str, default: float | None
) -> dict[str, RopeConfig]:
    """Ropes "full", and "local" of layers with a window. transformers 5 has parameters by layer
    type; before, what scaling there was is that of full layers.

    Args:
        theta: of full layers where the config has none.
        local_theta: the older key of that of local ones, whose default is `default`; None: as full.
    """
    kinds = ("full_attention", "sliding_attention")
    positions = config.size("max_position_embeddings")
    if config.get("rope_parameters", dict, {}).keys() & {*kinds}:
        thetas = {"full": theta, "local": theta if default is None else default}
        return {
            name: rope_config(config, head_dim, positions, theta=thetas[name], layer_type=kind)
            for name, kind in zip(thetas, kinds, strict=True)
        }
    full = rope_config(config, head_dim, positions, theta=theta)
    local = config.get(local_theta, float, full.theta if default is None else default)
    return {"full": full, "local": RopeConfig(head_dim, local, positions)}


def _rope_parameters(config: RawConfig, layer_type: str | None) -> Mapping[str, Any]:
    newer, older = (config.raw.get(n) or {} for n in ("rope_parameters", "rope_scaling"))
    for parameters in (newer, older):
        if not isinstance(parameters, Mapping):
            raise ModelFileError(
                f"{config.source}: rope parameters must be a table, got {parameters!r}"
            )
    if layer_type is not None:
        if not isinstance(newer.get(layer_type), Mapping):
            raise ModelFileError(
                f"{config.source}: rope_parameters must have {layer_type!r}, got {list(newer)}"
            )
        scaling = older.get(layer_type, older if layer_type == "full_attention" else {})
        return _extended(newer[layer_type], scaling)
    parameters = _extended(newer, older)
    first, *others = [p for p in parameters.values() if isinstance(p, Mapping)] or [parameters]
    if any(p != first for p in others):
        raise ModelFileError(
            f"{config.source}: rope parameters that differ by layer type are not known for "
            f"model_type {config.raw.get('model_type')!r}"
        )
    return first


def _extended(newer: Mapping[str, Any], older: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of both spellings, where somebody extended the newer by hand: the older one wins, as in
    transformers."""
    kept = {k: newer[k] for k in ("rope_theta", "partial_rotary_factor") if k in newer}
    return {**kept, **older} if older else newer


def layer_types(config: RawConfig, default: Sequence[str]) -> tuple[str, ...]:
    """`layer_types`, one of "full_attention" and "sliding_attention" a layer, or the default."""
    kinds, known = config.raw.get("layer_types"), ("full_attention", "sliding_attention")
    if kinds is None:
        return tuple(default)
    layers = config.size("num_hidden_layers")
    if not isinstance(kinds, list) or len(kinds) != layers or any(k not in known for k in kinds):
        raise ModelFileError(
            f"{config.source}: layer_types must be {layers} of {list(known)}, got {kinds}"
        )
    return tuple(kinds)


def every(count: int, layers: int) -> list[str]:
    """Layer types of which each `count`-th is a full one."""
    kinds = ("full_attention", "sliding_attention")
    return [kinds[(i + 1) % count != 0] for i in range(layers)]


def layer_windows(config: RawConfig) -> tuple[int | None, ...]:
    """Sliding windows of a family with `use_sliding_window`, `max_window_layers`, `layer_types`."""
    layers = config.size("num_hidden_layers")
    window = config.size("sliding_window", None)
    if window is None or not config.get("use_sliding_window", bool, False):
        return (None,) * layers
    first = config.get("max_window_layers", int, 28)
    default = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
    kinds = layer_types(config, default)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
