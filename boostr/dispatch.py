"""How an op finds what runs it: a backend's kernel, or its composite. The only place that picks.

An `Op` is a name, a composite (its meaning, in other ops) and optionally a `vjp` (its gradient).
Calling it asks the backend for a kernel; a kernel may refuse with a reason, and then the composite
runs, or in strict mode `FallbackError` is raised. Primitives are ops whose composite is one method
of the backend.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from boostr import autograd, backends, env
from boostr.backends.base import Backend
from boostr.errors import BackendError, FallbackError
from boostr.operands import LowRank, Ordered, Recorded
from boostr.quant.scheme import QuantizedTensor
from boostr.tensor import Tensor

OPS: dict[str, Op] = {}
Saves = Sequence[str | int] | Mapping[str | int, str | None]

_strict: ContextVar[bool | None] = ContextVar("strict", default=None)
_reported: set[tuple[str, str, str]] = set()
_fallbacks: ContextVar[dict[str, int] | None] = ContextVar("fallbacks", default=None)
COMPOSITE, APART = "runs its composite", "fell apart"


class Op:
    """One operation of the library.

    Args:
        name: the field's name for it; a backend's kernel of the same name serves it.
        composite: takes the op's tensors and options, returns a tensor or a tuple of tensors.
        vjp: `(gradients, outputs, *args, **options) -> tuple`, a gradient or None for each
            positional argument (a list for a list), None too where its `requires_grad` is false.
            Without one, the composite is differentiated; that of a fusion is recorded in its place.
        saves: what `vjp` reads the values of: its names of arguments, numbers of results; or as a
            mapping, to the argument whose gradient it is read for, None for any. Of others it has
            `shape`, `dtype`, `backend`, `requires_grad`. Default: of all.
        adds: an option of `vjp`, a tensor or None: what else the gradient of the first argument is
            the sum of. "into": it may add its own to that tensor and return it, where it would else
            return a new one that nobody shares; "passed": it only reads it, and returns the sum.
        fusion: the composite is a sequence of ops that have kernels of their own; strict mode lets
            it run, since it checks these.
    """

    def __init__(
        self,
        name: str,
        composite: Callable[..., Any],
        vjp: Callable[..., tuple[Any, ...]] | None = None,
        *,
        saves: Saves | None = None,
        adds: Literal["into", "passed"] | None = None,
        primitive: bool = False,
        fusion: bool = False,
    ) -> None:
        self.name = name
        self.composite = composite
        self.vjp = vjp
        self.primitive = primitive
        self.fusion = fusion
        self.reads = _reads(vjp, saves)
        self.adds = adds
        if not primitive:
            OPS[name] = self

    def __call__(self, *args: Any, **options: Any) -> Any:
        inputs = list(tensors_in(args))
        recorded = autograd.is_enabled() and any(t.requires_grad for t in inputs)
        if self.primitive:
            outputs = self.composite(*args, **options)
        else:
            backend = common_backend(self.name, inputs)
            apart = _taken_apart(args)
            if recorded and self.fusion and self.vjp is None:
                apart = "gradients go through its parts"
            run = self._find(backend, apart, args, options)
            parts = run is self.composite and (self.vjp is None or apart is not None)
            if parts or not recorded:
                return run(*args, **options)  # its parts are recorded, or nothing is
            with autograd.no_grad():
                outputs = run(*args, **options)
        if not recorded or outputs is None:
            return outputs
        return autograd.record(self, args, options, outputs)

    def _find(
        self, backend: Backend, form: str | None, args: tuple, options: dict
    ) -> Callable[..., Any]:
        kernel = backend.kernel(self.name)
        if isinstance(kernel, str):
            reason, apart = kernel, self.fusion
        elif form is not None:
            reason, apart = form, True
        else:
            reason, apart = kernel.supports(*args, **options), self.fusion
            if reason is None:
                return kernel.run
        if is_strict() and not apart:
            raise FallbackError(
                f"{self.name}[{backend.name}]: no kernel for these arguments: {reason} "
                "(strict mode forbids the composite)"
            )
        _report(self.name, backend.name, reason, apart)
        return self.composite

    def __repr__(self) -> str:
        return f"Op({self.name})"


def _reads(vjp: Callable | None, saves: Saves | None) -> autograd.Reads:
    """`saves` as numbers of arguments and results."""
    if vjp is None:
        return autograd.Reads(outputs={})
    if saves is None:
        return autograd.Reads()
    pairs = saves if isinstance(saves, Mapping) else dict.fromkeys(saves)
    number = list(inspect.signature(vjp).parameters)[2:].index
    inputs, outputs = {}, {}
    for name, wanted in pairs.items():
        place = outputs if isinstance(name, int) else inputs
        place[name if isinstance(name, int) else number(name)] = wanted and number(wanted)
    return autograd.Reads(inputs, outputs)


def tensors_in(args: Any) -> Iterator[Tensor]:
    """Every tensor among the arguments: also inside lists, tuples and quantized weights."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, QuantizedTensor):
            yield from arg.parts.values()
        elif isinstance(arg, list | tuple):
            yield from tensors_in(arg)


