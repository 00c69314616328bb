"""The command line: one verb a file, each of which calls the library. `main` is the entry point."""

import sys
from typing import NoReturn

INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line and exit; an interrupt is no traceback while modules load, either."""
    try:
        from boostr.cli import app

        app.main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
