"""checkpoint: a part of a computation whose inner results are computed again for its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from boostr import autograd
from boostr.dispatch import Op
from boostr.tensor import Tensor


@dataclass(frozen=True)
class _Part:
    """What is run, and the tensors beside its inputs that it has gradients for."""

    fn: Callable[..., Tensor]
    known: Sequence[Tensor]


def checkpoint(fn: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """fn(*inputs), of which the tape keeps the inputs alone: backward runs `fn` again.

    Args:
        fn: computes one tensor of its inputs and of tensors that it knows, such as weights, which
            get their gradients, too, and are not written before backward. What was computed on
            the tape is given as an input. Called twice with the same it must give the same.
    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
    """
    if not autograd.is_enabled():
        return fn(*inputs)
    own = [_leaf(x) for x in inputs]
    made = fn(*own)
    if not made.requires_grad:
        return made
    of_inputs = {id(x) for x in own}
    known = [leaf for leaf in autograd.leaves_below(made) if id(leaf) not in of_inputs]
    args = (list(inputs), known, _Part(fn, known))
    return autograd.record(_checkpoint, args, {}, made.detach())


def _leaf(x: Tensor) -> Tensor:
    copy = x.detach()
    copy.requires_grad = x.requires_grad
    return copy


def _again(given, output, inputs: list[Tensor], known: list, part: _Part):
    """The gradients of what went in and of what was known, by way of a tape made now."""
    with autograd.set_enabled(True):
        made = part.fn(*inputs)
    # retained: what fn knows may be on the tape itself, and other parts may know it, too
    found = autograd.gradients(made, [*inputs, *part.known], given, retain=True)
    return found[: len(inputs)], found[len(inputs) :], None


_checkpoint = Op(
    "checkpoint",
    lambda inputs, known, part: part.fn(*inputs),
    _again,
    saves=("inputs", "known"),
    fusion=True,
)
