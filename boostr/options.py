"""Options of ops as kernels take them: checked, with their defaults filled in."""

from __future__ import annotations

from dataclasses import dataclass

from boostr.errors import OptionError

ALIGNMENTS = ("bottom-right", "top-left")


@dataclass(frozen=True)
class AttentionOptions:
    """The numbers of one attention call. A window side of -1 is unlimited; softcap 0 is off."""

    causal: bool
    left: int
    right: int
    scale: float
    softcap: float
    bottom_right: bool


def attention_options(
    op: str, head_dim: int, causal: bool, window, scale, softcap, alignment: str
) -> AttentionOptions:
    """The options of a call, checked, with their defaults filled in."""
    if alignment not in ALIGNMENTS:
        raise OptionError(f"{op}: causal_alignment must be in {ALIGNMENTS}, got {alignment!r}")
    sides = (None, None) if window is None else tuple(window)
    if len(sides) != 2 or any(w is not None and w < -1 for w in sides):
        raise OptionError(
            f"{op}: window must be (left, right), each >= 0, -1 or None, got {window}"
        )
    left, right = (-1 if w is None else int(w) for w in sides)
    if softcap is not None and softcap < 0:
        raise OptionError(f"{op}: softcap must be positive, got {softcap}")
    return AttentionOptions(
        causal=causal,
        left=left,
        right=0 if causal and right < 0 else right,
        scale=head_dim**-0.5 if scale is None else float(scale),
        softcap=softcap or 0.0,
        bottom_right=alignment == "bottom-right",
    )
