"""The command line of HashStream."""

from hashstream.cli.main import cli, main

__all__ = ["cli", "main"]
