"""Stage `report`: what the page says equals what is on disk; nothing on disk becomes markup; the same bytes again."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hashstream.downstream import layout
from hashstream.downstream.layout import plane_layout
from hashstream.downstream.pictures import GREY, MARGIN, MOST_NAMES, SIDE, name_colour, on_page, picture_of_names
from hashstream.downstream.pictures import picture_of_values as picture_of
from hashstream.downstream.report import Share, shown
from hashstream.errors import InputError, SettingsError, TargetExistsError
from hashstream.runtime.arrow import category_array, number_array
from hashstream.runtime.record import write_record
from hashstream.runtime.run import Run
from hashstream.stages import report_record, report_tables
from hashstream.stages.cluster import cluster
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings
from hashstream.stages.evaluate import evaluate
from hashstream.stages.markers import MarkersSettings, markers
from hashstream.stages.report import ReportSettings, report
from tests.runs import accept_files, note_stage

BUDGET = "2GiB"
EPOCHS = layout.EPOCHS
EVIL = "<script>alert(1)</script>"
VOID = {"meta"}  # elements that have no end

Row = dict[str, str]


class Page(HTMLParser):
    """Sections by id: their text, tables by caption, legends of pictures by title, and commands; all attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.sections: dict[str, dict[str, Any]] = {}
        self.own: dict[str, Any] = {}
        self.feed(path.read_text())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        found = dict(attrs)
        if tag == "section":
            self.own = {"text": "", "tables": [], "pictures": [], "commands": [], "records": []}
            self.sections[found["id"] or ""] = self.own
        elif tag == "table":
            self.own["tables"].append({"caption": "", "look": found["class"], "head": [], "rows": []})
        elif tag == "figure":
            self.own["pictures"].append({"title": "", "paths": [], "tags": [], "legend": []})
        elif tag == "path":
            self.own["pictures"][-1]["paths"].append((found["stroke"], found["d"]))
        elif tag == "tr" and "tbody" in self.open:
            self.own["tables"][-1]["rows"].append([])
        elif tag in ("th", "td"):
            assert tag == "td" or found["scope"] in ("row", "col")
            table = self.own["tables"][-1]
            (table["rows"][-1] if "tbody" in self.open else table["head"]).append("")
        elif tag in ("li", "text", "code", "pre"):
            places = {"li": "legend", "text": "tags"}
            if tag in places and "figure" in self.open:
                self.own["pictures"][-1][places[tag]].append("")
            elif tag in ("code", "pre"):
                self.own[{"code": "commands", "pre": "records"}[tag]].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or not self.own:
            return
        self.own["text"] += data
        tag = next((one for one in reversed(self.open) if one not in ("b", "span")), "")
        if tag == "caption":
            self.own["tables"][-1]["caption"] += data
        elif tag == "figcaption":
            self.own["pictures"][-1]["title"] += data
        elif tag in ("th", "td"):
            table = self.own["tables"][-1]
            (table["rows"][-1] if "tbody" in self.open else table["head"])[-1] += data
        elif tag in ("li", "text") and "figure" in self.open:
            self.own["pictures"][-1]["legend" if tag == "li" else "tags"][-1] += data
        elif tag in ("code", "pre"):
            self.own["commands" if tag == "code" else "records"][-1] += data

    def rows(self, section: str, caption: str) -> dict[str, Row]:
        """The rows of a table by their title, the values by that of their column."""
        (table,) = (one for one in self.sections[section]["tables"] if one["caption"].startswith(caption))
        head = table["head"] or ["", "value"]
        assert all(len(row) == len(head) for row in table["rows"])
        return {row[0]: dict(zip(head, row, strict=True)) for row in table["rows"]}

    def facts(self, section: str, caption: str) -> dict[str, str]:
        return {name: row["value"] for name, row in self.rows(section, caption).items()}

    def picture(self, title: str) -> dict[str, Any]:
        (found,) = (one for one in self.sections["map"]["pictures"] if one["title"] == title)
        return found


def page_of(run: Path, target: Path, **options: Any) -> Page:
    report(run, target=target, force=True, **options)
    return Page(target)


def cells_of(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "cells.parquet")


