"""Codes against the anchors of types: probabilities, nearest types and agreement, from tables of four bits.

Log-odds are sums over bits of a whole number that is added or subtracted. Four bits have 16 such sums, so a code takes
a table row for each of its nibbles instead of a matrix product over its unpacked bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashstream.kernels._arrays import codes_array, share_rows
from hashstream.kernels._intrinsics import popcount
from hashstream.kernels._jit import inline, jit
from hashstream.kernels.pack import prefix_mask, words_for_bits

TOP = 3
_LEAST_LOG_ODDS = np.float32(-60.0)  # exp of less than this is nothing beside 1 in float32
_NONE = np.int32(-(1 << 31))  # below any sum of weights


@dataclass(frozen=True)
class AnchorTables:
    """What `anchor_scores` compares codes with.

    Attributes
    ----------
    log_odds : (n_nibbles, 16, n_classes) int32
        What the four bits of a nibble add to the log-odds of each class.
    offset : (n_classes,) int32
    scale : float
        Of one unit of log-odds.
    anchors : (n_classes, n_anchor_words) uint64
    n_bits : int
        Bits that are compared with the anchors.
    agreement : (n_classes, 2, n_half_nibbles, 16) int32
        What the four bits of a nibble of either half of the novelty bits add to the agreement with each class.
    n_half : int
        Bits of a half.
    common : (n_novelty_nibbles, 16) int32
        What the four bits of a nibble of all novelty bits add to the agreement with the common profile.
    """

    log_odds: NDArray[np.int32]
    offset: NDArray[np.int32]
    scale: float
    anchors: NDArray[np.uint64]
    n_bits: int
    agreement: NDArray[np.int32]
    n_half: int
    common: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        read_out: NDArray[np.int16],
        offset: NDArray[np.int32],
        scale: float,
        anchors: NDArray[np.uint64],
        profile: NDArray[np.int16],
        common: NDArray[np.int16],
    ) -> AnchorTables:
        """Tables from weights.

        Parameters
        ----------
        read_out : (n_classes, n_bits) int16
            Weight of each bit, as +-1, in the log-odds of each class. The sum of the absolute weights of a class and
            its offset is below 2^23.
        offset : (n_classes,) int32
        scale : float
        anchors : (n_classes, n_anchor_words) uint64
        profile : (n_classes, 2 * n_half) int16
            Weight of each novelty bit, as +-1, in the agreement with each class.
        common : (2 * n_half,) int16
            Weight of each novelty bit, as +-1, in the agreement with what the profiles have in common.
        """
        n_half = profile.shape[1] // 2
        halves = [nibble_table(profile[:, :n_half]), nibble_table(profile[:, n_half:])]
        return cls(
            log_odds=nibble_table(read_out),
            offset=np.ascontiguousarray(offset, dtype=np.int32),
            scale=float(scale),
            anchors=codes_array(anchors, "anchors"),
            n_bits=read_out.shape[1],
            agreement=np.ascontiguousarray(np.stack(halves).transpose(3, 0, 1, 2)),
            n_half=n_half,
            common=np.ascontiguousarray(nibble_table(common[None])[:, :, 0]),
        )


@dataclass(frozen=True)
class AnchorScores:
    """What `anchor_scores` gives.

    Attributes
    ----------
    top : (n, 3) int32
        Classes by falling probability, equal ones by their number; -1 where there are no more.
    probabilities : (n, 3) float32
        Theirs; 0 where there are no more.
    distance : (n,) int32
        Hamming distance to the anchor of the first.
    agreement : (n, 2) int32
        Of the halves of the novelty bits with the first.
    common : (n,) int32
        Agreement of all novelty bits with the common profile.
    """

    top: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    distance: NDArray[np.int32]
    agreement: NDArray[np.int32]
    common: NDArray[np.int32]


def nibble_table(weights: NDArray[np.integer]) -> NDArray[np.int32]:
    """Sums of weights, added where a bit is 1 and subtracted where it is 0, for all values of each four bits.

    Parameters
    ----------
    weights : (n_classes, n_bits) integer
        Bits that the last nibble lacks count nothing.

    Returns
    -------
    (ceil(n_bits / 4), 16, n_classes) int32
    """
    n_classes, n_bits = weights.shape
    padded = np.zeros((n_classes, -(-n_bits // 4) * 4), dtype=np.int32)
    padded[:, :n_bits] = weights
    signs = np.where(np.arange(16)[:, None] >> np.arange(4) & 1, 1, -1).astype(np.int32)
    return np.ascontiguousarray(np.einsum("cnb,vb->nvc", padded.reshape(n_classes, -1, 4), signs), dtype=np.int32)


@inline
def _nibble(code, bit):  # type: ignore[no-untyped-def]
    """Bits `bit` to ``bit + 3``; 0 beyond the last word."""
    word, shift = bit >> 6, bit & 63
    value = code[word] >> np.uint64(shift)
    if shift > 60 and word + 1 < len(code):
        value |= code[word + 1] << np.uint64(64 - shift)
    return value & np.uint64(15)


@jit
def _score(  # type: ignore[no-untyped-def]
    codes, log_odds, offset, scale, anchors, mask, agreement, common, n_bits, n_half,
    top, odds, distance, agreeing, sharing,
):  # fmt: skip
    n_classes = len(offset)
    units = np.empty(n_classes, np.int32)
    for row in range(len(codes)):
        code = codes[row]
        units[:] = offset
        for nibble in range(len(log_odds)):
            table = log_odds[nibble, _nibble(code, 4 * nibble)]
            for c in range(n_classes):
                units[c] += table[c]
        first, second, third = -1, -1, -1
        most, next_most, least = _NONE, _NONE, _NONE
        for c in range(n_classes):
            value = units[c]
            if value > least:
                if value > next_most:
                    third, least = second, next_most
                    if value > most:
                        second, next_most = first, most
                        first, most = c, value
                    else:
                        second, next_most = c, value
                else:
                    third, least = c, value
        top[row, 0], top[row, 1], top[row, 2] = first, second, third
        label = first
        highest = most
        total = 0.0
        for c in range(n_classes):
            below = np.float32(units[c] - highest) * scale
            if below > _LEAST_LOG_ODDS:
                total += np.exp(below)
        for rank in range(min(TOP, n_classes)):
            below = np.float32(units[top[row, rank]] - highest) * scale
            odds[row, rank] = np.exp(below) / total
        differing = np.uint64(0)
        for word in range(anchors.shape[1]):
            differing += popcount((code[word] & mask[word]) ^ anchors[label, word])
        distance[row] = differing
        for half in range(2):
            total_agreeing = np.int32(0)
            for nibble in range(agreement.shape[2]):
                bit = n_bits + half * n_half + 4 * nibble
                total_agreeing += agreement[label, half, nibble, _nibble(code, bit)]
            agreeing[row, half] = total_agreeing
        shared = np.int32(0)
        for nibble in range(len(common)):
            shared += common[nibble, _nibble(code, n_bits + 4 * nibble)]
        sharing[row] = shared


@jit
def _best(codes, table, offset, first, units):  # type: ignore[no-untyped-def]
    n_classes = len(offset)
    sums = np.empty(n_classes, np.int32)
    for row in range(len(codes)):
        code = codes[row]
        sums[:] = offset
        for nibble in range(len(table)):
            part = table[nibble, _nibble(code, 4 * nibble)]
            for c in range(n_classes):
                sums[c] += part[c]
        best = 0
        for c in range(1, n_classes):
            if sums[c] > sums[best]:
                best = c
        first[row], units[row] = best, sums[best]


def best_classes(
    codes: Any, weights: NDArray[np.int16], offset: NDArray[np.int32], *, n_threads: int = 1
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The class with the largest ``weights @ bits + offset`` for each code, bits being +-1, and that sum.

    Parameters
    ----------
    codes : (n, n_words) uint64
    weights : (n_classes, n_bits) int16
    offset : (n_classes,) int32
        Sums stay within int32.
    n_threads

    Returns
    -------
    classes : (n,) int32
        The first of equal ones.
    sums : (n,) int32

    Raises
    ------
    TypeError, ValueError
        If the codes are no uint64 matrix or shorter than the weights.
    """
    codes, (n_classes, n_bits) = codes_array(codes), weights.shape
    if codes.shape[1] < words_for_bits(n_bits):
        raise ValueError(f"codes have {codes.shape[1]} words, expected at least {words_for_bits(n_bits)}")
    if n_classes < 1 or offset.shape != (n_classes,):
        raise ValueError(f"{n_classes} classes and offsets {offset.shape}, expected one class or more, one offset each")
    classes, sums = np.empty(len(codes), np.int32), np.empty(len(codes), np.int32)
    table, start_at = nibble_table(weights), np.ascontiguousarray(offset, dtype=np.int32)

    def work(start: int, stop: int) -> None:
        _best(codes[start:stop], table, start_at, classes[start:stop], sums[start:stop])

    share_rows(work, len(codes), n_threads)
    return classes, sums


