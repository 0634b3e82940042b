"""Bring the batches of tokens together, and say where that cannot be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from hashstream.cluster.harmony import HarmonySettings, harmony
from hashstream.errors import InputError, SettingsError

#: A batch whose neighbours are its own by more than this share of what is possible is isolated.
ISOLATED = 0.75
#: A batch that spreads over fewer than this share of the kinds of cells that the others hold is narrow.
NARROW = 0.5
_N_KINDS = 10
_N_NEIGHBOURS = 15
_LEAST_TOKENS = 20
_QUERIES = 4096


@dataclass(frozen=True)
class Integrated:
    """Tokens without their batch effect.

    Attributes
    ----------
    points : (n_tokens, n_dims) float32
        Corrected embedding.
    warnings : tuple of str
        One for each batch whose correction is in doubt.
    """

    points: NDArray[np.float32]
    warnings: tuple[str, ...]


def integrate(
    points: NDArray[np.floating],
    counts: NDArray[np.int64],
    batches: NDArray[np.integer],
    *,
    names: Sequence[str] | None = None,
    settings: HarmonySettings | None = None,
    seed: int = 0,
) -> Integrated:
    """Harmony on bucket x batch tokens (see `harmony`), each with the square root of its count as weight.

    Whole counts would let the few largest buckets decide, and equal weights the many that hold a cell or two; the
    token graph of Leiden weighs tokens in the same way. It takes the mean embeddings as they are; scale components
    afterwards (`scaled_points`).

    Parameters
    ----------
    points : (n_tokens, n_dims)
        Mean embedding of each token.
    counts : (n_tokens,) int64
        Cells of each token, above 0.
    batches : (n_tokens,) integer
        Number of each token's batch.
    names
        Name of each batch, for messages; None: their numbers.

    Raises
    ------
    InputError
        If points are not finite, or a batch number has no name.
    SettingsError
        If all tokens are of one batch.
    """
    if len(points) != len(counts) or len(points) != len(batches):
        raise ValueError(f"{len(points)} points, {len(counts)} counts and {len(batches)} batches; expected as many")
    numbers, batch = np.unique(batches, return_inverse=True)
    if len(numbers) < 2:
        only = "" if len(numbers) == 0 else f" ({_name(numbers[0], names)})"
        raise SettingsError(
            f"all cells are of one batch{only}, so there is nothing to integrate; leave --batch-key out, or name a "
            "column of obs with at least two values."
        )
    if names is not None and (numbers[0] < 0 or numbers[-1] >= len(names)):
        raise InputError(f"tokens are of batches {numbers[0]} to {numbers[-1]}, but {len(names)} batches have names.")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise InputError(
            f"{len(bad)} of {len(points)} tokens (the first is {bad[0]}) have an embedding that is not finite; the run "
            "is damaged, so encode again."
        )
    labels = [_name(number, names) for number in numbers]
    centre = np.average(points.astype(np.float64), axis=0, weights=counts)
    corrected = harmony(points - centre, np.sqrt(counts), batch, settings=settings, seed=seed)
    warnings = confounding_warnings(corrected, counts, batch, names=labels, seed=seed)
    return Integrated((corrected + centre).astype(np.float32), warnings)


def confounding_warnings(
    corrected: NDArray[np.floating],
    counts: NDArray[np.int64],
    batches: NDArray[np.integer],
    *,
    names: Sequence[str],
    seed: int = 0,
) -> tuple[str, ...]:
    """Batches that may be confounded with the kind of their cells, from corrected tokens alone.

    Nobody can tell a batch effect from biology in a batch that shares no kind of cell with the others. Two signs
    show: its tokens stay among themselves, or it holds few of the kinds that the others hold. Kinds are ten k-means
    clusters; how many a batch holds is the exponential of the entropy of its cells over them, compared with that of
    all other cells. Batches of fewer than 20 tokens are not judged.

    Parameters
    ----------
    corrected : (n_tokens, n_dims)
    counts : (n_tokens,) int64
    batches : (n_tokens,) integer
        0 to len(names) - 1.
    names
        Of the batches.
    """
    n_tokens = np.bincount(batches, minlength=len(names))
    points = np.ascontiguousarray(corrected, dtype=np.float32)
    isolation = _isolation(points, counts, batches, n_tokens, seed)
    breadth = _breadth(points, counts, batches, len(names), seed)
    warnings = []
    for batch in np.flatnonzero(n_tokens >= _LEAST_TOKENS).tolist():
        signs = []
        if isolation[batch] > ISOLATED:
            signs.append(f"after correction {isolation[batch]:.0%} of its cells' neighbours beyond chance are its own")
        if breadth[batch] < NARROW:
            signs.append(f"it spreads over {breadth[batch]:.0%} as many kinds of cells as the other batches")
        if signs:
            warnings.append(
                f"batch {names[batch]!r} may be confounded with a cell type: {' and '.join(signs)}. Differences "
                "between this batch and the others may be biology that was removed or batch effect that was kept; "
                "compare with a clustering without --batch-key."
            )
    return tuple(warnings)


def _isolation(
    points: NDArray[np.float32],
    counts: NDArray[np.int64],
    batches: NDArray[np.integer],
    n_tokens: NDArray[np.int64],
    seed: int,
) -> NDArray[np.float64]:
    """For each batch, (own - share) / (1 - share) of its tokens' neighbours: 0 if mixed, 1 if alone.

    A bounded number of tokens asks for neighbours, so that the time is proportional to the number of tokens.
    """
    rng = np.random.default_rng(seed)
    quota = max(_LEAST_TOKENS, _QUERIES // len(n_tokens))
    rows = [np.flatnonzero(batches == batch) for batch in range(len(n_tokens))]
    asked = np.concatenate([np.sort(rng.permutation(r)[:quota]) for r in rows])
    k = min(_N_NEIGHBOURS, len(points) - 1)
    with threadpool_limits(limits=1):
        search = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(points)
        found = search.kneighbors(points[asked], return_distance=False)
    other = found != asked[:, None]
    # Where duplicates push the token out of its own list, the farthest is left out instead.
    other[other.all(axis=1), -1] = False
    own = ((batches[found] == batches[asked][:, None]) & other).sum(axis=1) / k
    cells = counts[asked].astype(np.float64)
    size = np.bincount(batches[asked], weights=cells, minlength=len(n_tokens))
    mean = np.bincount(batches[asked], weights=own * cells, minlength=len(n_tokens)) / np.maximum(size, 1.0)
    share = n_tokens / n_tokens.sum()
    return (mean - share) / np.maximum(1.0 - share, 1e-12)


def _breadth(
    points: NDArray[np.float32],
    counts: NDArray[np.int64],
    batches: NDArray[np.integer],
    n_batches: int,
    seed: int,
) -> NDArray[np.float64]:
    """For each batch, over how many kinds its cells spread, relative to the cells of all other batches."""
    n_kinds = min(_N_KINDS, len(np.unique(points, axis=0)))
    with threadpool_limits(limits=1):
        model = KMeans(n_kinds, n_init=3, random_state=seed).fit(points, sample_weight=np.sqrt(counts))
    cells = np.zeros((n_batches, n_kinds))
    np.add.at(cells, (batches, model.labels_), counts)
    rest = cells.sum(axis=0) - cells
    return _effective_number(cells) / _effective_number(rest)


def _effective_number(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential of the entropy of each row: (n_rows,) float64, at least 1."""
    share = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1e-12)
    return np.exp(-(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=1))


def _name(number: int, names: Sequence[str] | None) -> str:
    return str(number) if names is None or not 0 <= number < len(names) else str(names[number])
