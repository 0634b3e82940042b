"""The terms of the loss. Each is a scalar tensor; smaller is better."""

from __future__ import annotations

import torch
from torch import Tensor

from hashstream.cluster.transformer.model import Outputs


def denoise(found: Outputs, target: Tensor, target_counts: Tensor, noise: Tensor) -> Tensor:
    """Negative log-likelihood of the mean `target` (b, d) of held-out cells (b,), less its constant, a dimension.

    The mean of n cells is normal about where the bucket lies, with variance noise / n (central limit); where it lies
    is known to within the posterior variance. So few cells weigh little. Tokens without held-out cells are left out.
    """
    some = target_counts > 0
    if not some.any():
        return found.mean.sum() * 0
    variance = found.variance[some] + noise / target_counts[some, None]
    squared = (target[some] - found.mean[some]) ** 2
    return (squared / variance + variance.log()).mean() / 2


def consistency(first: Tensor, second: Tensor, noise: Tensor) -> Tensor:
    """Mean squared distance of two views (b, d) of the same tokens, in units of the variance of a cell (d,)."""
    return ((first - second) ** 2 / noise).mean()


def student_t(points: Tensor, centres: Tensor, variance: float, degrees: float) -> Tensor:
    """Soft assignments (b, n_clusters): q_ij ~ (1 + |z_i - mu_j|^2 / (degrees variance))^-((degrees + 1) / 2).

    Source: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008; for clustering Xie, Girshick and
    Farhadi, "Unsupervised Deep Embedding for Clustering Analysis", ICML 2016 (DEC, one degree of freedom and variance
    1). Here the variance is that within clusters, so that assignments do not depend on the unit of the points.
    """
    squared = (points**2).sum(dim=1)[:, None] + (centres**2).sum(dim=1) - 2 * points @ centres.T
    squared = squared.clamp_min(0)
    return torch.softmax(-(degrees + 1) / 2 * torch.log1p(squared / (degrees * variance)), dim=1)


def sharpened(q: Tensor, sizes: Tensor, balance: float) -> Tensor:
    """Targets (b, n_clusters) for assignments q: q^2 / sizes^balance, made to sum to 1. No gradient goes through them.

    `sizes` (n_clusters,) is the soft size of each cluster. Source: DEC, with balance 1.
    """
    p = q.detach() ** 2 / sizes**balance
    return p / p.sum(dim=1, keepdim=True)


def clustering(q: Tensor, p: Tensor, weights: Tensor) -> Tensor:
    """Divergence KL(p || q) of assignments q from targets p (b, n_clusters), the mean weighted by `weights` (b,)."""
    each = (torch.special.xlogy(p, p) - p * q.clamp_min(1e-12).log()).sum(dim=1)
    return (weights * each).sum() / weights.sum()
