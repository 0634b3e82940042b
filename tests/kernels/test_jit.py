"""How kernels are compiled."""

from __future__ import annotations

from typing import Any

import numba
import pytest

from hashstream.kernels import _jit


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a package that this user may not write into, without a home."""
    compiled = numba.njit

    def njit(*functions: Any, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiled(*functions, **options)

    monkeypatch.setattr(_jit.numba, "njit", njit)
    for decorate in (_jit.jit, _jit.bare, _jit.inline):
        assert decorate(lambda x: x + 1)(2) == 3
