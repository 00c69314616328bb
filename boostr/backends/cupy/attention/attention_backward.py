"""The gradient of packed attention on CUDA: with tensor cores, else on plain cores.

Kernels of shaders/cuda/attention/: attention_backward_sm90.cu and attention_backward.cu (keys stay,
dq by atomics), attention_backward_ends.cu (before and after them), attention_backward_dq.cu (dq in
a fixed order, for BOOSTR_DETERMINISTIC=1) and attention_backward_simt.cu.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from boostr import dtypes, env
from boostr.backends.base import Kernel
from boostr.backends.cupy.rows.rows import power_of_two
from boostr.backends.cupy.runtime.kernels import Variant
from boostr.tensor import Tensor

if TYPE_CHECKING:
    from boostr.backends.cupy.backend import CupyBackend

MAX_WIDTH = 256
_UNLIMITED = 1 << 30
_TOKENS = 4  # of a group of threads of `backward_prepare`
_LARGE = 160 * 1024  # bytes of shared memory a block: A100, H100; other GPUs from sm_80 have 99 KB


@dataclass(frozen=True)
class Keys:
    """Tile of `backward_keys`; the macros at the head of attention_backward.cu."""

    TILE_Q: int
    TILE_K: int
    WARP_COUNT: int
    SN: int
    KN: int
    QM: int
    QS: int = 2
    OS: int = 2
    MC: int = 32
    BLOCKS: int = 1
    DQ: int = 1
    family = "attention_backward"

    def macros(self) -> dict[str, Any]:
        return asdict(self)

    def shared_bytes(self, DP: int) -> int:
        pitch, p_pitch = 2 * DP + 16, 2 * self.TILE_Q + 16
        own_rows = self.SN == self.WARP_COUNT
        kept = 1 if own_rows and self.DQ else 0 if own_rows else 2
        rows = 2 * self.TILE_K + (self.QS + self.OS) * self.TILE_Q
        return rows * pitch + 16 * self.TILE_Q + kept * self.TILE_K * p_pitch


@dataclass(frozen=True)
class Hopper:
    """Tile of `backward_keys` in attention_backward_sm90.cu, for a padded width of 64 or 128."""

    TILE_Q: int
    QM: int
    DQ: int = 1
    TILE_K = 128
    WARP_COUNT = 8
    family = "attention_backward_sm90"

    def macros(self) -> dict[str, Any]:
        return {"DQ": self.DQ}

    def shared_bytes(self, DP: int) -> int:
        M, N = self.TILE_Q, self.TILE_K
        three = 3 * (2 * M * DP * 2 + 8 * M)  # q, g and the stats
        return 2 * N * DP * 2 + three + self.DQ * (2 * M * N * 2 + M * DP * 4)


@dataclass(frozen=True)
class Queries:
    """Tile of `backward_queries`; the macros at the head of attention_backward_dq.cu."""

    TILE_K: int
    RI: int
    WARP_COUNT: int
    MC: int = 32
    BLOCKS: int = 1
    family = "attention_backward_dq"

    @property
    def rows(self) -> int:
        return 16 * self.RI * self.WARP_COUNT

    @property
    def threads(self) -> int:
        return 32 * self.WARP_COUNT

    def shared_bytes(self, DP: int) -> int:
        return (2 * self.rows + 4 * self.TILE_K) * (2 * DP + 16)


@dataclass(frozen=True)
class HopperQueries:
    """Tile of `backward_queries` in attention_backward_dq_sm90.cu."""

    TILE_K: int
    WARPGROUPS: int = 2
    BLOCKS: int = 1
    family = "attention_backward_dq_sm90"

    @property
    def rows(self) -> int:
        return 64 * self.WARPGROUPS

    @property
    def threads(self) -> int:
        return 128 * self.WARPGROUPS

    def shared_bytes(self, DP: int) -> int:
        return (2 * self.rows + 4 * self.TILE_K) * 2 * DP


# padded head_dim -> tile, with 160 KB of shared memory a block
KEYS = {
    64: Keys(64, 128, 4, SN=4, KN=4, QM=2, BLOCKS=2),
    96: Keys(64, 128, 8, SN=4, KN=4, QM=4),
    128: Keys(64, 128, 8, SN=4, KN=4, QM=2, OS=1),
    256: Keys(64, 64, 8, SN=4, KN=2, QM=2, QS=1, OS=1),
}
# without dq, for the ordered path; other widths and sizes of memory take the tile above
ORDERED_KEYS = {
    64: Keys(64, 128, 4, SN=4, KN=4, QM=2, MC=16, BLOCKS=2),
    128: Keys(64, 64, 4, SN=2, KN=2, QM=2, OS=1, BLOCKS=2),
}
SMALL_KEYS = {
    64: Keys(64, 64, 4, SN=2, KN=2, QM=2),
    96: Keys(64, 64, 4, SN=2, KN=2, QM=2, OS=1),
    128: Keys(64, 64, 8, SN=4, KN=2, QM=2, QS=1, OS=1),
    256: Keys(32, 32, 4, SN=2, KN=2, QM=2, QS=1, OS=1),
}
QUERIES = {
    64: Queries(64, 2, 4, BLOCKS=2),
    96: Queries(64, 1, 8),
    128: Queries(64, 1, 8, MC=64),
    256: Queries(32, 1, 4),
}
SMALL_QUERIES = {
    64: Queries(64, 2, 4),
    96: Queries(32, 1, 4),
    128: Queries(32, 1, 4),
    256: Queries(16, 1, 2, MC=16),
}
# on compute capability 9.0
HOPPER = {64: Hopper(128, 8), 128: Hopper(64, 4), 256: KEYS[256]}
HOPPER_QUERIES = {64: HopperQueries(128), 128: HopperQueries(128), 256: QUERIES[256]}
HOPPER_EXTRA_QUERIES = {**HOPPER_QUERIES, 128: HopperQueries(64)}  # with options: registers


def _tile(D: int, caps: Any, ordered: bool) -> tuple[int, Keys | Hopper]:
    """The padded width and the tile for a head_dim; `ordered`: one that makes no dq."""
    if caps.compute_capability == 90 and HOPPER:
        tiles = HOPPER
    else:
        tiles = KEYS if caps.shared_bytes >= _LARGE else SMALL_KEYS
    DP = min(width for width in tiles if width >= D)
    if not ordered:
        return DP, tiles[DP]
    own = ORDERED_KEYS.get(DP) if tiles is KEYS else None
    return DP, replace(own or tiles[DP], DQ=0)


def _query_tile(DP: int, caps: Any, extra: int) -> Queries | HopperQueries:
    if caps.compute_capability == 90 and HOPPER:
        return (HOPPER_EXTRA_QUERIES if extra else HOPPER_QUERIES)[DP]
    return (QUERIES if caps.shared_bytes >= _LARGE else SMALL_QUERIES)[DP]


@dataclass(frozen=True)
class _Call:
    """The arrays and numbers of one call, as the kernels want them."""

    backend: CupyBackend
    g: Any
    g_lse: Any
    out: Any
    lse: Any
    q: Any
    k: Any
    v: Any
    cu_q: Any
    cu_k: Any
    alibi: Any
    options: Any

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, H, K, D."""
        return len(self.cu_q) - 1, self.q.shape[1], self.k.shape[1], self.q.shape[2]

    @property
    def mask(self) -> tuple[int, int, int, float, float]:
        """The end of the kernels' arguments: lowest and highest distance, alignment, numbers."""
        o = self.options
        highest = o.right if o.right >= 0 else _UNLIMITED
        if o.causal:
            highest = min(highest, 0)
        lowest = -o.left if o.left >= 0 else -_UNLIMITED
        return lowest, highest, int(o.bottom_right), float(o.scale), float(o.softcap)

    def outputs(self) -> tuple[Any, Any, Any]:
        """dq, dk, dv, not yet written."""
        return tuple(self.backend.empty(x.shape, x.dtype) for x in (self.q, self.k, self.v))

    def spread(self, numbers: int) -> int:
        """Enough blocks of 256 for `numbers` independent pieces, at most 16 for each core."""
        return max(1, min(-(-numbers // 256), 16 * self.backend.caps.sms))

    def prepare_blocks(self, DP: int, pieces: int) -> int:
        """A group of threads for every head of so many tokens; enough to clear the pieces."""
        groups = -(-len(self.q) // _TOKENS) * self.q.shape[1]
        return max(-(-groups * power_of_two(DP // 8) // 256), self.spread(pieces // 8))


def _on_tensor_cores(q: Tensor, k: Tensor, v: Tensor, capability: int) -> bool:
    width = q.shape[2]
    return (
        capability >= 80
        and q.dtype in dtypes.LOW_PRECISION
        and q.dtype == k.dtype == v.dtype
        and width == v.shape[2]
        and width % 8 == 0
    )


def _wide_rows(backend: CupyBackend, x: Any) -> Any:
    """x [T, heads, D], or a copy, such that every head's row can be read in pieces of 16 bytes."""
    row, head, last = x.strides
    small = max(x.shape[0] * row, x.shape[1] * head) < 2**31  # the kernels' strides are ints
    if last == x.itemsize and not (x.data.ptr % 16 or row % 16 or head % 16) and row >= 0 and small:
        return x
    return backend.copy(x)


def _strides(*arrays: Any) -> list[int]:
    """Of rows and heads, in elements."""
    return [s // x.itemsize for x in arrays for s in x.strides[:2]]


def _ends(kind: str, DP: int, tile: Keys | Hopper) -> dict[str, Any]:
    """Macros of attention_backward_ends.cu that go with a tile."""
    return {"TYPE": kind, "DP": DP, "TILE_Q": tile.TILE_Q, "WARP_COUNT": tile.WARP_COUNT,
            "QM": tile.QM, "TOKENS": _TOKENS}  # fmt: skip


def _run_tiles(call: _Call) -> tuple[Any, Any, Any]:
    backend, (B, H, K, D) = call.backend, call.shape
    Tq, Tk = len(call.q), len(call.k)
    ordered = env.DETERMINISTIC.text() == "1"
    DP, tile = _tile(D, backend.caps, ordered)
    kind: dict[str, Any] = {"TYPE": backend.c_type(call.q.dtype), "DP": DP}
    special: dict[str, Any] = {"EXTRA": int(call.alibi is not None or call.options.softcap > 0)}
    ends = _ends(kind["TYPE"], DP, tile)
    dq, dk, dv = outputs = call.outputs()
    stats = backend.empty((H, Tq, 2))
    slots, threads = Tq // tile.TILE_Q + B, (32 * tile.WARP_COUNT,)
    sums = None if ordered else backend.empty((H, slots, tile.TILE_Q * DP))
    pieces = 0 if sums is None else sums.size // 4
    backend.launch(
        "attention_backward_ends", "backward_prepare",
        (call.prepare_blocks(DP, pieces),), (256,),
        [call.g, call.out, call.lse, call.g_lse, stats, sums, *outputs, call.cu_q, call.cu_k, B, H,
         K, D, Tq, Tk, slots],
        **ends,
    )  # fmt: skip
    inputs = [call.q, call.k, call.v, call.g, stats]
    numbers = [call.cu_q, call.cu_k, call.alibi, B, H, K, D, Tq,
               *_strides(call.q, call.k, call.v), *call.mask]  # fmt: skip
    backend.launch(
        tile.family, "backward_keys", (Tk // tile.TILE_K + B, K), threads,
        [*inputs, sums, dk, dv, *numbers],
        shared_bytes=tile.shared_bytes(DP), **kind, **special, **tile.macros(),
    )  # fmt: skip
    if not ordered:
        backend.launch(
            "attention_backward_ends", "backward_finish", (slots, H), threads,
            [sums, dq, call.cu_q, B, H, D, float(call.options.scale)], **ends,
        )  # fmt: skip
        return outputs
    rows = _query_tile(DP, backend.caps, special["EXTRA"])
    backend.launch(
        rows.family, "backward_queries", (Tq // rows.rows + B, H), (rows.threads,),
        [*inputs, dq, *numbers],
        shared_bytes=rows.shared_bytes(DP), **kind, **special, **asdict(rows),
    )  # fmt: skip
    return outputs


def _run_plain(call: _Call) -> tuple[Any, Any, Any]:
    backend, (B, H, K, D) = call.backend, call.shape
    Tq, Tk, Dv = len(call.q), len(call.k), call.v.shape[2]
    width = next(w for w in (32, 64, 128, 256) if w >= max(D, Dv))
    kept, passing = (16, 8) if width > 128 else (32, 16)
    shared = 2 * (kept + passing) * (width + 1) * 4 + 8 * kept * passing
    defines = {
        "TQ": backend.c_type(call.q.dtype), "TK": backend.c_type(call.k.dtype), "WIDTH": width,
    }  # fmt: skip
    dq, dk, dv = outputs = call.outputs()
    stats = backend.empty((H, Tq, 2))
    inputs = [call.q, call.k, call.v, call.g, stats]
    lengths = [call.cu_q, call.cu_k]
    sizes = [B, H, K, D, Dv, Tq]

    def launch(name: str, grid: tuple[int, ...], args: list[Any], shared_bytes: int = 0) -> None:
        backend.launch(
            "attention_backward_simt",
            name,
            grid,
            (256,),
            args,
            shared_bytes=shared_bytes,
            **defines,
        )

    before = [call.g, call.out, call.lse, call.g_lse, stats, *outputs, *lengths, *sizes, Tk]
    after = [*lengths, call.alibi, *sizes, *call.mask]
    launch("backward_prepare", (call.spread(32 * Tq * H),), before)
    launch("backward_keys", (Tk // kept + B, K), [*inputs, dk, dv, *after], shared)
    launch("backward_queries", (Tq // kept + B, H), [*inputs, dq, *after], shared)
    return outputs


def _run(g, g_lse, out, lse, q, k, v, cu_q, cu_k, alibi, options) -> tuple[Tensor, ...]:
    """dq, dk, dv of `varlen_attention`, in the dtypes of q, k and v."""
    backend: CupyBackend = q.backend
    fast = _on_tensor_cores(q, k, v, backend.caps.compute_capability)

    def dense(x: Tensor | None, dtype: Any = None) -> Any:
        if x is None:
            return None
        data = x.data if dtype is None or x.dtype == dtype else backend.cast(x.data, dtype)
        data = backend.dense(data)
        return backend.copy(data) if fast and data.data.ptr % 16 else data

    qs, ks, vs = (_wide_rows(backend, x.data) if fast else dense(x) for x in (q, k, v))
    call = _Call(
        backend, dense(g, q.dtype), dense(g_lse, dtypes.float32), dense(out), dense(lse),
        qs, ks, vs,
        dense(cu_q), dense(cu_k), dense(alibi, dtypes.float32), options,
    )  # fmt: skip
    made = _run_tiles(call) if fast else _run_plain(call)
    return tuple(Tensor.wrap(x, backend) for x in made)


def _supports(g, g_lse, out, lse, q, k, v, *rest) -> str | None:
    widest = max(q.shape[2], v.shape[2])
    if widest > MAX_WIDTH:
        return f"head_dim {widest} is more than {MAX_WIDTH}"
    for x in (q, k):
        if x.dtype not in (dtypes.float32, *dtypes.LOW_PRECISION):
            return f"dtype {x.dtype} (float32, float16 and bfloat16 have kernels)"
    if lse.dtype != dtypes.float32:
        return f"lse in {lse.dtype}, expected float32"
    return None


KERNELS = {"varlen_attention_backward": Kernel(_run, _supports)}


def _variants() -> list[Variant]:
    """Each tile where it is taken, plain in bf16 and with all options in f16."""
    plain = (("float", "float", 64), ("float", "float", 256), ("float", "bf16", 128))
    made = [
        Variant("attention_backward_simt", {"TQ": q, "TK": k, "WIDTH": width})
        for q, k, width in plain
    ]
    places = (
        (KEYS, QUERIES, "sm_80"), (SMALL_KEYS, SMALL_QUERIES, "sm_89"),
        (HOPPER, HOPPER_QUERIES, "sm_90a"),
    )  # fmt: skip
    for keys, queries, arch in places:
        for (DP, tile), (kind, extra) in itertools.product(keys.items(), (("bf16", 0), ("f16", 1))):
            head = {"TYPE": kind, "DP": DP, "EXTRA": extra}
            ordered = replace(ORDERED_KEYS.get(DP, tile) if keys is KEYS else tile, DQ=0)
            made += [Variant(t.family, {**head, **t.macros()}, only=arch) for t in (tile, ordered)]
            rows = HOPPER_EXTRA_QUERIES[DP] if extra and keys is HOPPER else queries[DP]
            made.append(Variant(rows.family, {**head, **asdict(rows)}, only=arch))
            if extra:
                made.append(Variant("attention_backward_ends", _ends(kind, DP, tile), only=arch))
    return made


VARIANTS = _variants()
