"""HashStream: an out-of-core streaming engine for atlas-scale single-cell data.

The verbs of the command line are functions: those that make a run in `hashstream.pp` (ingest, simulate, fit, encode,
append, finalize), those that work on one in `hashstream.tl` (cluster, annotate, search, markers, trajectory, evaluate,
report, export, ...); `hashstream.pl` draws what they found. They, `Run`, `Hasher` and `open_atlas` are imported when
first used: ``import hashstream`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Hasher", "Run", "__version__", "datasets", "open_atlas", "pl", "pp", "tl"]

_HOME = {"Hasher": "hashstream.hashing", "Run": "hashstream.runtime.run", "open_atlas": "hashstream.atlas"}
_MODULES = ("datasets", "pl", "pp", "tl")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"hashstream.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hashstream' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What there is to use, imported yet or not."""
    return sorted(__all__)