def points_of(picture: dict[str, Any]) -> dict[str, int]:
    """Points drawn in each colour."""
    found: dict[str, int] = {}
    for colour, path in picture["paths"]:
        assert re.fullmatch(r"(M\d+ \d+h0)+", path)
        found[colour] = found.get(colour, 0) + path.count("M")
    return found


def label_cells(run: Path, names: list[str], codes: np.ndarray, reasons: list[str] | None = None) -> None:
    """Give cells labels by hand, of a confidence that their row tells."""

    def values(rows: slice, buckets: np.ndarray) -> dict[str, pa.Array]:
        own = codes[rows]
        found = {
            "label": category_array(names, own),
            "label_confidence": number_array((np.arange(rows.start, rows.stop) % 7 / 7).astype(np.float32)),
        }
        if reasons is not None:
            why = np.where(own == names.index("unknown"), 1 + np.arange(rows.start, rows.stop) % 2, 0)
            found["label_rejection"] = category_array(reasons, why)
        return found

    columns = ["label", "label_confidence", *([] if reasons is None else ["label_rejection"])]
    Run.open(run).set_cell_columns(columns, values, stage="annotate", record={"labels": "by hand"})


@pytest.fixture(autouse=True)
def _in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "EPOCHS", 20)


@pytest.fixture(scope="module")
def folder(small_h5ad: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with clusters, labels drawn by lot and a table of its clusters' genes, and one that was only encoded."""
    folder = tmp_path_factory.mktemp("report")
    encode(small_h5ad, folder / "bare", settings=EncodeSettings(max_buckets=100))
    encode(small_h5ad, folder / "run", hasher=folder / "bare" / "hasher")
    cluster(folder / "run", n_clusters=4)
    codes = np.random.default_rng(1).choice(4, 600, p=[0.1, 0.5, 0.15, 0.25])
    label_cells(folder / "run", ["unknown", "type 0", "type 1", "type 2"], codes)
    for suffix in (".csv", ".parquet"):
        markers(folder / "run", target=folder / f"m{suffix}", settings=MarkersSettings(max_memory=BUDGET))
    return folder


@pytest.fixture
def run(small_h5ad: Path, folder: Path, tmp_path: Path) -> Path:
    """A run of its own, to be changed."""
    encode(small_h5ad, tmp_path / "run", hasher=folder / "bare" / "hasher")
    return tmp_path / "run"


def test_clusters_labels_and_how_they_go_together(folder: Path, tmp_path: Path) -> None:
    page = page_of(folder / "run", tmp_path / "r.html", markers=folder / "m.csv")
    cells, genes = cells_of(folder / "run"), pd.read_csv(folder / "m.csv", dtype={"group": str})
    sizes = cells["cluster"].astype(str).value_counts()
    found = page.rows("clusters", "Clusters, the largest first")
    assert sorted(found) == sorted(sizes.index)
    assert [row["cells"] for row in found.values()] == [f"{n:,}" for n in sorted(sizes, reverse=True)]
    crossed = pd.crosstab(cells["cluster"].astype(str), cells["label"].astype(str))
    for name, row in found.items():
        own = cells[cells["cluster"] == name]
        assert row["cells"] == str(len(own))
        assert row["of all"] == f"{len(own) / len(cells):.1%}"
        assert float(row["mean confidence"]) == pytest.approx(own["cluster_confidence"].mean(), abs=6e-4)
        assert crossed.loc[name, row["commonest label"]] == crossed.loc[name].max()
        assert row["of the cluster"] == f"{crossed.loc[name].max() / len(own):.1%}"
        assert row["top genes"].split(", ") == genes[genes["group"] == name].nsmallest(5, "rank")["gene"].tolist()
    labels = page.rows("labels", "Labels")
    counted = cells["label"].astype(str).value_counts()
    assert {name: row["cells"] for name, row in labels.items()} == {k: str(n) for k, n in counted.items() if n}
    for name, row in labels.items():
        mean = cells.loc[cells["label"] == name, "label_confidence"].mean()
        assert float(row["mean confidence"]) == pytest.approx(mean, abs=6e-4)
    unknown = int((cells["label"] == "unknown").sum())
    assert unknown > 0
    assert f"{unknown} of 600 cells ({unknown / 600:.1%}) are 'unknown'." in page.sections["labels"]["text"]
    for name, row in page.rows("crossed", "Share of the cells of each cluster").items():
        for label in counted.index:
            share = crossed.loc[name, label] / crossed.loc[name].sum()
            assert row[label] == shown(Share(share), short=True)
    assert page.sections["clusters"]["commands"] == page.sections["labels"]["commands"] == []


def test_tables_of_genes_as_csv_and_parquet(folder: Path, tmp_path: Path) -> None:
    for suffix in (".csv", ".parquet"):
        report(folder / "run", target=tmp_path / f"{suffix}.html", markers=folder / f"m{suffix}")
    assert (tmp_path / ".csv.html").read_bytes() == (tmp_path / ".parquet.html").read_bytes()
    by_label = tmp_path / "labels.csv"
    markers(folder / "run", target=by_label, settings=MarkersSettings(by="label", max_memory=BUDGET))
    page = page_of(folder / "run", tmp_path / "r.html", markers=by_label)
    assert all(row["top genes"].count(",") == 4 for row in page.rows("labels", "Labels").values())
    assert "top genes" not in next(iter(page.rows("clusters", "Clusters").values()))


def test_run_and_encode(folder: Path, small_h5ad: Path, tmp_path: Path) -> None:
    page, opened = page_of(folder / "bare", tmp_path / "r.html"), Run.open(folder / "bare")
    facts = page.facts("run", "The run")
    assert facts["cells"] == "600"
    assert facts["hash function"] == "pca-itq"
    assert facts["bits of a code"] == "64"
    assert facts["HashStream that encoded"] == opened.meta["versions"]["hashstream"]
    assert facts["encoded"] == opened.meta["created"][:19].replace("T", " ") + " UTC"
    (atlas,) = page.rows("run", "What was encoded").values()
    assert list(atlas.values()) == [str(small_h5ad), "600", "300", opened.meta["input"]["gene_match"][0], "X"]
    sizes = pd.read_parquet(folder / "bare" / "buckets.parquet")["count"]
    facts = page.facts("encode", "Buckets")
    assert facts["buckets"] == str(len(sizes))
    assert facts["cells of the largest"] == str(sizes.max())
    assert facts["cells alone in theirs"] == f"{(sizes == 1).sum() / 600:.1%}"
    histogram = page.rows("encode", "Sizes of buckets")
    for title, row in histogram.items():
        low, high = (int(n) for n in (title.split(" to ") if " to " in title else (title, title)))
        inside = sizes[(sizes >= low) & (sizes <= high)]
        assert (row["buckets"], row["of cells"]) == (str(len(inside)), shown(Share(inside.sum() / 600)))
    assert sum(int(row["buckets"]) for row in histogram.values()) == len(sizes)
    memory = page.rows("encode", "Memory")
    peak = opened.meta["peak_rss_bytes"]
    assert memory["peak"]["MiB"] == f"{round(peak / 2**20):,}"
    assert memory["peak"]["of the budget"] == f"{peak / 2**30:.1%}"
    assert memory["budget"]["MiB"] == "1,024"
    times = page.rows("encode", "Time")
    assert {name: row["seconds"] for name, row in times.items() if name != "all"} == {
        name: f"{value:.3f}" for name, value in opened.meta["seconds"].items()
    }


def test_what_is_missing_says_what_to_run(folder: Path, tmp_path: Path) -> None:
    run = folder / "bare"
    result = report(run, target=tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert page.sections["clusters"]["commands"] == [f"hashstream cluster {run}"]
    assert page.sections["labels"]["commands"] == [f"hashstream annotate {run} --reference REF_RUN --labels KEY"]
    assert page.sections["trajectory"]["commands"] == [f"hashstream trajectory {run} --root GROUP"]
    assert page.sections["truth"]["commands"] == [f"hashstream report {run} -o report.html --truth KEY"]
    assert len(result["missing"]) == 4
    assert "crossed" not in page.sections
    (picture,) = page.sections["map"]["pictures"]
    assert (picture["title"], sum(points_of(picture).values())) == ("Cells", 600)
    page = page_of(folder / "run", tmp_path / "r.html")
    assert page.sections["clusters"]["commands"] == [f"hashstream markers {folder / 'run'} -o markers.csv"]


def test_pictures_show_every_cell_in_its_colour(folder: Path, tmp_path: Path) -> None:
    page, cells = page_of(folder / "run", tmp_path / "r.html"), cells_of(folder / "run")
    sizes = cells["cluster"].value_counts()
    drawn = points_of(page.picture("Clusters"))
    assert sorted(drawn.values()) == sorted(sizes[sizes > 0])
    assert page.picture("Clusters")["legend"] == [f"{name} ({n})" for name, n in sizes.items()]
    assert sorted(page.picture("Clusters")["tags"]) == sorted(sizes.index)
    unknown = int((cells["label"] == "unknown").sum())
    assert points_of(page.picture("Labels"))[GREY] == unknown
    assert f"unknown ({unknown})" in page.picture("Labels")["legend"]
    assert sum(points_of(page.picture("Confidence of clusters")).values()) == 600
    fewer = page_of(folder / "run", tmp_path / "r.html", settings=ReportSettings(points=50))
    kept = cells.iloc[np.linspace(0, 599, 50).astype(int)]
    few = kept["cluster"].value_counts()
    assert sorted(points_of(fewer.picture("Clusters")).values()) == sorted(few[few > 0])
    assert "50 of 600 cells" in fewer.sections["map"]["text"]


def test_the_page_needs_nothing_else(folder: Path, tmp_path: Path) -> None:
    page = page_of(folder / "run", tmp_path / "r.html", markers=folder / "m.csv", truth="cell_type")
    whole = (tmp_path / "r.html").read_text()
    assert whole.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        assert name != "src"
        if name == "href":
            assert value.removeprefix("#") in page.sections
        assert "url(" not in value
    assert "@import" not in whole
    assert "url(" not in whole
    heads = [value for _, name, value in page.attributes if name == "aria-labelledby"]
    assert sorted(heads) == sorted(value for tag, name, value in page.attributes if tag == "h2" and name == "id")


def test_the_same_bytes_again(folder: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        report(folder / "run", target=tmp_path / name, markers=folder / "m.csv", truth="cell_type")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    report(folder / "run", target=tmp_path / "c.html", seed=1, markers=folder / "m.csv", truth="cell_type")
    assert (tmp_path / "a.html").read_bytes() != (tmp_path / "c.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html", "c.html"]


def test_truth(folder: Path, small_h5ad: Path, tmp_path: Path) -> None:
    page = page_of(folder / "run", tmp_path / "r.html", truth="cell_type")
    expected = evaluate(Run.open(folder / "run"), "cell_type")
    assert page.facts("truth", "Clusters against")["adjusted Rand index"] == f"{expected['cluster']['ari']:.3f}"
    assert page.facts("truth", "Labels against")["accuracy"] == f"{expected['label']['accuracy']:.3f}"
    assert page.facts("truth", "Buckets against")["purity"] == f"{expected['buckets']['purity']:.3f}"
    assert page.sections["truth"]["commands"] == []
    with pytest.raises(InputError, match="no column 'nothing'"):
        report(folder / "run", target=tmp_path / "r.html", truth="nothing", force=True)


def test_markers_of_labels_that_are_called_as_clusters_are(run: Path, tmp_path: Path) -> None:
    for column in ("cluster", "label"):
        Run.open(run).set_cell_columns(
            [column], lambda rows, _, c=column: {c: category_array(["0", "1"], np.arange(600)[rows] % 2)}, stage=column,
            record={},
        )  # fmt: skip
    markers(run, target=tmp_path / "m.csv", settings=MarkersSettings(by="label", max_memory=BUDGET))
    page = page_of(run, tmp_path / "r.html", markers=tmp_path / "m.csv")
    assert all("top genes" not in row for row in page.rows("clusters", "Clusters, the largest first").values())
    assert all(row["top genes"] for row in page.rows("labels", "Labels").values())


def test_names_do_not_become_markup(run: Path, tmp_path: Path) -> None:
    names = [EVIL, 'a" onmouseover="alert(2)', "{{ 7 * 7 }}", "&lt;b&gt;"]
    codes = np.arange(600) % 4
    label_cells(run, names, codes)
    Run.open(run).set_cell_columns(
        ["cluster"],
        lambda rows, buckets: {"cluster": category_array(names, codes[rows])},
        stage="cluster",
        record={"method": EVIL, "warnings": [EVIL], "</pre>" + EVIL: "\ud800"},
    )
    table = pd.DataFrame({"by": "cluster", "group": names, "rank": 0, "gene": [EVIL, "G1", "G2", "G\n3"]})
    table.to_csv(tmp_path / "m.csv", index=False)
    page = page_of(run, tmp_path / "r.html", markers=tmp_path / "m.csv")
    assert "script" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    found = page.rows("clusters", "Clusters, the largest first")
    assert set(found) == set(names)
    assert {row["commonest label"] for row in found.values()} == set(names)
    assert {row["top genes"] for row in found.values()} == {EVIL, "G1", "G2", "G\n3"}
    assert set(page.rows("crossed", "Share")[EVIL]) == {"cluster", *names}
    assert f"2 {EVIL} (150)" in page.picture("Labels")["legend"]
    assert page.facts("clusters", "How they were made")["method"] == EVIL
    assert EVIL in page.sections["records"]["records"][1]
    assert b"<script" not in (tmp_path / "r.html").read_bytes()


def test_why_labels_are_unknown(run: Path, tmp_path: Path) -> None:
    codes = np.arange(600) % 3
    label_cells(run, ["T", "unknown", "B"], codes, reasons=["", "novel", "ambiguous"])
    page = page_of(run, tmp_path / "r.html")
    assert "200 of 600 cells (33.3%) are 'unknown'." in page.sections["labels"]["text"]
    why = cells_of(run)["label_rejection"].value_counts()
    found = {name: row["cells"] for name, row in page.rows("labels", "Why labels are").items()}
    assert found == {"novel": str(why["novel"]), "ambiguous": str(why["ambiguous"])}


def test_groups_beyond_the_most_are_counted(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"type {i:03d}" for i in range(MOST_NAMES + 20)]
    codes = np.arange(600) % len(names)
    label_cells(run, names, codes)
    cluster(run, n_clusters=3)
    monkeypatch.setattr(report_tables, "MOST_ROWS", 7)
    monkeypatch.setattr(report_tables, "MOST_CROSSED", 2)
    page, cells = page_of(run, tmp_path / "r.html"), cells_of(run)
    assert len(page.rows("labels", "Labels")) == 7
    assert f"and {len(names) - 7} more labels of fewer cells." in page.sections["labels"]["text"]
    crossed = page.rows("crossed", "Share")
    assert len(crossed) == 2
    assert "and 1 more clusters of fewer cells." in page.sections["crossed"]["text"]
    for name, row in crossed.items():
        own = cells.loc[cells["cluster"] == name, "label"].astype(str)
        others = (~own.isin(names[:2])).mean()
        assert row[f"and {len(names) - 2} more labels"] == f"{others:.0%}"
    picture = page.picture("Labels")
    assert picture["legend"][-1] == "and 20 more, in grey"
    assert points_of(picture)[GREY] == np.isin(codes, range(MOST_NAMES, len(names))).sum()


def test_trajectory(run: Path, tmp_path: Path) -> None:
    cluster(run, n_clusters=3)
    times = np.linspace(0, 1, 600).astype(np.float32)
    times[::4] = np.nan
    groups = [
        {"group": EVIL, "cells": 400, "median": 0.25, "lower": 0.125, "upper": 0.5},
        {"group": "late", "cells": 200, "median": None, "lower": None, "upper": None},
    ]
    record = {
        "root": EVIL,
        "by": "cluster",
        "cells_unreached": 150,
        "groups": groups,
        "tree": [{"from": EVIL, "to": "late", "connectivity": 0.75}],
    }
    Run.open(run).set_cell_columns(
        ["pseudotime"],
        lambda rows, buckets: {"pseudotime": number_array(times[rows])},
        stage="trajectory",
        record=record,
    )
    page = page_of(run, tmp_path / "r.html")
    assert list(page.rows("trajectory", "Groups by pseudotime")[EVIL].values()) == [
        EVIL, "400", "0.250", "0.125", "0.500"
    ]  # fmt: skip
    assert list(page.rows("trajectory", "Groups by pseudotime")["late"].values()) == ["late", "200", "–", "–", "–"]
    assert list(page.rows("trajectory", "Tree of groups")[EVIL].values()) == [EVIL, "late", "0.750"]
    assert page.facts("trajectory", "How it was made")["cells that no way leads to"] == "150"
    picture = page.picture("Pseudotime")
    assert points_of(picture)[GREY] == 150
    assert "no way from the root" in picture["legend"]
    assert page.sections["trajectory"]["commands"] == []
    for damage in (
        {"groups": None},
        {"groups": [3]},
        {"groups": [{"group": 5, "cells": 1}]},
        {"tree": {}},
        {"tree": [{"from": "a"}]},
    ):
        note_stage(Run.open(run), "trajectory", record | damage)
        with pytest.raises(InputError, match="record of trajectory is not as expected"):
            report(run, target=tmp_path / "r.html", force=True)


def test_one_cluster_and_a_time_that_no_cell_has(run: Path, tmp_path: Path) -> None:
    def values(rows: slice, buckets: np.ndarray) -> dict[str, pa.Array]:
        n = len(buckets)
        return {
            "cluster": category_array(["0"], np.zeros(n, np.int32)),
            "cluster_confidence": number_array(np.full(n, np.nan, np.float32)),
            "pseudotime": number_array(np.full(n, np.nan, np.float32)),
        }

    Run.open(run).set_cell_columns(
        ["cluster", "cluster_confidence", "pseudotime"], values, stage="cluster", record={"method": "ward"}
    )
    page = page_of(run, tmp_path / "r.html")
    (row,) = page.rows("clusters", "Clusters, the largest first").values()
    assert list(row.values()) == ["0", "600", "100.0%", "–"]
    assert points_of(page.picture("Pseudotime")) == {GREY: 600}


@pytest.mark.parametrize("n_cells", [1, 2, 5])
def test_a_handful_of_cells(n_cells: int, small_adata: anndata.AnnData, folder: Path, tmp_path: Path) -> None:
    small_adata[:n_cells].write_h5ad(tmp_path / "few.h5ad")
    encode(tmp_path / "few.h5ad", tmp_path / "few", hasher=folder / "bare" / "hasher")
    (picture,) = page_of(tmp_path / "few", tmp_path / "r.html").sections["map"]["pictures"]
    assert sum(points_of(picture).values()) == n_cells


def test_tables_that_are_not_the_runs(folder: Path, tmp_path: Path) -> None:
    table = pd.read_csv(folder / "m.csv", dtype={"group": str})

    def refused(match: str, name: str = "m.csv") -> None:
        with pytest.raises(InputError, match=match) as error:
            report(folder / "run", target=tmp_path / "r.html", markers=tmp_path / name)
        assert "hashstream markers" in str(error.value)
        assert not (tmp_path / "r.html").exists()

    refused("no such file")
    table.assign(group=table["group"] + " other").to_csv(tmp_path / "m.csv", index=False)
    refused("groups are not those of the run's cluster, such as '0 other'")
    table.assign(by="cell_type").to_csv(tmp_path / "m.csv", index=False)
    refused("groups are of 'cell_type', not of the run's cluster or label")
    table.assign(by=["label", *table["by"][1:]]).to_csv(tmp_path / "m.csv", index=False)
    refused("groups are of 'cluster', 'label', not of")
    table.drop(columns="rank").to_csv(tmp_path / "m.csv", index=False)
    refused("cannot be read as a table")
    table.assign(rank="first").to_csv(tmp_path / "m.csv", index=False)
    refused("cannot be read as a table")
    table.assign(rank=0).to_csv(tmp_path / "m.csv", index=False)
    refused("two genes of rank 0 in group")
    table[:0].to_csv(tmp_path / "m.csv", index=False)
    refused("holds no genes")
    (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00,,,\n\n\x00")
    refused("cannot be read as a table")
    (tmp_path / "m.csv").write_bytes(b"by,group,rank,gene\ncluster,0,0,\xff\n")
    refused("cannot be read as a table")
    refused("ends in .parquet or .csv", "m.tsv")
    (tmp_path / "m.parquet").write_text("nothing")
    refused("cannot be read as a table", "m.parquet")
    table[table["group"] == "0"].assign(group=0.5).to_parquet(tmp_path / "m.parquet")
    refused("groups are not those", "m.parquet")
    table.drop(columns="gene").to_parquet(tmp_path / "m.parquet")
    refused("expected the columns", "m.parquet")
    table.assign(gene=None).to_parquet(tmp_path / "m.parquet")
    refused("values of gene are missing", "m.parquet")
    (tmp_path / "folder.csv").mkdir()
    refused("no such file", "folder.csv")
    with pytest.raises(InputError, match="which has neither"):
        report(folder / "bare", target=tmp_path / "r.html", markers=folder / "m.csv")


@pytest.mark.parametrize(
    "odd", [None, 3, True, "text", float("nan"), 1e308, -(10**30), [], [None], {}, {"a": {"b": 1}}]
)
def test_odd_entries_of_the_record_are_left_out(odd: Any, run: Path, tmp_path: Path) -> None:
    meta = dict(Run.open(run).meta)
    needed = {
        "n_cells",
        "n_bits",
        "n_dims",
        "n_buckets",
        "bucket_bits",
        "format_version",
        "hasher",
        "stages",
        "input",
        "files",
    }
    meta |= {name: odd for name in meta if name not in needed}
    meta["hasher"] = {**dict.fromkeys(meta["hasher"], odd), "fingerprint": "0"}
    meta["input"] = {**dict.fromkeys(meta["input"], odd), "paths": meta["input"]["paths"]}
    meta["stages"] = {"other": odd}
    write_record(run, meta)
    page = page_of(run, tmp_path / "r.html")
    assert page.facts("run", "The run")["cells"] == "600"
    assert len(page.sections["records"]["records"]) == 2


def test_entries_of_other_kinds(run: Path, tmp_path: Path) -> None:
    meta = dict(Run.open(run).meta)
    meta["config"] = {"max_memory": "a lot", "threads": "two"}
    meta["seconds"] = {"open": 1, "fit": "long", "kernels": -1.0, "stream": True}
    meta["created"] = "yesterday"
    write_record(run, meta)
    page = page_of(run, tmp_path / "r.html")
    assert list(page.rows("encode", "Time")) == ["open", "all"]
    assert list(page.rows("encode", "Memory")) == ["peak", "projected"]
    assert "threads" not in page.facts("encode", "Buckets")
    assert page.facts("run", "The run")["encoded"] == "yesterday"
    for stage in ("cluster", "annotate", "trajectory"):
        for name in ("cluster", "label", "pseudotime"):
            assert name not in Run.open(run).cell_columns()
        write_record(run, {**meta, "stages": {stage: 3}})
        if stage == "trajectory":
            with pytest.raises(InputError, match="record of trajectory is not as expected. Do it again"):
                report(run, target=tmp_path / "r.html", force=True)
        else:
            report(run, target=tmp_path / "r.html", force=True)
    cluster(run, n_clusters=2)
    write_record(run, {**Run.open(run).meta, "stages": {"cluster": [3]}})
    with pytest.raises(InputError, match="record of cluster is not as expected. Do it again: `hashstream cluster"):
        report(run, target=tmp_path / "r.html", force=True)


def test_long_records_are_cut(run: Path, tmp_path: Path) -> None:
    note_stage(Run.open(run), "other", {"sizes": list(range(10**5))})
    record = page_of(run, tmp_path / "r.html").sections["records"]["records"][0]
    assert len(record) < report_record.MOST_CHARACTERS + 100
    assert record.endswith("more characters in run.json")
    deep: list[Any] = []
    for _ in range(10**4):
        deep = [deep]
    assert report_record._json(deep) == "nested too deeply to be shown; see run.json"


def test_damaged_cells(run: Path, tmp_path: Path) -> None:
    cells = cells_of(run)
    good = (run / "cells.parquet").read_bytes()
    for column, value, match in (
        ("bucket", np.int32(10**6), "buckets other than 0 to"),
        ("bucket", np.int32(-1), "buckets other than 0 to"),
        ("cluster", "0", "column 'cluster' has type (large_)?string"),
        ("cluster", np.float32(1), "column 'cluster' has type float"),
        ("cluster", pd.Categorical.from_codes([-1] * 600, ["0"]), "are missing|has type"),
    ):
        cells.assign(**{column: value}).to_parquet(run / "cells.parquet", index=False)
        accept_files(run)
        with pytest.raises(InputError, match=match):
            report(run, target=tmp_path / "r.html")
        (run / "cells.parquet").write_bytes(good)


def test_landmarks_that_are_not_finite(run: Path, tmp_path: Path) -> None:
    table = pa.parquet.read_table(run / "landmarks.parquet")
    row = table["row"].to_numpy()
    for damaged in (np.roll(row, 1), row + 1, row - 1):
        swapped = table.set_column(0, table.schema.field("row"), pa.chunked_array([damaged]))
        pa.parquet.write_table(swapped, run / "landmarks.parquet")
        accept_files(run)
        with pytest.raises(InputError, match="landmarks.parquet: rows out of order"):
            report(run, target=tmp_path / "r.html")


def test_the_target(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name that ends in .html"):
        report(folder / "bare", target=tmp_path / "r.pdf")
    (tmp_path / "r.html").write_text("old")
    with pytest.raises(TargetExistsError):
        report(folder / "bare", target=tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "old"
    result = report(folder / "bare", target=tmp_path / "r.html", force=True)
    assert result["bytes"] == (tmp_path / "r.html").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(InputError, match="no such run"):
        report(tmp_path / "nothing", target=tmp_path / "s.html")


@pytest.mark.parametrize("points", [0, -5])
def test_settings(points: int) -> None:
    with pytest.raises(SettingsError, match=f"points is {points}; expected a positive number"):
        ReportSettings(points=points)


def test_layout_keeps_groups_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "EPOCHS", EPOCHS)
    rng = np.random.default_rng(0)
    centres = 8 * rng.normal(size=(5, 20))
    group = np.repeat(np.arange(5), 60)
    points = (centres[group] + rng.normal(size=(300, 20))).astype(np.float32)
    before = points.copy()
    found = plane_layout(points, seed=3, n_threads=2)
    assert np.array_equal(points, before)
    assert np.array_equal(found, plane_layout(points, seed=3))
    distance = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(axis=1)] == group).mean() > 0.99
    places = on_page(found)
    assert places.min() == MARGIN
    assert places.max() == SIDE - MARGIN
    same = on_page(plane_layout(np.zeros((40, 3), np.float32)))
    assert (same == SIDE // 2).all()


def test_colours_and_levels() -> None:
    colours = [name_colour(i) for i in range(24)]
    assert len(set(colours)) == 24
    assert name_colour(24) == colours[0]
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
    places = np.tile(np.arange(100)[:, None], (1, 2))
    values = np.r_[np.linspace(0.4, 0.6, 98), 0.0, 1.0].astype(np.float32)
    picture = picture_of("t", places, values)
    assert picture.legend[0].name.startswith("0.000 to")
    assert picture.legend[-1].name.endswith("to 1.000")
    counts = {colour: 0 for colour, _ in picture.paths}
    for colour, path in picture.paths:
        counts[colour] += path.count("M")
    assert min(counts.values()) >= 8  # two values far off do not take all the colours
    (entry,) = picture_of("t", places, np.full(100, 0.5)).legend
    assert entry.name == "0.500"
    long = picture_of_names("t", places, np.zeros(100, np.int32), ["long name"], [100])
    assert [tag for *_, tag in long.tags] == ["1"]


def test_numbers_as_they_are_read() -> None:
    assert [shown(value) for value in (None, float("nan"), float("inf"))] == ["–"] * 3
    assert [shown(value) for value in (1234567, 0.12345, 1234.56, "a")] == ["1,234,567", "0.123", "1,234.6", "a"]
    assert [shown(Share(value)) for value in (0, 0.0001, 0.5, 1)] == ["0", "<0.1%", "50.0%", "100.0%"]
    assert [shown(Share(value), short=True) for value in (0.001, 0.5)] == ["<1%", "50%"]


def test_command(folder: Path, tmp_path: Path, hashstream: Callable[..., Any]) -> None:
    target = tmp_path / "r.html"
    done = hashstream(
        "report", folder / "run", "-o", target, "--points", 100, "--markers", folder / "m.csv", "--truth", "cell_type"
    )
    assert done.exit_code == 0, done.output
    page = Page(target)
    assert "100 of 600 cells" in page.sections["map"]["text"]
    assert page.facts("truth", "Buckets against")
    again = hashstream("report", folder / "run", "-o", target)
    assert again.exit_code == 2
    assert "--force" in again.output
