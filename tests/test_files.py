"""What is on disk under its own name is whole, and nobody builds the same thing at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hashstream.errors import InputError, SettingsError, TargetExistsError
from hashstream.runtime.exchange import publish, restore
from hashstream.runtime.files import (
    ZARR_SIGNS,
    check_file_target,
    check_folder_target,
    followed,
    new_file,
    partial_path,
    remove,
)
from hashstream.runtime.folder_lock import FolderLock, new_folder


class Interrupted(Exception):
    """Stands for whatever may go wrong."""


def leave_half(path: Path) -> None:
    path.write_text("half")
    raise Interrupted


def folder_with(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "is").write_text(text)
    return path


def test_folders_above_a_target_are_made(tmp_path: Path) -> None:
    check_folder_target(tmp_path / "a" / "b" / "run", "run", ("run.json",), force=False)
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        check_folder_target(tmp_path / "file" / "run", "run", ("run.json",), force=False)


def test_only_what_a_folder_is_for_is_replaced(tmp_path: Path) -> None:
    signs = ("run.json", "run.partial")
    for name in ("empty", "run", "thesis"):
        (tmp_path / name).mkdir()
        with pytest.raises(TargetExistsError, match="already there"):
            check_folder_target(tmp_path / name, "run", signs, force=False)
    check_folder_target(tmp_path / "empty", "run", signs, force=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    check_folder_target(tmp_path / "run", "run", signs, force=True)
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    (tmp_path / "notes.txt").write_text("")
    for name in ("thesis", "notes.txt"):
        with pytest.raises(TargetExistsError, match="is no run, so --force does not replace it"):
            check_folder_target(tmp_path / name, "run", signs, force=True)


@pytest.mark.parametrize("end", [".partial", ".replaced"])
def test_what_lies_where_a_target_is_built_is_not_taken_for_ours(tmp_path: Path, end: str) -> None:
    target, folder = tmp_path / "run", tmp_path / f"run{end}"
    folder.mkdir()
    check_folder_target(target, "run", ("run.json",), force=True)  # nothing in it
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(TargetExistsError, match=f"run{end}: .* holds something else, such as thesis.txt"):
        check_folder_target(target, "run", ("run.json",), force=True)
    (folder / "plan.json").write_text("{}")  # left of a killed command, with what somebody put into it
    check_folder_target(target, "run", ("run.json",), force=True)
    remove(folder)
    (tmp_path / "precious").mkdir()
    folder.symlink_to("precious")
    with pytest.raises(TargetExistsError, match=f"run{end}: a link"):
        check_folder_target(target, "run", ("run.json",), force=True)


def test_a_folder_that_nobody_may_write_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(InputError, match="this user may not write into this folder; choose another target"):
        check_folder_target(tmp_path / "run", "run", ("run.json",), force=False)


def test_a_file_never_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    folder_with(tmp_path / "mine", "kept")
    with pytest.raises(TargetExistsError, match="a folder"):
        check_file_target(tmp_path / "mine", force=True)
    with pytest.raises(IsADirectoryError), new_file(tmp_path / "mine") as aside:
        aside.write_text("new")
    assert (tmp_path / "mine" / "is").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(Interrupted), new_file(target) as aside:
        leave_half(aside)
    assert target.read_text() == "old"
    with new_file(target) as aside:
        aside.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool, there: bool) -> None:
    if not at_once:
        monkeypatch.setattr("hashstream.runtime.exchange.exchange", lambda *_: False)
    if there:
        folder_with(tmp_path / "run", "old")
    publish(folder_with(tmp_path / "run.partial", "new"), tmp_path / "run")
    assert (tmp_path / "run" / "is").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_was_just_taken_away_is_restored(tmp_path: Path) -> None:
    folder_with(tmp_path / "database.replaced", "old")
    assert restore(tmp_path / "database")
    assert (tmp_path / "database" / "is").read_text() == "old"
    folder_with(tmp_path / "database.replaced", "older")
    assert not restore(tmp_path / "database")


def test_a_link_is_followed_and_nothing_is_made_in_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert check_folder_target(tmp_path / "link", "run", ("run.json",), force=False) == (tmp_path / "there").resolve()
    folder_with(tmp_path / "tenx", "")
    check_folder_target(
        tmp_path / "tenx" / "atlas.zarr", "zarr store", ZARR_SIGNS, force=False, sources=tmp_path / "tenx"
    )
    folder_with(tmp_path / "atlas.zarr", "")
    (tmp_path / "atlas.zarr" / "zarr.json").write_text("{}")
    for target, words in (("atlas.zarr", "is source and target"), ("atlas.zarr/run", "which is read")):
        with pytest.raises(SettingsError, match=words):
            check_folder_target(
                tmp_path / target, "run", ("is",), force=True, sources=[tmp_path / "atlas.zarr", "s3://a/b.zarr"]
            )


@pytest.mark.parametrize("keep", ["is", None])
def test_a_new_folder(tmp_path: Path, keep: str | None) -> None:
    target, partial = tmp_path / "out", tmp_path / "out.partial"
    folder_with(partial, "left")
    (partial / "of another call").write_text("")
    with pytest.raises(Interrupted), new_folder(target, keep=keep) as folder:
        leave_half(folder / "half")
    kept = keep is not None
    assert (target.exists(), partial.exists(), (partial / "is").exists()) == (False, kept, kept)
    assert not (partial / "of another call").exists()
    with new_folder(target, keep=keep) as folder:
        (folder / "more").write_text("")
    assert (target / "more").exists()
    assert not partial.exists()


def test_another_process_does_not_take_a_folder_that_is_being_filled(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "mine").write_text("")
        code = (
            "import sys, pathlib; from hashstream.runtime.folder_lock import new_folder\n"
            "with new_folder(pathlib.Path(sys.argv[1])): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=False
        )
        assert "another process is writing here" in other.stderr
        assert (folder / "mine").exists()
    with pytest.raises(SettingsError), new_folder(tmp_path / "out"):
        FolderLock(tmp_path / "out.partial")
    assert os.listdir(tmp_path) == ["out"]


def test_a_folder_is_called_as_it_is_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one stands in it, it has no name of its own."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for given, place in ((".", tmp_path / "a" / "b"), ("..", tmp_path / "a"), ("c/..", tmp_path / "a" / "b")):
        assert followed(Path(given)) == place
        assert partial_path(Path(given)) == place.with_name(place.name + ".partial")
    assert followed(Path("c")) == Path("c")
    with pytest.raises(SettingsError, match="the root of the file system"):
        followed(Path("/"))
