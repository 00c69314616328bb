"""What a process takes and what the machine gives: peak memory, read bandwidth of the CPU."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_PROBE_BYTES = 384 << 20  # far more than the caches hold
_PROBE_RUNS = 6


class PeakMemory:
    """Peak resident memory of this process from here on. Pages of mapped files count."""

    def __init__(self) -> None:
        _reset_peak()
        self._start = _status("VmRSS") or _max_resident() or 0

    def above_start(self) -> int | None:
        """Bytes of the peak so far above what was resident at the start; None if not known here."""
        peak = _status("VmHWM") or _max_resident()
        return None if peak is None else max(0, peak - self._start)


def resident_memory() -> int | None:
    """Bytes of this process that lie in memory now; None if not known here."""
    return _status("VmRSS")


def _reset_peak() -> None:
    """Linux forgets earlier peaks when asked; elsewhere they stay in."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(name: str) -> int | None:
    """A size of /proc/self/status, in bytes."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith(name + ":")), None)
    return None if line is None else int(line.split()[1]) * 1024


def _max_resident() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_bandwidth(threads: int) -> float:
    """Bytes per second at which `threads` threads read memory together; the best of a few runs."""
    data = np.arange(_PROBE_BYTES // 8, dtype=np.uint64)
    parts, best = np.array_split(data, threads), 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_PROBE_RUNS):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # vectorised, and without the GIL
            best = max(best, data.nbytes / (time.perf_counter() - start))
    return best