def anchor_scores(codes: Any, tables: AnchorTables, *, n_threads: int = 1) -> AnchorScores:
    """The most probable classes of each code, and how well it fits the first.

    Parameters
    ----------
    codes : (n, n_words) uint64
        Bits 0 to ``n_bits - 1`` are compared with the anchors, the two halves of the novelty bits follow.
    tables
    n_threads

    Raises
    ------
    TypeError, ValueError
        If the codes are no uint64 matrix or shorter than the tables need.
    """
    codes = codes_array(codes)
    needed = words_for_bits(tables.n_bits + 2 * tables.n_half)
    if codes.shape[1] < needed:
        raise ValueError(f"codes have {codes.shape[1]} words, expected at least {needed}")
    n = len(codes)
    found = AnchorScores(
        top=np.full((n, TOP), -1, np.int32),
        probabilities=np.zeros((n, TOP), np.float32),
        distance=np.empty(n, np.int32),
        agreement=np.empty((n, 2), np.int32),
        common=np.empty(n, np.int32),
    )
    mask = prefix_mask(tables.n_bits, tables.anchors.shape[1])

    def work(start: int, stop: int) -> None:
        _score(
            codes[start:stop],
            tables.log_odds,
            tables.offset,
            np.float32(tables.scale),
            tables.anchors,
            mask,
            tables.agreement,
            tables.common,
            tables.n_bits,
            tables.n_half,
            found.top[start:stop],
            found.probabilities[start:stop],
            found.distance[start:stop],
            found.agreement[start:stop],
            found.common[start:stop],
        )

    share_rows(work, n, n_threads)
    return found
