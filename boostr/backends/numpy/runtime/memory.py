"""How much of the machine's memory is free, as far as the system says."""

from __future__ import annotations

from pathlib import Path

_MEMINFO, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes that a process may still take, the limit of its control group included; None where the
    system does not say (it is read on Linux alone)."""
    try:
        lines = _MEMINFO.read_text().splitlines()
        free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    try:
        limit = int((_GROUP / "memory.max").read_text())
        used = int((_GROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no group, or one without a limit
        return free
    return max(0, min(free, limit - used))
