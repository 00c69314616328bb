"""boostr: transformers in Python on any machine, without PyTorch."""

__version__ = "0.1.0"

from boostr.tensor import Tensor as Tensor
from boostr.tensor import arange as arange
from boostr.tensor import full as full
from boostr.tensor import ones as ones
from boostr.tensor import zeros as zeros
