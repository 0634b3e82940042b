"""exp(-a) in float32 from IEEE operations alone, and the sigmoid and tanh that are made of it.

Libraries and vector units differ in the last bits of their exponential, and a code bit can hang on them; this sequence
of operations is repeated in `reference.py`. As in the Cephes library, ``-a = k log 2 + r`` with ``|r| <= log(2) / 2``
and log 2 in two parts, the first of so few digits that ``k`` times it is exact. ``exp(r) - 1`` is its series up to
``r**7``, off by 2e-8 of itself at most. Nothing branches, so that compilers make vectors of it.
"""

from __future__ import annotations

import numpy as np

from hashstream.kernels._intrinsics import bits_float32, float32_bits
from hashstream.kernels._jit import inline, jit

LARGEST = np.float32(87.0)  # exp(-87) is still a normal number
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
ROUNDER = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds, half to even, to an integer in the low bits
SERIES = tuple(np.float32(1.0 / divisor) for divisor in (5040.0, 720.0, 120.0, 24.0, 6.0, 2.0))
_C7, _C6, _C5, _C4, _C3, _C2 = SERIES
ONE, TWO, ZERO = np.float32(1.0), np.float32(2.0), np.float32(0.0)
_EXPONENT_SHIFT = np.int32(23)


@inline
def _exp_parts(a):  # type: ignore[no-untyped-def]
    """``s = 2**k`` and ``p = exp(r) - 1`` with ``exp(-a) = s * (1 + p)``, for float32 a from 0 to `LARGEST`."""
    shifted = ROUNDER - a * LOG2_E
    k = shifted - ROUNDER
    s = bits_float32(np.int32((float32_bits(shifted) << _EXPONENT_SHIFT) + float32_bits(ONE)))
    r = (-a - k * LN2_HIGH) - k * LN2_LOW
    q = _C7 * r + _C6
    q = q * r + _C5
    q = q * r + _C4
    q = q * r + _C3
    q = q * r + _C2
    return s, q * (r * r) + r


@jit
def sigmoid(values):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(-x)) in place of each float32 x; below -87 it is 0, for NaN 1/2."""
    flat = values.ravel()
    for i in range(len(flat)):
        x = flat[i]
        a = abs(x)
        a = a if a == a else ZERO
        s, p = _exp_parts(min(a, LARGEST))
        e = s * p + s
        e = e if a <= LARGEST else ZERO
        flat[i] = (e if x < ZERO else ONE) / (ONE + e)


@jit
def tanh(values):  # type: ignore[no-untyped-def]
    """tanh(x) in place of each float32 x, as ``-u / (2 + u)`` with ``u = exp(-2 |x|) - 1``; for NaN 0."""
    flat = values.ravel()
    for i in range(len(flat)):
        x = flat[i]
        a = abs(x)
        a = a if a == a else ZERO
        s, p = _exp_parts(min(a + a, LARGEST))
        u = s * p + (s - ONE)
        t = (ZERO - u) / (TWO + u)
        flat[i] = -t if x < ZERO else t
