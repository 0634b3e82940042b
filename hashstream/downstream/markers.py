"""Genes by which groups of cells differ, from the sums over their cells: Welch's t-test for every gene."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels import GROUP_SUM_SCALE

FEWEST_CELLS = 2  # a variance needs so many
_TINY = 1e-9  # keeps the fold change of genes that are not seen finite, as scanpy does


class GeneTests(NamedTuple):
    """The genes of one group against other cells; each (n_genes,) float64.

    Attributes
    ----------
    score
        Welch's t, positive where the group has more; 0 for a gene that does not vary.
    p_value
        Two-sided; 1 for a gene that does not vary.
    p_adjusted
        After Benjamini and Hochberg over all genes.
    log2_fold_change
        Of the means, taken back from the logarithm: ``log2((expm1(mean) + 1e-9) / (expm1(mean_rest) + 1e-9))``.
    mean, mean_rest
        Of the log-normalised values.
    share, share_rest
        Cells that have any count of the gene, of all.
    """

    score: NDArray[np.float64]
    p_value: NDArray[np.float64]
    p_adjusted: NDArray[np.float64]
    log2_fold_change: NDArray[np.float64]
    mean: NDArray[np.float64]
    mean_rest: NDArray[np.float64]
    share: NDArray[np.float64]
    share_rest: NDArray[np.float64]


def compare_genes(n_group: int, own: NDArray[np.int64], n_rest: int, rest: NDArray[np.int64]) -> GeneTests:
    """Tests every gene of a group of cells against other cells.

    The test is Welch's (The generalization of 'Student's' problem, Biometrika 1947) on log-normalised values, as
    ``scanpy.tl.rank_genes_groups(method="t-test")`` does it.

    Parameters
    ----------
    n_group, n_rest
        Cells of the group, and others.
    own, rest : (n_genes, 3) int64
        Their sums; see `hashstream.kernels.GroupSums`.

    Raises
    ------
    ValueError
        Either side has fewer than two cells.
    """
    from scipy.special import stdtr

    if min(n_group, n_rest) < FEWEST_CELLS:
        raise ValueError(f"{n_group} cells against {n_rest}, expected at least {FEWEST_CELLS} on each side")
    mean, variance = _moments(own, n_group)
    mean_rest, variance_rest = _moments(rest, n_rest)
    of_mean, of_mean_rest = variance / n_group, variance_rest / n_rest
    both = of_mean + of_mean_rest
    varies = both > 0
    divided = np.where(varies, both, 1.0)
    score = np.where(varies, (mean - mean_rest) / np.sqrt(divided), 0.0)
    freedom = divided**2 / (of_mean**2 / (n_group - 1) + of_mean_rest**2 / (n_rest - 1) + np.where(varies, 0.0, 1.0))
    p_value = np.where(varies, 2.0 * stdtr(freedom, -np.abs(score)), 1.0)
    return GeneTests(
        score=score,
        p_value=p_value,
        p_adjusted=benjamini_hochberg(p_value),
        log2_fold_change=np.log2((np.expm1(mean) + _TINY) / (np.expm1(mean_rest) + _TINY)),
        mean=mean,
        mean_rest=mean_rest,
        share=own[:, 2] / n_group,
        share_rest=rest[:, 2] / n_rest,
    )


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-values adjusted so that those below a level hold that share of false ones at most, on average: (n,) float64."""
    n = len(p_values)
    falling = np.argsort(-p_values, kind="stable")
    adjusted = np.empty(n)
    adjusted[falling] = np.minimum.accumulate(np.minimum(p_values[falling] * (n / np.arange(n, 0, -1)), 1.0))
    return adjusted


def _moments(sums: NDArray[np.int64], n_cells: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and unbiased variance of every gene."""
    mean = sums[:, 0] / (GROUP_SUM_SCALE * n_cells)
    squares = sums[:, 1] / GROUP_SUM_SCALE - n_cells * mean**2
    # Half a unit is rounded away from each value that is not 0, and from its square: so much is no variance.
    least = sums[:, 2] * (0.5 + mean) / GROUP_SUM_SCALE
    return mean, np.where(squares > least, squares, 0.0) / (n_cells - 1)
