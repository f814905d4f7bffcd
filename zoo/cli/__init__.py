"""The command line: ``zoo COMMAND [options]``, or ``main(["fit", ...])`` from Python. Importing it imports no torch."""

from zoo.cli.main import main

__all__ = ["main"]
