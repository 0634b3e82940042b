"""Cluster bucket tokens. This room sees tokens only, never the matrix."""

from hashstream.cluster.partition import METHODS, TokenClusters, cluster_tokens, scaled_points

__all__ = ["METHODS", "TokenClusters", "cluster_tokens", "scaled_points"]
