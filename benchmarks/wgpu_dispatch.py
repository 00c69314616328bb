"""What a command costs on a WebGPU device: on the host, on the GPU, and until its result is read.

    BOOSTR_BACKEND=wgpu python benchmarks/wgpu_dispatch.py [--commands 160] [--runs 300]

A program of copies of 4 KiB, each of which reads what the one before it wrote: nothing but the cost
of starting them. "Host" is the time that the main thread spends on a run and the start of its read;
with llvmlite and more than two cores, other threads encode and submit meanwhile. Floors: raw C
calls from Python, shown on the GPU where they were measured: an H100 through Vulkan (driver 580).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from typing import Any

import numpy as np
import wgpu_timing

RAW_HOST_US = 3.6  # record and finish a command through raw calls, without submitting it
READ_US = 263.0  # queue.read_buffer of 4 bytes through wgpu-py
WORDS = 1024


def chain(backend: Any, commands: int) -> Any:
    """A program of dependent copies."""
    arrays = [backend.empty((WORDS,), np.uint32) for _ in range(8)]

    def run() -> None:
        for i in range(commands):
            source, target = arrays[i % 8], arrays[(i + 1) % 8]
            params = (WORDS // 4, 0, i)
            backend.launch("device", "copy", 1, [source], [target], params, COPY=True)

    return backend.capture(run)[1]


def steps(backend: Any, program: Any, runs: int, ahead: int) -> tuple[float, float]:
    """(wall, main thread) microseconds of a run and the read of a word, some runs ahead."""
    token = backend.empty((1,), np.uint32)
    waits: deque[Any] = deque()
    host, started = 0.0, time.perf_counter()
    for _ in range(runs):
        begun = time.perf_counter()
        program.run()
        waits.append(backend.start_read(token))
        host += time.perf_counter() - begun
        if len(waits) > ahead:
            waits.popleft()()
    while waits:
        waits.popleft()()
    return (time.perf_counter() - started) / runs * 1e6, host / runs * 1e6


def transfers(backend: Any, megabytes: int) -> list[list[Any]]:
    """Rows for bytes to and from the GPU, and within it."""
    values = np.random.default_rng(0).integers(0, 255, megabytes << 20, np.uint8)
    rates: dict[str, list[float]] = {"upload": [], "download": []}
    for _ in range(3):
        start = time.perf_counter()
        array = backend.from_numpy(values)
        backend.synchronize()
        middle = time.perf_counter()
        backend.to_numpy(array)
        rates["upload"].append(values.nbytes / (middle - start))
        rates["download"].append(values.nbytes / (time.perf_counter() - middle))
    rows = [[f"{name} of {megabytes} MiB, GB/s", max(r) / 1e9, "", ""] for name, r in rates.items()]
    return [*rows, ["copy on the GPU, TB/s", wgpu_timing.copy_bytes() / 1e12, "", ""]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commands", type=int, default=160)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--megabytes", type=int, default=256)
    options = parser.parse_args()
    backend, n = wgpu_timing.backend(), options.commands
    program = chain(backend, n)
    for _ in range(4):
        program.run()
    backend.synchronize()
    time.sleep(1.0)  # the loop that encodes ahead is compiled meanwhile
    gpu = statistics.median(program.busy_seconds(9, 50)) / n * 1e6
    here = wgpu_timing.is_recorded()
    floor, raw_host, raw_read = (
        us if here else float("nan") for us in (wgpu_timing.DISPATCH_US, RAW_HOST_US, READ_US)
    )
    rows: list[list[Any]] = [["GPU, us a command", gpu, floor, floor / gpu]]
    for ahead in (0, 2):
        wall, host = steps(backend, program, options.runs, ahead)
        what = f"run and read, {ahead} ahead"
        rows.append([f"{what}: wall, us a command", wall / n, floor, floor * n / wall])
        rows.append([f"{what}: host, us a command", host / n, raw_host, raw_host * n / host])
    word = backend.empty((1,), np.uint32)
    reads = []
    for _ in range(20):
        start = time.perf_counter()
        backend.to_numpy(word)
        reads.append(time.perf_counter() - start)
    read = statistics.median(reads) * 1e6
    rows.append(["read of 4 bytes, us", read, raw_read, raw_read / read])
    rows += transfers(backend, options.megabytes)
    print(f"{backend.caps.name}, {backend.provider.version()}, programs of {n} commands\n")
    print(wgpu_timing.table(["what", "ours", "peer or floor", "ratio"], rows))


if __name__ == "__main__":
    main()
