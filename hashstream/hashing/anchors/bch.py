"""Extended binary BCH codes: as many words as wanted, with a distance known beforehand.

Source: Bose and Ray-Chaudhuri, "On a class of error correcting binary group codes", Inf. Control 3, 1960; MacWilliams
and Sloane, "The Theory of Error-Correcting Codes", chapters 7 and 9. Of the codes of one length, that of m + 1 message
bits is the set of the rows of the Hadamard matrix of order 2**m and their complements.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Primitive polynomials of the fields of 2**m elements, bit i being the coefficient of x**i.
_PRIMITIVE = {4: 0b10011, 5: 0b100101, 6: 0b1000011, 7: 0b10001001, 8: 0b100011101, 9: 0b1000010001, 10: 0b10000001001}


def bch_words(m: int, n_words: int) -> tuple[NDArray[np.uint8], int]:
    """All words of the extended BCH code of length 2**m that is largest in distance among those of enough words.

    Parameters
    ----------
    m : int
        4 to 10.
    n_words : int
        Words wanted.

    Returns
    -------
    words : (2**k, 2**m) uint8
        Zeros and ones, k the fewest message bits that do; row 0 is all zeros, and every word's complement is there.
    distance : int
        The BCH bound: no two words are nearer.

    Raises
    ------
    ValueError
        If no code of that length with a distance of 4 or more has as many words.
    """
    length = 2**m - 1
    generator, dimension, distance = _generator(m, n_words)
    shifted = np.zeros((dimension, length), dtype=np.uint8)
    for row in range(dimension):
        shifted[row, row : row + len(generator)] = generator
    # The bit of each word's parity raises the odd distance of the cyclic code by one.
    basis = np.column_stack([shifted, shifted.sum(axis=1) % 2]).astype(np.uint8)
    words = np.zeros((1, length + 1), dtype=np.uint8)
    for row in basis:
        words = np.concatenate([words, words ^ row])
    return words, distance


def _generator(m: int, n_words: int) -> tuple[NDArray[np.uint8], int, int]:
    """Generator polynomial (lowest coefficient first), message bits and distance of the extended code."""
    length = 2**m - 1
    best: tuple[set[int], int] | None = None
    roots: set[int] = set()
    # The roots alpha**1 to alpha**(d - 1) give distance d at least; even powers come with their odd halves.
    for d in range(3, length + 1, 2):
        power = d - 2
        while power not in roots:
            roots.add(power)
            power = 2 * power % length
        if 2 ** (length - len(roots)) < n_words:
            break
        best = (set(roots), d + 1)
    if best is None:
        raise ValueError(f"no BCH code of {length + 1} bits has {n_words} words")
    return _polynomial(m, best[0]), length - len(best[0]), best[1]


def _polynomial(m: int, roots: set[int]) -> NDArray[np.uint8]:
    """The polynomial over two elements with the given powers of the primitive element as roots."""
    length = 2**m - 1
    powers = [1]
    for _ in range(length - 1):
        value = powers[-1] << 1
        powers.append(value ^ _PRIMITIVE[m] if value >> m else value)
    logarithm = {value: i for i, value in enumerate(powers)}
    product = [1]
    for root in sorted(roots):
        shifted = [0, *product]
        scaled = [powers[(logarithm[c] + root) % length] if c else 0 for c in product] + [0]
        product = [a ^ b for a, b in zip(shifted, scaled, strict=True)]
    return np.asarray(product, dtype=np.uint8)
