"""A store of models over http: a page with links to files, as fsspec reads it, or Hugging Face's API.

Of that API it has what `HfApi.model_info` and `HfFileSystem` of huggingface_hub 2.4 ask: the commit of a
model, the tree of a commit, and files by `resolve`. `HF_ENDPOINT` names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMIT = "c" * 40
_PIECE_BYTES = 1 << 16


class ModelServer(http.server.ThreadingHTTPServer):
    """Serves one model's folder."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder = folder
        self.gets: Counter[str] = Counter()
        """Of files, by name."""
        self.cut_off: Counter[str] = Counter()
        """How many of the next answers of a file end early."""
        self.stalled = ""
        """A file that stops in its middle, until `go_on`."""
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.pace_s = 0.0
        """Between two pieces of a file."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/store/tiny"

    def files(self) -> list[str]:
        return sorted(
            path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()
        )


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ModelServer]:
    server = ModelServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        thread.join(10)
        server.server_close()


class _Answers(http.server.BaseHTTPRequestHandler):
    server: ModelServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        api = "/api/models/org/tiny"
        resolve = f"/org/tiny/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/{COMMIT}"):
            self._json({"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": []})
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self._json([self._entry(name) for name in self.server.files()])
        elif path.startswith(resolve):
            self._file(path.removeprefix(resolve), with_body=with_body)
        elif path.rstrip("/") == "/store/tiny":
            self._links(self.server.folder)
        elif path.startswith("/store/tiny/") and (folder := self.server.folder / path[12:]).is_dir():
            self._links(folder)
        elif path.startswith("/store/tiny/"):
            self._file(path.removeprefix("/store/tiny/"), with_body=with_body)
        else:
            self.send_error(404)

    def _entry(self, name: str) -> dict[str, Any]:
        content = (self.server.folder / name).read_bytes()
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def _links(self, folder: Path) -> None:
        names = [path.name + "/" * path.is_dir() for path in sorted(folder.iterdir())]
        links = "".join(f'<a href="{name}">{name}</a>\n' for name in names)
        self._whole(f"<html><a href='../'>up</a>{links}</html>".encode(), "text/html")

    def _json(self, value: Any) -> None:
        self._whole(json.dumps(value).encode(), "application/json")

    def _whole(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _file(self, name: str, *, with_body: bool) -> None:
        path = self.server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.send_header("accept-ranges", "none")
        self.send_header("etag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("x-repo-commit", COMMIT)
        self.end_headers()
        if not with_body:
            return
        self.server.gets[name] += 1
        with contextlib.suppress(OSError):
            self._body(name, content)

    def _body(self, name: str, content: bytes) -> None:
        if self.server.cut_off[name] > 0:
            self.server.cut_off[name] -= 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        for at in range(0, len(content), _PIECE_BYTES):
            if self.server.stalled == name and at >= len(content) // 2:
                self.server.reached.set()
                self.server.go_on.wait(60)
            self.wfile.write(content[at : at + _PIECE_BYTES])
            if self.server.pace_s and self.server.go_on.wait(self.server.pace_s):
                return
