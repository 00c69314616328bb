"""Reverse-mode differentiation: a tape of nodes hanging off tensors, walked backwards.

A node is recorded for an op when one of its inputs needs a gradient. Its gradient is the op's
`vjp`; an op that ran a kernel and has none is differentiated by running its composite again under
the tape (the rule of MLX's `Custom::vjp`), so every composite is its own default gradient. Tensors
know their node, nodes know those of their inputs, and nothing points back: a tape is freed with
the last tensor above it, and while a backward walks it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from boostr import dtypes
from boostr.errors import OptionError, ShapeError

if TYPE_CHECKING:
    from boostr.dispatch import Op
    from boostr.tensor import Tensor

_enabled: ContextVar[bool] = ContextVar("grad_enabled", default=True)


def is_enabled() -> bool:
    """Whether ops are recorded here."""
    return _enabled.get()


@contextmanager
def set_enabled(enabled: bool) -> Iterator[None]:
    """Inside, ops are recorded, or not."""
    token = _enabled.set(enabled)
    try:
        yield
    finally:
        _enabled.reset(token)


def no_grad() -> AbstractContextManager[None]:
    """Inside, nothing is recorded: results never need a gradient."""
    return set_enabled(False)


class Dropped:
    """What a node keeps of a tensor whose values its gradient does not read."""

    __slots__ = ("backend", "dtype", "requires_grad", "shape")

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.dtype, self.backend = tensor.shape, tensor.dtype, tensor.backend
        self.requires_grad = tensor.requires_grad

    @property
    def ndim(self) -> int:
        return len(self.shape)


class Reads(NamedTuple):
    """What the gradient of an op reads: numbers of its arguments and of its results, each with the
    number of the argument for whose gradient (None: any); None in place of a mapping for all."""

    inputs: dict[int, int | None] | None = None
    outputs: dict[int, int | None] | None = None


def _is_read(which: dict[int, int | None] | None, number: int, args: tuple) -> bool:
    if which is None:
        return True
    wanted = which.get(number, -1)
    return wanted is None or (wanted >= 0 and getattr(args[wanted], "requires_grad", False))


Place = tuple[Any, int]  # where a gradient goes: (a node, number of its result) or (a leaf, 0)


class Node:
    """One recorded op: what its gradient reads, and where gradients of its inputs go.

    It holds no tensor of the tape itself, only detached ones: so no tape is a reference cycle, and
    what no gradient reads is free at once. `args` is None once a backward has used the node up.
    """

    __slots__ = ("args", "count", "op", "options", "outputs", "places", "versions")

    def __init__(self, op: Op, args: tuple, options: dict, outputs: Sequence[Tensor]) -> None:
        self.op, self.options, self.count = op, options, len(outputs)
        self.places: list[Place | None] = []  # of every tensor in args, None if it needs none
        self.versions: list[tuple[Tensor, int]] = []
        reads = op.reads
        self.args: tuple | None = tuple(
            self._kept_input(arg, _is_read(reads.inputs, i, args)) for i, arg in enumerate(args)
        )
        self.outputs: tuple[Tensor | Dropped, ...] = tuple(
            self._kept(output, _is_read(reads.outputs, i, args)) for i, output in enumerate(outputs)
        )

    def _kept(self, tensor: Tensor, read: bool) -> Tensor | Dropped:
        if not read:
            return Dropped(tensor)
        copy = tensor.detach()
        copy.requires_grad = tensor.requires_grad
        self.versions.append((copy, copy.version))
        return copy

    def _kept_input(self, arg: Any, read: bool) -> Any:
        from boostr.quant.scheme import QuantizedTensor
        from boostr.tensor import Tensor

        if isinstance(arg, Tensor):
            self.places.append(place_of(arg) if arg.requires_grad else None)
            return self._kept(arg, read)
        if isinstance(arg, QuantizedTensor):
            self.places += [None] * len(arg.parts)
        elif isinstance(arg, list | tuple):
            parts = [self._kept_input(part, read) for part in arg]
            return type(arg)(*parts) if hasattr(arg, "_fields") else type(arg)(parts)
        return arg

    def backward(
        self, gradients: list[Tensor | None], earlier: Tensor | None = None
    ) -> Iterator[Tensor | None]:
        """The gradient for each of `places`, from those of the results; that of the first one
        with `earlier`, as the op's `adds` says."""
        if self.args is None:
            raise OptionError(
                f"backward: an earlier backward has used up what it needs of {self.op.name}; give "
                "that one retain=True"
            )
        for copy, version in self.versions:
            if copy.version != version:
                raise OptionError(
                    f"backward: {copy.dtype}{list(copy.shape)}, which the gradient of "
                    f"{self.op.name} reads, was written in place after {self.op.name} had run; "
                    "write it after backward"
                )
        if self.op.vjp is None:
            return self._through_composite(gradients)
        single = self.count == 1
        outputs = self.outputs[0] if single else self.outputs
        given = gradients[0] if single else tuple(gradients)
        options = {**self.options, self.op.adds: earlier} if self.op.adds else self.options
        return _flatten(self.args, self.op.vjp(given, outputs, *self.args, **options))

    def _through_composite(self, gradients: list[Tensor | None]) -> Iterator[Tensor | None]:
        """By running the composite anew on what was kept, each of which is a leaf."""
        from boostr.dispatch import tensors_in

        with set_enabled(True):
            outputs = self.op.composite(*self.args, **self.options)  # type: ignore[misc]
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
        found = _sweep([o for o, _ in pairs], [g for _, g in pairs])
        return (found.get(_key(place_of(leaf))) for leaf in tensors_in(self.args))

    def release(self) -> None:
        """Drop all that the gradient read, and the nodes behind."""
        self.args, self.outputs, self.places, self.versions = None, (), [], []


