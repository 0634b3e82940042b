"""Which genes bring a cell near to an anchor: gradients of its score back through the layers of the hash function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import SettingsError

METHODS = ("gradient", "integrated")
SCORES = ("tanh", "linear")
DEFAULT_STEPS = 64
#: Cells times steps times inputs of a layer that are held at once (float64, 32 MiB).
_BLOCK_ELEMENTS = 1 << 22

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HashLayers:
    """A hash function from standardised genes to the numbers whose signs are the bits.

    Attributes
    ----------
    weights, biases, activations
        One of each a layer: (n_in, n_out) and (n_out,) float64, and ``linear``, ``relu``, ``sigmoid`` or ``tanh``.
    bit_weight, bit_bias : (n_dims, n_bits), (n_bits,) float64
    """

    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    activations: tuple[str, ...]
    bit_weight: Floats
    bit_bias: Floats

    @property
    def n_genes(self) -> int:
        return len(self.weights[0])

    @property
    def n_bits(self) -> int:
        return self.bit_weight.shape[1]

    def bits(self, z: Floats) -> Floats:
        """The projections of cells: (n, n_bits)."""
        return self._outputs(z)[-1] @ self.bit_weight + self.bit_bias

    def scores(self, z: Floats, direction: Floats, score: str = "tanh") -> Floats:
        """The score of cells in a direction.

        It is ``sum_b direction[b] * f(o_b) / n_bits`` over the bits' projections o, with f tanh or linear. With tanh
        and an anchor's signs (-1, 1) as direction it is 1 minus the mean absolute difference of the anchor and the
        soft code tanh(o), the quantity whose gradient scHash takes for its saliency.

        Parameters
        ----------
        z : (n, n_genes) float64
            Standardised gene values.
        direction : (n_bits,) float64
        score : {"tanh", "linear"}

        Returns
        -------
        (n,) float64
        """
        outputs = self.bits(z)
        return (np.tanh(outputs) if score == "tanh" else outputs) @ direction / self.n_bits

    def gradients(self, z: Floats, direction: Floats, score: str = "tanh") -> Floats:
        """Derivatives of `scores` by each gene: (n, n_genes).

        At the kink of relu the derivative from below, 0, is taken.
        """
        outputs = self._outputs(z)
        back = np.broadcast_to(direction / self.n_bits, (len(z), self.n_bits))
        if score == "tanh":
            back = back * (1.0 - np.tanh(outputs[-1] @ self.bit_weight + self.bit_bias) ** 2)
        back = back @ self.bit_weight.T
        for weight, activation, output in reversed(list(zip(self.weights, self.activations, outputs, strict=True))):
            back = (back * _slope(output, activation)) @ weight.T
        return back

    def _outputs(self, z: Floats) -> list[Floats]:
        """What each layer gives, the embedding last."""
        outputs, x = [], z
        for weight, bias, activation in zip(self.weights, self.biases, self.activations, strict=True):
            x = _activate(x @ weight + bias, activation)
            outputs.append(x)
        return outputs


class Attributions(NamedTuple):
    """How much each gene speaks for the direction, in each cell.

    Attributes
    ----------
    values : (n, n_genes) float64
        Gradient: change of the score with a gene, a standard deviation. Integrated: the gene's part of the difference
        between the score of the cell and that of the baseline.
    scores : (n,) float64
    gap : float
        Integrated: the largest difference between the sum of a cell's values and what they add up to in theory.
    """

    values: Floats
    scores: Floats
    gap: float


def attributions(
    layers: HashLayers,
    z: Floats,
    direction: Floats,
    *,
    method: str,
    score: str = "tanh",
    baseline: Floats | None = None,
    n_steps: int = DEFAULT_STEPS,
) -> Attributions:
    """Attribute the score of cells to genes.

    ``gradient`` is the saliency of Simonyan et al. (Deep inside convolutional networks, 2014). ``integrated`` is
    Sundararajan et al. (Axiomatic attribution for deep networks, 2017): the difference from a baseline times the mean
    gradient on the straight way from it, so that a cell's values add up to the difference of the scores. The mean is a
    Gauss-Legendre sum; where a kink of relu lies on the way it is approximate, and the gap says how far. Where bits are
    far from their thresholds tanh is flat: then the gradient at the cell shows the few bits near theirs, mostly noise,
    while the way from the baseline passes the thresholds of all.

    Parameters
    ----------
    layers
    z : (n, n_genes) float64
        Standardised gene values.
    direction : (n_bits,) float64
        Signs of an anchor, or the difference of two.
    method : {"gradient", "integrated"}
    score : {"tanh", "linear"}
        See `HashLayers.scores`.
    baseline : (n_genes,) float64, optional
        Zeros by default: the average cell of what the hash function was fitted on.
    n_steps
        Points on the way.

    Raises
    ------
    SettingsError
        If the method or the score is unknown, or there are no steps.
    ValueError
        If shapes do not fit.
    """
    for name, value, known in (("method", method, METHODS), ("score", score, SCORES)):
        if value not in known:
            raise SettingsError(f"--{name} is {value!r}; expected one of {', '.join(known)}.")
    if n_steps < 1:
        raise SettingsError(f"the number of steps is {n_steps}; expected at least 1.")
    z, direction = np.asarray(z, dtype=np.float64), np.asarray(direction, dtype=np.float64)
    if z.ndim != 2 or z.shape[1] != layers.n_genes or direction.shape != (layers.n_bits,):
        raise ValueError(
            f"z has shape {z.shape} and direction {direction.shape}, expected (n, {layers.n_genes}) and "
            f"({layers.n_bits},)"
        )
    scores = layers.scores(z, direction, score)
    if method == "gradient":
        return Attributions(layers.gradients(z, direction, score), scores, 0.0)
    start = np.zeros(layers.n_genes) if baseline is None else np.asarray(baseline, dtype=np.float64)
    nodes, node_weights = np.polynomial.legendre.leggauss(n_steps)
    values = np.empty_like(z)
    at_once = max(1, _BLOCK_ELEMENTS // (n_steps * max(layers.n_genes, *(w.shape[1] for w in layers.weights))))
    for first in range(0, len(z), at_once):
        way = z[first : first + at_once] - start
        points = start + (0.5 + 0.5 * nodes)[:, None, None] * way
        gradients = layers.gradients(points.reshape(-1, layers.n_genes), direction, score)
        mean = np.einsum("s,sng->ng", 0.5 * node_weights, gradients.reshape(points.shape))
        values[first : first + at_once] = way * mean
    total = scores - layers.scores(start[None], direction, score)
    gap = float(np.abs(values.sum(axis=1) - total).max()) if len(z) else 0.0
    return Attributions(values, scores, gap)


def _activate(x: Floats, activation: str) -> Floats:
    if activation == "relu":
        return np.maximum(x, 0.0)
    if activation == "sigmoid":
        return 0.5 * (1.0 + np.tanh(0.5 * x))  # does not overflow
    return np.tanh(x) if activation == "tanh" else x


def _slope(output: Floats, activation: str) -> Floats | float:
    """The derivative of an activation, from what it gave."""
    if activation == "relu":
        return (output > 0).astype(np.float64)
    if activation == "sigmoid":
        return output * (1.0 - output)
    return 1.0 - output**2 if activation == "tanh" else 1.0
