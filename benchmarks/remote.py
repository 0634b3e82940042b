"""Encode an atlas from a bucket: ``python -m benchmarks.remote [--cells N] [--delay-ms MS] [--json PATH]``.

The bucket is moto's S3 in a process of its own on this machine, which waits before it answers as a distant one would.
The same simulated atlas lies in it twice: in shards, as ``hashstream ingest`` writes it, and in chunks of 200,000
values, each in a file of its own, as AnnData writes zarr by default. Each line is one ``hashstream encode --hasher``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks._simulated import simulated

BUCKET = "cells"
CHUNK = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--delay-ms", type=float, default=30)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.delay_ms / 1e3)
        return
    rows = measure(arguments.cells, arguments.delay_ms, arguments.requests)
    print(
        f"{'atlas':<18}{'from':<8}{'at once':>8}{'asked':>8}{'open s':>8}{'pass s':>8}{'peak MiB':>10}{'model MiB':>10}"
    )
    for row in rows:
        print(
            f"{row['atlas']:<18}{row['from']:<8}{row['at_once']:>8}{row['asked']:>8}{row['open_s']:>8.1f}"
            f"{row['pass_s']:>8.1f}{row['peak_mib']:>10}{row['model_mib']:>10}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"cells": arguments.cells, "delay_ms": arguments.delay_ms, "rows": rows}))


def measure(cells: int, delay_ms: float, requests: list[int]) -> list[dict[str, Any]]:
    source, rows = simulated(cells), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        atlases = {"shards": source, "files of chunks": unsharded(source, folder / "plain.zarr")}
        hashstream("fit", source, "-o", folder / "hasher", "--sample", 20_000)
        command = [sys.executable, "-m", "benchmarks.remote", "--serve", "--delay-ms", str(delay_ms)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().strip()
                for number, (name, path) in enumerate(atlases.items()):
                    upload(address, path, f"{number}.zarr")
                    rows.append({"atlas": name, "from": "disk", "at_once": "", "asked": "", **encode(path, folder)})
                    for at_once in requests:
                        ask(address)
                        variables = {
                            "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
                            "HASHSTREAM_REMOTE_REQUESTS": str(at_once),
                        }  # fmt: skip
                        found = encode(f"s3://{BUCKET}/{number}.zarr", folder, variables)
                        rows.append(
                            {"atlas": name, "from": "bucket", "at_once": at_once, "asked": ask(address), **found}
                        )
            finally:
                server.terminate()
    return rows


def unsharded(source: Path, target: Path) -> Path:
    """A copy whose arrays of X are in a file a chunk."""
    import zarr

    shutil.copytree(source, target)
    given: Any = zarr.open_group(source, mode="r")
    root: Any = zarr.open_group(target, mode="r+", use_consolidated=False)
    for name in ("data", "indices", "indptr"):
        values, attributes = given["X"][name][:], dict(given["X"][name].attrs)
        array = root["X"].create_array(name, shape=values.shape, dtype=values.dtype, chunks=(CHUNK,), overwrite=True)
        array[:] = values
        array.attrs.update(attributes)
    zarr.consolidate_metadata(target)
    return target


def hashstream(*arguments: object, variables: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "hashstream.cli", "--quiet", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **(variables or {})})


def encode(source: str | Path, folder: Path, variables: dict[str, str] | None = None) -> dict[str, Any]:
    run = folder / "run"
    hashstream("encode", source, "-o", run, "--hasher", folder / "hasher", "--force", variables=variables)
    meta = json.loads((run / "run.json").read_text())
    return {
        "open_s": meta["seconds"]["open"],
        "pass_s": meta["seconds"]["stream"],
        "peak_mib": meta["peak_rss_bytes"] >> 20,
        "model_mib": meta["projected_peak_bytes"] >> 20,
    }


def upload(address: str, folder: Path, name: str) -> None:
    import boto3

    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=address, **keys)
    client.create_bucket(Bucket=BUCKET)
    for file in folder.rglob("*"):
        if file.is_file():
            client.put_object(Bucket=BUCKET, Key=f"{name}/{file.relative_to(folder)}", Body=file.read_bytes())


def ask(address: str) -> int:
    """How often the server was asked since this was last asked."""
    with urllib.request.urlopen(f"{address}/asked") as answer:
        return int(answer.read())


def serve(delay_s: float) -> None:
    """A bucket that answers late; its address is printed."""
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    lock, asked = threading.Lock(), 0

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        nonlocal asked
        with lock:
            if environ["PATH_INFO"] == "/asked":
                number, asked = asked, 0
                start("200 OK", [])
                return [str(number).encode()]
            asked += 1
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            time.sleep(delay_s)
        return app(environ, start)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