def place_of(tensor: Tensor) -> Place:
    """Where gradients of a tensor go."""
    return (tensor, 0) if tensor.node is None else (tensor.node, tensor.index)


def _key(place: Place) -> tuple[int, int]:
    return id(place[0]), place[1]


def record(op: Op, args: tuple, options: dict, outputs: Any) -> Any:
    """Hang a node under `outputs`, through which a gradient will have to pass; returns them."""
    made = outputs if isinstance(outputs, tuple) else (outputs,)
    node = Node(op, args, options, made)
    for index, output in enumerate(made):
        if dtypes.is_float(output.dtype):
            output.requires_grad, output.node, output.index = True, node, index
    return outputs


def backward(output: Tensor, gradient: Tensor | None = None, *, retain: bool = False) -> None:
    """Add d(output)/d(leaf) · gradient to `.grad` of every leaf that requires it. The first has the
    leaf's dtype; what 16-bit ones add up to is float32.

    Args:
        gradient: of output's shape; it may be left out for a scalar, where it is 1.
        retain: keep the tape for another backward. Without it memory is freed on the way.
    Raises:
        OptionError: nothing here requires a gradient, an earlier backward has used the tape up, or
            a tensor that a gradient reads was written in place meanwhile.
    """
    leaves: dict[tuple[int, int], Tensor] = {}
    found = _sweep([output], [_seed(output, gradient)], retain=retain, leaves=leaves)
    for key, leaf in leaves.items():
        if key in found:
            new = found.pop(key)
            leaf.grad = new if leaf.grad is None else _accumulated(leaf.grad, new)


def _accumulated(known: Tensor, new: Tensor) -> Tensor:
    """Their sum; in float32 where they have 16 bits, which would lose what is small beside it."""
    return known.to(dtypes.float32) + new if known.dtype in dtypes.LOW_PRECISION else known + new


def gradients(
    output: Tensor,
    inputs: Sequence[Tensor],
    gradient: Tensor | None = None,
    *,
    retain: bool = False,
    passed: Tensor | None = None,
) -> list[Tensor | None]:
    """d(output)/d(input) · gradient for each input; None where output does not depend on it.
    `passed`, of its shape, is added to that of the first."""
    wanted = [_key(place_of(tensor)) for tensor in inputs]
    outputs, seeds = [output], [_seed(output, gradient)]
    if passed is not None:
        if not inputs or passed.shape != inputs[0].shape:
            raise ShapeError(f"gradients: passed is {passed.shape}, which no first input has")
        outputs, seeds = [output, inputs[0]], [*seeds, passed]
    found = _sweep(outputs, seeds, retain=retain, wanted=frozenset(wanted))
    return [found.get(key) for key in wanted]


def leaves_below(output: Tensor) -> list[Tensor]:
    """The tensors that a backward from `output` would end at, each once."""
    places = [place_of(output)] if output.node is None else []
    places += [p for node in _topological([output]) for p in node.places if p is not None]
    return list({id(p[0]): p[0] for p in places if not isinstance(p[0], Node)}.values())


def _seed(output: Tensor, gradient: Tensor | None) -> Tensor:
    if not output.requires_grad:
        raise OptionError("backward: no input of this tensor requires a gradient")
    if gradient is not None:
        if gradient.shape != output.shape:
            raise ShapeError(f"backward: gradient must be {output.shape}, got {gradient.shape}")
        return gradient
    if output.size != 1:
        raise ShapeError(f"backward: needs a gradient, the output is {output.shape}, not a scalar")
    return output.full_like(1.0)


