"""Every option by the command line, the environment and YAML; those without effect are refused; global ones belong
before the verb."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import Result

from hashstream.cli.config import load_config, load_defaults, options_by_name
from hashstream.cli.main import cli
from hashstream.cli.main import run as run_command
from hashstream.cli.options import AtlasType

Cli = Callable[..., Result]
OPTIONS = [
    pytest.param(verb, option, id=f"{verb} {max(option.opts, key=len)}")
    for verb, command in cli.commands.items()
    for option in command.params
    if isinstance(option, click.Option)
]
GLOBAL = [name for name in options_by_name(cli) if name != "config"]


def long_name(option: click.Option) -> str:
    """What a user types, without the dashes before it."""
    return max(option.opts, key=len).removeprefix("--")


def values_for(option: click.Option, default: Any = None) -> list[Any]:
    """Values that the option takes beside its default, as YAML has them; two where there are as many."""
    if option.is_flag:
        return [False] if option.default is True else [True]
    kind = option.type
    if option.nargs == 2:
        return [[0.4, 0.9], [0.5, 0.8]]
    values: list[Any]
    if isinstance(kind, click.Choice):
        return [choice for choice in kind.choices if choice != default][-2:]
    elif isinstance(kind, click.FloatRange):
        values = [0.25, 0.125]
    elif isinstance(kind, click.IntRange):
        values = [value + (kind.min or 0) for value in (8, 11)]
    elif kind is click.INT:
        values = [7, 11]
    else:
        values = ["seven", "eleven"]
    return [[value, f"{value}b"] for value in values] if option.multiple else values


def as_variable(option: click.Option, value: Any) -> str:
    if isinstance(value, list):
        between = os.pathsep if option.type is AtlasType else " "
        return between.join(map(str, value))
    return str(value)


def as_arguments(option: click.Option, value: Any) -> list[str]:
    if option.is_flag:
        return [f"--{long_name(option)}"] if value else list(option.secondary_opts)
    if option.multiple:
        return [part for one in value for part in (f"--{long_name(option)}", str(one))]
    return [f"--{long_name(option)}", *map(str, value if isinstance(value, list) else [value])]


class Given:
    """Runs a verb that does nothing, and tells what it was given for one option."""

    def __init__(self, verb: str, option: click.Option, hashstream: Cli, tmp_path: Path, patch: Any) -> None:
        self.verb, self.option, self.hashstream, self.folder, self.patch = verb, option, hashstream, tmp_path, patch
        self.seen: list[dict[str, Any]] = []
        command = cli.commands[verb]
        patch.setattr(command, "callback", lambda **given: self.seen.append(given))
        self.needed = []
        for one in command.params:
            if isinstance(one, click.Argument):
                self.needed += ["a"]
            elif one.required and one is not option:
                assert isinstance(one, click.Option)
                self.needed += as_arguments(one, values_for(one)[0])

    def by(self, *, file: Any = None, variable: Any = None, line: Any = None) -> Any:
        before: list[str] = []
        if file is not None:
            path = self.folder / "options.yaml"
            path.write_text(yaml.safe_dump({self.verb: {long_name(self.option): file}}))
            before = ["--config", str(path)]
        name = f"HASHSTREAM_{self.verb}_{long_name(self.option)}".replace("-", "_").upper()
        with self.patch.context() as patch:
            if variable is not None:
                patch.setenv(name, as_variable(self.option, variable))
            after = [] if line is None else as_arguments(self.option, line)
            result = self.hashstream(*before, self.verb, *after, *self.needed)
        assert result.exit_code == 0, result.output
        return self.seen[-1][long_name(self.option).replace("-", "_")]


@pytest.mark.parametrize(("verb", "option"), OPTIONS)
def test_an_option_is_called_the_same_everywhere(
    verb: str, option: click.Option, hashstream: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Given(verb, option, hashstream, tmp_path, monkeypatch)
    default = load_defaults().get(verb, {}).get(option.name)
    value, other = [*values_for(option, default), default, default][:2]
    expected = given.by(line=value)
    if not option.required:
        assert given.by() != expected
    assert given.by(file=value) == expected
    assert given.by(variable=value) == expected
    if option.is_flag:
        other = not value
        assert given.by(file=value, variable=other) != expected
        assert given.by(file=other, variable=value) == expected
        return
    assert given.by(file=other, variable=value) == expected
    assert given.by(file=other, line=value) == expected
    assert given.by(variable=other, line=value) == expected
    assert given.by(file=other, variable=other, line=value) == expected


@pytest.mark.parametrize("name", GLOBAL)
def test_a_global_option_is_called_the_same_everywhere(
    name: str, hashstream: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Any] = []
    record = click.pass_obj(lambda session, **given: sessions.append(getattr(session, name)))
    monkeypatch.setattr(cli.commands["inspect"], "callback", record)
    value = 7 if name == "seed" else True
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({name: value}))
    assert hashstream("inspect", "a").exit_code == 0
    assert hashstream("--config", config, "inspect", "a").exit_code == 0
    monkeypatch.setenv(f"HASHSTREAM_{name.upper()}", str(value))
    assert hashstream("inspect", "a").exit_code == 0
    assert sessions == [0 if name == "seed" else False, value, value]


def test_paths_in_the_environment_may_be_urls(hashstream: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atlas = options_by_name(cli.commands["markers"])["atlas"]
    given = Given("markers", atlas, hashstream, tmp_path, monkeypatch)
    found = given.by(variable=["s3://bucket/a.zarr", "here/b.zarr", "https://host:80/c.zarr"])
    assert found == ("s3://bucket/a.zarr", Path("here/b.zarr"), "https://host:80/c.zarr")


def test_files_may_be_short(hashstream: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One value of an option that can be repeated needs no list; sections and values that are empty say nothing."""
    path = tmp_path / "c.yaml"
    path.write_text("neighbours:\n  column: donor\n  neighbours:\nfit:\nseed: 3\n")
    assert load_config(path, cli) == {"neighbours": {"column": ["donor"]}, "fit": {}, "seed": 3}
    given = Given(
        "neighbours", options_by_name(cli.commands["neighbours"])["column"], hashstream, tmp_path, monkeypatch
    )
    assert given.by(file="donor") == ("donor",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version: 1", "unknown key 'version'"),
        ("as_json: true", "unknown key 'as_json'"),
        ("config: other.yaml", "unknown key 'config'"),
        ("evaluate: {json_here: true}", "unknown option(s) json-here of 'evaluate'; it knows atlas, json, truth."),
        ("encode: [1]", "'encode' must be a mapping"),
        ("encode: {max-buckets: 5.7}", "'max-buckets' of 'encode' is 5.7; expected a whole number"),
        ("encode: {resume: 5}", "'resume' of 'encode' is 5; expected true or false"),
        ("encode: {bits: [64]}", "'bits' of 'encode' is [64]; expected one number"),
        ("encode: {threads: {a: 1}}", "'threads' of 'encode' is {'a': 1}; expected one number"),
        ("encode: {threads: true}", "'threads' of 'encode' is True; expected one number"),
        ("encode: {layer: [a, b]}", "'layer' of 'encode' is ['a', 'b']; expected one word"),
        ("verbose: 3", "'verbose' is 3; expected true or false"),
        ("seed: {a: 1}", "'seed' is {'a': 1}; expected one number"),
        ("seed: 1.5", "'seed' is 1.5; expected a whole number"),
        ("encode: {max-buckets: 100, max_buckets: 200}", "'max-buckets' of 'encode' is there twice"),
    ],
)
def test_unknown_keys_are_refused(hashstream: Cli, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "c.yaml").write_text(content + "\n")
    result = hashstream("--config", tmp_path / "c.yaml", "inspect", "a")
    assert result.exit_code == 2
    assert words in result.stderr
    if "unknown key" in words:
        known = result.stderr.rpartition("expected one of ")[2]
        assert "json" in known
        assert "version" not in known
        assert "config" not in known


