"""Neighbours of sampled cells in the space of their principal components."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors


def nearest_cells(
    scores: NDArray[np.float32], train: NDArray[np.int64], held_out: NDArray[np.int64], k: int
) -> NDArray[np.int64]:
    """The k nearest training cells of every cell, itself left out: (n_cells, k) int64, cells by number.

    Held-out cells have neighbours but are nobody's, so that nothing is learned from them.

    Parameters
    ----------
    scores : (n_cells, n_components) float32
    train, held_out : (n_train,), (n_held_out,) int64
        Each cell is in one of them; there are more than k training cells.
    """
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(scores[train])
    nearest = np.empty((len(scores), k), dtype=np.int64)
    nearest[train] = train[search.kneighbors(return_distance=False)]
    nearest[held_out] = train[search.kneighbors(scores[held_out], return_distance=False)]
    return nearest
