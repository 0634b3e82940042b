"""Atlases in buckets and on web servers: the same bytes as local ones, retries, and what goes wrong in words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from click.testing import Result

from hashstream.atlas import open_atlas, remote
from hashstream.errors import BudgetError, InputError, MissingDependencyError, PartialRunError, SettingsError
from hashstream.runtime.run import Run
from hashstream.stages.append import append
from hashstream.stages.encode import encode
from hashstream.stages.encode_plan import EncodeSettings, dry_run
from hashstream.stages.ingest import ingest
from hashstream.stages.truth import run_column
from tests.object_server import CUT_OFF, S3, Web

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'hashstream[remote]'")

FORMS = ("v2", "v3", "sharded", "dense")


def content(run: Run) -> dict[str, bytes]:
    """Bytes of every file of a run but the records, which name the source and the time."""
    records = ("run.json", "hasher.json")
    files = (p for p in run.path.rglob("*") if p.is_file() and p.name not in records)
    return {str(p.relative_to(run.path)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def folder(small_adata: anndata.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same counts in several layouts."""
    import warnings

    folder = tmp_path_factory.mktemp("web")
    dense = small_adata.copy()
    dense.X = dense.X.toarray()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for version in (2, 3):
            with anndata.settings.override(zarr_write_format=version):
                small_adata.write_zarr(folder / f"v{version}.zarr", chunks=(100, 100))
                if version == 3:
                    dense.write_zarr(folder / "dense.zarr", chunks=(200, 300))
        ingest([folder / "v3.zarr"], folder / "sharded.zarr")
        _rechunk(folder / "v3.zarr", 15_000)
    return folder


def _rechunk(path: Path, size: int, names: tuple[str, ...] = ("data", "indices", "indptr")) -> None:
    """Store arrays of X in chunks of `size`."""
    root: Any = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name in names:
        values, attributes = root["X"][name][:], dict(root["X"][name].attrs)
        array = root["X"].create_array(name, shape=values.shape, dtype=values.dtype, chunks=(size,), overwrite=True)
        array[:] = values
        array.attrs.update(attributes)
    zarr.consolidate_metadata(path)


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[S3]:
    server = S3()
    for form in FORMS:
        server.upload(folder / f"{form}.zarr", f"atlases/{form}.zarr")
    yield server
    server.close()


