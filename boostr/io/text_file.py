"""Text files of a model folder, with errors that name them."""

from pathlib import Path

from boostr.errors import TokenizerError
from boostr.io.mapping import refuse_foreign

_MAX_FILE = 256 * 1024 * 1024


def read_text(path: Path) -> str | None:
    """What is in a file, None if there is none.

    Raises:
        TokenizerError: it is too long, no UTF-8, or a pointer to the file proper.
    """
    try:
        if path.stat().st_size > _MAX_FILE:
            raise TokenizerError(f"{path}: over the limit of {_MAX_FILE} bytes")
        text = path.read_text(encoding="utf-8")
        refuse_foreign(path, text[:16].encode())
        return text
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from None
