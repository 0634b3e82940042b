"""The bits: hyperplanes in the space of the scores, trained so that the bits alone give the scores' labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from hashstream.hashing.anchors.deep import checked
from hashstream.hashing.anchors.losses import signs
from hashstream.hashing.anchors.settings import AnchorSettings
from hashstream.runtime.torch_threads import one_thread

_BETA = 16.0  # log-odds between a code that is one anchor and one half-way to another, before training
_POINTS = 20_000
_BATCH = 256
_MIXED_SHARE = 0.5
_NOISE = 0.2
_READ_OUT_RATE = 0.3
_TILT, _SHIFT = 0.3, 0.3
_WARM_UP = 0.1


@dataclass(frozen=True)
class Hyperplanes:
    """From a point of the score space to bits, and from bits to log-odds.

    Attributes
    ----------
    weight, bias : (n_dims, n_bits), (n_bits,) float32
    read_out, offset : (n_classes, n_bits), (n_classes,) float64
        Log-odds of a code of -1 and 1 are ``code @ read_out.T + offset``.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    read_out: NDArray[np.float64]
    offset: NDArray[np.float64]


def train_hyperplanes(
    scores: NDArray[np.float64],
    points: NDArray[np.float64],
    classes: NDArray[np.int64],
    anchors: NDArray[np.float32],
    settings: AnchorSettings,
    *,
    seed: int,
) -> Hyperplanes:
    """Hyperplanes and read-out that make the softmax of a code's log-odds that of the scores it stands for.

    Half of the points are mixtures of two cells, since few cells lie where the label changes and just there the bits
    must be right. The loss is the Kullback-Leibler divergence; the signs let gradients through. Hyperplanes and
    read-out start as the anchors.

    Parameters
    ----------
    scores : (n, n_classes)
        Of labelled cells.
    points : (n, n_dims)
        The same cells in the space of the hyperplanes, an affine map of the scores.
    classes : (n,) int64
    """
    rng = np.random.default_rng((seed, 2))
    n_classes, n_bits = anchors.shape
    sizes = np.bincount(classes, minlength=n_classes)
    probability = 1 / np.sqrt(sizes[classes])
    probability /= probability.sum()
    first, second = (rng.choice(len(classes), _POINTS, p=probability) for _ in range(2))
    share = np.where(rng.random(_POINTS) < _MIXED_SHARE, rng.random(_POINTS), 1.0)[:, None]
    means = np.stack([np.bincount(classes, weights=s, minlength=n_classes) for s in points.T], axis=1)
    spread = (points - (means / np.maximum(sizes, 1)[:, None])[classes]).std(axis=0)
    noise = _NOISE * spread * rng.standard_normal((_POINTS, points.shape[1]))
    # The affine map from points back to scores, by least squares: noise is added to the points.
    lifted = np.column_stack([points, np.ones(len(points))])
    back = np.linalg.lstsq(lifted, scores, rcond=None)[0]
    x = share * points[first] + (1 - share) * points[second]
    wanted = share * scores[first] + (1 - share) * scores[second] + noise @ back[:-1]
    inputs = torch.from_numpy((x + noise).astype(np.float32))
    targets = torch.softmax(torch.from_numpy(wanted - wanted.max(axis=1, keepdims=True)), dim=1).float()
    # A hyperplane starts where the scores of its anchor's two sides balance.
    start = back[:-1] @ anchors / max(float(np.sqrt(((x @ back[:-1] @ anchors) ** 2).mean())), 1e-9)
    # Equal columns of the code book would stay equal hyperplanes: chance sets them apart.
    size = float(np.sqrt((start**2).mean()))
    start = start + _TILT * size * rng.standard_normal(start.shape)
    weight = torch.nn.Parameter(torch.from_numpy(np.asarray(start, dtype=np.float32)))
    bias = torch.nn.Parameter(torch.from_numpy(np.asarray(_SHIFT * rng.standard_normal(n_bits), dtype=np.float32)))
    read_out = torch.nn.Parameter(torch.from_numpy(anchors * np.float32(_BETA / n_bits)))
    offset = torch.nn.Parameter(torch.zeros(n_classes))
    rates = [settings.hash_learning_rate, _READ_OUT_RATE * settings.hash_learning_rate]
    optimiser = torch.optim.Adam(
        [{"params": [weight, bias], "lr": rates[0]}, {"params": [read_out, offset], "lr": rates[1]}]
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, total_steps=max(settings.hash_steps, 2), pct_start=_WARM_UP
    )
    with one_thread():
        for step in range(settings.hash_steps):
            some = torch.from_numpy(rng.integers(0, _POINTS, _BATCH))
            odds = signs(inputs[some] @ weight + bias) @ read_out.T + offset
            loss = F.kl_div(F.log_softmax(odds, dim=1), targets[some], reduction="batchmean")
            checked(loss, step, settings)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return Hyperplanes(
        weight=weight.detach().numpy().copy(),
        bias=bias.detach().numpy().copy(),
        read_out=read_out.detach().numpy().astype(np.float64),
        offset=offset.detach().numpy().astype(np.float64),
    )
