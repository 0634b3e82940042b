"""The kernels' meaning and their CUDA twins on a machine with nothing but numpy and cupy, straight from the checkout.

Where numba is missing, a stand-in makes its decorators do nothing, so that the modules of `hashstream.kernels` load and
`reference.py`, plain NumPy, works. The CPU kernels themselves do not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class _Nothing(ModuleType):
    """Whatever is asked of it, it gives itself; called with a function, it gives that back."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **options: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not options else self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __bool__(self) -> bool:
        return False


def has_cpu_kernels() -> bool:
    """Whether `hashstream` is installed with the libraries that it needs."""
    return all(find_spec(name) is not None for name in ("numba", "zarr", "anndata", "hashstream.kernels"))


def make_importable() -> None:
    """Makes ``hashstream.kernels.reference`` and ``hashstream.kernels.cuda`` importable."""
    if has_cpu_kernels():
        return
    if find_spec("numba") is None:
        for name in ("numba", "numba.core", "llvmlite", "llvmlite.binding"):
            sys.modules[name] = _Nothing(name)
    # The package without its __init__, which would load every CPU kernel.
    kernels = ModuleType("hashstream.kernels")
    kernels.__path__ = [str(ROOT / "kernels")]
    sys.modules["hashstream.kernels"] = kernels
