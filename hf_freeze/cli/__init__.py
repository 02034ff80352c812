"""The command line: parse, call the library, print what it returns, and errors without a traceback."""

from hf_freeze.cli.commands import app, main

__all__ = ["app", "main"]
