"""Which type of GGUF each tensor gets, under a name such as Q4_K_M. Source: llama-quant.cpp."""

from __future__ import annotations

from dataclasses import dataclass

from boostr.errors import OptionError
from boostr.quant.gguf import BLOCK_TYPES
from boostr.quant.scheme import did_you_mean

FLOATS = ("F32", "F16", "BF16")
# name -> (the type of most tensors, llama.cpp's general.file_type)
MIXES = {
    "F32": ("F32", 0), "F16": ("F16", 1), "BF16": ("BF16", 32), "Q4_0": ("Q4_0", 2),
    "Q4_1": ("Q4_1", 3), "Q8_0": ("Q8_0", 7), "Q5_0": ("Q5_0", 8), "Q5_1": ("Q5_1", 9),
    "Q2_K": ("Q2_K", 10), "Q3_K_S": ("Q3_K", 11), "Q3_K_M": ("Q3_K", 12), "Q3_K_L": ("Q3_K", 13),
    "Q4_K_S": ("Q4_K", 14), "Q4_K_M": ("Q4_K", 15), "Q5_K_S": ("Q5_K", 16), "Q5_K_M": ("Q5_K", 17),
    "Q6_K": ("Q6_K", 18), "IQ4_NL": ("IQ4_NL", 25), "IQ4_XS": ("IQ4_XS", 30),
}  # fmt: skip
# for rows that are no whole number of superblocks
_SMALLER = {
    "Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}  # fmt: skip


def check_mix(name: str) -> None:
    """Raises OptionError for a name that is no key of MIXES."""
    if name not in MIXES:
        hint = did_you_mean(name, MIXES)
        raise OptionError(f"GGUF type {name!r} is not known: {', '.join(MIXES)}{hint}")


def is_small(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it stays float32: a vector, or the vectors of heads."""
    return len(shape) < 2 or name.endswith("norm.weight")


@dataclass(frozen=True)
class Mix:
    """The types of a model's matrices.

    Attributes:
        name: a key of MIXES.   layers: of the model.
        sharing: query heads that share a key head.   tied: whether the embedding is the head too.
    """

    name: str
    layers: int
    sharing: int
    tied: bool

    def __post_init__(self) -> None:
        check_mix(self.name)

    def type_of(self, name: str, shape: tuple[int, ...]) -> str:
        """The type of a tensor under its name in GGUF."""
        if is_small(name, shape):
            return "F32"
        kind = self.wanted(name)
        if kind not in FLOATS and shape[-1] % BLOCK_TYPES[kind].size:
            kind = _SMALLER.get(kind, "F16")
            if kind != "F16" and shape[-1] % BLOCK_TYPES[kind].size:
                kind = "F16"
        return kind

    def wanted(self, name: str) -> str:
        """The type of a matrix whose rows are whole blocks of it."""
        kind = MIXES[self.name][0]
        if kind in FLOATS:
            return kind
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            return kind if kind == "Q8_0" else "Q6_K"
        _, _, part = name.rpartition("blk.")
        index, _, part = part.partition(".")
        wanted = {"attn_v.weight": self._value, "ffn_down.weight": self._down}.get(part)
        if wanted is not None:
            return wanted(int(index)) or kind
        others = {"attn_output.weight": _OUTPUT, "attn_qkv.weight": _JOINED}.get(part, {})
        return others.get(self.name, kind)

    def _value(self, layer: int) -> str | None:
        """Values decide more than their few numbers cost."""
        several = self.sharing >= 4
        return {
            "Q2_K": "Q4_K" if several else "Q3_K",
            "Q3_K_M": "Q5_K" if layer < 2 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if layer < 4 else None,
            "Q4_K_M": "Q6_K" if self._more(layer) else None,
            "Q5_K_M": "Q6_K" if self._more(layer) else None,
            "IQ4_NL": "Q5_K" if several else None,
            "IQ4_XS": "Q5_K" if several else None,
        }.get(self.name)

    def _down(self, layer: int) -> str | None:
        first = layer < self.layers // 8
        return {
            "Q2_K": "Q3_K",
            "Q3_K_M": "Q5_K" if layer < self.layers // 16 else "Q4_K",
            "Q3_K_L": "Q5_K",
            "Q4_K_S": "Q5_K" if first else None,
            "Q4_K_M": "Q6_K" if self._more(layer) else None,
            "Q5_K_M": "Q6_K" if self._more(layer) else None,
            "IQ4_NL": "Q5_K" if first else None,
            "IQ4_XS": "Q5_K" if first else None,
        }.get(self.name)

    def _more(self, layer: int) -> bool:
        """The first and the last eighth of the layers, and every third between."""
        eighth = self.layers // 8
        return layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2


_OUTPUT = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
_JOINED = {"Q3_K_M": "Q4_K", "Q3_K_L": "Q4_K", "Q4_K_M": "Q5_K", "Q5_K_M": "Q6_K"}