@pytest.fixture
def s3(bucket: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3:
    """The bucket, with no faults, and how to get there in the environment."""
    bucket.faults.reset()
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("HASHSTREAM_REMOTE_RETRIES", "3")
    return bucket


@pytest.fixture(scope="module")
def files(folder: Path) -> Iterator[Web]:
    server = Web(folder)
    yield server
    server.close()


@pytest.fixture
def web(files: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    files.faults.reset()
    monkeypatch.setenv("HASHSTREAM_REMOTE_RETRIES", "3")
    return files


@pytest.fixture(scope="module")
def local(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of the local atlas; tests of formats say that all layouts give it."""
    return encode(folder / "sharded.zarr", tmp_path_factory.mktemp("local") / "run")


@pytest.mark.parametrize("form", FORMS)
def test_a_bucket_gives_the_bytes_of_the_local_path(
    local: Run, s3: S3, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 20_000)
    monkeypatch.setenv("HASHSTREAM_REMOTE_REQUESTS", "3")
    url = f"s3://cells/atlases/{form}.zarr"
    hasher = None if form == "sharded" else local.hasher()
    run = encode(f"{url}/", tmp_path / "run", hasher=hasher, settings=EncodeSettings(chunk_rows=97))
    assert content(run) == content(local)
    assert run.input_paths == [url]


def test_requests_at_once_are_bounded(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASHSTREAM_REMOTE_REQUESTS", "3")
    matrix = open_atlas("s3://cells/atlases/v3.zarr").stores[0].matrix
    s3.faults.delay_s = 0.02
    matrix.read_rows(0, 600)
    assert s3.faults.most_at_once == 3


@pytest.mark.parametrize("form", ["v2", "v3"])
def test_a_web_server_gives_the_bytes_of_the_local_path(local: Run, web: Web, tmp_path: Path, form: str) -> None:
    run = encode(f"{web.url}/{form}.zarr", tmp_path / "run", hasher=local.hasher())
    assert content(run) == content(local)


def test_later_stages_open_the_url_again(local: Run, s3: S3, tmp_path: Path, small_adata: anndata.AnnData) -> None:
    url = "s3://cells/atlases/v3.zarr"
    run = encode(url, tmp_path / "run", hasher=local.hasher())
    codes, names = run_column(run, "cell_type")
    assert [names[code] for code in codes] == small_adata.obs["cell_type"].tolist()
    with pytest.raises(InputError, match=f"{url}: its cells are in .* already"):
        append(url, run.path)
    with pytest.raises(InputError, match="gone.zarr: no zarr store there.*--atlas"):
        run_column(run, "cell_type", atlas=["s3://cells/gone.zarr"])


def test_several_stores_share_what_is_in_flight(s3: S3) -> None:
    atlas = open_atlas(["s3://cells/atlases/v3.zarr", "s3://cells/atlases/sharded.zarr"])
    assert atlas.stores[0].root.store.transfers is atlas.stores[1].root.store.transfers
    assert atlas.n_cells == 1200


def test_the_projection_counts_what_is_in_flight(s3: S3, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parts() -> dict[str, int]:
        return dry_run("s3://cells/atlases/v3.zarr")["projected_parts"]

    assert "network" not in dry_run(folder / "v3.zarr")["projected_parts"]
    before = parts()["network"]
    monkeypatch.setenv("HASHSTREAM_REMOTE_REQUESTS", "20")
    assert parts()["network"] - before == 4 * remote.BLOCK_BYTES
    monkeypatch.setenv("HASHSTREAM_REMOTE_REQUESTS", "600")
    with pytest.raises(BudgetError, match="network 1"):
        parts()


@pytest.mark.parametrize("status", [500, 503])
def test_a_failing_request_is_made_again(local: Run, s3: S3, tmp_path: Path, status: int) -> None:
    s3.faults.answer(status, part="X/indices/c/1", times=2)
    run = encode("s3://cells/atlases/v3.zarr", tmp_path / "run", hasher=local.hasher())
    assert s3.faults.times == 0
    assert content(run) == content(local)


def test_an_answer_that_breaks_off_is_asked_for_again(web: Web, folder: Path) -> None:
    web.faults.answer(CUT_OFF, part="X/data/c/1", times=2)
    read = open_atlas(f"{web.url}/v3.zarr").stores[0].matrix.read_rows(0, 600)
    assert web.faults.times == 0
    assert np.array_equal(read.data, open_atlas(folder / "v3.zarr").stores[0].matrix.read_rows(0, 600).data)


def test_no_more_than_the_stated_retries(s3: S3, tmp_path: Path) -> None:
    s3.faults.answer(503, part="X/data/c/1")
    with pytest.raises(
        InputError, match=r"v3.zarr/X/data/c/1: cannot be read, also when .* 3 time.*run the command again"
    ):
        encode("s3://cells/atlases/v3.zarr", tmp_path / "run")
    assert sum("X/data/c/1" in path for path in s3.faults.asked) % 4 == 0
    assert not (tmp_path / "run").exists()


class Losing:
    """Loses the server when the pass begins."""

    def __init__(self, server: S3) -> None:
        self.server = server

    def start(self, stage: str, total: int, unit: str) -> None:
        if stage == "encode":
            self.server.faults.answer(503, part="X/data")

    def advance(self, n: int) -> None: ...
    def finish(self) -> None: ...
    def note(self, message: str) -> None: ...


def test_a_server_that_is_lost_in_the_pass_leaves_what_can_be_resumed(
    local: Run, s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASHSTREAM_REMOTE_RETRIES", "0")
    url = "s3://cells/atlases/v3.zarr"
    with pytest.raises(PartialRunError, match=r"X/data.*cannot be read.*is kept in .*run.partial: continue with"):
        encode(url, tmp_path / "run", hasher=local.hasher(), progress=Losing(s3))
    assert (tmp_path / "run.partial").is_dir()
    s3.faults.reset()
    assert content(encode(url, tmp_path / "run", hasher=local.hasher(), resume=True)) == content(local)


def test_a_block_that_failed_is_asked_for_again_later(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASHSTREAM_REMOTE_RETRIES", "0")
    store = open_atlas("s3://cells/atlases/sharded.zarr").stores[0]
    store.root.store.transfers.blocks.clear()
    s3.faults.answer(500, part="X/data")
    with pytest.raises(InputError, match="cannot be read"):
        store.matrix.read_rows(0, 20)
    s3.faults.reset()
    assert store.matrix.read_rows(0, 20).n_rows == 20


def test_a_lost_server_is_a_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hashstream: Callable[..., Result], tmp_path: Path
) -> None:
    monkeypatch.setenv("HASHSTREAM_REMOTE_RETRIES", "1")
    server = Web(folder)
    atlas = open_atlas(f"{server.url}/v3.zarr")
    server.close()
    with pytest.raises(InputError, match="cannot be read, also when asked again up to 1 time"):
        atlas.stores[0].matrix.read_rows(500, 600)
    result = hashstream("encode", f"{server.url}/v3.zarr", "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert "cannot be read, also when asked again up to 1 time" in result.stderr
    assert "Traceback" not in result.stderr
    assert "defect" not in result.stderr


def test_a_process_ends_in_one_line_where_nobody_answers() -> None:
    """Requests that are still under way, or failed together with the first, say nothing as the process ends."""
    command = [sys.executable, "-m", "hashstream.cli", "inspect", "http://127.0.0.1:1/a.zarr"]
    done = subprocess.run(
        command, env={**os.environ, "HASHSTREAM_REMOTE_RETRIES": "0"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("url", ["s3://cells/atlases/none.zarr", "s3://no-such-bucket/atlas.zarr"])
def test_a_missing_bucket_or_key_is_a_message(s3: S3, url: str) -> None:
    with pytest.raises(InputError, match=f"{url}: no zarr store there.*the path, or the bucket, does not exist"):
        open_atlas(url)


def test_denied_access_and_no_credentials_are_messages(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.faults.answer(403)
    with pytest.raises(InputError, match=r"access denied; set AWS_ACCESS_KEY_ID .*AWS_SKIP_SIGNATURE=true"):
        open_atlas("s3://cells/atlases/v3.zarr")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3.faults.answer(404, part="latest")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", s3.url)  # where a machine of Amazon's would learn its role
    with pytest.raises(InputError, match=r"no credentials found; set AWS_ACCESS_KEY_ID"):
        open_atlas("s3://cells/atlases/v3.zarr")
    s3.faults.reset()
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert open_atlas("s3://cells/atlases/v3.zarr").n_cells == 600
    assert s3.faults.authorization == ""


def test_a_profile_of_the_aws_command_line_is_used(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("boto3", reason="profiles are read by boto3, which is not installed")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = LABKEY\naws_secret_access_key = c\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert open_atlas("s3://cells/atlases/v3.zarr").n_cells == 600
    assert "Credential=LABKEY/" in s3.faults.authorization
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(InputError, match="the AWS profile cannot be used"):
        open_atlas("s3://cells/atlases/v3.zarr")


def test_a_lost_chunk_of_a_sparse_matrix_is_noticed_when_it_is_read(s3: S3) -> None:
    s3.faults.answer(404, part="X/data/c/1")
    with pytest.raises(InputError, match="X/data/c/1: this chunk is missing"):
        open_atlas("s3://cells/atlases/v3.zarr").stores[0].matrix.read_rows(0, 600)


def test_a_lost_chunk_of_a_dense_matrix_is_noticed(folder: Path, s3: S3, web: Web, tmp_path: Path) -> None:
    web.faults.answer(404, part="X/c/1/0")
    with pytest.raises(InputError, match="1 of 3 chunks are missing"):
        open_atlas(f"{web.url}/dense.zarr")
    shutil.copytree(folder / "dense.zarr", tmp_path / "dense.zarr")
    (tmp_path / "dense.zarr" / "X" / "c" / "2" / "0").unlink()
    url = s3.upload(tmp_path / "dense.zarr", "lost/dense.zarr")
    with pytest.raises(InputError, match="1 of 3 chunks are missing"):
        open_atlas(url)


def test_pointers_of_first_cells_without_counts_need_no_chunk(
    s3: S3, web: Web, folder: Path, small_adata: anndata.AnnData, tmp_path: Path
) -> None:
    import warnings

    some = small_adata.copy()
    some.X = sp.vstack([sp.csr_matrix((250, 300), dtype=np.float32), some.X[250:]], format="csr")
    with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        some.write_zarr(tmp_path / "some.zarr")
        _rechunk(tmp_path / "some.zarr", 100, ("indptr",))
    chunks = tmp_path / "some.zarr" / "X" / "indptr" / "c"
    assert sorted(int(p.name) for p in chunks.iterdir()) == [2, 3, 4, 5, 6]
    for url in (s3.upload(tmp_path / "some.zarr", "first/some.zarr"), _served(web, folder, tmp_path / "some.zarr")):
        matrix = open_atlas(url).stores[0].matrix
        assert np.array_equal(np.diff(matrix.read_rows(0, 600).indptr), np.diff(some.X.indptr))
    (chunks / "2").unlink()
    for url in (s3.upload(tmp_path / "some.zarr", "lost/some.zarr"), _served(web, folder, tmp_path / "some.zarr")):
        with pytest.raises(InputError, match="X/indptr: 3 of 7 chunks are missing"):
            open_atlas(url)
    # Where the first is there, the others are not looked for: reading tells.
    s3.faults.answer(404, part="X/indptr/c/0")
    with pytest.raises(InputError, match="X/indptr/c/0: this chunk is missing"):
        open_atlas("s3://cells/atlases/v3.zarr")


def _served(web: Web, folder: Path, store: Path) -> str:
    """URL of a copy of a store."""
    shutil.rmtree(folder / store.name, ignore_errors=True)
    shutil.copytree(store, folder / store.name)
    return f"{web.url}/{store.name}"


def test_shards_need_a_server_that_sends_parts(web: Web) -> None:
    with pytest.raises(InputError, match="cannot send parts of a file"):
        open_atlas(f"{web.url}/sharded.zarr").stores[0].fingerprint()


def test_a_stamp_notices_a_change(s3: S3, web: Web, folder: Path) -> None:
    before = open_atlas("s3://cells/atlases/v3.zarr").stores[0].stamp()
    assert before[0] == sum(p.is_file() for p in (folder / "v3.zarr" / "X").rglob("*"))
    assert before[1] == sum(p.stat().st_size for p in (folder / "v3.zarr" / "X").rglob("*") if p.is_file())
    number, size, changed = open_atlas(f"{web.url}/v3.zarr").stores[0].stamp()
    assert (number, size) == (1, (folder / "v3.zarr" / "zarr.json").stat().st_size)
    assert changed > 0


@pytest.mark.parametrize("url", ["https://host/atlas.h5ad", "s3://cells/some.H5"])
def test_hdf5_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="an HDF5 file cannot be read over the network. Download it"):
        open_atlas(url)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://me:hunter2@host/a.zarr", "comes with a user"),
        ("https://host/a.zarr?X-Amz-Signature=hunter2", "comes with a query"),
        ("https://host/a.zarr#hunter2", "comes with a query"),
        ("ftp://me:hunter2@host/a.zarr", "a URL that begins with s3://, gs://, az://, https://, http://"),
        ("file:///etc/passwd", "expected the path of an atlas on this machine"),
        ("s3://bucket", "expected a URL such as s3://BUCKET/PATH/ATLAS.zarr"),
        ("s3:///a.zarr", "expected a URL such as"),
        ("s3://bucket/../other/a.zarr", "expected a URL such as"),
        ("http://host:hunter2/a.zarr", "not a URL"),
    ],
)
def test_urls_that_are_refused_and_no_secret_is_shown(url: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        open_atlas(url)
    assert "hunter2" not in str(caught.value) or "port" in str(caught.value).lower()


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "hashstream\[remote\]"'):
        open_atlas("s3://cells/a.zarr")


@pytest.mark.parametrize(("name", "value"), [("REQUESTS", "0"), ("RETRIES", "-1"), ("TIMEOUT", "soon")])
def test_settings_are_checked(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"HASHSTREAM_REMOTE_{name}", value)
    with pytest.raises(SettingsError, match=f"HASHSTREAM_REMOTE_{name} is"):
        open_atlas("s3://cells/a.zarr")


def test_the_command_line_takes_urls_of_atlases_alone(
    local: Run, s3: S3, tmp_path: Path, hashstream: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "s3://cells/atlases/v3.zarr"
    assert hashstream("encode", url, "-o", "run", "--hasher", local.path / "hasher").exit_code == 0
    assert np.array_equal(Run.open("run").codes(), local.codes())
    assert hashstream("export", "run", "--to", "out.h5ad", "--no-counts", "--atlas", url).exit_code == 0
    assert "600" in hashstream("inspect", url).stdout
    for arguments in (["encode", "a.zarr", "-o", "s3://cells/run"], ["ingest", url, "b.zarr"], ["cluster", "s3://c/r"]):
        result = hashstream(*arguments)
        assert result.exit_code == 2
        assert "is a URL; a path on this machine is expected here" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.h5ad", "run"]
