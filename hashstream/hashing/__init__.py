"""Learn a hash function, and the Hasher that it becomes."""

from hashstream.hashing.genes import DEFAULT_MIN_OVERLAP, GeneMatch, match_genes
from hashstream.hashing.hasher import BoundHasher, Hasher
from hashstream.hashing.pca_itq import PcaItqSettings, fit_pca_itq

__all__ = [
    "DEFAULT_MIN_OVERLAP",
    "BoundHasher",
    "GeneMatch",
    "Hasher",
    "PcaItqSettings",
    "fit_pca_itq",
    "match_genes",
]
