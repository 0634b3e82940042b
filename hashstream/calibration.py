"""Probabilities that agree with how often they are right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def temperature(odds: NDArray[np.floating], labels: NDArray[np.integer], *, log_range: tuple[float, float]) -> float:
    """What log-odds must be multiplied by for the least log-loss of their softmax.

    Guo et al., "On calibration of modern neural networks", ICML 2017.

    Parameters
    ----------
    odds : (n, n_classes) float
    labels : (n,) integer
        The class that each row should have.
    log_range
        Logarithms of the least and the largest factor.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    rows = np.arange(len(labels))

    def loss(log_factor: float) -> float:
        return -float(log_softmax(odds * np.exp(log_factor), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=log_range, method="bounded").x))
