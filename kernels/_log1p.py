"""log(1 + x) from IEEE additions, multiplications, divisions and bit operations alone.

Libraries differ in the last bits of their logarithm, and a code bit can hang on them. This sequence of operations is
repeated in `reference.py` and on the GPU, so all three agree bit for bit. With ``u = 1 + x = 2**k * m`` and ``m`` in
[sqrt(1/2), sqrt(2)), ``log(u) = k log 2 + 2 atanh(s)``, ``s = f / (2 + f)``, ``f = m - 1`` (``f = x`` exactly where
``k = 0``), and ``2 atanh(s) = 2 s (1 + z/3 + z**2/5 + ...)``, ``z = s**2 <= 0.0295``: eight terms leave a
relative error below 1e-12.
"""

from __future__ import annotations

import numpy as np

from hashstream.kernels._intrinsics import bits_float64, float64_bits
from hashstream.kernels._jit import inline

LN2 = 0.6931471805599453
SQRT_HALF_BITS = np.int64(0x3FE6A09E667F3BCD)  # bits of sqrt(1/2)
MANTISSA = np.int64((1 << 52) - 1)
EXPONENT_SHIFT = np.int64(52)


@inline
def log1p_(x):  # type: ignore[no-untyped-def]
    """log(1 + x) of a float64 x >= 0, to 1e-12 relative; exactly 0 at 0."""
    u = 1.0 + x
    above = float64_bits(u) - SQRT_HALF_BITS
    k = above >> EXPONENT_SHIFT
    m = bits_float64((above & MANTISSA) + SQRT_HALF_BITS)
    f = x if k == 0 else m - 1.0
    s = f / (2.0 + f)
    z = s * s
    p = z * (1.0 / 15.0) + (1.0 / 13.0)
    p = p * z + (1.0 / 11.0)
    p = p * z + (1.0 / 9.0)
    p = p * z + (1.0 / 7.0)
    p = p * z + (1.0 / 5.0)
    p = p * z + (1.0 / 3.0)
    p = p * z
    t = s + s
    return np.float64(k) * LN2 + (t + t * p)
