"""Architecture: how a family lies in files of GGUF. A family's file has its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boostr.models.config import ModelConfig

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One value of `general.architecture`, and what is its own beside the tables of `gguf` and
    `gguf_config`, which hold for all.

    Attributes:
        name: the value.   hf_class: for `architectures` of a config.json.
        layout: how rotated pairs lie in its q and k, where those of a folder are split-half.
        names: tensors that mean something else than elsewhere: name in the file, with `{i}` for the
            layer and without its end -> canonical name, of a config.
        flags: names in config.json whose value the presence of a tensor gives: its name in a layer,
            and the value where it is there.
        numbers: metadata with a number of each layer: key -> a parameter in the layer and its
            shape, or the one number that is obeyed.
        packed: products that lie in one tensor: "attn_qkv" (q, k, v), "ffn_up" (gate, up).
        keys: metadata beyond what all have: key after "<name>." -> name in config.json.
        untied: whether programs want the head as a tensor where it is the embedding, too.
        says: what the file does not say, being a constant of llama.cpp or of its converter, from
            what it does.
        writes: metadata beyond what all have, by key after "<name>.".
        spelled: names in config.json that are the family's own: what others call it -> its name.
    """

    name: str
    hf_class: str
    layout: str = "split-half"
    names: Callable[[ModelConfig], Mapping[str, str]] = lambda config: {}
    flags: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    numbers: Mapping[str, tuple[str, tuple[int, ...]] | float] = field(default_factory=dict)
    packed: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    untied: bool = False
    says: Callable[[Config], Config] = lambda config: {}
    writes: Callable[[ModelConfig], Config] = lambda config: {}
    spelled: Mapping[str, str] = field(default_factory=dict)
