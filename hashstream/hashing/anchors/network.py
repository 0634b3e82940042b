"""Closed-form head, deep head and directions as the layers of one Hasher."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hashstream.hashing.anchors.cells import Standardised
from hashstream.hashing.anchors.discriminant import Discriminant
from hashstream.hashing.anchors.novelty import Directions
from hashstream.hashing.anchors.settings import AnchorSettings

#: Axes and directions pass through the layers of the deep head, divided by these. Raised by 1 they pass the relu as
#: they are; within the range of nearly all cells tanh is a straight line to a few per cent, and beyond it holds
#: outliers back.
_AXIS_RANGE, _DIRECTION_RANGE = 64.0, 4.0
_RAISED = 1.0
MOST_POINT_DIMS = 64
_POINT_DEVIATION = 2.0


@dataclass(frozen=True)
class Network:
    """Affine layers (relu, tanh, and linear once the points are known).

    Attributes
    ----------
    weights, biases : one of each a layer, float32
        Outputs of the second layer, the features: axes of the discriminant, directions, units of the deep head.
    n_axes, n_directions : int
    """

    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    n_axes: int
    n_directions: int

    def features(self, z: Standardised, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Output of the second layer for some cells."""
        out = np.empty((len(numbers), self.weights[1].shape[1]), dtype=np.float32)
        for part, values in z.groups(numbers):
            hidden = np.maximum(values @ self.weights[0] + self.biases[0], 0)
            out[part] = np.tanh(hidden @ self.weights[1] + self.biases[1])
        return out

    @property
    def directions(self) -> slice:
        return slice(self.n_axes, self.n_axes + self.n_directions)

    @property
    def units(self) -> slice:
        return slice(self.n_axes + self.n_directions, self.weights[1].shape[1])


@dataclass(frozen=True)
class ScoreMap:
    """From features to the scores of the classes: (n_features, n_classes), (n_classes,) float64."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        return features.astype(np.float64) @ self.weight + self.bias


def join_heads(
    discriminant: Discriminant,
    directions: Directions | None,
    deep_weights: tuple[NDArray[np.float32], NDArray[np.float32]],
    deep_biases: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> Network:
    """The first two layers."""
    n_axes = discriminant.weight.shape[1]
    n_directions = 0 if directions is None else directions.weight.shape[1]
    passed = n_axes + n_directions
    first = [discriminant.weight / _AXIS_RANGE]
    bias = [discriminant.bias / _AXIS_RANGE + _RAISED]
    if directions is not None:
        first.append(directions.weight / _DIRECTION_RANGE)
        bias.append(directions.bias / _DIRECTION_RANGE + _RAISED)
    n_hidden, n_bits = deep_weights[1].shape
    second = np.zeros((passed + n_hidden, passed + n_bits), dtype=np.float32)
    second[:passed, :passed] = np.eye(passed)
    second[passed:, passed:] = deep_weights[1]
    return Network(
        weights=(np.column_stack([*first, deep_weights[0]]).astype(np.float32), second),
        biases=(
            np.concatenate([*bias, deep_biases[0]]).astype(np.float32),
            np.concatenate([np.full(passed, -_RAISED), deep_biases[1]]).astype(np.float32),
        ),
        n_axes=n_axes,
        n_directions=n_directions,
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
    axes = features[:, : network.n_axes].astype(np.float64) * _AXIS_RANGE
    sizes = np.bincount(classes, minlength=n_classes)
    sums = np.stack([np.bincount(classes, weights=a, minlength=n_classes) for a in axes.T], axis=1)
    means = sums / np.maximum(sizes, 1)[:, None]
    weight = np.zeros((features.shape[1], n_classes))
    weight[: network.n_axes] = settings.discriminant_weight * _AXIS_RANGE * means.T
    weight[network.units] = settings.deep_weight * anchors.T / n_bits
    bias = -0.5 * settings.discriminant_weight * np.square(means).sum(axis=1)
    return ScoreMap(weight - weight.mean(axis=1, keepdims=True), bias - bias.mean())


def add_points(network: Network, scores: ScoreMap, values: NDArray[np.float64]) -> Network:
    """The third layer: points, in which the hyperplanes lie, and the directions as they are.

    Points are the principal components of the scores, all of them for up to 65 classes, and the leading 64 of more.

    Parameters
    ----------
    values : (n, n_classes)
        Scores of labelled cells.
    """
    n_classes = values.shape[1]
    centre = values.mean(axis=0)
    centred = values - centre
    n_dims = min(n_classes - 1, MOST_POINT_DIMS)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    vectors = vectors[:, ::-1][:, :n_dims]
    peak = vectors[np.abs(vectors).argmax(axis=0), np.arange(n_dims)]
    vectors = vectors * np.where(peak < 0, -1.0, 1.0) * (_POINT_DEVIATION / max(float(centred.std()), 1e-12))
    weight = np.zeros((len(scores.weight), n_dims + network.n_directions))
    weight[:, :n_dims] = scores.weight @ vectors
    weight[network.directions, n_dims:] = np.eye(network.n_directions)
    bias = np.concatenate([(scores.bias - centre) @ vectors, np.zeros(network.n_directions)])
    return replace(
        network,
        weights=(*network.weights, weight.astype(np.float32)),
        biases=(*network.biases, bias.astype(np.float32)),
    )
