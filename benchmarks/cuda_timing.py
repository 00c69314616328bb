"""Timing on a CUDA device, shared by the benchmarks `cuda_*.py`, and the limits to compare with.

Buffers are rotated past the L2 cache (`rotation`), times are medians of CUDA events. Short kernels
are timed inside a CUDA graph, as a decode step runs them: there launching costs nothing on the
host. The functions for a peer take torch's own events and streams.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

# One H100 80GB HBM3 (132 SMs, CUDA 13, driver 580), measured
BF16_FLOPS = 798e12  # dense products, the best of cuBLAS with its clocks
L2_BYTES = 50e6

Call = Callable[[], Any]


@cache
def copy_bytes() -> float:
    """Bytes read and written by a copy on this GPU, per second: the floor of what moves memory."""
    from boostr import backends

    return max(backends.get("cupy").memory_bandwidth() or 0.0 for _ in range(4))


def rotation(bytes_each: float, least: int = 2, factor: float = 3.0) -> int:
    """How many buffers of this size to use in turn, so that none is found in the L2 cache."""
    return max(least, -(-int(factor * L2_BYTES) // max(int(bytes_each), 1)))


def time_us(fn: Call, repeats: int = 20, warmup: int = 3) -> float:
    """Median microseconds of one call on cupy's current stream, launch included."""
    import cupy

    for _ in range(warmup):
        fn()
    stream = cupy.cuda.get_current_stream()
    pairs = [(cupy.cuda.Event(), cupy.cuda.Event()) for _ in range(repeats)]
    for start, stop in pairs:
        start.record(stream)
        fn()
        stop.record(stream)
    stream.synchronize()
    return statistics.median(1e3 * cupy.cuda.get_elapsed_time(*pair) for pair in pairs)


def capture(calls: Iterable[Call]) -> Any:
    """A CUDA graph of the calls in order. Each is run once before, so that all is compiled."""
    import cupy

    calls = list(calls)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        calls[0]()
        calls[-1]()
        stream.synchronize()
        stream.begin_capture()
        for call in calls:
            call()
        graph = stream.end_capture()
    return graph


def graph_time_us(calls: Sequence[Call], repeats: int = 10, warmup: int = 2) -> float:
    """Median microseconds of one of `calls` when all run in a CUDA graph, one after the other.

    Give as many calls on buffers of their own as `rotation` says; calls that should leave no trace
    of the graph's own start (about 5 us) need 20 or more in all: repeat the list.
    """
    graph = capture(calls)
    return time_us(graph.launch, repeats, warmup) / len(calls)


def torch_time_us(fn: Call, repeats: int = 20, warmup: int = 3) -> float:
    """As `time_us`, on torch's current stream with torch's events."""
    import torch

    for _ in range(warmup):
        fn()
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for start, stop in pairs:
        start.record()
        fn()
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(1e3 * start.elapsed_time(stop) for start, stop in pairs)


def torch_graph_time_us(calls: Sequence[Call], repeats: int = 10, warmup: int = 2) -> float:
    """As `graph_time_us` in a torch CUDA graph; the results are kept alive while it records."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in (calls[0], calls[-1]):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    elapsed = torch_time_us(graph.replay, repeats, warmup) / len(calls)
    del kept
    return elapsed


def terabytes(nbytes: float, microseconds: float) -> float:
    """TB/s."""
    return nbytes / microseconds / 1e6


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A markdown table; floats get three significant digits."""

    def cell(x: Any) -> str:
        return f"{x:.3g}" if isinstance(x, float) and abs(x) < 1000 else (
            f"{x:.0f}" if isinstance(x, float) else str(x)
        )  # fmt: skip

    lines = [list(head), ["---"] * len(head), *([cell(x) for x in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
