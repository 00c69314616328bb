"""Products of one or a few rows with a weight on a WebGPU device, as a decode step runs them.

    BOOSTR_BACKEND=wgpu python benchmarks/wgpu_gemv.py [--rows 1] [--forms bfloat16,int8]
        [--shapes 4096x4096,...] [--tiles 256x256x4x2,...]

Each call reads another matrix and depends on the one before it, so the time has everything that a
kernel costs inside a step. "floor" is the share of a copy's speed in
bytes of weights. `gated` rows are norm, gate, up and their product in one kernel. `--tiles`
compares ways to cut the work (`gemv_plan.Tile`: threads, team, rows, unroll) with ours.
"""

import argparse
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from wgpu_timing import Call, backend, copy_bytes, rotation, table, terabytes, time_us

from boostr import Tensor, dtypes
from boostr.backends.wgpu.products import gemv
from boostr.backends.wgpu.products.gemv_plan import Tile
from boostr.backends.wgpu.runtime.array import contiguous_strides
from boostr.quant.scheme import SCHEMES, QuantizedTensor

# (out, in): 8B gate and up, down, qkv, o; 1B; 135M; heads last
SHAPES = (
    ("gated", 14336, 4096), ("", 4096, 14336), ("", 6144, 4096), ("", 4096, 4096),
    ("gated", 8192, 2048), ("", 2048, 8192), ("", 3072, 2048), ("", 2048, 2048),
    ("gated", 1536, 576), ("", 576, 1536), ("", 960, 576), ("", 576, 576),
    ("", 128256, 4096), ("", 128256, 2048), ("", 49152, 576),
)  # fmt: skip
FORMS = "bfloat16," + ",".join(SCHEMES)
_POOL_BYTES = 1 << 30
_LEAST_CALLS = 24


class Weights:
    """Weights of any form that lie in one large block of random bytes, each where no other does."""

    def __init__(self, nbytes: int = _POOL_BYTES) -> None:
        self.backend = backend()
        nbytes = min(nbytes, self.backend.caps.binding_bytes, self.backend.caps.buffer_bytes)
        self._bytes = nbytes // (1 << 20) * (1 << 20)
        self._blocks: dict[str, Tensor] = {}
        self._next = 0

    def _block(self, dtype: np.dtype) -> Tensor:
        """Random numbers of about 1 / 30, or of all bytes."""
        name = np.dtype(dtype).name
        if name not in self._blocks:
            rng, size = np.random.default_rng(0), np.dtype(dtype).itemsize
            part = self._bytes // 64
            if name in ("int8", "uint8"):
                some = rng.integers(0, 256, part, np.uint8).view(dtype)
            else:
                some = (rng.standard_normal(part // size, np.float32) / 32).astype(dtype)
            whole = self.backend.empty((self._bytes // size,), dtype)
            piece = self.backend.from_numpy(some)
            for at in range(0, whole.size, piece.size):
                self.backend.assign(whole.view(shape=piece.shape, offset=at), piece)
            self._blocks = {name: Tensor.wrap(whole, self.backend)}
            self._next = 0
        return self._blocks[name]

    def _take(self, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        whole, size = self._block(dtype).data, int(np.prod(shape))
        align = 256 // np.dtype(dtype).itemsize
        if self._next + size > whole.size:
            self._next = 0
        at, self._next = self._next, -(-(self._next + size) // align) * align
        made = whole.view(shape=shape, strides=contiguous_strides(shape), offset=at)
        return Tensor.wrap(made, self.backend)

    def weight(self, form: str, N: int, K: int) -> Tensor | QuantizedTensor:
        """The next weight of that form."""
        if form not in SCHEMES:
            return self._take((N, K), dtypes.parse(form))
        scheme = SCHEMES[form]
        parts = {}
        for name, part in scheme.parts.items():
            shape = (N, part.columns(K))
            if name in ("codes", "high"):
                parts[name] = self._take(shape, part.dtype)
            else:
                size = 1 if part.dtype.kind in "iu" else 2e-4
                parts[name] = Tensor(np.full(shape, size, part.dtype), backend=self.backend)
        return QuantizedTensor(scheme, (N, K), parts)


def calls_of(
    weights: Weights, form: str, M: int, kind: str, N: int, K: int, tile: Tile | None = None
) -> tuple[list[Call], int]:
    """(calls that depend on each other, bytes of the weights of one)."""
    where = weights.backend
    rng = np.random.default_rng(1)

    def random(*shape: int):
        return where.from_numpy(rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16))

    each = 2 if kind == "gated" else 1
    size = weights.weight(form, N, K).nbytes * each
    count = min(max(rotation(size), 2), max(weights._bytes // size, 1))
    taken = [[weights.weight(form, N, K) for _ in range(each)] for _ in range(count)]
    x = random(M, K)
    norm = gemv.Norm(where.from_numpy(np.ones(K, np.float32)), 1e-5)
    state = {"x": x, "y": random(M, N)}

    def call(i: int):
        pair = taken[i % count]
        if kind == "gated":  # the next one reads what this one wrote
            made = gemv.norm_gated_gemv(where, state["x"], norm, *pair, tile=tile)
            if N >= K and M == 1:
                state["x"] = made.view(shape=(M, K), strides=(K, 1))
        else:
            made = gemv.gemv(where, x, pair[0], None, state["y"], tile=tile)
            state["y"] = made
        return made

    total = -(-min(_LEAST_CALLS, 4 * count) // count) * count
    return [lambda i=i: call(i) for i in range(total)], size


def parse_tile(text: str) -> Tile:
    threads, team, rows, unroll = map(int, text.split("x"))
    return Tile(threads, team, rows, unroll)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--forms", default=FORMS)
    parser.add_argument("--shapes", default="", help="such as 4096x4096,gatedx8192x2048")
    parser.add_argument("--tiles", default="")
    options = parser.parse_args()
    shapes = SHAPES
    if options.shapes:
        split = [s.split("x") for s in options.shapes.split(",")]
        shapes = [("gated" if len(s) > 2 else "", int(s[-2]), int(s[-1])) for s in split]
    tiles = [None, *(parse_tile(t) for t in options.tiles.split(",") if t)]
    weights, rows = Weights(), []
    for form in options.forms.split(","):
        for kind, N, K in shapes:
            for tile in tiles:
                calls, size = calls_of(weights, form, options.rows, kind, N, K, tile)
                micro = time_us(calls)
                rate = terabytes(size, micro)
                name = f"{N}×{K} {kind}".strip()
                cut = [] if len(tiles) == 1 else [str(tile) if tile else "our choice"]
                rows.append([form, name, *cut, micro, rate, rate * 1e12 / copy_bytes()])
    head = ["weights", "shape", *([] if len(tiles) == 1 else ["tile"]), "µs", "TB/s", "floor"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