def _sweep(
    outputs: list[Tensor],
    seeds: list[Any],
    *,
    retain: bool = False,
    wanted: frozenset[tuple[int, int]] = frozenset(),
    leaves: dict[tuple[int, int], Tensor] | None = None,
) -> dict[tuple[int, int], Tensor]:
    """Gradients by place of all leaves and of what is `wanted`, after walking the tape back.

    A gradient is let go once it was used, and so is the node unless the tape is to be retained.
    """
    found: dict[tuple[int, int], Tensor] = {}
    own: set[tuple[int, int]] = set()  # of `found`, what nobody else has: it may be written
    leaves = {} if leaves is None else leaves

    def add(place: Place, gradient: Tensor, adds: str | None = None) -> None:
        key = _key(place)
        if not isinstance(place[0], Node):
            leaves[key] = place[0]
        known = None if adds == "passed" else found.get(key)
        if known is gradient and key in own:
            return  # it was added to it
        found[key] = gradient if known is None else known + gradient
        if known is not None or adds:
            own.add(key)

    with no_grad():
        for output, seed in zip(outputs, seeds, strict=True):
            add(place_of(output), seed)
        order = _topological(outputs)
        while order:
            node = order.pop()
            keys = [(id(node), index) for index in range(node.count)]
            given = [found.get(key) if key in wanted else found.pop(key, None) for key in keys]
            if any(g is not None for g in given):
                first = node.places[0] if node.op.adds else None
                usable = found if node.op.adds == "passed" else own
                made = node.backward(given, _earlier(first, found, usable))
                for place, gradient in zip(node.places, made, strict=True):
                    if place is not None and gradient is not None:
                        add(place, gradient, node.op.adds if place is first else None)
            del given
            if not retain:
                node.release()
    return found


def _earlier(place: Place | None, found: dict, usable: Container) -> Tensor | None:
    """What was found for a place, if that is among the `usable`."""
    key = None if place is None else _key(place)
    return found[key] if key in usable else None


def _topological(outputs: list[Tensor]) -> list[Node]:
    """The nodes below `outputs`, inputs first; iterative, as tapes may be deep."""
    order: list[Node] = []
    seen: set[int] = set()
    stack = [(o.node, False) for o in outputs if o.node is not None]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            owners = (place[0] for place in node.places if place is not None)
            stack.extend((owner, False) for owner in owners if isinstance(owner, Node))
    return order


def _flatten(args: Any, results: Any) -> Iterator[Tensor | None]:
    """Align a vjp's results with `places`."""
    from boostr.quant.scheme import QuantizedTensor
    from boostr.tensor import Tensor

    for arg, result in zip(args, results, strict=True):
        if isinstance(arg, Tensor | Dropped):
            yield result
        elif isinstance(arg, QuantizedTensor):
            yield from (None for _ in arg.parts)
        elif isinstance(arg, list | tuple):
            yield from _flatten(arg, [None] * len(arg) if result is None else result)


def gradcheck(
    fn: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    step: float = 1e-6,
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> None:
    """Compare the gradients of `fn(*inputs)` with central differences; raise AssertionError if off.

    Inputs that require a gradient must be float64. A random projection of the output makes one
    scalar, so that each input element costs two evaluations.
    """
    from boostr.tensor import Tensor

    out = fn(*inputs)
    weights = np.random.default_rng(0).standard_normal(out.shape)
    checked = [t for t in inputs if t.requires_grad]
    for tensor in checked:
        if tensor.dtype != dtypes.float64:
            raise OptionError(f"gradcheck: inputs must be float64, got {tensor.dtype}")
    analytic = gradients(out, checked, Tensor(weights.astype(out.dtype), backend=out.backend))

    def value() -> float:
        with no_grad():
            return float((fn(*inputs).numpy().astype(np.float64) * weights).sum())

    for tensor, gradient in zip(checked, analytic, strict=True):
        numeric = _central_differences(tensor, value, step)
        found = np.zeros(tensor.shape) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(found, numeric, rtol=rtol, atol=atol)


def _central_differences(tensor: Tensor, value: Callable[[], float], step: float) -> np.ndarray:
    base = tensor.numpy().copy()
    result = np.empty_like(base)
    for index in np.ndindex(base.shape):
        sides = []
        for sign in (1, -1):
            moved = base.copy()
            moved[index] += sign * step
            tensor.assign(moved)
            sides.append(value())
        result[index] = (sides[0] - sides[1]) / (2 * step)
    tensor.assign(base)
    return result
