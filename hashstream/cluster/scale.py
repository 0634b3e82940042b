"""The space that clusters are looked for in: components neither as they are nor all alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Components are divided by their deviation to this power: between PCA as it is (0) and whitened (1).
DEVIATION_POWER = 0.5


def scaled(means: NDArray[np.float32], counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Centred points (n, n_dims) with each component divided by the square root of its count-weighted deviation.

    Leading components otherwise drown the later ones, in which rare types differ.
    """
    weights = counts / counts.sum()
    wide = means.astype(np.float64)
    centred = wide - weights @ wide
    deviation = np.sqrt(weights @ (centred * centred))
    return (centred / np.maximum(deviation, 1e-12) ** DEVIATION_POWER).astype(np.float32)
