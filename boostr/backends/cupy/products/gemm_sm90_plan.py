"""Which products `gemm_sm90.cu` makes, and how they are cut up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from boostr.backends.cupy.products.gemm import kind_of, mma_refusal
from boostr.backends.cupy.products.stored import Stored, of_integers
from boostr.quant.forms import Form
from boostr.quant.scheme import FIELDS

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend


@dataclass(frozen=True)
class Warpgroups:
    """How `gemm_sm90.cu` is cut up; see there.

    Attributes:
        blocks: that are to fit a multiprocessor.   few: whether `gemm_sm90_few.cuh` multiplies.
    """

    groups: int
    tokens: int
    stages: int
    shares: int = 1
    blocks: int = 1
    few: bool = False

    def stays(self, form: Form) -> bool:
        """Whether a block makes one tile after another, in pairs that share their tokens."""
        return form.is_float and self.tokens >= 128 and self.shares == 1

    def shared_bytes(self, form: Form) -> int:
        ring, start = self.stage_bytes(form) * self.stages, 1024  # it begins at such a multiple
        if self.stays(form):
            return ring + self.groups * 32 * 68 * 4 + start
        return max(ring, self.tokens * (64 * self.groups + 4) * 4) + start

    def stage_bytes(self, form: Form) -> int:
        x = self.tokens * (256 if self.few else 128)
        return 64 * self.groups * sum(self.row_bytes(form)) + x

    def row_bytes(self, form: Form) -> tuple[int, int]:
        """Of a row in a stage: bytes of codes and of high bits."""
        if form.is_float or form.rounds_input:
            return 128, 0
        low, *high = FIELDS.get(int(form.codes[1]), (8,)) if form.codes != "e4m3" else (8,)
        return (16 * low, 16 * sum(high)) if self.few else (8 * low, 0)

    def defines(self) -> dict[str, int]:
        return {
            "GROUPS": self.groups, "TOKENS": self.tokens, "STAGES": self.stages,
            "SHARES": self.shares, "BLOCKS": self.blocks, "FEW": int(self.few),
        }  # fmt: skip


FEW_TOKENS = 64
# tokens that pay for decoding a weight once: of all forms, and of those slow to decode
_MANY_TOKENS, _MANY_OF_SLOW = 4096, 1024
_DECODED_BYTES = 128 << 20  # at a time; pieces of less leave multiprocessors idle at their ends
_RING, _HALF_RING = 208 << 10, 104 << 10
# Few tokens, measured on an H100: bytes of the ring, and blocks on a multiprocessor. A ring of half
# of its memory leaves room for the next kernel's first weights.
_RINGS = {"float": (72 << 10, 2), "rows": (36 << 10, 4), "rounds": (52 << 10, 2)}


def pick_warpgroups(backend: CupyBackend, weights: list[Stored], M: int) -> Warpgroups:
    """For weights side by side and M tokens."""
    if streams(backend, weights, M):
        return _streaming(backend, weights, M)
    form, K, sms = weights[0].form, weights[0].K, backend.caps.sms
    kind, rounds = kind_of(form), form.rounds_input
    groups, room, blocks = 2, _HALF_RING, 2 * sms
    if M > FEW_TOKENS:
        fewer = M <= 128 or _tiles(weights, 128) * -(-M // 256) < sms // 2
        tokens, room, blocks = 128 if fewer else 256, _RING, sms
    else:
        tokens = _token_tile(M)
        if kind in _RINGS and (M <= 32 or rounds):
            groups, room, blocks = 1, _RINGS[kind][0], _RINGS[kind][1] * sms
        elif _tiles(weights, 128) * 8 < blocks:
            groups = 1
    tiles, steps = _tiles(weights, 64 * groups) * -(-M // tokens), -(-K // (128 if rounds else 64))
    stages = min(room // Warpgroups(groups, tokens, 1).stage_bytes(form), 8)
    least = 2 if rounds else 4  # steps that a share is worth
    shares = max(1, min(8, blocks // tiles, steps // least))
    return Warpgroups(groups, tokens, stages, shares)


def _streaming(backend: CupyBackend, weights: list[Stored], M: int) -> Warpgroups:
    """Two blocks a multiprocessor, if registers suffice. Clusters of up to 8 blocks do not fill all
    multiprocessors: with more than three quarters of the places taken, or of two on each seven
    eighths, some blocks wait for others to end (1.2 to 1.5 times the time on an H200)."""
    form, tokens = weights[0].form, _token_tile(M)
    # fragments of two spans, or four f32 scales a row and stage, beside the accumulators
    crowded = form.group >= 64 and form.codes in ("c8", "e4m3")
    crowded |= 0 < form.group < 64 and form.scale == "f32" and M > 16
    light = form.codes == "c4" and form.group >= 128 and not form.offsets and form.scale != "f32"
    blocks = 2 if _accumulators(form, M) <= (64 if light else 32) and not crowded else 1
    plan = Warpgroups(2, tokens, 1, 1, blocks, True)
    stages = min((_HALF_RING if blocks == 2 else _RING) // plan.stage_bytes(form), 8)
    places = backend.caps.sms * 7 // 4 if blocks == 2 else backend.caps.sms * 3 // 4
    steps = -(-weights[0].K // 128)
    worth = max(steps // 5, min(steps // 4, 4))  # shares of 5 steps each, or 4 shares of 4
    shares = max(1, min(8, places // _tiles(weights, 128), worth))
    return Warpgroups(2, tokens, stages, shares, blocks, True)


def decodes(weights: list[Stored], M: int) -> bool:
    """Whether weights are decoded to 16 bits before `gemm_sm90.cu` multiplies."""
    form = weights[0].form
    least = _MANY_OF_SLOW if form.super or form.table else _MANY_TOKENS
    coded = not form.is_float and not form.rounds_input
    return coded and least <= M and all(w.in_eights for w in weights)


def decoded_rows(N: int, K: int) -> int:
    """Of N rows, how many to decode at a time."""
    pieces = -(-N * K * 2 // _DECODED_BYTES)
    return -(-N // (pieces * 128)) * 128


def _tiles(weights: list[Stored], rows: int) -> int:
    return sum(-(-w.N // rows) for w in weights)


def _token_tile(M: int) -> int:
    return next(t for t in (8, 16, 32, 64) if t >= M)


def _accumulators(form: Form, M: int) -> int:
    """Of a thread, in `gemm_sm90_few.cuh`: of rows, of groups under way, and of their sums of x."""
    parts = 0 if not form.group else 2 if form.group < 32 else 1
    of_x = bool(form.offsets and form.offsets != "zeros")
    return _token_tile(M) // 2 * (1 + parts * (1 + of_x))


def streams(backend: CupyBackend, weights: list[Stored], M: int) -> bool:
    """Whether `gemm_sm90_few.cuh` should multiply by codes.

    It must know the form, and the copy engine reads high bits. Measured on an H200 with 8B's and
    1B's matrices it takes 0.5 to 1.0 times as long as the others do. What is left to these:
      1.0 to 1.2 times  where tiles are neither enough for two blocks a multiprocessor nor so few
                        that K is shared out: up to 16 tokens, but for 4 bits in groups of 64 or
                        more, and more tokens by a scale a row
      1.0 to 1.1 times  17 to 32 tokens by small matrices of forms that fill the registers
    """
    form, sms = weights[0].form, backend.caps.sms
    if M > FEW_TOKENS or form.rounds_input or not (of_integers(form) or form.codes == "e4m3"):
        return False
    if form.super % 128 or any(w.pieces[0] != 16 for w in weights) or _accumulators(form, M) > 96:
        return False
    tiles = _tiles(weights, 128)
    if 3 * sms < 4 * tiles <= 4 * sms and (M <= 16 or not form.group):
        return form.codes == "c4" and form.group >= 64
    full = form.group > 0 and (form.group < 32 or form.scale == "f32")
    return not (16 < M <= 32 and 4 * tiles <= sms and full)


def hopper_takes(backend: CupyBackend, weights: list[Stored], M: int) -> bool:
    """Whether `hopper` should multiply arguments that `tensor_cores_take`.

    Of codes that do not stream `gemm.mma` is faster up to 16 tokens (1.05 to 1.8 times on an H200),
    and up to 32 by matrices of a block a multiprocessor, or of super-scales (1.1 to 1.5 times).
    """
    form, caps = weights[0].form, backend.caps
    if caps.compute_capability != 90 or form.super % 64:
        return False
    if form.is_float:
        return M <= 32
    if form.rounds_input or mma_refusal(form) is not None or streams(backend, weights, M):
        return True
    small = bool(form.super) or sum(w.N for w in weights) <= 64 * caps.sms
    most = 32 if small else 16
    return most < M
