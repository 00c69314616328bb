"""The command line: one verb a file, each of which calls the library. `main` is the entry point."""

from boostr.cli.app import main as main
