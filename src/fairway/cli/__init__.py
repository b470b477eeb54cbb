"""The command line. Every module of this package is a verb: it holds one function of its own name that parses its
arguments, calls one function of the library and prints. A file `compress_text.py` is the verb `compress-text`.

Verbs import the library inside their function: reading the arguments, `--help` and a misspelt option must not wait for
torch to load.
"""

from fairway.cli.console.application import main

__all__ = ["main"]