def is_recorded(args: Any) -> bool:
    """Whether what is computed of these arguments is on the tape."""
    return autograd.is_enabled() and any(t.requires_grad for t in tensors_in(args))


def _taken_apart(args: Any) -> str | None:
    """What form a weight among the arguments has that products take apart, if one has: its parts
    go through the same ops, and strict mode checks these."""
    for arg in args:
        if isinstance(arg, LowRank):
            return "a weight has a low-rank adapter"
        if isinstance(arg, Ordered):
            return "a weight has its inputs in another order (desc_act)"
        if isinstance(arg, Recorded):
            return "the inputs of a weight are recorded"
        form = _taken_apart(arg) if isinstance(arg, list) else None
        if form is not None:
            return form
    return None


def common_backend(op: str, inputs: list[Tensor]) -> Backend:
    """The backend that all of an op's tensors share."""
    if not inputs:
        raise BackendError(f"{op}: expected at least one tensor, got none")
    backend = inputs[0].backend
    for tensor in inputs:
        if tensor.backend is not backend:
            raise BackendError(
                f"{op}: tensors on different backends, {backend.device} and "
                f"{tensor.backend.device}; move one with .to({backend.device!r})"
            )
    return backend


def is_strict() -> bool:
    """Whether a missing kernel is an error: `strict()` if entered, else BOOSTR_STRICT."""
    chosen = _strict.get()
    return env.STRICT.text() == "1" if chosen is None else chosen


@contextmanager
def strict(enabled: bool = True) -> Iterator[None]:
    """Inside, an op that has no kernel for its arguments raises `FallbackError` (False: never)."""
    token = _strict.set(enabled)
    try:
        yield
    finally:
        _strict.reset(token)


def coverage(backend: str | Backend | None = None) -> dict[str, str | None]:
    """For every op: None if `backend` has a kernel for it, else why it runs the composite.

    `backend` is a name ("numpy", "cupy:1"), an opened backend, or None for the default.
    """
    import boostr.nn.fusion  # noqa: F401  (ops register when they are imported, all by this)

    opened = backends.get(backend)
    found = {name: opened.kernel(name) for name in sorted(OPS)}
    return {name: kernel if isinstance(kernel, str) else None for name, kernel in found.items()}


@contextmanager
def collect_fallbacks() -> Iterator[dict[str, int]]:
    """Inside, what ran without its kernel, and why, is counted: line -> how often."""
    found: dict[str, int] = {}
    token = _fallbacks.set(found)
    try:
        yield found
    finally:
        _fallbacks.reset(token)


def _report(op: str, backend: str, reason: str, apart: bool) -> None:
    """Note that an op runs its composite: for a program's description, and under BOOSTR_DEBUG."""
    collected = _fallbacks.get()
    loud = env.DEBUG.integer() >= 1
    if collected is None and not loud:
        return
    line = f"{op}[{backend}] {APART if apart else COMPOSITE}: {reason}"
    if collected is not None:
        collected[line] = collected.get(line, 0) + 1
    if loud and (op, backend, reason) not in _reported:
        _reported.add((op, backend, reason))
        print(f"boostr: {line}", file=sys.stderr)
