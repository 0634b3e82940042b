"""An S3 server and a web server in threads of this process, which can be told to fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

BUCKET = "cells"
CUT_OFF = -1
"""Instead of a status: break the connection in the middle of the answer; of the web server only."""


class Faults:
    """What is wrong with a server now, and what it has been asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.status, self.part, self.times = 0, "", 0
        self.delay_s = 0.0
        self.asked: list[str] = []
        self.authorization = ""
        self.at_once = self.most_at_once = 0

    def answer(self, status: int, *, part: str = "", times: int = 1 << 30) -> None:
        """Answer the next `times` requests whose path has `part` in it with an HTTP status."""
        self.status, self.part, self.times = status, part, times

    def take(self, path: str) -> int:
        """The status to answer with, or 0 where the request is to be served."""
        with self._lock:
            self.asked.append(path)
            if self.part not in path or self.times <= 0:
                return 0
            self.times -= 1
            return self.status

    @contextmanager
    def counting(self) -> Iterator[None]:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            time.sleep(self.delay_s)
            yield
        finally:
            with self._lock:
                self.at_once -= 1


class S3:
    """moto's S3 with a bucket; its address is `url`."""

    def __init__(self) -> None:
        werkzeug = pytest.importorskip("werkzeug.serving", reason="moto[s3] and flask are not installed")
        pytest.importorskip("flask", reason="flask is not installed, on which moto's server runs")
        moto = pytest.importorskip("moto.server", reason="moto is not installed")
        self.faults = Faults()
        self._app = moto.DomainDispatcherApplication(moto.create_backend_app)
        self._server = werkzeug.make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_quiet())
        self.url = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        self.faults.authorization = environ.get("HTTP_AUTHORIZATION", "")
        status = self.faults.take(environ["PATH_INFO"])
        if status:
            start(f"{status} Fault", [("Content-Type", "text/plain")])
            return [b"told to fail"]
        with self.faults.counting():
            return list(self._app(environ, start))

    def upload(self, folder: Path, name: str) -> str:
        """Put a folder into the bucket and give its URL."""
        import boto3

        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=self.url, **keys)
        client.create_bucket(Bucket=BUCKET)
        for file in folder.rglob("*"):
            if file.is_file():
                client.put_object(
                    Bucket=BUCKET, Key=f"{name}/{file.relative_to(folder)}", Body=file.read_bytes(), ACL="public-read"
                )
        client.close()
        return f"s3://{BUCKET}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _quiet() -> type:
    from werkzeug.serving import WSGIRequestHandler

    class Quiet(WSGIRequestHandler):
        def log(self, *args: Any) -> None:
            """Say nothing."""

    return Quiet


class _Files(SimpleHTTPRequestHandler):
    """Files of a folder; one that knows no ranges, as many servers."""

    def __init__(self, *args: Any, faults: Faults, **more: Any) -> None:
        self.faults = faults
        super().__init__(*args, **more)

    def send_head(self) -> Any:
        status = self.faults.take(self.path)
        if status == CUT_OFF:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(bytes(100))
            self.close_connection = True
            return None
        if status:
            self.send_error(status)
            return None
        return super().send_head()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Web:
    """The files of a folder at `url`."""

    def __init__(self, folder: Path) -> None:
        self.faults = Faults()
        handler = partial(_Files, directory=str(folder), faults=self.faults)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
