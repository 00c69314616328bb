"""The edge table that every implementation of attention goes through, and inputs for its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import oracles
from draws import normal
from tolerance import assert_close, rms


@dataclass(frozen=True)
class Case:
    """One row: lengths of segments, heads, widths, options. `extra` tokens are in no segment."""

    name: str
    len_q: tuple[int, ...]
    len_k: tuple[int, ...]
    H: int = 4
    K: int = 2
    D: int = 16
    Dv: int = 0
    scale_of_logits: float = 1.0
    extra: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def cu_seqlens_q(self) -> np.ndarray:
        return np.cumsum([0, *self.len_q]).astype(np.int32)

    @property
    def cu_seqlens_k(self) -> np.ndarray:
        return np.cumsum([0, *self.len_k]).astype(np.int32)


def _same(name: str, *lengths: int, **rest: Any) -> Case:
    return Case(name, lengths, lengths, **rest)


CAUSAL = {"causal": True}
TOP_LEFT = {"causal": True, "causal_alignment": "top-left"}
SINKS = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)

CASES = [
    _same("one-token", 1),
    _same("one-token-each", 1, 1, 1, options=CAUSAL),
    _same("empty-segments", 0, 3, 0, 0, 1, 0, options=CAUSAL),
    _same("all-empty", 0, 0),
    Case("no-keys", (2, 3), (0, 4)),
    Case("no-queries", (0, 3), (5, 2), options=CAUSAL),
    _same("tokens-outside", 3, 2, extra=4, options=CAUSAL),
    _same("tokens-outside-with-sinks", 3, 2, extra=4, options={"causal": True, "sinks": SINKS}),
    _same("ragged", 17, 1, 33, 65, options=CAUSAL),
    _same("bidirectional", 17, 1, 33, 65),
    _same("past-the-block", 261, options=CAUSAL),
    _same("blocks-split-a-segment", 200, 130, 70, H=2, K=1, options=CAUSAL),
    Case("decode", (1, 1, 1), (7, 1, 300), options=CAUSAL),
    Case("prefix-hit", (4, 9), (20, 9), options=CAUSAL),
    Case("prefix-hit-top-left", (4, 9), (20, 9), options=TOP_LEFT),
    Case("more-queries-than-keys", (9, 5), (4, 5), options=CAUSAL),
    Case("more-queries-top-left", (9, 5), (4, 5), options=TOP_LEFT),
    Case("cross", (3, 8), (70, 5)),
    *(_same(f"gqa-{H // K}", 13, 5, H=H, K=K, options=CAUSAL)
      for H, K in ((3, 3), (8, 2), (8, 1), (7, 1), (14, 2))),
    *(_same(f"head-dim-{D}", 11, 3, H=2, K=1, D=D, options=CAUSAL)
      for D in (1, 8, 64, 80, 96, 128, 256)),
    _same("narrow-values", 9, 6, D=24, Dv=16, options=CAUSAL),
    _same("window-left", 70, 3, options={"causal": True, "window": (8, 0)}),
    _same("window-none", 20, options={"window": (None, None)}),
    _same("window-self", 5, 9, options={"window": (0, 0)}),
    _same("window-both", 70, 3, options={"window": (5, 2)}),
    _same("window-right-but-causal", 20, options={"causal": True, "window": (5, 2)}),
    _same("window-right", 20, options={"window": (-1, 3)}),
    _same("window-over-blocks", 300, H=2, K=1, options={"causal": True, "window": (64, None)}),
    Case("window-prefix", (4, 1), (40, 33), options={"causal": True, "window": (16, 0)}),
    Case("window-top-left", (8, 5), (12, 5),
         options={"window": (3, 1), "causal_alignment": "top-left"}),
    _same("scale", 9, options={"causal": True, "scale": 0.5}),
    _same("softcap", 9, 20, options={"causal": True, "softcap": 5.0}),
    _same("alibi", 9, 20, options={"causal": True, "alibi_slopes": SLOPES}),
    _same("alibi-bidirectional", 9, options={"alibi_slopes": SLOPES}),
    Case("alibi-prefix", (3,), (30,), options={"causal": True, "alibi_slopes": SLOPES}),
    _same("sinks", 9, 20, options={"causal": True, "sinks": SINKS}),
    Case("sinks-no-keys", (3, 2), (0, 2), options={"sinks": SINKS}),
    Case("everything", (6, 1), (30, 44), options={
        "causal": True, "window": (20, 0), "softcap": 8.0, "alibi_slopes": SLOPES, "sinks": SINKS,
        "scale": 0.3}),
    _same("large-logits", 40, 7, scale_of_logits=100.0, options=CAUSAL),
    _same("large-logits-softcap", 40, scale_of_logits=100.0, options={"softcap": 30.0}),
]  # fmt: skip
SMALL = [c for c in CASES if sum(c.len_q) <= 100 and c.D <= 64]


def draw(rng: np.random.Generator, case: Case, dtype: str) -> tuple[np.ndarray, ...]:
    """q, k, v of a case, each drawn on its own."""
    Tq, Tk = sum(case.len_q) + case.extra, sum(case.len_k) + case.extra
    q = normal(rng, (Tq, case.H, case.D), dtype, case.scale_of_logits)
    k = normal(rng, (Tk, case.K, case.D), dtype)
    return q, k, normal(rng, (Tk, case.K, case.Dv or case.D), dtype)


def spread(q, k, lengths, options: dict[str, Any]) -> np.ndarray:
    """sqrt(sum of a row's squared probabilities) [Tq, H, 1]: how far independent errors add up."""
    found = np.zeros((*q.shape[:2], 1))
    q, k = (x.astype(np.float64) for x in (q, k))
    for rows, _, head, _, _, part in oracles._segments(q, k, *lengths, **options):
        found[rows, head, 0] = np.sqrt((part[0] ** 2).sum(axis=1))
    return found


def close(got, want, q, k, v, dtype: str, options: dict[str, Any], lengths=None) -> None:
    """Compare (out, lse): the error of a score moves the average of v by as much.

    Tensor cores take 16-bit probabilities, each rounded by itself: with `lengths` (cu_seqlens_q,
    cu_seqlens_k) that error follows each row's probabilities; else they count as equal.
    """
    out, lse = (x.numpy() for x in got)
    scale = options.get("scale", q.shape[2] ** -0.5)
    size = 1 + rms(q) * rms(k) * scale * np.sqrt(q.shape[2])
    size += 50 if options.get("alibi_slopes") is not None else 0  # slope · distance is exact in f64
    precise = "float64" if dtype == "float64" else "float32"
    assert_close(lse, want[1], dtype=precise, reduce=1, scale=size, err_msg="lse")
    noise = 16 * np.finfo(precise).eps * size * max(rms(v), 1.0)
    if dtype == precise:
        assert_close(out, want[0], dtype=dtype, reduce=1, scale=size * max(rms(v), 1.0))
    else:
        rounding = 2 * {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype]
        even = 1 / np.sqrt(max(len(v), 1))
        reach = even if lengths is None else spread(q, k, lengths, options)
        error = np.abs(out.astype(np.float64) - want[0])
        allowed = noise + rounding * (np.abs(want[0]) + rms(v) * reach)
        worst = np.unravel_index(np.argmax(error - allowed), error.shape) if error.size else ()
        assert np.all(error <= allowed), (
            f"{np.sum(~(error <= allowed))} of {error.size} outside; worst at {worst}: "
            f"{out[worst]} is not {want[0][worst]}, off {error[worst]}, allowed {allowed[worst]}"
        )
