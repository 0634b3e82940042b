"""Losses of the deep head, and signs that let gradients through."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def margin_cosine_loss(units: Tensor, classes: Tensor, anchors: Tensor, *, scale: float, margin: float) -> Tensor:
    """Softmax cross-entropy of the similarities to the anchors, the own one lowered by a margin.

    Source: Hoe et al., "One loss for all: deep hashing with a single cosine similarity based learning objective"
    (OrthoHash), NeurIPS 2021, with the margin of Wang et al. (CosFace), CVPR 2018. The length of a code's units is
    taken as that of its bits, sqrt(n_bits), instead of being divided out: similarity is then linear in the units,
    and units near 0 count less, which stands for OrthoHash's quantisation term.

    Parameters
    ----------
    units : (n, n_bits) float
        Squashed, -1 to 1.
    classes : (n,) int64
    anchors : (n_classes, n_bits) float
        -1 and 1.
    scale, margin : float
    """
    similarity = anchor_similarity(units, anchors)
    own = F.one_hot(classes, len(anchors)).to(similarity.dtype)
    return F.cross_entropy(scale * (similarity - margin * own), classes)


def anchor_similarity(units: Tensor, anchors: Tensor) -> Tensor:
    """(n, n_classes): -1 to 1, for bits 1 - 2 x Hamming distance / n_bits."""
    return units @ anchors.T / anchors.shape[1]


def schash_loss(units: Tensor, classes: Tensor, anchors: Tensor, weights: Tensor, *, quantisation: float) -> Tensor:
    """Class-balanced binary cross-entropy of each bit with its anchor's, and a pull of the units to -1 and 1.

    L = mean_ij w_{y_i} BCE((h_ij + 1) / 2, (a_{y_i, j} + 1) / 2) + quantisation mean (|h| - 1)^2, the loss of scHash.

    Parameters
    ----------
    units : (n, n_bits) float
        h, -1 to 1.
    classes : (n,) int64
    anchors : (n_classes, n_bits) float
        a, -1 and 1.
    weights : (n_classes,) float
        w, see `class_weights`.
    quantisation : float
        lambda.
    """
    wanted = (anchors[classes] + 1) / 2
    # log(0) is kept finite as in torch's own binary cross-entropy, which clamps it at -100.
    each = F.binary_cross_entropy((units + 1) / 2, wanted, reduction="none")
    return (weights[classes][:, None] * each).mean() + quantisation * ((units.abs() - 1) ** 2).mean()


def class_weights(sizes: Tensor, balance: float) -> Tensor:
    """w_c = (1 - b) / (1 - b^n_c), scaled to add up to the number of classes.

    Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019.
    """
    sizes = sizes.to(torch.float64)
    weights = (1 - balance) / (1 - torch.pow(torch.tensor(balance, dtype=torch.float64), sizes))
    return weights / weights.sum() * len(sizes)


class StraightThroughSign(torch.autograd.Function):
    """-1 or 1 forwards, the derivative of tanh backwards (Bengio et al., arXiv 1308.3432)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return torch.where(values > 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * (1 - torch.tanh(values) ** 2)


def signs(values: Tensor) -> Tensor:
    """`StraightThroughSign` of values."""
    return StraightThroughSign.apply(values)
