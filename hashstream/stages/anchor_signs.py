"""The anchors of a Hasher, as explanations need them. All that this room knows of their files is in `load_anchors`."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import InputError, SettingsError
from hashstream.hashing import Hasher
from hashstream.kernels import unpack_bits


@dataclass(frozen=True)
class AnchorSigns:
    """Anchors as this stage needs them: names, and the bits of each as -1 and 1."""

    names: list[str]
    signs: NDArray[np.float64]  # (n_classes, n_bits): the first bits of a code, which alone decide the type

    def of(self, name: str) -> NDArray[np.float64]:
        """The signs of a class, (n_bits,). Raises SettingsError where there is none of this name."""
        if name not in self.names:
            near = get_close_matches(name, self.names, n=3, cutoff=0.5) or sorted(self.names)[:5]
            raise SettingsError(f"there is no anchor for {name!r}; is it one of {', '.join(map(repr, near))}?")
        return self.signs[self.names.index(name)]


def load_anchors(folder: str | Path, hasher: Hasher) -> AnchorSigns:
    """The anchors that `hashstream fit --method anchors` keeps beside its Hasher.

    Raises
    ------
    InputError
        There are none, or they are another Hasher's.
    """
    from hashstream.annotate.anchors import Anchors

    anchors = Anchors.load(folder)
    if anchors.hasher_fingerprint != hasher.fingerprint():
        raise InputError(f"{folder}: its anchors belong to another hasher than the one beside them. Fit it again.")
    signs = 2.0 * unpack_bits(anchors.anchors, anchors.n_bits).astype(np.float64) - 1.0
    return AnchorSigns(list(anchors.names), signs)
