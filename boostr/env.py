"""Every environment variable that boostr reads. The table in docs/backends.md is made from here."""

import os
from dataclasses import dataclass
from pathlib import Path

from boostr.errors import OptionError


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, default (as written in the shell) and meaning."""

    name: str
    default: str
    help: str

    def text(self) -> str:
        return os.environ.get(self.name, self.default)

    def integer(self) -> int:
        text = self.text()
        try:
            return int(text)
        except ValueError:
            raise OptionError(f"{self.name} must be a whole number, got {text!r}") from None

    def bytes(self) -> int | None:
        """An amount of memory, such as 512M, 4G or 2.5GiB; None where it is empty."""
        text = self.text().strip()
        return parse_bytes(text, self.name) if text else None


def parse_bytes(text: str, name: str) -> int:
    """An amount of memory in bytes: 512M, 4G, 2.5GiB or a plain number.

    Raises:
        OptionError: anything else; `name` says of what.
    """
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = next((i for i, u in enumerate("KMGT", 1) if number.endswith(u)), 0)
    try:
        size = int(float(number[:-1] if unit else number) * 1024**unit)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise OptionError(f"{name} must be an amount such as 512M or 4G, got {text!r}")
    return size


def human_bytes(count: float) -> str:
    """A size in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


BACKEND = Variable(
    "BOOSTR_BACKEND",
    "auto",
    "auto | numpy | wgpu | cupy, with an optional `:index-or-adapter-name`. auto takes cupy if a "
    "CUDA device answers, else wgpu if a real GPU answers, else numpy.",
)
DTYPE = Variable(
    "BOOSTR_DTYPE", "", "dtype that weights are converted to at load; empty keeps the stored one."
)
KV_DTYPE = Variable(
    "BOOSTR_KV_DTYPE", "", "how keys and values are kept: int8 or int4; empty keeps them as floats."
)
KV_MEMORY = Variable(
    "BOOSTR_KV_MEMORY", "", "the most memory for keys and values, such as 4G; empty is a quarter "
    "of what is free (2G where a device does not say).",
)  # fmt: skip
NUM_THREADS = Variable(
    "BOOSTR_NUM_THREADS", "0", "threads of the numpy backend's kernels; 0 is one for each core."
)
CACHE = Variable(
    "BOOSTR_CACHE", "", "folder of compiled kernels and fetched models; default ~/.cache/boostr."
)
STRICT = Variable(
    "BOOSTR_STRICT", "0", "1: an op that has no kernel for its arguments raises instead of running "
    "its composite.",
)  # fmt: skip
DEBUG = Variable(
    "BOOSTR_DEBUG", "0", "1 devices and fallback reasons, 2 time and GB/s of each kernel, "
    "3 grids, 4 final source; on stderr.",
)  # fmt: skip
JIT = Variable(
    "BOOSTR_JIT", "1", "0: the numpy backend runs composites only, as if numba were not installed."
)
DETERMINISTIC = Variable(
    "BOOSTR_DETERMINISTIC", "0", "1: kernels whose sums would depend on the order of threads "
    "(attention backward) take a slower, repeatable path.",
)  # fmt: skip
WGPU = Variable(
    "BOOSTR_WGPU", "wgpu", "the library of the wgpu backend: wgpu (wgpu-native) or wgpudawn (Dawn)."
)
POISON = Variable(
    "BOOSTR_POISON", "0", "1: the wgpu backend fills memory with nan before it is used again and "
    "checks bounds in kernels, so that reads of what nobody wrote show.",
)  # fmt: skip
REQUIRE = Variable(
    "BOOSTR_REQUIRE", "", "tests only: comma-separated backends (and nvrtc) whose absence is a "
    "failure, not a skip.",
)  # fmt: skip

VARIABLES = (
    BACKEND,
    DTYPE,
    KV_DTYPE,
    KV_MEMORY,
    NUM_THREADS,
    CACHE,
    STRICT,
    DEBUG,
    JIT,
    DETERMINISTIC,
    WGPU,
    POISON,
    REQUIRE,
)


def cache_dir() -> Path:
    """The folder for compiled kernels and fetched models; not created by this call."""
    text = CACHE.text()
    if text:
        return Path(text).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "boostr"


def num_threads() -> int:
    """Threads for CPU kernels: BOOSTR_NUM_THREADS, else the cores this process may run on."""
    wanted = NUM_THREADS.integer()
    if wanted < 0:
        raise OptionError(f"{NUM_THREADS.name} must be 0 or more, got {wanted}")
    return wanted or cores()


def cores() -> int:
    """The cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        return os.cpu_count() or 1
