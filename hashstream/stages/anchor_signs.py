"""The anchors of a Hasher, as explanations need them. All that this room knows of their files is in `load_anchors`."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import SettingsError
from hashstream.hashing import Hasher
from hashstream.kernels import unpack_bits


@dataclass(frozen=True)
class AnchorSigns:
    """Anchors as this stage needs them: names, and the bits of each as -1 and 1."""

    names: list[str]
    signs: NDArray[np.float64]  # (n_classes, n_bits)

    def of(self, name: str) -> NDArray[np.float64]:
        """The signs of a class, (n_bits,). Raises SettingsError where there is none of this name."""
        if name not in self.names:
            near = get_close_matches(name, self.names, n=3, cutoff=0.5) or sorted(self.names)[:5]
            raise SettingsError(f"there is no anchor for {name!r}; is it one of {', '.join(map(repr, near))}?")
        return self.signs[self.names.index(name)]


def load_anchors(folder: str | Path, hasher: Hasher) -> AnchorSigns:
    """The anchors that `hashstream fit --method anchors` keeps beside its Hasher."""
    from hashstream.annotate.anchors import Anchors

    anchors = Anchors.load(folder)
    signs = np.zeros((anchors.n_classes, hasher.n_bits))
    # The bits after the anchors' own say how well a cell fits any type: they have no part in the choice of one.
    signs[:, : anchors.n_bits] = 2.0 * unpack_bits(anchors.anchors, anchors.n_bits) - 1.0
    return AnchorSigns(list(anchors.names), signs)
