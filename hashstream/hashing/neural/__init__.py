"""The neural hash function: a multi-head hash encoder trained on a bounded sample. Only `fit_neural` needs torch."""

from hashstream.hashing.neural.fit import fit_neural
from hashstream.hashing.neural.settings import NeuralSettings

__all__ = ["NeuralSettings", "fit_neural"]
