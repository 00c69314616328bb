"""Attention over many queries on a WebGPU device, beside the shader that this project grew from.

    BOOSTR_BACKEND=wgpu python benchmarks/wgpu_attention.py [--only NAME] [--tokens N]

TFLOP/s, counting 4 H D for each pair of a query and a key (10 H D backward), half of the pairs
when causal. The peer is the varlen shader of the Rust crate boostr 0.1.0, one thread per token,
which takes float32 and one key head per query head; its backward is empty. The share is that of
the 67 TFLOP/s of an H100's vector units. The work list is part of our time.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import wgpu_timing as timing

from boostr import Tensor, dtypes
from boostr.ops.attention import _backward, paged_attention, varlen_attention
from boostr.options import attention_options

RAGGED = tuple(int(n) for n in np.random.default_rng(3).integers(64, 257, 16))
_SEED = Path(__file__).with_name("wgpu_attention_seed.wgsl")


@dataclass(frozen=True)
class Shape:
    """Lengths of the sequences, heads, width; paged if there is a block size.

    new: tokens at the end of each sequence that ask; 0: all.
    """

    name: str
    lengths: tuple[int, ...]
    H: int
    K: int
    D: int
    dtype: str = "float32"
    causal: bool = True
    block_size: int = 0
    backward: bool = False
    new: int = 0

    @property
    def flops(self) -> float:
        news = [(n, self.new or n) for n in self.lengths]
        pairs = sum(new * (n - new / 2 if self.causal else n) for n, new in news)
        return (10.0 if self.backward else 4.0) * self.H * self.D * pairs

    @property
    def starts(self) -> np.ndarray:
        return np.cumsum([0, *(self.new or n for n in self.lengths)]).astype(np.int32)


def shapes(n: int) -> list[Shape]:
    """Those of the table; n: tokens of the long sequences."""
    long = (n,)
    return [
        Shape("16 of 64-256, D 64", RAGGED, 8, 8, 64),
        Shape("16 of 64-256, D 64, backward", RAGGED, 8, 8, 64, backward=True),
        *(Shape(f"1 x {n}, D {D}", long, 16, 16, D, kind)
          for D, kind in ((128, "float16"), (128, "bfloat16"), (128, "float32"), (64, "float16"))),
        Shape(f"1 x {n}, D 256", long, 8, 8, 256, "float16"),
        Shape(f"1 x {n}, D 80", long, 16, 16, 80, "float16"),
        Shape(f"1 x {n}, D 128, full", long, 16, 16, 128, "float16", causal=False),
        Shape(f"1 x {n}, D 64, GQA 4, blocks of 16", long, 32, 8, 64, "bfloat16", block_size=16),
        Shape("64 new on 16384, D 128, GQA 4", (16384,), 32, 8, 128, "bfloat16",
              block_size=16, new=64),
        *(Shape(f"1 x {n}, D {D}, backward", long, 16, 16, D, "float16", backward=True)
          for D in (64, 128)),
    ]  # fmt: skip


# -- ours ------------------------------------------------------------------------------------------
def random(*shape: int, dtype: str) -> Tensor:
    values = np.random.default_rng(len(shape)).standard_normal((1 << 18) + 11)
    return Tensor(np.resize(values.astype(dtypes.parse(dtype)), shape), backend=timing.backend())


def integers(values: Any) -> Tensor:
    return Tensor(np.asarray(values, np.int32), backend=timing.backend())


def ours(shape: Shape) -> Callable[[], Any]:
    T, cu = int(shape.starts[-1]), integers(shape.starts)
    q = random(T, shape.H, shape.D, dtype=shape.dtype)
    if shape.block_size:
        blocks = sum(shape.lengths) // shape.block_size
        size = blocks, shape.block_size, shape.K, shape.D
        k, v = (random(*size, dtype=shape.dtype) for _ in range(2))
        order = np.random.default_rng(0).permutation(blocks)
        table, lens = integers(order.reshape(len(shape.lengths), -1)), integers(shape.lengths)
        return lambda: paged_attention(q, k, v, cu, table, lens, causal=shape.causal)
    k, v = (random(T, shape.K, shape.D, dtype=shape.dtype) for _ in range(2))
    if not shape.backward:
        return lambda: varlen_attention(q, k, v, cu, cu, causal=shape.causal)
    out, lse = varlen_attention(q, k, v, cu, cu, causal=shape.causal)
    g, g_lse = random(T, shape.H, shape.D, dtype=shape.dtype), lse.full_like(0)
    options = attention_options(
        "", shape.D, shape.causal, None, None, None, "bottom-right"
    )  # fmt: skip
    return lambda: _backward(g, g_lse, out, lse, q, k, v, cu, cu, None, options)


# -- the peer --------------------------------------------------------------------------------------
def seed_us(shape: Shape, repeats: int = 3) -> float | None:
    """Microseconds of the seed's shader; None where it has none for the shape."""
    if shape.dtype != "float32" or shape.backward or shape.H != shape.K or shape.block_size:
        return None
    backend = timing.backend()
    provider, gpu, T = backend.provider, backend._gpu, int(shape.starts[-1])
    module = gpu.create_shader_module(code=_SEED.read_text())
    pipeline = gpu.create_compute_pipeline(
        layout="auto", compute={"module": module, "entry_point": "varlen_attention_fwd_f32"}
    )
    q, k, v = (random(T, shape.H, shape.D, dtype="float32") for _ in range(3))
    cu_q, cu_k = integers(shape.starts), integers(shape.starts)
    out, lse = q.full_like(0), random(T, shape.H, dtype="float32")
    numbers = (T, T, shape.H, shape.D, len(shape.lengths), int(shape.causal), shape.D**-0.5, 0)
    usage = provider.flags.BufferUsage
    params = gpu.create_buffer(size=32, usage=usage.UNIFORM | usage.COPY_DST)
    gpu.queue.write_buffer(params, 0, struct.pack("<6IfI", *numbers))
    buffers = [x.data.buffer.block.gpu for x in (q, k, v, cu_q, cu_k, out, lse)]
    entries = [{"binding": i, "resource": {"buffer": b}} for i, b in enumerate((*buffers, params))]
    group = gpu.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries)
    kept = (pipeline, group, params, q, k, v, cu_q, cu_k, out, lse)
    command = (pipeline._internal, group._internal, b"", 0, -(-T // 256), 1, 1, kept)
    backend.flush()
    times = sorted(backend.clock.busy([command], repeats, 1))
    return times[len(times) // 2] * 1e6


# -- table -----------------------------------------------------------------------------------------
def row(shape: Shape) -> list[Any]:
    spent = timing.time_us([ours(shape)] * (20 if shape.flops < 1e10 else 2), repeats=5)
    peer = seed_us(shape) if shape.flops < 1e10 else None
    rate = timing.teraflops(shape.flops, spent)
    cells = ["-", "-"] if peer is None else [timing.teraflops(shape.flops, peer), peer / spent]
    mask = "" if "full" in shape.name else ", causal"
    share = f"{100 * rate * 1e12 / timing.F32_FLOPS:.0f} %"
    return [shape.name + mask, shape.dtype, spent, rate, *cells, share]


def rows(names: list[str], tokens: int) -> Iterator[list[Any]]:
    for shape in shapes(tokens):
        if not names or any(name in shape.name for name in names):
            yield row(shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="shapes whose name contains these")
    parser.add_argument("--tokens", type=int, default=4096, help="of the long sequences")
    args = parser.parse_args()
    head = ["shape", "dtype", "us", "TFLOP/s", "seed, TFLOP/s", "ours / seed", "of 67"]
    for i, cells in enumerate(rows(args.only, args.tokens)):
        lines = timing.table(head, [cells]).splitlines()
        print("\n".join(lines if i == 0 else lines[2:]), flush=True)


if __name__ == "__main__":
    main()
