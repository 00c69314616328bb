"""boostr: transformers in Python on any machine, without PyTorch."""

__version__ = "0.1.0"
