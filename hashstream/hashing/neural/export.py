"""A trained encoder as a Hasher: affine layers with activations, no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.hashing.components import with_positive_peaks
from hashstream.hashing.hasher import Hasher
from hashstream.hashing.itq import nested_groups, nested_itq
from hashstream.hashing.neural.model import HashEncoder
from hashstream.hashing.neural.settings import NeuralSettings

_ITQ_CELLS = 20_000


def encoder_layers(
    encoder: HashEncoder,
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]], list[str]]:
    """Weights, biases and activations of the layers from z to the units; heads become blocks of the last layer."""
    found = {name: tensor.detach().cpu().numpy() for name, tensor in encoder.state_dict().items()}
    blocks = encoder.hyperplanes().detach().cpu().numpy()  # (n_heads, width, units)
    heads, width, units = blocks.shape
    last = np.zeros((heads * width, heads * units), dtype=np.float32)
    for h in range(heads):
        last[h * width : (h + 1) * width, h * units : (h + 1) * units] = blocks[h]
    weights = [found["projection"], found["hidden"], last]
    biases = [found["projection_bias"], found["hidden_bias"], found["offsets"].ravel()]
    return weights, biases, ["linear", "relu", "sigmoid"]


def make_hasher(
    encoder: HashEncoder,
    units: NDArray[np.float32],
    start: Hasher,
    settings: NeuralSettings,
    *,
    seed: int,
    provenance: dict[str, Any],
) -> Hasher:
    """The Hasher of a trained encoder.

    The embedding is the principal components of the units, all of them and in falling order of variance; bits are their
    rotation in nested groups, as in `pca-itq`, so that every prefix is a code of the leading components.

    Parameters
    ----------
    units : (n_cells, n_units) float32
        Of the cells of the sample.
    start : Hasher
        Whose genes and standardisation the encoder was trained with.
    """
    centre = units.mean(axis=0, dtype=np.float64)
    centred = units - centre
    _, vectors = np.linalg.eigh(centred.T @ centred)
    vectors = with_positive_peaks(vectors[:, ::-1])
    scores = centred @ vectors
    some = scores[:: -(-len(scores) // _ITQ_CELLS)]
    rotation = nested_itq(some, nested_groups(settings.n_bits), rng=np.random.default_rng(seed))
    weights, biases, activations = encoder_layers(encoder)
    return Hasher(
        gene_names=start.gene_names,
        gene_ids=start.gene_ids,
        gene_mean=start.gene_mean,
        gene_scale=start.gene_scale,
        target_sum=start.target_sum,
        clip=start.clip,
        weights=(*weights, vectors.astype(np.float32)),
        biases=(*biases, (-centre @ vectors).astype(np.float32)),
        activations=(*activations, "linear"),
        bit_weight=rotation.astype(np.float32),
        bit_bias=np.zeros(settings.n_bits, dtype=np.float32),
        provenance={
            **provenance,
            "component_deviation": [round(float(s), 6) for s in scores.std(axis=0)],
        },
    )
