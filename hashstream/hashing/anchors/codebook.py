"""The code book: one anchor a type, with a guaranteed least distance, similar types near each other."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from hashstream.errors import SettingsError
from hashstream.hashing.anchors.bch import bch_words
from hashstream.hashing.anchors.settings import LEAST_BITS, MOST_BITS
from hashstream.kernels import pack_bits

#: Up to here all even splits of the types are used as columns: farther apart than rows of a Hadamard matrix.
_FEW_CLASSES = 6
_SWAPS_PER_CLASS = 40
_BLOCK = 512
#: Of a larger code so many words are drawn to choose from (or four times as many as classes).
_WORDS_TO_CHOOSE_FROM = 4_096


@dataclass(frozen=True)
class CodeBook:
    """One anchor for each class.

    Attributes
    ----------
    anchors : (n_classes, n_bits) uint8
        Zeros and ones; rows differ, and no column is the same in all of them.
    minimum_distance : int
        Least Hamming distance between two anchors, counted over all pairs.
    guaranteed_distance : int
        What the construction promises; `minimum_distance` is at least this.
    kind : str
        splits, hadamard (rows and complements) or bch.
    """

    anchors: NDArray[np.uint8]
    minimum_distance: int
    guaranteed_distance: int
    kind: str

    @property
    def signs(self) -> NDArray[np.float32]:
        """(n_classes, n_bits) float32 of -1 and 1."""
        return (2.0 * self.anchors - 1.0).astype(np.float32)


def code_book(
    n_classes: int, n_bits: int, *, similarity: NDArray[np.floating] | None = None, seed: int = 0
) -> CodeBook:
    """Anchors for any number of classes.

    Up to 6 classes: every even split of the classes is a column, repeated as often as there is room. Up to twice the
    largest power of two within `n_bits`: rows of a Hadamard matrix and their complements. Beyond: words of an extended
    BCH code (`bch_words`). Bits beyond that power of two repeat earlier columns, which can only add distance. In the
    latter two a pair of complements is always taken, so that no column is constant. Which class gets which word is
    chosen so that similar classes differ in fewer bits where the words leave a choice; words of a Hadamard matrix are
    all equally far apart, but for complements, which go to the least similar classes.

    Parameters
    ----------
    n_classes : int
        At least 2.
    n_bits : int
        16 to 1,024.
    similarity : (n_classes, n_classes), optional
        Larger for more similar classes, such as the correlation of class means. Without it words are drawn at random.
    seed
        Of the drawing.

    Returns
    -------
    CodeBook
        Checked: least distance, constant columns.

    Raises
    ------
    SettingsError
        If there are fewer than two classes, or more than codes of that length can keep apart.
    """
    if n_classes < 2:
        raise SettingsError(f"a code book of {n_classes} classes; expected at least 2.")
    if not LEAST_BITS <= n_bits <= MOST_BITS:
        raise SettingsError(f"--bits {n_bits}: expected {LEAST_BITS} to {MOST_BITS} for --method anchors.")
    rng = np.random.default_rng(seed)
    if n_classes <= _FEW_CLASSES:
        anchors, guaranteed = _splits(n_classes, n_bits)
        if similarity is not None:
            anchors = anchors[
                _swaps((2.0 * anchors - 1.0).astype(np.float64), _similarities(similarity, n_classes)[1], set(), rng)
            ]
        kind = "splits"
    else:
        m = n_bits.bit_length() - 1
        try:
            words, guaranteed = bch_words(m, n_classes)
        except ValueError as error:
            raise SettingsError(f"{n_classes} classes need longer codes than {n_bits} bits; raise --bits.") from error
        kind = "hadamard" if len(words) == 2 ** (m + 1) else "bch"
        chosen = _assign(words, n_classes, similarity, rng)
        anchors = np.column_stack([words[chosen], words[chosen][:, : n_bits - 2**m]])
    found = minimum_distance(anchors)
    if found < guaranteed or (anchors == anchors[0]).all(axis=0).any():
        raise AssertionError(f"code book of {n_classes} classes and {n_bits} bits: distance {found} of {guaranteed}")
    return CodeBook(np.ascontiguousarray(anchors), found, guaranteed, kind)


def minimum_distance(anchors: NDArray[np.uint8]) -> int:
    """Least Hamming distance between two rows of zeros and ones, over all pairs."""
    codes = pack_bits(anchors.astype(np.float32) - 0.5)
    least = anchors.shape[1]
    for start in range(0, len(codes), _BLOCK):
        block = codes[start : start + _BLOCK]
        distance = np.bitwise_count(block[:, None] ^ codes[None]).sum(axis=2, dtype=np.int64)
        distance[np.arange(len(block)), start + np.arange(len(block))] = least
        least = min(least, int(distance.min()))
    return least


def _splits(n_classes: int, n_bits: int) -> tuple[NDArray[np.uint8], int]:
    """Columns that put half of the classes (rounded down) on one side, all such splits in turn."""
    half = n_classes // 2
    ones = [s for s in combinations(range(n_classes), half) if 2 * half < n_classes or s[0] == 0]
    splits = np.zeros((n_classes, len(ones)), dtype=np.uint8)
    for column, members in enumerate(ones):
        splits[list(members), column] = 1
    # Neighbours in the list of combinations are alike; a stride spreads a last, incomplete turn over all of them.
    order = sorted(range(len(ones)), key=lambda i: (i * 0.6180339887498949) % 1.0)
    columns = [order[i % len(order)] for i in range(n_bits)]
    whole = n_bits // len(ones) * len(ones)
    anchors = splits[:, columns]
    return anchors, minimum_distance(splits) * (whole // len(ones))


def _assign(
    words: NDArray[np.uint8], n_classes: int, similarity: NDArray[np.floating] | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Word of each class: greedily, most similar neighbours first, then by swaps that bring similar classes nearer."""
    order = rng.permutation(len(words))[: max(_WORDS_TO_CHOOSE_FROM, 4 * n_classes)]
    other = int((words == 1 - words[order[0]]).all(axis=1).argmax())
    order = np.concatenate([[order[0], other], order[1:][order[1:] != other]])
    if similarity is None:
        return order[:n_classes].astype(np.int64)
    close, centred = _similarities(similarity, n_classes)
    candidates = (2.0 * words[order] - 1.0).astype(np.float64)
    chosen = _greedy(candidates, close, centred)
    signs = candidates[chosen]
    least = np.unravel_index(int((close + np.eye(n_classes) * 1e9).argmin()), close.shape)
    return order[chosen[_swaps(signs, centred, {int(c) for c in least}, rng)]]


