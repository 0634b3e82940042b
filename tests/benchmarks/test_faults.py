"""The fault tests, small: what they must find nothing wrong with, and that they see what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import _faults_fuzz as fuzzing
from benchmarks import faults
from benchmarks._faults_damage import damage
from benchmarks._faults_report import TRACEBACK, UNCLEAR, WRONG, Tally, summary

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries warn of what the damaged files hold


def test_random_stores_are_taken_rightly_or_refused(tmp_path: Path) -> None:
    tally = fuzzing.fuzz(tmp_path / "fuzz", 60, seed=5)
    assert tally.findings == []
    assert tally.cases == 60
    assert tally.outcomes["right, taken by encode"] > 10
    assert tally.outcomes["faulty, refused by encode"] > 10


def test_the_fuzz_sees_wrong_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def off_by_a_bit(*arguments: object) -> np.ndarray:
        return stream(*arguments) ^ np.uint64(1)  # type: ignore[arg-type]

    def crash(*_: object) -> np.ndarray:
        raise IndexError("list index out of range")

    stream = fuzzing.stream_codes
    for broken, kind in ((off_by_a_bit, WRONG), (crash, TRACEBACK)):
        monkeypatch.setattr(fuzzing, "stream_codes", broken)
        tally = fuzzing.fuzz(tmp_path / kind, 12, seed=5)
        assert {found["kind"] for found in tally.findings} == {kind}


def test_damaged_files_are_named_or_of_no_matter(tmp_path: Path) -> None:
    tally = damage(tmp_path / "damage", flips=1, seed=1, n_cells=200, share=0.15)
    assert tally.findings == []
    assert tally.outcomes["atlas.zarr: named"] + tally.outcomes["run: named"] > 5


def test_the_figures_of_a_run() -> None:
    kills, fuzz = Tally(), Tally()
    kills.count("encode: killed, same bytes")
    kills.find("not resumed", command="encode")
    fuzz.find(WRONG, case=1)
    fuzz.find(UNCLEAR, case=2)
    found = summary({"kills": kills, "fuzz": fuzz})
    assert found["kills_resumed_fraction"] == 0.5
    assert (found["silent_wrong_results"], found["tracebacks"], found["unclear"], found["cases"]) == (1, 0, 1, 4)


@pytest.mark.slow
def test_a_killed_ingest(tmp_path: Path) -> None:
    words = ["--only", "kills", "--tasks", "ingest", "--kills", "1", "--cells", "3000"]
    code = faults.main([*words, "--folder", str(tmp_path), "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert (code, found["kills_resumed_fraction"]) == (0, 1.0), found
    assert found["cases"] == 1
