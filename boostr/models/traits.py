"""What each family is, read off the specs that it makes of its own defaults."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from boostr.errors import ModelFileError
from boostr.models import FAMILIES, family
from boostr.models.base import Model
from boostr.models.config import ModelConfig, RawConfig
from boostr.models.wrapped import WRAPPERS
from boostr.nn.specs import LayerSpec, NormSpec
from boostr.nn.states import Paged

# of a usual model, for families that have no sizes of their own
_SIZES = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 24,
    "num_attention_heads": 32,
}  # fmt: skip
# in place of a family's own defaults, where boostr has only what these do not ask for
_INSTEAD = {
    "granitemoehybrid": {"num_local_experts": 0, "layer_types": ["attention"] * 24},
}
_OVER = {
    "head": "norms of q and k by head",
    "heads": "norms of q and k by head, a weight for each",
    "all": "norms of q and k over all heads",
}


@dataclass(frozen=True)
class Traits:
    """One model_type, as its defaults have it; a checkpoint's config may say otherwise.

    Attributes:
        kind: what it is for: "generate", "embed".   gguf: architectures that are read as it.
        about: the line that opens its file.
        block: how the halves of a layer and its norms lie.   mlp, head, state: in words.
        positions: how a token knows its place.   windows: which layers see only so many tokens.
    """

    model_type: str
    kind: str
    gguf: tuple[str, ...]
    about: str
    block: str
    positions: str
    windows: str
    mlp: str
    head: str
    state: str


def all_traits() -> list[Traits]:
    """Of every family, by model_type."""
    return [traits(name) for name in sorted(FAMILIES)]


def text_parts() -> dict[str, str]:
    """Wrappers whose text part runs -> the family of that part, where the config names none."""
    return {name: wrapper.text for name, wrapper in sorted(WRAPPERS.items())}


def traits(model_type: str) -> Traits:
    """Of one family.

    Raises:
        ModelFileError: an unknown model_type.
    """
    made = family(model_type, "boostr models")
    usual = {"model_type": model_type, **_SIZES, **_INSTEAD.get(model_type, {})}
    try:
        config = made.read_config(RawConfig({"model_type": model_type}, model_type))
    except ModelFileError:
        config = made.read_config(RawConfig(usual, model_type))
    opening = (sys.modules[made.__module__].__doc__ or "").partition("\n\n")[0]
    return Traits(
        model_type,
        ", ".join(sorted(made.capabilities)),
        tuple(row.name for row in made.gguf),
        " ".join(opening.split()),
        _each(_block(layer) for layer in config.layers),
        _positions(config),
        _windows(config),
        _each(_mlp(layer) for layer in config.layers),
        _head(config),
        _state(made(config)),  # type: ignore[call-arg]
    )


def _each(words: Iterable[str]) -> str:
    """What layers are, each kind once."""
    return " or ".join(dict.fromkeys(words))


def _norm(norm: NormSpec) -> str:
    name = {"rms": "RMS", "layer": "layer"}[norm.kind] + ("" if norm.weight else " (no weight)")
    return f"{name}{' + 1' if norm.offset == 1 else ''}"


def _block(layer: LayerSpec) -> str:
    norms = layer.norms
    before, after = norms.before_mixer or norms.before_mlp, norms.after_mixer or norms.after_mlp
    found = before or after
    where = "sandwich" if before and after else "pre-norm" if before else "post-norm"
    form = {"serial": where, "parallel": f"parallel, {where}", "post": "post-norm of the sum"}
    words = [form[layer.form], f"{_norm(found)} norms" if found else "no norms"]
    if layer.mixer.q_norm is not None:
        words.append(_OVER[layer.mixer.norm_over])
    return ", ".join(words)


def _positions(config: ModelConfig) -> str:
    """Ropes, by the layers that have them, learned tables, slopes."""
    words = ["learned"] if config.embedding.positions is not None else []
    for layer in config.layers:
        mixer = layer.mixer
        if mixer.alibi is not None:
            words.append("ALiBi")
        if mixer.rope is None:
            continue
        rope = config.ropes[mixer.rope]
        part = rope.rotary_dim / mixer.head_dim
        words.append(
            f"rope θ {rope.theta:g}"
            + (f" of {part:.0%} of a head" if part < 1 else "")
            + (" interleaved" if mixer.layout == "interleaved" else "")
        )
    without = sum(layer.mixer.rope is None for layer in config.layers)
    if any(word.startswith("rope") for word in words) and without:
        words.append(f"none in {without} of {len(config.layers)} layers")
    return ", ".join(dict.fromkeys(words)) or "none"


def _windows(config: ModelConfig) -> str:
    windows = [layer.mixer.window for layer in config.layers if layer.mixer.window is not None]
    sizes = ", ".join(map(str, dict.fromkeys(windows)))
    return f"{sizes} in {len(windows)} of {len(config.layers)} layers" if windows else "none"


def _mlp(layer: LayerSpec) -> str:
    mlp = layer.mlp
    return f"{'gated ' if mlp.gated else ''}{mlp.act}{' with biases' if mlp.bias else ''}"


def _head(config: ModelConfig) -> str:
    head = config.head
    if head is None:
        return "none"
    cap = "" if head.softcap is None else f", softcap {head.softcap:g}"
    return ("tied" if head.tied else "its own") + (" with a bias" if head.bias else "") + cap


def _state(module: Model) -> str:
    kept = [state for layer in module.states() for state in layer]
    names = ("keys and values" if isinstance(s, Paged) else type(s).__name__.lower() for s in kept)
    return ", ".join(dict.fromkeys(names)) or "nothing"
