"""Closed-form head and deep head as the layers of one Hasher."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hashstream.hashing.anchors.cells import Standardised
from hashstream.hashing.anchors.discriminant import Discriminant
from hashstream.hashing.anchors.settings import AnchorSettings
from hashstream.hashing.components import with_positive_peaks

#: The axes pass through the layers of the deep head, divided by this. Raised by 1 they pass the relu as they are;
#: within the range of nearly all cells tanh is a straight line to a few per cent, and beyond it holds outliers back.
AXIS_RANGE = 64.0
_RAISED = 1.0
MOST_POINT_DIMS = 64
_POINT_DEVIATION = 2.0


@dataclass(frozen=True)
class Network:
    """Affine layers (relu, tanh, and linear once the points are known).

    Attributes
    ----------
    weights, biases : one of each a layer, float32
        Outputs of the second layer, the features: axes of the discriminant, then the units of the deep head. Outputs of
        the third, the embedding: points, then the axes.
    n_axes : int
    """

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    n_axes: int

    def features(self, z: Standardised, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Output of the second layer for some cells."""
        out = np.empty((len(numbers), self.weights[1].shape[1]), dtype=np.float32)
        for part, values in z.groups(numbers):
            hidden = np.maximum(values @ self.weights[0] + self.biases[0], 0)
            out[part] = np.tanh(hidden @ self.weights[1] + self.biases[1])
        return out


@dataclass(frozen=True)
class ScoreMap:
    """From features to the scores of the classes.

    Attributes
    ----------
    weight, bias : (n_features, n_classes), (n_classes,) float64
    means : (n_classes, n_axes) float64
        Mean of each class on the axes.
    """

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    means: NDArray[np.float64]

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return features.astype(np.float64) @ self.weight + self.bias


def join_heads(
    discriminant: Discriminant,
    deep_weights: tuple[NDArray[np.float32], NDArray[np.float32]],
    deep_biases: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> Network:
    """The first two layers."""
    n_axes = discriminant.weight.shape[1]
    n_hidden, n_bits = deep_weights[1].shape
    second = np.zeros((n_axes + n_hidden, n_axes + n_bits), dtype=np.float32)
    second[:n_axes, :n_axes] = np.eye(n_axes)
    second[n_axes:, n_axes:] = deep_weights[1]
    first_bias = np.concatenate([discriminant.bias / AXIS_RANGE + _RAISED, deep_biases[0]])
    return Network(
        weights=(np.column_stack([discriminant.weight / AXIS_RANGE, deep_weights[0]]).astype(np.float32), second),
        biases=(
            first_bias.astype(np.float32),
            np.concatenate([np.full(n_axes, -_RAISED), deep_biases[1]]).astype(np.float32),
        ),
        n_axes=n_axes,
    )


def score_map(
    network: Network,
    features: NDArray[np.float32],
    classes: NDArray[np.int64],
    anchors: NDArray[np.float32],
    settings: AnchorSettings,
) -> ScoreMap:
    """Scores: log-odds of the discriminant and similarity to the anchors, weighted, less their mean over the classes.

    Parameters
    ----------
    features : (n, n_features)
        Of labelled cells.
    classes : (n,) int64
    anchors : (n_classes, n_bits)
        -1 and 1.
    """
    n_classes, n_bits = anchors.shape
    axes = features[:, : network.n_axes].astype(np.float64) * AXIS_RANGE
    sizes = np.bincount(classes, minlength=n_classes)
    sums = np.stack([np.bincount(classes, weights=a, minlength=n_classes) for a in axes.T], axis=1)
    means = sums / np.maximum(sizes, 1)[:, None]
    weight = np.zeros((features.shape[1], n_classes))
    weight[: network.n_axes] = settings.discriminant_weight * AXIS_RANGE * means.T
    weight[network.n_axes :] = settings.deep_weight * anchors.T / n_bits
    bias = -0.5 * settings.discriminant_weight * np.square(means).sum(axis=1)
    return ScoreMap(weight - weight.mean(axis=1, keepdims=True), bias - bias.mean(), means)


def add_points(network: Network, scores: ScoreMap, values: NDArray[np.float64]) -> Network:
    """The third layer: points, in which the hyperplanes lie, and the axes about the mean of the class means.

    Points are the principal components of the scores, all of them for up to 65 classes, and the leading 64 of more.

    Parameters
    ----------
    values : (n, n_classes)
        Scores of labelled cells.
    """
    n_classes, n_axes = values.shape[1], network.n_axes
    centre = values.mean(axis=0)
    centred = values - centre
    n_dims = min(n_classes - 1, MOST_POINT_DIMS)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    scale = _POINT_DEVIATION / max(float(centred.std()), 1e-12)
    vectors = with_positive_peaks(vectors[:, ::-1][:, :n_dims]) * scale
    weight = np.zeros((len(scores.weight), n_dims + n_axes))
    weight[:, :n_dims] = scores.weight @ vectors
    weight[:n_axes, n_dims:] = AXIS_RANGE * np.eye(n_axes)
    bias = np.concatenate([(scores.bias - centre) @ vectors, -scores.means.mean(axis=0)])
    return replace(
        network,
        weights=(*network.weights, weight.astype(np.float32)),
        biases=(*network.biases, bias.astype(np.float32)),
    )