#: What was asked, the option that has no effect, and where.
WITHOUT_EFFECT = [
    ("encode a -o r --hasher h --bits 7 --n-genes 3", "--bits, --n-genes do not go with --hasher"),
    ("encode a -o r --hasher h --sample 9", "--sample does not go with --hasher"),
    ("encode a -o r --hasher h --genes-by pearson", "--genes-by does not go with --hasher"),
    ("encode a -o r --append --n-genes 3", "--n-genes does not go with --append"),
    ("encode a -o r --append --moment-match --force", "--moment-match, --force do not go with --append"),
    ("encode a -o r --append --partition 0/2", "--partition does not go with --append"),
    ("encode a -o r --workers 2 --checkpoint-seconds 3", "--checkpoint-seconds does not go with --workers"),
    ("fit a -o h --max-steps 5", "--max-steps does not go with --method pca-itq, but with --method neural"),
    ("fit a -o h --learning-rate 0.1", "--learning-rate does not go with --method pca-itq"),
    ("fit a -o h --n-heads 2", "--n-heads does not go with --method pca-itq"),
    ("fit a -o h --thinning 0.5 0.8", "--thinning does not go with --method pca-itq"),
    ("fit a -o h --resume", "--resume does not go with --method pca-itq, but with --method neural"),
    ("fit a -o h --device cpu", "but with --method neural or --method anchors"),
    ("fit a -o h --labels t", "--labels does not go with --method pca-itq, but with --method anchors"),
    ("fit a -o h --labels t --method neural", "--labels does not go with --method neural"),
    ("fit a -o h --labels t --method anchors --resume", "--resume does not go with --method anchors"),
    ("fit a -o h --labels t --method anchors --max-steps 5", "--max-steps does not go with --method anchors"),
    ("fit a -o h --labels t --method anchors --genes-by pearson", "--genes-by does not go with --method anchors"),
    ("cluster r --atlas a", "--atlas does nothing without --batch-key"),
    ("annotate r --hasher h --labels t", "--labels does not go with --hasher, but with --reference"),
    ("annotate r --hasher h -k 3", "--neighbours does not go with --hasher"),
    ("annotate r --hasher h --method vote", "--method does not go with --hasher, but with --reference"),
    (
        "annotate r --reference q --labels t --method discriminant -k 3",
        "--neighbours does not go with --method discriminant",
    ),
    ("annotate r --hasher h --atlas a", "--atlas does not go with --hasher"),
    ("annotate r --hasher h --parents t", "--parents does not go with --hasher"),
    ("annotate r --hasher h --assign cell", "--assign does not go with --hasher"),
    ("annotate r --hasher h --novel-rate 0.1", "--novel-rate does not go with --hasher"),
    ("annotate r --hasher h --min-share 0.5", "--min-share does nothing without --majority"),
    (
        "annotate r --reference q --labels t --unknown-threshold 0 --novel-rate 0.1",
        "--novel-rate does not go with --unknown-threshold 0",
    ),
    ("reference r -o d --add --labels t", "--labels and --add: it counts the columns that the reference has"),
    ("reference r -o d --add --column t --force", "--column, --force and --add: it counts"),
    ("neighbours r --reference d -o o.parquet --candidates 300", "--candidates does nothing without --asymmetric"),
    ("neighbours r --reference d -o o.parquet --asymmetric --atlas a", "--atlas does nothing without --asymmetric"),
    ("neighbours r --reference d -o o.parquet --per cell --atlas a", "--atlas does nothing without --asymmetric"),
    ("search r --queries q -o o.parquet -k 3 --radius 2", "leave one out"),
    ("explain r --hasher h -o o.csv --cell 3 --truth t", "--truth does not go with --cell or --bucket"),
    ("explain r --hasher h -o o.csv --bucket 3 --truth t", "--truth does not go with --cell or --bucket"),
    ("explain r --hasher h -o o.csv --cell 3 --cells 9", "--cells does not go with --cell"),
    ("trajectory r --root 0 --force", "--force does nothing without -o"),
    ("trajectory r --root 0 --by cluster --atlas a", "--atlas does nothing without --by"),
    ("report r -o o.html --atlas a", "--atlas does nothing without --truth"),
    ("export r --to there.zarr --no-counts", "--no-counts does not go with there.zarr"),
    ("export r --to there.zarr --atlas a", "--atlas does not go with there.zarr"),
    ("demo --force", "--force does nothing without -o"),
]


