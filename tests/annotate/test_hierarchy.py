"""A parent where the child is unsure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hashstream.annotate.hierarchy import hierarchical_labels, parents_from_counts, read_hierarchy
from hashstream.errors import InputError, SettingsError

CLASSES = ("CD4", "CD8", "B", "alpha")
PARENTS = {"CD4": "T", "CD8": "T", "T": "lymphocyte", "B": "lymphocyte"}


def label(*probabilities: float, **options: object) -> tuple[str | None, int, float]:
    found = hierarchical_labels(np.array([probabilities]), CLASSES, PARENTS, **options)
    name = None if found.labels[0] < 0 else found.names[found.labels[0]]
    return name, int(found.levels[0]), round(float(found.confidence[0]), 6)


def test_child_then_parent_then_grandparent_then_unknown() -> None:
    assert label(0.6, 0.2, 0.1, 0.1) == ("CD4", 0, 0.6)
    assert label(0.4, 0.3, 0.1, 0.2) == ("T", 1, 0.7)
    assert label(0.3, 0.1, 0.35, 0.25) == ("lymphocyte", 2, 0.75)
    assert label(0.2, 0.1, 0.15, 0.45) == (None, -1, 0.45)
    # A class without a parent stays itself at every level.
    assert label(0.1, 0.1, 0.1, 0.6) == ("alpha", 0, 0.6)
    assert label(0.5, 0.0, 0.0, 0.5) == ("CD4", 0, 0.5)


def test_the_most_probable_parent_need_not_have_the_most_probable_child() -> None:
    assert label(0.25, 0.3, 0.0, 0.45) == ("T", 1, 0.55)
    assert label(0.25, 0.2, 0.35, 0.2, threshold=0.45) == ("T", 1, 0.45)
    assert label(0.2, 0.15, 0.2, 0.45) == ("lymphocyte", 2, 0.55)
    assert label(0.3, 0.25, 0.0, 0.45, threshold=0.6) == (None, -1, 0.55)


def test_thresholds_of_their_own() -> None:
    assert label(0.6, 0.2, 0.1, 0.1, thresholds={"CD4": 0.9}) == ("T", 1, 0.8)
    assert label(0.6, 0.2, 0.1, 0.1, thresholds={"CD4": 0.9, "T": 0.9}) == ("lymphocyte", 2, 0.9)
    assert label(0.6, 0.2, 0.1, 0.1, threshold=0.95) == (None, -1, 0.9)
    with pytest.raises(SettingsError, match="'NK', which are neither"):
        label(0.6, 0.2, 0.1, 0.1, thresholds={"NK": 0.9})
    with pytest.raises(SettingsError, match=r"a threshold is 1\.2"):
        label(0.6, 0.2, 0.1, 0.1, threshold=1.2)


def test_a_class_may_be_a_parent() -> None:
    found = hierarchical_labels(np.array([[0.4, 0.3]]), ["CD4", "T"], {"CD4": "T"})
    assert (found.names, found.labels.tolist(), found.levels.tolist()) == (("CD4", "T"), [1], [1])


def test_branches_of_uneven_depth() -> None:
    """A parent has the probability of all that is below it, near or far, and is tried before its own parent."""
    parents = {"naive CD4": "CD4", "CD4": "T", "CD8": "T", "T": "lymphocyte", "B": "lymphocyte"}
    found = hierarchical_labels(np.array([[0.3, 0.3, 0.4], [0.3, 0.1, 0.6]]), ["naive CD4", "CD8", "B"], parents)
    assert [found.names[i] for i in found.labels] == ["T", "B"]
    assert found.levels.tolist() == [2, 0]
    assert np.allclose(found.confidence, [0.6, 0.6])


def test_a_class_that_is_a_parent_has_what_is_below_it() -> None:
    parents = {"CD4": "T", "CD8": "T", "T": "lymphocyte", "other": "lymphocyte"}
    probabilities = np.array([[0.35, 0.25, 0.2, 0.2], [0.55, 0.15, 0.1, 0.2], [0.1, 0.6, 0.1, 0.2]])
    found = hierarchical_labels(probabilities, ["T", "CD4", "CD8", "other"], parents)
    assert [found.names[i] for i in found.labels] == ["T", "T", "CD4"]
    assert found.levels.tolist() == [1, 0, 0]
    assert np.allclose(found.confidence, [0.8, 0.8, 0.6])


def test_no_hierarchy_is_the_threshold_alone() -> None:
    found = hierarchical_labels(np.array([[0.4, 0.3], [0.2, 0.8]]), ["a", "b"], {})
    assert found.labels.tolist() == [-1, 1]


def test_hierarchies_that_make_no_sense() -> None:
    with pytest.raises(InputError, match=r"circle: a -> b -> a"):
        hierarchical_labels(np.ones((1, 2)) / 2, ["a", "c"], {"a": "b", "b": "a"})
    with pytest.raises(InputError, match="the name 'unknown'"):
        hierarchical_labels(np.ones((1, 2)) / 2, ["a", "c"], {"a": "unknown"})
    with pytest.raises(InputError, match="none of the classes, 'a', 'c'"):
        hierarchical_labels(np.ones((1, 2)) / 2, ["a", "c"], {"x": "y"})


def test_files(tmp_path: Path) -> None:
    (tmp_path / "h.yaml").write_text("CD4: T\nCD8: T\n1: 2\n")
    (tmp_path / "h.csv").write_text('child,parent\nCD4,T\n"T, naive; β", T\n\n')
    assert read_hierarchy(tmp_path / "h.yaml") == {"CD4": "T", "CD8": "T", "1": "2"}
    assert read_hierarchy(tmp_path / "h.csv") == {"CD4": "T", "T, naive; β": "T"}
    for name, content, message in (
        ("list.yaml", "- a\n- b\n", "found list"),
        ("nested.yaml", "a: [b, c]\n", "no single parent"),
        ("broken.yaml", "a: [b\n", "no label hierarchy"),
        ("wide.csv", "a,b\nc,d,e\n", "line 2 has not two fields"),
        ("two.csv", "a,b\na,c\n", "'a' has two parents, 'b' and 'c'"),
        ("circle.yaml", "a: b\nb: a\n", "circle"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            read_hierarchy(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_hierarchy(tmp_path / "nothing.yaml")


def test_parents_from_a_column_of_coarser_labels() -> None:
    counts = np.array([[5, 0], [7, 0], [0, 2], [0, 0]])
    assert parents_from_counts(counts, ["CD4", "CD8", "B", "none"], ["T", "B"]) == {"CD4": "T", "CD8": "T"}
    counts[0, 1] = 3
    with pytest.raises(InputError, match=r"'CD4' belongs to 'T' \(5 cells\) and 'B' \(3 cells\)"):
        parents_from_counts(counts, ["CD4", "CD8", "B", "none"], ["T", "B"])
