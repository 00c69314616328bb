"""boostr: transformers in Python on any machine, without PyTorch."""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boostr import ops as ops
    from boostr import train as train
    from boostr.autograd import gradcheck as gradcheck
    from boostr.autograd import no_grad as no_grad
    from boostr.dispatch import coverage as coverage
    from boostr.dispatch import strict as strict
    from boostr.engine.convert import convert as convert
    from boostr.engine.create import create as create
    from boostr.engine.fuse import fuse as fuse
    from boostr.engine.load import load as load
    from boostr.engine.options import SamplingOptions as SamplingOptions
    from boostr.engine.perplexity import perplexity as perplexity
    from boostr.engine.quantize import quantize as quantize
    from boostr.program import Program as Program
    from boostr.program import capture as capture
    from boostr.recompute import checkpoint as checkpoint
    from boostr.tensor import Tensor as Tensor
    from boostr.tensor import arange as arange
    from boostr.tensor import full as full
    from boostr.tensor import ones as ones
    from boostr.tensor import zeros as zeros

# Public names are opened on first use, so that the command line is up, and answers Ctrl-C, before
# numpy is.
_LAZY = {
    "SamplingOptions": "boostr.engine.options",
    "checkpoint": "boostr.recompute",
    "convert": "boostr.engine.convert",
    "create": "boostr.engine.create",
    "fuse": "boostr.engine.fuse",
    "load": "boostr.engine.load",
    "perplexity": "boostr.engine.perplexity",
    "quantize": "boostr.engine.quantize",
    **dict.fromkeys(("gradcheck", "no_grad"), "boostr.autograd"),
    **dict.fromkeys(("coverage", "strict"), "boostr.dispatch"),
    **dict.fromkeys(("Program", "capture"), "boostr.program"),
    **dict.fromkeys(("Tensor", "arange", "full", "ones", "zeros"), "boostr.tensor"),
}
_MODULES = ("backends", "dtypes", "errors", "ops", "train")


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"boostr.{name}")
    if name in _LAZY:
        importlib.import_module("boostr.ops.core")  # the operators of tensors name themselves
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'boostr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})  # completion in a shell shows the lazy names too