@pytest.mark.parametrize(("line", "words"), WITHOUT_EFFECT)
def test_options_without_effect_are_refused(
    hashstream: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.zarr").mkdir()
    result = hashstream(*line.split())
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == ["there.zarr"]


def test_in_the_environment_they_are_refused_too(hashstream: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASHSTREAM_FIT_MAX_STEPS", "5")
    result = hashstream("fit", "a", "-o", "h")
    assert result.exit_code == 2
    assert "--max-steps does not go with --method pca-itq" in result.stderr
    monkeypatch.delenv("HASHSTREAM_FIT_MAX_STEPS")
    monkeypatch.setenv("HASHSTREAM_FIT_RESUME", "false")  # asks for nothing
    assert "no such file" in hashstream("fit", "a", "-o", "h").stderr


class Called(Exception):
    """The library was called, with these arguments."""


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, hashstream: Cli, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What a verb gives its stage, whose work is not done, with some YAML."""

    def call(stage: str, options: str, *arguments: object) -> dict[str, Any]:
        seen: list[dict[str, Any]] = []

        def record(*_: Any, **named: Any) -> None:
            seen.append(named)
            raise Called

        monkeypatch.setattr(f"hashstream.stages.{stage}", record)
        (tmp_path / "c.yaml").write_text(options)
        result = hashstream("--config", tmp_path / "c.yaml", *arguments)
        assert seen, result.output
        return seen[0]

    return call


def test_a_file_may_hold_options_of_other_calls(called: Callable[..., dict[str, Any]]) -> None:
    """They are no error, and where two exclude each other, the one that is asked for counts."""
    from hashstream.hashing import PcaItqSettings

    fitting = "fit: {max-steps: 5, labels: t, resume: true, bits: 32}"
    found = called("fit.fit", fitting, "fit", "a", "-o", "h")
    assert (found["settings"], found["resume"]) == (PcaItqSettings(n_bits=32), False)
    found = called("encode.encode", "encode: {bits: 7, checkpoint-seconds: 3}", "encode", "a", "-o", "r", "--hasher=h")
    assert found["hasher"] == Path("h")
    found = called(
        "append.append", "encode: {bits: 7, force: true, partition: 0/2}", "encode", "a", "-o", "r", "--append"
    )
    assert "max_buckets" not in found
    found = called("encode.encode", "encode: {scheduler: 'tcp://h:1'}", "encode", "a", "-o", "r", "--workers", 2)
    assert (found["cluster"].workers, found["cluster"].scheduler) == (2, None)
    found = called("cluster.cluster", "cluster: {n-clusters: 8, atlas: [a]}", "cluster", "r", "--resolution", 2)
    assert (found["n_clusters"], found["resolution"]) == (None, 2)
    found = called("cluster.cluster", "cluster: {resolution: 2}", "cluster", "r", "--n-clusters", 8)
    assert (found["n_clusters"], found["resolution"]) == (8, None)
    found = called("cluster.cluster", "cluster: {resolution: 2}", "cluster", "r", "--method", "ward")
    assert found["resolution"] is None
    by_anchors = "annotate: {reference: q, labels: t, parents: p, novel-rate: 0.1, min-share: 0.5}"
    found = called("annotate_anchors.annotate_by_anchors", by_anchors, "annotate", "r", "--hasher", "h")
    assert found["hasher"] == Path("h")
    found = called("annotate.annotate", "annotate: {hasher: h, labels: t}", "annotate", "r", "--reference", "q")
    assert found["labels"] == "t"
    found = called("reference.add_to_reference", "reference: {labels: t}", "reference", "r", "-o", "d", "--add")
    assert found["atlases"] is None
    neighbours = ("neighbours", "r", "--reference", "d", "-o", "o.parquet")
    found = called("neighbours.neighbours", "neighbours: {candidates: 900}", *neighbours)
    assert found["settings"].candidates is None
    search = ("search", "r", "--queries", "q", "-o", "o.parquet")
    found = called("search.search", "search: {radius: 5}", *search, "-k", 3)
    assert (found["settings"].k, found["settings"].radius) == (3, None)
    found = called("search.search", "search: {neighbours: 5, search-by: index}", *search, "--radius", 3)
    assert (found["settings"].k, found["settings"].radius, found["settings"].method) == (None, 3, "auto")
    found = called("trajectory.trajectory", "trajectory: {root: B}", "trajectory", "r", "--root-cell", 3)
    assert (found["root"], found["root_cell"]) == (None, 3)
    explain = ("explain", "r", "--hasher", "h", "-o", "o.csv")
    found = called("explain.explain", "explain: {bucket: 4, truth: t}", *explain, "--cell", 3)
    assert (found["settings"].cell, found["settings"].bucket) == (3, None)


@pytest.mark.parametrize(
    ("options", "arguments", "bits"),
    [("", (), 128), ("fit: {bits: 48}", (), 48), ("fit: {bits: 48}", ("--bits", 32), 32)],
)
def test_bits_of_anchors(
    called: Callable[..., dict[str, Any]], options: str, arguments: tuple[object, ...], bits: int
) -> None:
    anchors = ("fit", "a", "-o", "h", "--method", "anchors", "--labels", "t")
    assert called("fit_anchors.fit_anchors", options, *anchors, *arguments)["settings"].n_bits == bits


def test_a_variable_of_no_option_is_refused(hashstream: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASHSTREAM_ENCODE_MAX_BUCKET", "5")
    result = hashstream("encode", "a.h5ad", "-o", "run")
    assert result.exit_code == 2
    assert "is it HASHSTREAM_ENCODE_MAX_BUCKETS?" in result.stderr
    assert "HASHSTREAM_ENCODE" not in hashstream("fit", "a.h5ad", "-o", "h").stderr


def test_paths_are_text(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9")
    for arguments in (("encode", small_h5ad, "-o", bad), ("encode", bad, "-o", tmp_path / "run")):
        result = hashstream(*arguments)
        assert result.exit_code == 2
        assert "is no UTF-8" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
            "no space left on the disk",
        ),
        (OSError("Error writing bytes to file. Detail: [errno 27] File too large"), "limit of file sizes is reached"),
        (RuntimeError("File too large (os error 27)"), "limit of file sizes is reached"),
        (RuntimeError("can't start new thread"), "no thread can be started"),
    ],
)
def test_limits_of_the_system_are_no_defects(
    small_h5ad: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    words: str,
) -> None:
    def fail(path: Path) -> None:
        raise error

    monkeypatch.setattr("hashstream.stages.inspect.inspect", fail)
    assert run_command(["inspect", str(small_h5ad)]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert "defect" not in said


@pytest.mark.parametrize("option", [["--json"], ["--seed", "3"], ["--seed=3"], ["-v"], ["--quiet"], ["--config", "c"]])
def test_a_global_option_after_the_verb_is_told_its_place(hashstream: Cli, option: list[str]) -> None:
    name = option[0].partition("=")[0]
    result = hashstream("cluster", "run", *option)
    assert result.exit_code == 2
    words = " ".join(result.stderr.split())
    assert f"No such option {name!r}. " in words or f"No such option: {name}" in words
    assert f"stand before the verb: hashstream {name} ... cluster ..." in words
    assert "before the verb" not in hashstream("cluster", "run", "--nothing").stderr
    assert "before the verb" not in hashstream("--nothing", "cluster", "run").stderr


def test_json_of_the_commands_that_print_a_path(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    """With --json they say what they made; without it stdout is the path alone, for scripts."""

    def data(*arguments: object) -> dict[str, Any]:
        result = hashstream("--json", *arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    made = data("fit", small_h5ad, "-o", tmp_path / "h", "--bits", 16)
    assert (made["path"], made["method"], made["bits"]) == (str(tmp_path / "h"), "pca-itq", 16)
    assert (made["cells"], made["sample_cells"]) == (600, 600)
    assert 0 < made["genes"] <= 300
    assert made["seconds"] > 0
    assert made["peak_rss_bytes"] > 0
    run = data("encode", small_h5ad, "-o", tmp_path / "run", "--hasher", tmp_path / "h")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["path"] == str(tmp_path / "run")
    for name in ("peak_rss_bytes", "projected_peak_bytes", "bucket_bits"):
        assert run[name] == record[name]
    assert (run["cells"], run["buckets"], run["bits"]) == (600, record["n_buckets"], 16)
    assert run["seconds"] == pytest.approx(sum(record["seconds"].values()), abs=0.002)
    assert run["hasher"] == made["fingerprint"]
    part = data("encode", small_h5ad, "-o", tmp_path / "p", "--hasher", tmp_path / "h", "--partition", "0/1")
    assert part == {"path": str(tmp_path / "p"), "partition": "0/1", "whole": False}
    whole = data("finalize", tmp_path / "p")
    assert {k: whole[k] for k in ("cells", "buckets", "bits")} == {k: run[k] for k in ("cells", "buckets", "bits")}
    appended = hashstream("fit", small_h5ad, "-o", tmp_path / "h2", "--bits", 16)
    assert appended.stdout == f"{tmp_path / 'h2'}\n"


def test_json_of_appending_and_of_anchors(hashstream: Cli, small_adata: Any, tmp_path: Path) -> None:
    for name, part in (("a", small_adata[:400]), ("b", small_adata[400:])):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    assert hashstream("encode", tmp_path / "a.h5ad", "-o", tmp_path / "run").exit_code == 0
    result = hashstream("--json", "encode", tmp_path / "b.h5ad", "-o", tmp_path / "run", "--append")
    assert json.loads(result.stdout)["cells"] == 600
    pytest.importorskip("torch")
    fit = ("fit", tmp_path / "a.h5ad", "-o", tmp_path / "h", "--method", "anchors", "--labels", "cell_type")
    result = hashstream("--json", *fit, "--bits", 16, "--n-genes", 50)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["method"] == "anchors"


def test_partitions_are_multiples_as_the_help_says(hashstream: Cli, small_h5ad: Path, tmp_path: Path) -> None:
    text = " ".join(hashstream("encode", "--help").stdout.split())
    assert "Cells a partition: a multiple of 65,536." in text
    for rows in (1, 65_535, 65_537):
        result = hashstream("encode", small_h5ad, "-o", tmp_path / "r", "--partition-rows", rows)
        assert result.exit_code == 2, rows
    assert hashstream("encode", small_h5ad, "-o", tmp_path / "r", "--partition-rows", 65_536).exit_code == 0


@pytest.mark.parametrize("way", ["line", "file", "variable"])
def test_verbose_shows_the_traceback(
    hashstream: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def fail(**_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli.commands["inspect"], "callback", fail)
    assert "report it" in hashstream("inspect", "a").stderr
    (tmp_path / "c.yaml").write_text("verbose: true\n")
    if way == "variable":
        monkeypatch.setenv("HASHSTREAM_VERBOSE", "1")
    before = {"line": ["-v"], "file": ["--config", tmp_path / "c.yaml"], "variable": []}[way]
    assert isinstance(hashstream(*before, "inspect", "a").exception, ZeroDivisionError)
