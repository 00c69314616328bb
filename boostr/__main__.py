"""`python -m boostr`: the command line."""

from boostr.cli import main

if __name__ == "__main__":
    main()
