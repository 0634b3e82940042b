"""Bits of a code from signs, on the device."""

from __future__ import annotations

from typing import Any

import numpy as np

from hashstream.kernels.cuda._device import THREADS, blocks_for, cupy_module, launch


def pack_bits(values: Any) -> Any:
    """Codes from signs; see `hashstream.kernels.pack_bits`.

    Parameters
    ----------
    values : (n, n_bits) float32 or bool
        Bit b of a code is ``values[:, b] > 0``. NaN gives 0.

    Returns
    -------
    (n, ceil(n_bits / 64)) uint64
        On the device.

    Raises
    ------
    TypeError
        `values` is neither float32 nor bool.
    ValueError
        `values` does not have two dimensions.
    ImportError, RuntimeError
        There is no CuPy or no device.
    """
    cupy = cupy_module()
    values = cupy.asarray(values)
    if values.dtype not in (np.dtype(np.float32), np.dtype(bool)):
        raise TypeError(f"values has dtype {values.dtype}, expected float32 or bool")
    if values.ndim != 2:
        raise ValueError(f"values has {values.ndim} dimensions, expected 2")
    values = cupy.ascontiguousarray(values)
    n_rows, n_bits = values.shape
    codes = cupy.empty((n_rows, -(-n_bits // 64)), np.uint64)
    n_halves = 2 * codes.shape[1]
    arguments = (values, np.int64(n_rows), np.int64(n_bits), np.int64(n_halves), codes)
    # A warp makes as many half words as it has lanes.
    grid = (blocks_for(cupy, n_rows * n_halves, THREADS),)
    launch(cupy, "pack.cu", f"pack_bits_{values.dtype.name}", grid, THREADS, arguments)
    return codes
