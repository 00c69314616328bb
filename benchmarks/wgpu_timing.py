"""Timing on a WebGPU device, shared by the benchmarks `wgpu_*.py`, and the limits to compare with.

Calls are recorded as a program, as a decode step runs them, and timed by the GPU's clock. Give as
many calls on buffers of their own as `rotation` says, so that none is found in the L2 cache.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from boostr import backends, env
from boostr.program import capture

RECORDED_ON = "H100"  # the GPU of figures that are written down here and in the benchmarks
F32_FLOPS = 67e12  # on the vector units, by the data sheet
DISPATCH_US = 2.0  # of GPU time for a kernel that does nothing, there
L2_BYTES = 50e6
WARM_SECONDS = 0.3

Call = Callable[[], Any]


def backend() -> Any:
    """The wgpu backend that BOOSTR_BACKEND names, else the one on the best GPU."""
    chosen = env.BACKEND.text()
    return backends.get(chosen if chosen.partition(":")[0] == "wgpu" else "wgpu")


@cache
def copy_bytes() -> float:
    """Bytes read and written by a copy on this GPU, per second: the floor of what moves memory."""
    return max(backend().memory_bandwidth() for _ in range(3))


def is_recorded() -> bool:
    """Whether this GPU is the one that recorded figures are of; on others they say nothing."""
    return RECORDED_ON in backend().caps.name


def rotation(bytes_each: float, least: int = 2, factor: float = 3.0) -> int:
    """How many buffers of this size to use in turn, so that none is found in the L2 cache."""
    return max(least, -(-int(factor * L2_BYTES) // max(int(bytes_each), 1)))


def time_us(calls: Sequence[Call], repeats: int = 7, warmup: int = 2) -> float:
    """Median microseconds of GPU time of one of `calls`, run in order in one pass."""
    where = backend()
    kept: list[Any] = []

    def run() -> None:
        kept.extend(call() for call in calls)  # results that die would share their memory

    program: Any = capture(run, where)
    for _ in range(warmup):
        program.run()
    alone = max(program.seconds(), 1e-6)
    runs = min(math.ceil(WARM_SECONDS / alone), 2000)  # clocks fall while kernels are compiled
    return statistics.median(program.busy_seconds(repeats, runs)) / len(calls) * 1e6


def terabytes(nbytes: float, microseconds: float) -> float:
    """TB/s."""
    return nbytes / microseconds / 1e6


def teraflops(flops: float, microseconds: float) -> float:
    """TFLOP/s."""
    return flops / microseconds / 1e6


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table; floats get three significant digits."""

    def cell(x: Any) -> str:
        if not isinstance(x, float):
            return str(x)
        return f"{x:.3g}" if abs(x) < 1000 else f"{x:.0f}"

    lines = [list(head), ["---"] * len(head), *([cell(x) for x in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
