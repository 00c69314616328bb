"""Which backends there are, and how the one to use is chosen: argument > BOOSTR_BACKEND > auto."""

from __future__ import annotations

import difflib
import importlib
import os
import threading
from functools import cache

from boostr import env
from boostr.backends.base import Backend, Kernel
from boostr.errors import BackendError

__all__ = ["Backend", "Kernel", "available", "get", "names"]

# name -> module that defines `open_backend(selector) -> Backend` and `probe() -> str | None`.
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


@cache
def _auto() -> str:
    """The first that can run here: found once, as every tensor without a backend asks for it."""
    return next(name for name in _MODULES if _probe(name) is None)


@cache
def _open(text: str) -> Backend:
    name, _, selector = text.partition(":")
    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BackendError(
            f"no backend {name!r} in this version; there is {', '.join(_MODULES)} and auto{hint}"
        )
    return importlib.import_module(_MODULES[name]).open_backend(selector)
