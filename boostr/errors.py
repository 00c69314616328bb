"""Every error that boostr raises on purpose.

All derive from `BoostrError`, so that a program can catch one type, and from the built-in that
fits, so that code which knows nothing of boostr behaves. The command line prints the message of any
`BoostrError` without a traceback.
"""


class BoostrError(Exception):
    """Base of all errors of boostr."""


class ShapeError(BoostrError, ValueError):
    """Tensors whose shapes do not fit the operation."""


class DTypeError(BoostrError, TypeError):
    """A dtype that the operation, the backend or the file format does not take."""


class OptionError(BoostrError, ValueError):
    """An option outside of its range or a name that does not exist."""


class BackendError(BoostrError, RuntimeError):
    """A backend that is missing, cannot do what was asked, or tensors of two backends in one op."""


class OutOfMemoryError(BackendError, MemoryError):
    """A device without room for what was asked; says how much was needed."""


class DiskFullError(BoostrError, OSError):
    """A disk without room for what is to be written; says how much is needed."""


class FallbackError(BackendError):
    """Strict mode: an op had no kernel for these arguments and would have run its composite."""


class ModelFileError(BoostrError, ValueError):
    """A model file or folder that is malformed, incomplete, or not supported."""


class DataError(BoostrError, ValueError):
    """Training data that is malformed, or of which nothing can be learned."""


class RankError(BoostrError, RuntimeError):
    """A rank that ends because another one has failed."""


class NumericsError(BoostrError, ArithmeticError):
    """A model whose logits are nan or infinite."""


class TokenizerError(BoostrError, ValueError):
    """A tokenizer or chat template that cannot be built or fails on this input."""


class DownloadError(BoostrError, OSError):
    """A model that is neither in the cache nor reachable."""
