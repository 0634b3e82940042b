"""Reading codes by anchors: against plain loops, alone or with others, saved and damaged."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from hashstream.annotate.anchors import ACCEPTED, AMBIGUOUS, NOVEL, Anchors
from hashstream.errors import InputError
from hashstream.kernels import pack_bits, unpack_bits

N_BITS, N_NOVELTY = 70, 20


def make(n_classes: int = 5, seed: int = 0) -> Anchors:
    rng = np.random.default_rng(seed)
    return Anchors(
        names=("T cell", 'β/α, "x"\n', "", "naïve 细胞", *(f"type {i}" for i in range(4, n_classes)))[:n_classes],
        anchors=pack_bits(rng.random((n_classes, N_BITS)) < 0.5),
        n_bits=N_BITS,
        read_out=rng.integers(-30_000, 30_001, (n_classes, N_BITS)).astype(np.int16),
        offset=rng.integers(-900, 900, n_classes).astype(np.int32),
        scale=2e-5,
        profile=rng.integers(-1000, 1001, (n_classes, N_NOVELTY)).astype(np.int16),
        fit_mean=rng.random((n_classes, 2)) * 0.1,
        fit_deviation=0.1 + rng.random((n_classes, 2)),
        novelty_weights=np.array([-0.5, 1.0, 0.7, 0.3]),
        ambiguous_below=np.linspace(0.3, 0.9, n_classes),
        novel_above=np.linspace(-0.5, 0.5, n_classes),
        class_counts=np.arange(1, n_classes + 1),
        minimum_distance=20,
        hasher_fingerprint="abc",
        left_out={"rare": 3},
        calibration={"accuracy": 0.5},
    )


def random_codes(n: int, seed: int = 1) -> np.ndarray:
    return pack_bits(np.random.default_rng(seed).random((n, N_BITS + N_NOVELTY)) < 0.5)


def plain(anchors: Anchors, code: np.ndarray) -> dict[str, object]:
    """The definition, in Python numbers."""
    bits = unpack_bits(code[None], anchors.code_bits)[0]
    signs = [2 * int(b) - 1 for b in bits]
    odds = [
        anchors.scale * (sum(int(w) * s for w, s in zip(row, signs, strict=False)) + int(o))
        for row, o in zip(anchors.read_out, anchors.offset, strict=True)
    ]
    weights = [math.exp(o - max(odds)) for o in odds]
    p = [w / sum(weights) for w in weights]
    order = sorted(range(len(p)), key=lambda c: (-p[c], c))
    label = order[0]
    half = N_NOVELTY // 2
    lack = 0.0
    for part in range(2):
        some = signs[N_BITS + part * half : N_BITS + (part + 1) * half]
        profile = anchors.profile[label, part * half : (part + 1) * half]
        fit = sum(int(a) * s for a, s in zip(profile, some, strict=True)) / (1000 * half)
        lack -= (fit - anchors.fit_mean[label, part]) / anchors.fit_deviation[label, part]
    # The others: profiles of size 1 in either half, their mean rounded once.
    rows = [[int(v) / 1000 for v in row] for row in anchors.profile]
    sizes = [[math.sqrt(sum(v * v for v in row[h * half : (h + 1) * half]) / half) for h in range(2)] for row in rows]
    k = len(rows)
    common = [
        round(1000 * sum(row[b] / size[b // half] for row, size in zip(rows, sizes, strict=True)) / k)
        for b in range(N_NOVELTY)
    ]
    novel_signs = signs[N_BITS:]
    all_fit = sum(c * s for c, s in zip(common, novel_signs, strict=True)) / (1000 * N_NOVELTY)
    own_fit = sum(rows[label][b] / sizes[label][b // half] * novel_signs[b] for b in range(N_NOVELTY)) / N_NOVELTY
    others = (k * all_fit - own_fit) / (k - 1)
    doubt = math.log(max(1 - p[label], 1e-6))
    novelty = -0.5 + lack / 2 - 0.7 * others + 0.3 * doubt
    own = unpack_bits(anchors.anchors[label][None], N_BITS)[0]
    rejection = ACCEPTED
    if p[label] < anchors.ambiguous_below[label]:
        rejection = AMBIGUOUS
    if novelty > anchors.novel_above[label]:
        rejection = NOVEL
    return {
        "label": label,
        "top": order[:3],
        "p": [p[c] for c in order[:3]],
        "novelty": novelty,
        "distance": int((own != bits[:N_BITS]).sum()),
        "rejection": rejection,
    }


@pytest.mark.parametrize("n_classes", [2, 5, 40])
def test_scores_are_their_definition(n_classes: int) -> None:
    anchors, codes = make(n_classes), random_codes(60)
    scores = anchors.score(codes)
    expected = [plain(anchors, code) for code in codes]
    k = min(3, n_classes)
    assert scores.labels.tolist() == [e["label"] for e in expected]
    assert scores.top[:, :k].tolist() == [e["top"] for e in expected]
    assert (scores.top[:, k:] == -1).all()
    np.testing.assert_allclose(scores.probabilities[:, :k], [e["p"] for e in expected], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(scores.margin, scores.probabilities[:, 0] - scores.probabilities[:, 1])
    np.testing.assert_allclose(scores.novelty, [e["novelty"] for e in expected], rtol=1e-4, atol=1e-4)
    assert scores.distance.tolist() == [e["distance"] for e in expected]
    assert scores.rejection.tolist() == [e["rejection"] for e in expected]
    assert {ACCEPTED, AMBIGUOUS, NOVEL} <= set(scores.rejection.tolist()) or n_classes == 2
    np.testing.assert_allclose(anchors.class_probabilities(codes).sum(axis=1), 1, rtol=1e-5)


def test_a_code_is_scored_alike_alone_and_among_many() -> None:
    anchors, codes = make(40), random_codes(5_000)
    before = codes.copy()
    whole = anchors.score(codes)
    for i in (0, 1_023, 1_024, 4_999):
        alone = anchors.score(codes[i : i + 1])
        for field in dataclasses.fields(alone):
            assert np.array_equal(getattr(alone, field.name)[0], getattr(whole, field.name)[i]), field.name
    assert np.array_equal(codes, before)
    assert len(anchors.score(codes[:0]).labels) == 0


def test_a_threshold_replaces_the_learned_ones() -> None:
    anchors, codes = make(), random_codes(200)
    assert (anchors.score(codes, unknown_threshold=0.0).rejection == ACCEPTED).all()
    scores = anchors.score(codes, unknown_threshold=0.7)
    assert np.array_equal(scores.rejection == AMBIGUOUS, scores.probabilities[:, 0] < 0.7)
    assert 0 < (scores.rejection == AMBIGUOUS).sum() < 200


def test_codes_of_another_hasher_are_refused() -> None:
    with pytest.raises(InputError, match="codes of 64 bits, but the anchors need 90"):
        make().score(random_codes(3)[:, :1].copy())


def test_save_and_load(tmp_path: Path) -> None:
    anchors = make()
    anchors.save(tmp_path)
    loaded = Anchors.load(tmp_path)
    assert loaded.fingerprint() == anchors.fingerprint()
    for field in dataclasses.fields(anchors):
        a, b = getattr(anchors, field.name), getattr(loaded, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name


def test_the_fingerprint_covers_everything(tmp_path: Path) -> None:
    anchors = make()
    known = {anchors.fingerprint()}
    changes = {"scale": 3e-5, "left_out": {}, "calibration": {}, "hasher_fingerprint": "x"}
    changes |= {"names": ("a", *anchors.names[1:]), "minimum_distance": 21}
    for name, array in ((f.name, getattr(anchors, f.name)) for f in dataclasses.fields(anchors)):
        if isinstance(array, np.ndarray):
            changed = array.copy()
            changed.flat[0] = changed.flat[1]
            changed.flat[1] = array.flat[0]
            changes[name] = changed
    for name, value in changes.items():
        known.add(dataclasses.replace(anchors, **{name: value}).fingerprint())
    assert len(known) == len(changes) + 1


@pytest.mark.parametrize("name", ["anchors.json", "anchors.safetensors"])
@pytest.mark.parametrize("how", ["missing", "empty", "half"])
def test_damaged_files_are_refused(tmp_path: Path, name: str, how: str) -> None:
    make().save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "empty" else content[: len(content) // 2])
    with pytest.raises(InputError, match="no anchors" if how == "missing" else "damaged"):
        Anchors.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("names", ["a", "b", "c", "d"], "damaged"),
        ("names", ["a", "b", "c", "d", "d"], "damaged"),
        ("names", ["a", "b", "c", "d", "e"], "fingerprint"),
        ("n_bits", 200, "damaged"),
        ("scale", -1.0, "damaged"),
        ("scale", None, "damaged"),
        ("scale", 4e-5, "fingerprint"),
        ("left_out", [], "damaged"),
        ("format_version", 9, "format version 9"),
    ],
)
def test_tampered_values_are_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    make().save(tmp_path)
    path = tmp_path / "anchors.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=message):
        Anchors.load(tmp_path)


def test_a_flipped_bit_of_a_tensor_is_noticed(tmp_path: Path) -> None:
    make().save(tmp_path)
    path = tmp_path / "anchors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="fingerprint|damaged"):
        Anchors.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"read_out": np.full((5, N_BITS), 32_767, np.int16), "offset": np.full(5, 1 << 23, np.int32)},
        {"fit_deviation": np.zeros((5, 2))},
        {"fit_mean": np.full((5, 2), np.nan)},
        {"novelty_weights": np.ones(3)},
        {"profile": np.full((5, N_NOVELTY), 1001, np.int16)},
        {"anchors": np.zeros((5, 1), np.uint64)},
        {"class_counts": np.zeros(4, np.int64)},
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="expected|out of range|NaN"):
        dataclasses.replace(make(), **change)
