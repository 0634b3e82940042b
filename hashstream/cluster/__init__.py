"""Cluster bucket tokens, or landmarks. This room never sees the matrix."""

from hashstream.cluster.confidence import UNSURE, UNSURE_PROBABILITY
from hashstream.cluster.partition import METHODS, TokenClusters, cluster_landmarks, cluster_tokens, scaled_points
from hashstream.cluster.transformer.settings import TransformerSettings

__all__ = [
    "METHODS",
    "UNSURE",
    "UNSURE_PROBABILITY",
    "TokenClusters",
    "TransformerSettings",
    "cluster_landmarks",
    "cluster_tokens",
    "scaled_points",
]
