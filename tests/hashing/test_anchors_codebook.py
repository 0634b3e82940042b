"""Code books: guaranteed distances, no constant column, similar types near each other."""

from __future__ import annotations

import numpy as np
import pytest

from hashstream.errors import SettingsError
from hashstream.hashing.anchors import AnchorSettings, code_book
from hashstream.hashing.anchors.bch import bch_words


def plain_distances(anchors: np.ndarray) -> np.ndarray:
    return (anchors[:, None] != anchors[None]).sum(axis=2)


# Dimensions and distances of the extended binary BCH codes: MacWilliams and Sloane, chapter 9.
@pytest.mark.parametrize(
    ("m", "n_words", "dimension", "distance"),
    [(4, 32, 5, 8), (4, 33, 7, 6), (6, 128, 7, 32), (6, 1000, 10, 28), (6, 2000, 16, 24), (7, 300, 15, 56)],
)
def test_bch_words_are_as_far_apart_as_promised(m: int, n_words: int, dimension: int, distance: int) -> None:
    words, promised = bch_words(m, n_words)
    assert words.shape == (2**dimension, 2**m)
    assert promised == distance
    # The code is linear: its least distance is the least weight of a word that is not 0.
    assert words[1:].sum(axis=1).min() == distance
    assert len(np.unique(words, axis=0)) == len(words)
    rng = np.random.default_rng(0)
    known = {word.tobytes() for word in words}
    for a, b in rng.integers(0, len(words), (50, 2)):
        assert (words[a] ^ words[b]).tobytes() in known
    assert (1 - words[3]).astype(np.uint8).tobytes() in known


def test_more_words_than_a_length_has_are_refused() -> None:
    with pytest.raises(ValueError, match="no BCH code of 16 bits"):
        bch_words(4, 2**12)
    with pytest.raises(SettingsError, match="raise --bits"):
        code_book(5_000, 16)


@pytest.mark.parametrize("n_bits", [16, 64, 100, 128])
@pytest.mark.parametrize("n_classes", [2, 3, 5, 6, 7, 8, 19, 54, 129])
def test_every_book_keeps_its_promise(n_classes: int, n_bits: int) -> None:
    book = code_book(n_classes, n_bits, seed=1)
    assert book.anchors.shape == (n_classes, n_bits)
    distances = plain_distances(book.anchors)
    off = distances[~np.eye(n_classes, dtype=bool)]
    assert off.min() == book.minimum_distance >= book.guaranteed_distance > 0
    ones = book.anchors.sum(axis=0)
    assert ((ones > 0) & (ones < n_classes)).all()
    assert (book.signs == np.where(book.anchors == 1, 1, -1)).all()


def test_a_thousand_classes_at_64_bits() -> None:
    book = code_book(1000, 64)
    # Random balanced rows have 14.
    assert book.minimum_distance == 28
    assert (plain_distances(book.anchors).argmin(axis=1) == np.arange(1000)).all()


def test_few_classes_are_farther_apart_than_rows_of_a_hadamard_matrix() -> None:
    assert [code_book(n, 64).minimum_distance for n in (2, 3, 4, 9, 64, 128)] == [64, 42, 42, 32, 32, 32]


@pytest.mark.parametrize(("n_classes", "n_bits", "below"), [(5, 60, -0.3), (54, 64, -0.15), (200, 64, -0.4)])
def test_similar_classes_are_nearer(n_classes: int, n_bits: int, below: float) -> None:
    places = np.random.default_rng(3).standard_normal((n_classes, 4))
    similarity = np.corrcoef(places)
    pairs = np.triu_indices(n_classes, 1)
    book = code_book(n_classes, n_bits + 4, similarity=similarity)
    assert np.corrcoef(similarity[pairs], plain_distances(book.anchors)[pairs])[0, 1] < below
    again = code_book(n_classes, n_bits + 4, similarity=similarity)
    assert np.array_equal(book.anchors, again.anchors)


def test_a_similarity_that_is_not_a_number_counts_as_none() -> None:
    similarity = np.corrcoef(np.random.default_rng(0).standard_normal((9, 4)))
    similarity[2] = np.nan
    assert code_book(9, 32, similarity=similarity).minimum_distance >= 16
    with pytest.raises(ValueError, match="similarity has shape"):
        code_book(9, 32, similarity=similarity[:4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_bits": 8}, "--bits 8"),
        ({"novelty_bits": 33}, "even"),
        ({"loss": "hinge"}, "margin-cosine, schash"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"validation": 0.0}, "validation"),
        ({"discriminant_weight": 0.0, "deep_weight": 0.0}, "both 0"),
        ({"min_cells": 1}, "min_cells"),
        ({"input_dropout": 1.0}, "input_dropout"),
        ({"learning_rate": float("nan")}, "learning_rate"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        AnchorSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [(1, 64), (4, 15), (4, 1025)])
def test_bad_books_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(SettingsError):
        code_book(*arguments)
