"""Reverse-mode differentiation: a tape of nodes hanging off tensors, walked backwards.

A node is recorded for an op when one of its inputs needs a gradient. Its gradient is the op's
`vjp`; an op that ran a kernel and has none is differentiated by running its composite again under
the tape (the rule of MLX's `Custom::vjp`), so every composite is its own default gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

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
def no_grad() -> Iterator[None]:
    """Inside, nothing is recorded: results never need a gradient."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)


@contextmanager
def _enable_grad() -> Iterator[None]:
    token = _enabled.set(True)
    try:
        yield
    finally:
        _enabled.reset(token)


class Node:
    """One recorded op: what went in, what came out, and how gradients go back."""

    __slots__ = ("args", "inputs", "op", "options", "outputs")

    def __init__(self, op: Op, inputs: list[Tensor], args: tuple, options: dict) -> None:
        self.op = op
        self.inputs = inputs
        self.args = args
        self.options = options
        self.outputs: list[Tensor] = []

    def backward(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Gradients of `inputs`, in order, from those of `outputs`."""
        if self.op.vjp is None:
            return self._through_composite(gradients)
        single = len(self.outputs) == 1
        outputs = self.outputs[0] if single else tuple(self.outputs)
        given = gradients[0] if single else tuple(gradients)
        results = self.op.vjp(given, outputs, *self.args, **self.options)
        return list(_flatten(self.args, results))

    def _through_composite(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        copies = {id(t): t.detach() for t in self.inputs}
        for tensor in self.inputs:
            copies[id(tensor)].requires_grad = tensor.requires_grad
        with _enable_grad():
            outputs = self.op.composite(*_replace(self.args, copies), **self.options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if g is not None]
        found = _sweep([o for o, _ in pairs], [g for _, g in pairs])
        results: list[Tensor | None] = []
        for tensor in self.inputs:
            copy = copies.pop(id(tensor), None)  # given twice, it has one copy that counts once
            results.append(None if copy is None else found.get(id(copy)))
        return results


def record(op: Op, inputs: list[Tensor], args: tuple, options: dict, outputs: Any) -> Any:
    """Hang a node under `outputs` if a gradient will have to pass; returns `outputs`."""
    if outputs is None or not _enabled.get() or not any(t.requires_grad for t in inputs):
        return outputs
    node = Node(op, inputs, args, options)
    node.outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    for output in node.outputs:
        if dtypes.is_float(output.dtype):
            output.requires_grad = True
            output.node = node
    return outputs


def backward(output: Tensor, gradient: Tensor | None = None) -> None:
    """Add d(output)/d(leaf) · gradient to `.grad` of every leaf that requires it.

    `gradient` has output's shape; it may be left out for a scalar, where it is 1.
    """
    leaves: dict[int, Tensor] = {}
    found = _sweep([output], [_seed(output, gradient)], leaves)
    for key, leaf in leaves.items():
        if key in found:
            leaf.grad = found[key] if leaf.grad is None else leaf.grad + found[key]


def gradients(
    output: Tensor, inputs: Sequence[Tensor], gradient: Tensor | None = None
) -> list[Tensor | None]:
    """d(output)/d(input) · gradient for each input; None where output does not depend on it."""
    found = _sweep([output], [_seed(output, gradient)])
    return [found.get(id(tensor)) for tensor in inputs]


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
    outputs: list[Tensor], seeds: list[Any], leaves: dict[int, Tensor] | None = None
) -> dict[int, Tensor]:
    """Gradients by id of tensor, after walking the tape from `outputs` to its leaves."""
    found: dict[int, Tensor] = {}
    for output, seed in zip(outputs, seeds, strict=True):
        found[id(output)] = seed if id(output) not in found else found[id(output)] + seed
    with no_grad():
        for node in reversed(_topological(outputs)):
            given = [found.get(id(output)) for output in node.outputs]
            if all(g is None for g in given):
                continue
            for tensor, gradient in zip(node.inputs, node.backward(given), strict=True):
                if gradient is None or not tensor.requires_grad:
                    continue
                known = found.get(id(tensor))
                found[id(tensor)] = gradient if known is None else known + gradient
                if leaves is not None and tensor.node is None:
                    leaves[id(tensor)] = tensor
    if leaves is not None:
        leaves.update({id(o): o for o in outputs if o.node is None})
    return found


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
            stack.extend((t.node, False) for t in node.inputs if t.node is not None)
    return order


def _flatten(args: Any, results: Any) -> Iterator[Tensor | None]:
    """Align a vjp's results with `dispatch.tensors_in(args)`."""
    from boostr.quant.scheme import QuantizedTensor
    from boostr.tensor import Tensor

    for arg, result in zip(args, results, strict=True):
        if isinstance(arg, Tensor):
            yield result
        elif isinstance(arg, QuantizedTensor):
            yield from (None for _ in arg.parts)
        elif isinstance(arg, list | tuple):
            yield from _flatten(arg, [None] * len(arg) if result is None else result)


def _replace(args: Any, copies: dict[int, Tensor]) -> tuple:
    """`args` with every tensor that is among `copies` swapped for its copy."""
    return tuple(_replaced(a, copies) for a in args)


def _replaced(arg: Any, copies: dict[int, Tensor]) -> Any:
    if not isinstance(arg, list | tuple):
        return copies.get(id(arg), arg)
    parts = _replace(arg, copies)
    return type(arg)(*parts) if hasattr(arg, "_fields") else type(arg)(parts)


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
