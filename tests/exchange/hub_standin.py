"""As much of the Hub's HTTP interface as pushing and fetching a model needs, on loopback and in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each with files by branch."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.failure: int | None = None  # status of every answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def commit_of(files: dict[str, bytes]) -> str:
    """A commit is what its files are."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + files[name])
    return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if self.server.failure is not None:
            return self._answer(self.server.failure, {"error": "as asked for"})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/([a-z]+))?(?:/([^/]+))?.*", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = (api or file or re.fullmatch("()", ""))[1]  # type: ignore[index]
        hidden = name in self.server.private and not self._is_known()
        if name not in self.server.repositories or hidden:
            return self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        branches = self.server.repositories[name]
        if api is not None:
            return self._api(branches, name, api[2], api[3] or "main", body)
        assert file is not None
        return self._resolve(branches, file[2], file[3])

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _create(self, wish: dict[str, Any]) -> None:
        if not self._is_known():
            return self._answer(401, {"error": "Invalid credentials"})
        name = "/".join(part for part in (wish.get("organization"), wish["name"]) if part)
        if name in self.server.repositories:
            return self._answer(409, {"error": "exists", "url": f"{self.server.url}/{name}"})
        self.server.repositories[name] = {"main": {}}
        if wish.get("private") or wish.get("visibility") == "private":
            self.server.private.add(name)
        return self._answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def _api(self, branches: dict[str, dict[str, bytes]], name: str, what: str, revision: str, body: bytes) -> None:
        if what in ("preupload", "commit", "branch") and not self._is_known():
            return self._answer(401, {"error": "Invalid credentials"})
        if what == "branch":
            branches[revision] = dict(branches["main"])
            return self._answer(200, {})
        files = self._files(branches, revision)
        if files is None:
            return self._answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        if what == "preupload":
            wanted = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in wanted]
            return self._answer(200, {"files": modes})
        if what == "commit":
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"{self.server.url}/{name}/commit/{commit_of(files)}"
            return self._answer(200, {"success": True, "commitOid": commit_of(files), "commitUrl": address})
        if what == "tree":
            rows = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            return self._answer(200, rows)
        siblings = [{"rfilename": path} for path in files]
        content = {"id": name, "modelId": name, "sha": commit_of(files), "siblings": siblings, "tags": []}
        return self._answer(200, {**content, "private": name in self.server.private})

    def _files(self, branches: dict[str, dict[str, bytes]], revision: str) -> dict[str, bytes] | None:
        by_commit = {commit_of(files): files for files in branches.values()}
        return branches.get(revision, by_commit.get(revision))

    def _resolve(self, branches: dict[str, dict[str, bytes]], revision: str, path: str) -> None:
        files = self._files(branches, revision)
        if files is None or path not in files:
            return self._answer(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})
        more = {"ETag": f'"{hashlib.sha1(files[path]).hexdigest()}"', "X-Repo-Commit": commit_of(files)}
        return self._answer(200, files[path], more)

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream" if body is content else "application/json")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
