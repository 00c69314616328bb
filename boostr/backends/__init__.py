"""Which backends there are, and how the one to use is chosen: argument > BOOSTR_BACKEND > auto."""

from __future__ import annotations

import difflib
import importlib
import os
import threading
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from boostr import env
from boostr.backends.base import Backend, Kernel
from boostr.errors import BackendError, OptionError

if TYPE_CHECKING:
    from types import ModuleType

    from boostr.backends.collectives import Communicator

__all__ = ["Backend", "Kernel", "available", "get", "names", "open_ranks"]

# name -> module that defines `open_backend(selector) -> Backend`, `probe() -> str | None` and
# `open_ranks(devices) -> list[Communicator]`.
# In the order in which `auto` tries them; the last always answers.
_MODULES = {
    "cupy": "boostr.backends.cupy",
    "wgpu": "boostr.backends.wgpu",
    "numpy": "boostr.backends.numpy",
}

_opening = threading.RLock()  # threads that ask for a backend at the same time get the same one


def _forget() -> None:
    """In the child of a fork nobody is there who would give the lock back."""
    global _opening
    _opening = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def names() -> tuple[str, ...]:
    """The names of all backends of this version of boostr."""
    return tuple(_MODULES)


def available() -> dict[str, str | None]:
    """For every backend None if it can run here, else the reason why not."""
    return {name: _probe(name) for name in _MODULES}


def _probe(name: str) -> str | None:
    return importlib.import_module(_MODULES[name]).probe()


def get(name: str | Backend | None = None) -> Backend:
    """The backend of that name ("numpy", "cupy:1", "wgpu:radeon"), or the default; opened once."""
    if isinstance(name, Backend):
        return name
    text = name or env.BACKEND.text()
    with _opening:
        return _open(_auto() if text == "auto" else text)


def open_ranks(name: str | None, devices: Sequence[int]) -> list[Communicator]:
    """A rank for each device of a backend, such as (0, 1) of "cupy", in this order. Each is for a
    thread of its own; see `collectives`. Those of numpy share the CPU.

    Raises:
        OptionError: a device twice, no device at all, a backend that names one device; wgpu, whose
            devices cannot be summed over.
        BackendError: a device that there is not, or no NCCL.
    """
    text = name or env.BACKEND.text()
    chosen = _auto() if text == "auto" else text
    if ":" in chosen:
        raise OptionError(f"devices {list(devices)}: backend {chosen} names one by itself")
    if not devices or len({*devices}) < len(devices) or min(devices) < 0:
        raise OptionError(f"devices must be different numbers from 0, got {list(devices)}")
    return _module(chosen).open_ranks(devices)


@cache
def _auto() -> str:
    """The first that can run here: found once, as every tensor without a backend asks for it."""
    return next(name for name in _MODULES if _probe(name) is None)


@cache
def _open(text: str) -> Backend:
    name, _, selector = text.partition(":")
    return _module(name).open_backend(selector)


def _module(name: str) -> ModuleType:
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BackendError(
            f"no backend {name!r} in this version; there is {', '.join(_MODULES)} and auto{hint}"
        )
    return importlib.import_module(_MODULES[name])
