"""A hub of data sets and models on loopback: as much of the Hugging Face hub's API as huggingface_hub and datasets ask
for.

    with Hub({"a/b": Repository("c" * 40, {"README.md": b"..", "data/train-00000-of-00001.parquet": parquet(rows)})}) as
    hub:
        environment = hub.environment(tmp_path)      # for a process of its own: the libraries read HF_ENDPOINT when
        they are imported

Served: info at a revision, tree listing, paths-info, refs, whoami; resolve with the hub's headers, a redirect to
another path for what is in LFS there, and ranges. Refused as the hub does: 401 for what is not there or gated without a
token, 403 for terms not accepted, 404 with X-Error-Code, 429 with Retry-After, 5xx. Bodies may break off. What is asked
and not served is an error of the test (`hub.strange`).

Files of other sites (lists of a pool, WARCs) are served beside them, below `hub.site`, with the same troubles.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

TOKEN = "hf_loopback"


@dataclass
class Repository:
    """A data set or a model at one commit. busy: how many answers are 429 first; broken: how many are 503 first; cut:
    how many bodies of files break off in the middle first.
    """

    commit: str
    files: Mapping[str, bytes]
    gated: bool = False
    accepted: bool = True
    busy: int = 0
    broken: int = 0
    cut: int = 0
    asked: list[str] = field(default_factory=list)


@dataclass
class SiteFile:
    """A file of another site. moved: whether its address leads to another host; busy, broken, cut: as a
    repository's.
    """

    data: bytes
    moved: bool = False
    busy: int = 0
    broken: int = 0
    cut: int = 0
    asked: list[str] = field(default_factory=list)


def parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> bytes:
    """Rows as a Parquet file."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out)
    return out.getvalue()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Hub:
    """The server. A context manager."""

    def __init__(self, repositories: Mapping[str, Repository], site: Mapping[str, SiteFile] | None = None) -> None:
        """site: files of other sites, by path."""
        self.repositories, self.files = dict(repositories), dict(site or {})
        self.strange: list[str] = []
        self._lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._cdn = (  # another host, as the hub's: a redirect within one is followed otherwise
            f"http://localhost:{self._server.server_address[1]}"
        )
        self.site = f"{self.endpoint}/site"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process that uses this hub and nothing else of this machine's settings of it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        found = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return kept | found | ({"HF_TOKEN": token} if token else {})

    def enter(self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = None) -> None:
        """Give this process that environment: also without what the libraries of an earlier test left in it (a trainer
        that was imported has switched the hub off).
        """
        given = self.environment(home, token)
        for name in os.environ.keys() - given.keys():
            monkeypatch.delenv(name)
        for name, value in given.items():
            monkeypatch.setenv(name, value)

    # --- answers --------------------------------------------------------------------------------------------------

    def _answer(self, ask: BaseHTTPRequestHandler) -> None:
        length = int(ask.headers.get("Content-Length") or 0)
        body = ask.rfile.read(length) if length else b""
        path = urllib.parse.unquote(urllib.parse.urlsplit(ask.path).path)
        if path == "/api/whoami-v2":
            return _send(ask, 200 if _token(ask) else 401, {"type": "user", "name": "somebody"})
        if path.startswith("/cdn/"):  # no token goes there
            name, _, file = path.removeprefix("/cdn/").partition("/-/")
            return self._file(ask, self.repositories[name], self.repositories[name].files[file])
        if path.startswith("/site/"):
            return self._of_site(ask, path.removeprefix("/site/"))
        parts = path.removeprefix("/api").strip("/").split("/")
        if parts[0] in ("datasets", "models"):
            parts = parts[1:]
        elif parts[2:3] != ["resolve"]:  # a model's files have no word before its name
            return self._strange(ask)
        if len(parts) < 2:
            return self._strange(ask)
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.repositories.get(name)
        if repository is None:  # the hub tells nobody whether a name is unknown or private
            return _refuse(ask, 401, "RepoNotFound", "Repository not found. Invalid username or password.")
        if self._troubled(ask, repository, path):
            return None
        api = path.startswith("/api/")
        revision = rest[1] if len(rest) > 1 and rest[0] in ("revision", "tree", "paths-info", "resolve") else "main"
        if revision not in ("main", repository.commit, repository.commit[:7]):
            return _refuse(ask, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if repository.gated and (not api or rest[:1] in (["tree"], ["paths-info"])):
            if not _token(ask):
                return _refuse(
                    ask,
                    401,
                    "GatedRepo",
                    f"Access to dataset {name} is restricted. You must have access to it and be authenticated.",
                )
            if not repository.accepted:
                return _refuse(
                    ask,
                    403,
                    "GatedRepo",
                    f"Access to dataset {name} is restricted and you are not in the authorized list.",
                )
        if not api:
            return (
                self._resolve(ask, name, repository, "/".join(rest[2:]))
                if rest[:1] == ["resolve"]
                else self._strange(ask)
            )
        if rest[:1] in ([], ["revision"]):
            return _send(ask, 200, _info(name, repository))
        if rest[:1] == ["refs"]:
            return _send(
                ask,
                200,
                {
                    "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": repository.commit}],
                    "converts": [],
                    "tags": [],
                },
            )
        if rest[:1] == ["tree"]:
            return _tree(ask, repository, "/".join(rest[2:]))
        if rest[:1] == ["paths-info"]:
            return _paths(ask, repository, body)
        return self._strange(ask)

    def _troubled(self, ask: BaseHTTPRequestHandler, one: Repository | SiteFile, path: str) -> bool:
        """Whether a request got a refusal that is over soon."""
        with self._lock:
            one.asked.append(f"{ask.command} {path} {ask.headers.get('Range') or ''}".strip())
            if one.busy:
                one.busy -= 1
                _refuse(ask, 429, "", "Too many requests", {"Retry-After": "0"})
                return True
            if one.broken:
                one.broken -= 1
                _refuse(ask, 503, "", "Service Unavailable")
                return True
        return False

    def _of_site(self, ask: BaseHTTPRequestHandler, path: str) -> None:
        moved = path.startswith("moved/")
        one = self.files.get(path.removeprefix("moved/"))
        if one is None:
            return _refuse(ask, 404, "", "Not Found")
        if self._troubled(ask, one, path):
            return None
        if one.moved and not moved:
            return _reply(ask, 302, b"", {"Location": f"{self._cdn}/site/moved/{urllib.parse.quote(path)}"})
        return self._file(ask, one, one.data)

    def _file(
        self,
        ask: BaseHTTPRequestHandler,
        one: Repository | SiteFile,
        whole: bytes,
        head: Mapping[str, str] | None = None,
    ) -> None:
        """A file, or the range of it that is asked for."""
        data, status, extra = whole, 200, {}
        if (asked_range := ask.headers.get("Range") or "").startswith("bytes="):
            first, _, last = asked_range.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(data) - int(last))
            end = min(int(last) + 1 if first and last else len(data), len(data))
            if start >= len(data):
                return _reply(ask, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
            extra = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
            data, status = data[start:end], 206
        tag = {"Accept-Ranges": "bytes", "ETag": f'"{hashlib.sha256(whole).hexdigest()}"'}
        with self._lock:
            cut = bool(one.cut) and ask.command == "GET"
            one.cut -= cut
        return _reply(ask, status, data, {**tag, **(head or {}), **extra}, cut)

    def _strange(self, ask: BaseHTTPRequestHandler) -> None:
        self.strange.append(f"{ask.command} {ask.path}")
        _refuse(ask, 404, "EntryNotFound", "not served by the loopback hub")

    def _resolve(self, ask: BaseHTTPRequestHandler, name: str, repository: Repository, file: str) -> None:
        if file not in repository.files:
            return _refuse(ask, 404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit})
        data = repository.files[file]
        etag = hashlib.sha256(data).hexdigest()
        head = {"X-Repo-Commit": repository.commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if not _large(file):
            return self._file(ask, repository, data, head)
        head |= {
            "X-Linked-Size": str(len(data)),
            "X-Linked-Etag": f'"{etag}"',
            "Location": f"{self._cdn}/cdn/{name}/-/{urllib.parse.quote(file)}",
        }
        return _reply(ask, 302, b"", head)


def _large(file: str) -> bool:
    """Whether the hub keeps a file in LFS."""
    return not file.endswith((".md", ".json", ".gitattributes"))


def _token(ask: BaseHTTPRequestHandler) -> bool:
    return ask.headers.get("Authorization") == f"Bearer {TOKEN}"


def _info(name: str, repository: Repository) -> dict[str, Any]:
    files = [{"rfilename": file} for file in repository.files]
    return {
        "_id": "0" * 24,
        "id": name,
        "author": name.partition("/")[0],
        "sha": repository.commit,
        "private": False,
        "disabled": False,
        "gated": "auto" if repository.gated else False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "siblings": files,
    }


def _entry(file: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha256(data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "oid": oid[:40], "size": len(data), "path": file}
    return entry | ({"lfs": {"oid": oid, "size": len(data), "pointerSize": 134}} if _large(file) else {})


def _tree(ask: BaseHTTPRequestHandler, repository: Repository, folder: str) -> None:
    recursive = urllib.parse.parse_qs(urllib.parse.urlsplit(ask.path).query).get("recursive", ["false"])[0].lower() in (
        "true",
        "1",
    )
    prefix = f"{folder}/" if folder else ""
    inside = {file: data for file, data in repository.files.items() if file.startswith(prefix)}
    if folder and not inside:
        _refuse(ask, 404, "EntryNotFound", f'{folder} does not exist on "main"')
        return
    folders = sorted(
        {
            prefix + "/".join(parts[:n])
            for file in inside
            for parts in (file.removeprefix(prefix).split("/"),)
            for n in range(1, len(parts))
            if recursive or n == 1
        }
    )
    files = [_entry(file, data) for file, data in inside.items() if recursive or "/" not in file.removeprefix(prefix)]
    _send(ask, 200, [*({"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders), *files])


def _paths(ask: BaseHTTPRequestHandler, repository: Repository, body: bytes) -> None:
    if "json" in (ask.headers.get("Content-Type") or ""):
        wanted = json.loads(body)["paths"]
    else:
        wanted = urllib.parse.parse_qs(body.decode()).get("paths", [])
    found = []
    for path in [wanted] if isinstance(wanted, str) else wanted:
        if path in repository.files:
            found.append(_entry(path, repository.files[path]))
        elif any(file.startswith(f"{path}/") for file in repository.files):
            found.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
    _send(ask, 200, found)


def _send(ask: BaseHTTPRequestHandler, status: int, value: Any) -> None:
    _reply(ask, status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})


def _refuse(
    ask: BaseHTTPRequestHandler, status: int, code: str, message: str, head: Mapping[str, str] | None = None
) -> None:
    named = {"X-Error-Code": code} if code else {}
    _reply(
        ask,
        status,
        json.dumps({"error": message}).encode(),
        {"Content-Type": "application/json", "X-Error-Message": message, **named, **(head or {})},
    )


def _reply(ask: BaseHTTPRequestHandler, status: int, data: bytes, head: Mapping[str, str], cut: bool = False) -> None:
    """cut: half of the body comes, then the connection closes."""
    ask.send_response(status)
    for name, value in head.items():
        ask.send_header(name, value)
    ask.send_header("Content-Length", str(len(data)))
    ask.end_headers()
    if ask.command != "HEAD":
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a reader that seeks goes away
            ask.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
        ask.close_connection = True