def _similarities(similarity: NDArray[np.floating], n_classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The similarities made symmetric and finite with a diagonal of 0, and the same less their mean."""
    close = np.array(similarity, dtype=np.float64)
    if close.shape != (n_classes, n_classes):
        raise ValueError(f"similarity has shape {close.shape}, expected ({n_classes}, {n_classes})")
    close = np.where(np.isfinite(close), close, 0.0)
    close = (close + close.T) / 2
    np.fill_diagonal(close, 0.0)
    centred = close - close[~np.eye(n_classes, dtype=bool)].mean()
    np.fill_diagonal(centred, 0.0)
    return close, centred


def _greedy(signs: NDArray[np.float64], close: NDArray[np.float64], centred: NDArray[np.float64]) -> NDArray[np.int64]:
    """Row of `signs` for each class; the first two, which are complements, go to the least similar classes."""
    n_classes = len(close)
    first, second = np.unravel_index(int((close + np.eye(n_classes) * 1e9).argmin()), close.shape)
    chosen = np.full(n_classes, -1, dtype=np.int64)
    chosen[first], chosen[second] = 0, 1
    free = np.ones(len(signs), dtype=bool)
    free[:2] = False
    for _ in range(n_classes - 2):
        placed, left = np.flatnonzero(chosen >= 0), np.flatnonzero(chosen < 0)
        # Next is the class that is most like one that has its word already.
        number = int(left[close[np.ix_(left, placed)].max(axis=1).argmax()])
        pull = signs @ (centred[number, placed] @ signs[chosen[placed]])
        pull[~free] = -np.inf
        chosen[number] = int(pull.argmax())
        free[chosen[number]] = False
    return chosen


def _swaps(
    signs: NDArray[np.float64], centred: NDArray[np.float64], fixed: set[int], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Which row of `signs` (n_classes, n_bits) each class should have: swaps that raise similarity x agreement."""
    n_classes = len(signs)
    row = np.arange(n_classes)
    movable = np.asarray([c for c in range(n_classes) if c not in fixed])
    if len(movable) < 2:
        return row
    agreement = signs @ signs.T
    for a, b in rng.choice(movable, size=(_SWAPS_PER_CLASS * n_classes, 2)):
        # The terms of the pair itself do not change by a swap; with centred[c, c] = 0 they are these.
        gain = (centred[a] - centred[b]) @ (agreement[b] - agreement[a])
        gain += 2 * centred[a, b] * (agreement[a, b] - (agreement[a, a] + agreement[b, b]) / 2)
        if a != b and gain > 1e-9:
            row[[a, b]] = row[[b, a]]
            agreement[[a, b]] = agreement[[b, a]]
            agreement[:, [a, b]] = agreement[:, [b, a]]
    return row
