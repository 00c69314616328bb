"""What `boostr doctor` checks: versions, machine, network, and arithmetic on each backend."""

from __future__ import annotations

import importlib.util
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from boostr import __version__, backends, env
from boostr.backends.numpy.runtime import memory
from boostr.cli.output import human_bytes
from boostr.errors import BoostrError

PASS, WARN, FAIL, SKIP = "PASS", "WARN", "FAIL", "SKIP"
NEEDED = (
    "numpy", "ml-dtypes", "safetensors", "tokenizers", "huggingface-hub", "jinja2", "click", "tqdm",
)  # fmt: skip
OPTIONAL = ("numba", "llvmlite", "wgpu", "wgpudawn", "cupy-cuda12x", "cupy-cuda13x")
HUB_SECONDS = 3.0
# flags of /proc/cpuinfo that kernels make use of
CPU_FLAGS = (
    "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One line of the report. SKIP is for what is not there and need not be."""

    name: str
    status: str
    detail: str


def run_checks(only: str | None = None) -> Iterator[Check]:
    """All checks, each as soon as it is done. `only` names the one backend to compute on."""
    yield from _packages()
    for name, check in (("cpu", _cpu), ("memory", _memory), ("cache", _cache), ("hub", _hub)):
        try:
            yield check()
        except Exception as error:  # a report must not end at what it reports
            yield Check(name, FAIL, f"{type(error).__name__}: {error}")
    yield from _backends(only)


def _packages() -> Iterator[Check]:
    yield Check("boostr", PASS, f"{__version__}, Python {platform.python_version()}")
    found = {name: _version(name) for name in (*NEEDED, *OPTIONAL)}
    missing = [name for name in NEEDED if found[name] is None]
    listed = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if missing:
        detail = f"missing: {', '.join(missing)}; install again: pip install boostr ({listed})"
        yield Check("packages", FAIL, detail)
    else:
        yield Check("packages", PASS, listed)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> Check:
    """Platform, features, cores and threads."""
    cores, threads = os.cpu_count() or 1, env.num_threads()
    flags = _cpu_flags()
    features = f", {' '.join(flags)}" if flags else ""
    detail = f"{platform.system()} {platform.machine()}, {cores} cores, {threads} threads{features}"
    if threads > cores:
        return Check("cpu", WARN, f"{detail}; more threads than cores slow each other down")
    return Check("cpu", PASS, detail)


def _cpu_flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    line = next((x for x in text.splitlines() if x.startswith(("flags", "Features"))), "")
    present = set(line.partition(":")[2].split())
    return [flag for flag in CPU_FLAGS if flag in present]


def _memory() -> Check:
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows
        return Check("memory", SKIP, "this system does not say how much there is")
    free = memory.available()
    if free is None:
        return Check("memory", PASS, human_bytes(total))
    status = WARN if free < 1 << 30 else PASS
    return Check("memory", status, f"{human_bytes(total)}, {human_bytes(free)} of it available")


def _cache() -> Check:
    """Compiled kernels and fetched models go there: it should take a file."""
    folder = env.cache_dir()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check(
            "cache", WARN, f"{folder}: {error.strerror or error}; kernels are compiled anew in "
            f"each process; set {env.CACHE.name} to a folder that can be written",
        )  # fmt: skip
    return Check("cache", PASS, f"{folder} can be written")


def _hub() -> Check:
    """Whether the hub answers; in a thread, since looking up a name may take minutes."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Check("hub", PASS, "offline mode is on (HF_HUB_OFFLINE): only the cache is used")
    outcome: list[str] = []
    thread = threading.Thread(target=_ask, args=(constants.ENDPOINT, outcome), daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    answer = outcome[0] if outcome else f"no answer in {HUB_SECONDS:g} s"
    if answer == "":
        return Check("hub", PASS, f"{constants.ENDPOINT} answers")
    advice = "models in the cache and local files still work"
    return Check("hub", WARN, f"{constants.ENDPOINT} cannot be reached ({answer}); {advice}")


def _ask(url: str, outcome: list[str]) -> None:
    """Appends "" if the address answers, else why not."""
    import urllib.error
    import urllib.request

    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
        outcome.append("")
    except urllib.error.HTTPError:
        outcome.append("")  # an answer all the same
    except Exception as error:  # whatever a proxy or resolver comes up with
        outcome.append(str(getattr(error, "reason", error)) or type(error).__name__)


def _backends(only: str | None) -> Iterator[Check]:
    from boostr.cli.arithmetic import check_arithmetic

    wanted = None if only in (None, "auto") else only
    for name, reason in backends.available().items():
        if wanted is not None and name != wanted.partition(":")[0]:
            continue
        named = wanted is not None and ":" in wanted
        if name == "wgpu":
            yield from _adapters(reason)
        if reason is not None and not named:
            yield Check(name, FAIL if wanted else SKIP, f"not available: {reason}")
            continue
        try:
            backend = backends.get(wanted or name)
        except Exception as error:
            yield Check(name, FAIL, f"cannot be opened: {error}")
            continue
        yield Check(name, PASS, f"device {backend.device}")
        if name == "numpy":
            yield _kernels()
        if name == "cupy":
            yield _cuda(backend)
        for title, status, detail in check_arithmetic(backend):
            yield Check(f"{name} {title}", status, detail)


def _cuda(backend: Any) -> Check:
    """The GPU and the software that boostr reaches it through."""
    from boostr.backends.cupy.runtime import report

    try:
        wrong, line = report.problem(backend.caps), report.describe(backend.caps)
    except BoostrError as error:
        return Check("cuda", FAIL, str(error))
    return Check("cuda", WARN if wrong else PASS, f"{line}; {wrong}" if wrong else line)


def _adapters(reason: str | None) -> Iterator[Check]:
    """Every adapter that WebGPU finds, or what has to be installed."""
    from boostr.backends.wgpu.runtime import provider, report

    try:
        there = provider.installed(provider.chosen())
        found = [Check(*line) for line in report.check_adapters()] if there else []
    except Exception as error:  # a broken install raises whatever it likes
        yield Check("wgpu adapters", FAIL, f"{type(error).__name__}: {error}")
        return
    yield from found
    if reason is not None and there:
        yield Check("wgpu drivers", SKIP, f"no GPU answers; {report.advice()}")


def _kernels() -> Check:
    """Whether the numpy backend can have native kernels."""
    if importlib.util.find_spec("numba") is None:
        return Check(
            "numpy kernels", WARN,
            "numba is not installed: correct but slow; pip install 'boostr[cpu]'",
        )  # fmt: skip
    if env.JIT.integer() == 0:
        return Check("numpy kernels", WARN, f"{env.JIT.name}=0: correct but slow")
    return Check("numpy kernels", PASS, "compiled with numba for this processor")
